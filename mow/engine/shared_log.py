"""The log of a run on several ranks: rank 0 writes it, with what the others have noted since they last gathered."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from mow.engine.parallel import Ranks
from mow.envs.base import Episode, Restart
from mow.nn.finite import REMEDY
from mow.runs.logger import Logger
from mow.runs.wandb import WandbMirror


class SharedLogger(Logger):
    """Every rank calls the same methods; `gather` and `metrics` at the same time."""

    def __init__(self, folder: Path, frame_skip: int | None, mirror: WandbMirror | None, ranks: Ranks) -> None:
        super().__init__(folder, frame_skip, mirror)
        self._writes, self._ranks = ranks.rank == 0, ranks
        self._noted: list[tuple[int, str, dict[str, Any]]] = []  # step, kind, fields

    def gather(self) -> None:
        """Write what all ranks have noted, by step."""
        found = [note for text in self._ranks.texts(json.dumps(self._noted)) for note in json.loads(text)]
        self._noted = []
        for step, kind, fields in sorted(found, key=lambda note: note[0]) if self._writes else ():
            if kind == "episode":
                super().episode(step, Episode(**fields))
            else:
                super().restart(step, Restart(**fields))

    def episode(self, step: int, episode: Episode) -> None:
        self._noted.append((step, "episode", asdict(episode)))

    def restart(self, step: int, restart: Restart) -> None:
        self._noted.append((step, "restart", asdict(restart)))

    def metrics(
        self, step: int, updates: int, means: Mapping[str, Sequence[float] | float], tasks: Sequence[str]
    ) -> None:
        if self._writes:
            super().metrics(step, updates, means, tasks)
        values = [each for value in means.values() for each in ([value] if isinstance(value, float) else value)]
        if not all(map(math.isfinite, values)):  # as rank 0 finds and names
            raise FloatingPointError(f"a metric is not finite near step {step}: {REMEDY}")

    def skipped(self, step: int, updates: int, why: str) -> None:
        if self._writes:
            super().skipped(step, updates, why)

    def figure(self, name: str, image: Tensor, step: int) -> None:
        if self._writes:
            super().figure(name, image, step)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self._writes:
            super().load_state_dict(state)
