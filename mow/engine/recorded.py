"""Recorded episodes in the place of replay, for a run that learns without acting."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from mow.batch import TransitionBatch
from mow.config import RunConfig
from mow.config.run import Recorded
from mow.engine.device import num_workers
from mow.envs.base import TaskSpec
from mow.errors import UsageError
from mow.offline.collect import collect
from mow.offline.files import read_manifest
from mow.offline.store import OfflineStore


class RecordedEpisodes:
    """Windows of an OfflineStore. Nothing is added, and the run's folder holds no save of them but their checksum."""

    num_steps = 0

    def __init__(self, recorded: Recorded, config: RunConfig, run_folder: Path, specs: Sequence[TaskSpec]) -> None:
        """Open what there is. Raises: UsageError if a named folder is missing, damaged, or of other tasks or bodies."""
        self._recorded, self._config, self._specs = recorded, config, specs
        self.folder = recorded.path(run_folder)
        self._store = self._open() if recorded.folder or self._is_complete() else None

    def _open(self) -> OfflineStore:
        store = OfflineStore.open(self.folder, self._config.tasks, seed=self._config.seed, best=self._recorded.best)
        store.check_specs(self._specs)
        return store

    @property
    def store(self) -> OfflineStore:
        assert self._store is not None, "collected first"
        return self._store

    @property
    def identity(self) -> str:
        """Checksum of the episodes; empty before they are collected."""
        return "" if self._store is None else self._store.identity()

    def collect_first(self, say: Callable[[str], None], check_stop: Callable[[], None]) -> None:
        """Collect episodes into the run's folder, unless all are there; remove what an interrupted run left of them.

        Raises: UsageError if they cannot be collected; what `check_stop` raises.
        """
        if self._store is not None:
            return
        recorded, config = self._recorded, self._config
        shutil.rmtree(self.folder, ignore_errors=True)
        say(f"collecting {recorded.episodes:,} episodes per task ({recorded.policy}) into {self.folder}")
        collect(config.tasks, self.folder, recorded.episodes, recorded.policy, seed=config.seed,
                workers=num_workers(config), options=config.env.options, progress=lambda job: check_stop())  # fmt: skip
        self._store = self._open()
        say(self.describe())

    def _is_complete(self) -> bool:
        try:
            held = read_manifest(self.folder)
        except UsageError:
            return False
        return all(name in held and held[name].episodes == self._recorded.episodes for name in self._config.tasks)

    def check_identity(self, before: str) -> None:
        """Compare with the episodes of a checkpoint. Raises: UsageError if they are others."""
        if before and before != self.identity:
            raise UsageError(f"{self.folder} holds other episodes than the run was trained on (checksum "
                             f"{self.identity or 'none'}, before {before}): name their folder with --data")  # fmt: skip

    def sample(
        self, num_sequences: int, length: int, *, counter: int, stream: int, as_of: int | None = None,
        pin: bool = False, out: TransitionBatch | None = None,
    ) -> TransitionBatch:  # fmt: skip
        """Windows as OfflineStore.sample draws them, in page-locked memory if `pin`; `as_of` and `out` are not used."""
        batch = self.store.sample(num_sequences, length, counter=counter, stream=stream)
        return batch.map(torch.Tensor.pin_memory) if pin else batch

    def reorder(self, order: Sequence[int]) -> None:
        """Task k becomes the old task order[k]."""
        self.store.reorder(order)

    def describe(self) -> str:
        """One line: what was recorded, per task its number of episodes and mean return."""
        tasks = ", ".join(f"{task.name} {task.episodes:,} ({task.returns[1]:.4g})" for task in self.store.tasks)
        return f"{self.folder}: episodes (mean return): {tasks}"
