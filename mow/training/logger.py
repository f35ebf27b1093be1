"""What a run leaves behind and what it says while it runs: TensorBoard, metrics.jsonl, a progress line."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from mow.envs.base import Episode


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
        for name, total in self._sums.items():
            means[name] = (total / self._counts[name]).tolist()
        self._sums, self._counts = {}, {}
        return means


class Logger:
    """Writes to `folder`; step counts are environment steps per task."""

    def __init__(self, folder: Path, frame_skip: int) -> None:
        self.folder, self.frame_skip = folder, frame_skip
        self._board = SummaryWriter(str(folder))
        self._lines = open(folder / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self.started = time.monotonic()

    def episode(self, step: int, episode: Episode) -> None:
        """One finished episode."""
        self._board.add_scalar(f"episode_return/{episode.task}", episode.episode_return, step)
        self._board.add_scalar(f"episode_length/{episode.task}", episode.length, step)
        self._write(
            {
                "step": step,
                "task": episode.task,
                "episode_return": episode.episode_return,
                "length": episode.length,
                "success": episode.success,
            }
        )

    def metrics(
        self, step: int, updates: int, means: Mapping[str, Sequence[float] | float], tasks: Sequence[str]
    ) -> None:
        """Means of metrics since the last call, over world-model updates: one curve per task, or one in all.

        Raises: FloatingPointError if a value is not finite, naming the metric and the task.
        """
        record: dict[str, object] = {"step": step, "frames": step * self.frame_skip, "updates": updates}
        record["seconds"] = round(time.monotonic() - self.started, 2)
        for name, values in means.items():
            if isinstance(values, float):
                curves = {name: values}
            else:
                curves = {f"{name}/{task}": value for task, value in zip(tasks, values, strict=True)}
            for label, value in curves.items():
                if not math.isfinite(value):
                    raise FloatingPointError(
                        f"{label} became {value} near step {step}: lower optim.world_model_lr or optim.agent_lr, "
                        "or start again from an earlier checkpoint"
                    )
                self._board.add_scalar(label, value, updates)
                record[label] = value
        self._write(record)

    def figure(self, name: str, image: Tensor, step: int) -> None:
        """A picture [H, W, 3] uint8 for TensorBoard."""
        self._board.add_image(name, image, step, dataformats="HWC")

    def flush(self) -> None:
        self._lines.flush()
        self._board.flush()

    def close(self) -> None:
        self._lines.close()
        self._board.close()

    def _write(self, record: Mapping[str, object]) -> None:
        self._lines.write(json.dumps(record) + "\n")


def duration(seconds: float) -> str:
    """1:02:03 or 4:05."""
    whole = int(max(0.0, seconds))
    hours, rest = divmod(whole, 3600)
    clock = f"{rest // 60:02d}:{rest % 60:02d}"
    return f"{hours}:{clock}" if hours else clock.removeprefix("0")
