"""--profile: a timeline of a few steps of training, all threads of this process and the GPU, for a browser."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


class Trace:
    """Watches `record` calls of `step` after leaving out `skip`, then writes `path` and reports it.

    The file is in Chrome's trace format: chrome://tracing or ui.perfetto.dev show it. The parts that the run's own
    stopwatch names stand in it as mow.PART, the gathering of batches in the background as mow.prefetch.
    """

    def __init__(
        self, path: Path, device: torch.device, say: Callable[[str], None], *, skip: int, record: int
    ) -> None:
        self.path, self.say = path, say
        self._steps, self._first, self._last = 0, skip, skip + record
        activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities, experimental_config=_all_threads(say))
        self._on = False

    def step(self) -> None:
        """After each step of the run."""
        self._steps += 1
        if self._steps == self._first:
            self._profile.start()
            self._on = True
        elif self._steps == self._last:
            self.close()

    def close(self) -> None:
        """Write what there is, if there is something; a run may end before the last step that was to be watched."""
        if not self._on:
            return
        self._on = False
        self._profile.stop()
        self._profile.export_chrome_trace(str(self.path))
        watched = min(self._steps, self._last) - self._first
        self.say(f"trace of {watched} steps: {self.path} (ui.perfetto.dev shows it)")


def _all_threads(say: Callable[[str], None]) -> Any:
    """The setting that records the thread that gathers batches; torch keeps it where any version may move it."""
    try:
        from torch._C._profiler import _ExperimentalConfig

        return _ExperimentalConfig(profile_all_threads=True)
    except (ImportError, TypeError) as error:
        say(f"trace: only this thread is recorded, torch {torch.__version__} has no profile_all_threads ({error})")
        return None
