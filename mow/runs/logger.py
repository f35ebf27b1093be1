"""Logs of a run: TensorBoard, metrics.jsonl, a progress line."""

import json
import logging
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function
from torch.utils.tensorboard import SummaryWriter

from mow.envs.base import Episode, Restart
from mow.nn.finite import REMEDY
from mow.runs.wandb import WandbMirror


class MetricMeans:
    """Means of metrics between two readings, kept on the device so that an update never waits for the host."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Take in one update's metrics: name -> [K] or a scalar."""
        for name, value in metrics.items():
            self._sums[name] = value.detach().float() + self._sums.get(name, 0.0)
            self._counts[name] = self._counts.get(name, 0) + 1

    def read(self) -> dict[str, list[float] | float]:
        """Means since the last reading: a list where there is one per task, else a number; starts anew."""
        means: dict[str, list[float] | float] = {}
        means |= {name: (total / self._counts[name]).tolist() for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Sums and counts since the last reading."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]], device: torch.device) -> None:
        """Go on from a state_dict()."""
        self._sums = {name: total.to(device) for name, total in state["sums"].items()}
        self._counts = dict(state["counts"])


class Stopwatch:
    """Seconds that the host spends on each part between two readings; what a GPU still computes is not waited for."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def on(self, part: str) -> Iterator[None]:
        """Counts what happens inside towards `part`, and names it in a profiler's timeline."""
        started = time.monotonic()
        try:
            with record_function(f"mow.{part}"):
                yield
        finally:
            self._seconds[part] = self._seconds.get(part, 0.0) + time.monotonic() - started

    @property
    def so_far(self) -> dict[str, float]:
        """Seconds since the last reading, by part."""
        return dict(self._seconds)

    def read(self) -> dict[str, float]:
        """Seconds since the last reading, as metrics time/PART; starts anew."""
        seconds, self._seconds = self._seconds, {}
        return {f"time/{part}": round(value, 3) for part, value in seconds.items()}


class Logger:
    """Writes to `folder`; step counts are environment steps per task."""

    def __init__(self, folder: Path, frame_skip: int | None, mirror: WandbMirror | None = None) -> None:
        """Args:
            frame_skip: frames per environment step; None where tasks differ in it, and no frames are counted then.
            mirror: receives every line of metrics.jsonl too, and is closed with this.
        """
        self.folder, self.frame_skip, self._mirror = folder, frame_skip, mirror
        self._started, self._cpu_before = time.monotonic(), 0.0
        self._lines = open(folder / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self._earlier = event_files(folder)
        self._hook, threading.excepthook = threading.excepthook, self._of_a_thread

    @cached_property
    def _board(self) -> SummaryWriter:
        """Made when something is written: a run that is refused before its first step leaves no file."""
        return SummaryWriter(str(self.folder))

    @property
    def seconds(self) -> float:
        """Duration of the run, all its processes together."""
        return time.monotonic() - self._started

    @property
    def cpu_seconds(self) -> float:
        """CPU time of all threads, earlier processes of the run included."""
        return time.process_time() + self._cpu_before

    def state_dict(self) -> dict[str, Any]:
        """Sizes of metrics.jsonl and the files of TensorBoard, in bytes, and the time of the run, in seconds."""
        self.flush()
        events = {path.name: path.stat().st_size for path in event_files(self.folder)}
        return {"bytes": (self.folder / "metrics.jsonl").stat().st_size, "events": events, "seconds": self.seconds,
                "cpu_seconds": self.cpu_seconds}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state_dict() of a run in the same folder: what it logged later is cut off, and logged again."""
        self.flush()
        path = self.folder / "metrics.jsonl"
        num_bytes = min(int(state["bytes"]), path.stat().st_size)
        sizes = [state["events"].get(events.name) for events in self._earlier]
        self._started, self._cpu_before = time.monotonic() - state["seconds"], float(state["cpu_seconds"])
        if self._mirror is not None:
            self._mirror.skip(path.read_bytes()[num_bytes:].count(b"\n"))
        os.truncate(path, num_bytes)  # what is appended follows
        for events, size in zip(self._earlier, sizes, strict=True):
            if size is None:  # of a process that came after the checkpoint
                events.unlink()
            else:
                os.truncate(events, min(int(size), events.stat().st_size))

    def episode(self, step: int, episode: Episode) -> None:
        """One finished episode."""
        self._board.add_scalar(f"episode_return/{episode.task}", episode.episode_return, step)
        self._board.add_scalar(f"episode_length/{episode.task}", episode.length, step)
        self._write({"step": step, "task": episode.task, "episode_return": episode.episode_return,
                     "length": episode.length, "success": episode.success})  # fmt: skip

    def metrics(
        self, step: int, updates: int, means: Mapping[str, Sequence[float] | float], tasks: Sequence[str]
    ) -> None:
        """Means of metrics since the last call, over world-model updates: one curve per task, or one in all.

        Raises: FloatingPointError if a value is not finite, naming the metric and the task.
        """
        frames = {} if self.frame_skip is None else {"frames": step * self.frame_skip}
        record: dict[str, object] = {"step": step, **frames, "updates": updates, "seconds": round(self.seconds, 2)}
        for name, values in means.items():
            curves = {name: values} if isinstance(values, float) else {
                f"{name}/{task}": value for task, value in zip(tasks, values, strict=True)
            }  # fmt: skip
            for label, value in curves.items():
                if not math.isfinite(value):
                    raise FloatingPointError(f"{label} became {value} near step {step}: {REMEDY}")
                self._board.add_scalar(label, value, updates)
                record[label] = value
        self._write(record)

    def skipped(self, step: int, updates: int, why: str) -> None:
        """An update that was left out."""
        self._write({"step": step, "updates": updates, "skipped": why})

    def restart(self, step: int, restart: Restart) -> None:
        """Simulators that were made anew."""
        self._write({"step": step, "restart": asdict(restart)})

    def figure(self, name: str, image: Tensor, step: int) -> None:
        """A picture [H, W, 3] uint8 for TensorBoard."""
        self._board.add_image(name, image, step, dataformats="HWC")

    def flush(self) -> None:
        self._lines.flush()
        if "_board" in self.__dict__:
            self._board.flush()

    def close(self) -> None:
        """Raises: OSError if what was written last found no room; everything is closed all the same."""
        with ExitStack() as stack:
            if self._mirror is not None:
                stack.callback(self._mirror.close)
            stack.callback(setattr, threading, "excepthook", self._hook)
            if "_board" in self.__dict__:
                stack.callback(self._board.close)
            stack.callback(self._lines.close)

    def _of_a_thread(self, args: threading.ExceptHookArgs) -> None:
        """A line for an error of TensorBoard's writer, which raises it again at the next write."""
        if isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboard."):
            logging.getLogger("mow").error("TensorBoard's curves are not written any more: %s", args.exc_value)
        else:
            self._hook(args)

    def _write(self, record: Mapping[str, object]) -> None:
        self._lines.write(json.dumps(record) + "\n")
        if self._mirror is not None:
            self._mirror.write(record)


def event_files(folder: Path) -> list[Path]:
    """The files that TensorBoard reads, one of each process that has trained in `folder`."""
    return sorted(folder.glob("events.out.tfevents.*"))


def duration(seconds: float) -> str:
    """1:02:03 or 4:05."""
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
