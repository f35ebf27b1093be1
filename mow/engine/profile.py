"""--profile: a timeline of a few steps of training, all threads of this process and the GPU, for a browser."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


class Trace:
    """Records `record` calls of `step` after leaving out `skip`, then writes `path` and reports it.

    The file is in Chrome's trace format: chrome://tracing or ui.perfetto.dev show it. The parts that the run's own
    stopwatch names stand in it as mow.PART, the gathering of batches in the background as mow.prefetch.
    """

    def __init__(
        self, path: Path, device: torch.device, say: Callable[[str], None], *, skip: int, record: int
    ) -> None:
        from torch._C._profiler import _ExperimentalConfig  # here, as any version of torch may move it

        self.path, self.say = path, say
        self._steps, self._first, self._last = 0, skip, skip + record
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        self._profile = profile(
            activities=activities, experimental_config=_ExperimentalConfig(profile_all_threads=True)
        )
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
        """Write what there is, if there is something; a run may end before the last step that was to be recorded."""
        if not self._on:
            return
        self._on = False
        self._profile.stop()
        self._profile.export_chrome_trace(str(self.path))
        recorded = min(self._steps, self._last) - self._first
        self.say(f"trace of {recorded} steps: {self.path} (ui.perfetto.dev shows it)")
