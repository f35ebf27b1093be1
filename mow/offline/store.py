"""Windows of recorded episodes, drawn by (seed, counter, stream) from memory-mapped files.

The system keeps what is read often in free memory and drops it when memory is short, so data may be larger than memory.
"""

import logging
import mmap
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mow.batch import TransitionBatch
from mow.envs.base import TaskSpec
from mow.errors import UsageError, nearest
from mow.offline.draw import FloatArray, draw_slices, gather_rows
from mow.offline.files import StoredTask, checksum, read_episodes, read_manifest, rows_path
from mow.replay.sampler import Int64Array

_PART = 1 << 24  # bytes read at once by the check of a file


class OfflineStore:
    """Recorded episodes of K tasks. `OfflineStore.open` makes one."""

    def __init__(self, folder: Path, tasks: Sequence[StoredTask], seed: int, best: float = 1.0) -> None:
        self.folder, self.tasks, self._seed, self._best = folder, tuple(tasks), seed, best
        self.files = [_map_rows(folder, task) for task in self.tasks]
        self.episodes = [read_episodes(folder, task) for task in self.tasks]
        self._starts = cache(self._count_starts)
        self._rows = [_sums(index["steps"] + 1) for index in self.episodes]  # per task [E + 1]
        self._order = np.arange(len(self.tasks))  # [K] place of task k in `files`

    @classmethod
    def open(
        cls, folder: Path, tasks: Sequence[str], *, seed: int = 0, best: float = 1.0, check: bool = True
    ) -> "OfflineStore":
        """The named tasks of a folder.

        Args:
            folder: as mow collect wrote it.
            tasks: their order is that of the batches.
            seed: of all draws, 0 to 2^64 - 1.
            best: share of each task's episodes that is drawn from: those with the highest returns.
            check: read all rows once and compare their checksums, about a second per GB; without, a damaged row is
                found when it is drawn, if it is not finite.
        Raises: UsageError for a missing or damaged folder or file, a row that is not finite, or a task that is not in
            it.
        """
        held = read_manifest(folder)
        for name in tasks:
            if name not in held or not held[name].episodes:
                raise UsageError(f"{folder} holds no episode of {name!r}: {nearest(name, held)} Or record it with "
                                 "mow collect")
        if check:
            for name in tasks:
                _check_rows(folder, held[name])
        return cls(folder, [held[name] for name in tasks], seed, best)

    @property
    def state_size(self) -> int:
        """D, the largest of the tasks."""
        return max(task.state_size for task in self.tasks)

    @property
    def action_size(self) -> int:
        """A, the largest of the tasks."""
        return max(task.action_size for task in self.tasks)

    def identity(self) -> str:
        """Checksum of what the manifest holds of these tasks, with the checksums of their files; in any order."""
        return f"{checksum([asdict(task) for task in sorted(self.tasks, key=lambda task: task.name)]):08x}"

    def check_specs(self, specs: Sequence[TaskSpec]) -> None:
        """Compare the tasks with those that a run plays. Raises: UsageError for other tasks or bodies."""
        held = {task.name: task for task in self.tasks}
        for spec in specs:
            task = held.get(spec.name)
            if task is None:
                raise UsageError(f"{self.folder} was opened without {spec.name}: open it with the tasks of the run")
            now = spec.state_size, spec.num_actions
            if now != (was := (task.state_size, task.action_size)):
                raise UsageError(f"{self.folder} holds {spec.name} with {was[0]} state and {was[1]} action numbers, "
                                 f"the run has {now[0]} and {now[1]}: record it anew with mow collect")

    def reorder(self, order: Sequence[int]) -> None:
        """Renumber the tasks: task k becomes what was task order[k].

        Raises: ValueError if `order` [K] does not name every task once.
        """
        if sorted(order) != [*range(len(self.tasks))]:
            raise ValueError(f"order must name each of the tasks 0 to {len(self.tasks) - 1} once, got {[*order]}")
        self.tasks = tuple(self.tasks[k] for k in order)
        self._order = self._order[np.asarray(order)]

    def sample(self, num_sequences: int, length: int, *, counter: int, stream: int) -> TransitionBatch:
        """Draw B windows of L rows per task, uniformly over all that end within their episode.

        A window of length 1 may be any row with an observation, the final one of an episode included.
        Args: num_sequences: B. length: L. counter, stream: name the draw; the same windows come out for the same name.
        Returns: frame [K, B, L, D] float32, the states; all fields in main memory, entries beyond a task's own sizes 0.
        Raises: UsageError for a task without an episode of L rows, or a drawn row that is not finite.
        """
        starts, rows = self._sums(length)
        start, left = draw_slices(self._seed, counter, stream, starts, rows, num_sequences)
        return self._gather(np.repeat(self._order, num_sequences), start, left, length)

    def sample_by_size(
        self, num_windows: int, length: int, *, counter: int, stream: int
    ) -> tuple[TransitionBatch, torch.Tensor]:
        """Draw N windows uniformly over those of all tasks together, so that long recordings come more often.

        Args: num_windows: N. The others: as in `sample`.
        Returns: fields [1, N, L, ...], and int64 [N], the task of each window.
        """
        starts, rows = self._sums(length)
        begin = _sums([sums[-1] for sums in rows])  # [K + 1] rows of the tasks before
        drawn, left = draw_slices(self._seed, counter, stream, [_join(starts)], [_join(rows)], num_windows)
        task = np.searchsorted(begin, drawn, side="right") - 1  # [1, N]
        batch = self._gather(self._order[task[0]], drawn - begin[task], left, length)
        return batch, torch.from_numpy(task[0])

    def _sums(self, length: int) -> tuple[list[Int64Array], list[Int64Array]]:
        """Window starts and rows before each episode, per task, as draw_slices takes them."""
        return [self._starts(int(place), length) for place in self._order], [self._rows[k] for k in self._order]

    def _gather(self, file: Int64Array, start: Int64Array, left: Int64Array, length: int) -> TransitionBatch:
        """Windows. Args: file: [K * B], place in `files`. start, left: [K, B], as draw_slices returns them."""
        tasks = [self.tasks[k] for k in np.argsort(self._order)]  # as in `files`
        ones = [1] * len(tasks)
        width = np.array([[task.state_size for task in tasks], [task.action_size for task in tasks], ones, ones])
        offset = np.cumsum(width, axis=0) - width  # [4, files]
        sizes = (self.state_size, self.action_size, 1, 1)
        out = [np.empty((start.size, length, size), np.float32) for size in sizes]
        gather_rows(self.files, offset, width, file, start.reshape(-1), length, out)
        if not all(np.isfinite(column).all() for column in out):
            raise UsageError(f"{self.folder} holds a row that is not finite: restore its files from a copy")
        frame, action, reward, ended = (
            torch.from_numpy(column.reshape(*start.shape, length, -1)) for column in out
        )  # fmt: skip
        is_last = torch.from_numpy(left[:, :, None] - np.arange(length) == 1)  # [K, B, L]
        is_first = torch.zeros_like(is_last)
        is_first[:, :, 0] = True
        terminated = ended[..., 0] != 0
        truncated = torch.from_numpy(left[:, :, None] - np.arange(length) == 2) & ~terminated
        return TransitionBatch(frame, action, reward[..., 0], terminated, truncated, is_first, is_last)

    def _count_starts(self, place: int, length: int) -> Int64Array:
        """[E + 1] window starts in the episodes before each. Cached, so that short episodes are logged once."""
        rows = self.episodes[place]["steps"] + 1
        task = next(task for k, task in enumerate(self.tasks) if self._order[k] == place)
        if short := int((rows < length).sum()):
            line = f"{task.name}: {short} of {len(rows)} episodes have fewer than {length} rows and are never drawn"
            if short == len(rows):
                raise UsageError(f"{line}: shorten the windows, or record longer episodes")
            logging.getLogger("mow").warning(line)
        returns = self.episodes[place]["episode_return"]
        chosen = np.argsort(-returns, kind="stable")[: max(1, round(self._best * len(returns)))]
        starts = np.zeros_like(rows)
        starts[chosen] = np.maximum(rows[chosen] - length + 1, 0)
        return _sums(starts)


def _sums(counts: Any) -> Int64Array:
    """[0, c_0, c_0 + c_1, ...]"""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _join(sums: Sequence[Int64Array]) -> Int64Array:
    """Sums over several lists, as if they were one."""
    return _sums(np.concatenate([np.diff(each) for each in sums]))


def _map_rows(folder: Path, task: StoredTask) -> FloatArray:
    """float32 [rows, W], read only, whose pages the system reads when they are needed. Raises: UsageError."""
    with open(rows_path(folder, task), "rb") as file:
        pages = mmap.mmap(file.fileno(), 4 * task.rows * task.width, access=mmap.ACCESS_READ)
    pages.madvise(mmap.MADV_RANDOM)  # windows are short and lie anywhere: reading ahead would be in vain
    rows: NDArray[np.float32] = np.frombuffer(pages, "<f4").reshape(task.rows, task.width)
    return rows


def _check_rows(folder: Path, task: StoredTask) -> None:
    """Read all rows once. Raises: UsageError if they are cut, damaged or not finite."""
    path, left, crc32, finite = rows_path(folder, task), 4 * task.rows * task.width, 0, True
    with open(path, "rb") as file:
        while part := file.read(min(left, _PART)):
            left, crc32 = left - len(part), zlib.crc32(part, crc32)
            finite = finite and bool(np.isfinite(np.frombuffer(part, "<f4")).all())
    if crc32 != task.rows_crc32 or not finite:
        fault = "damaged (its checksum differs)" if finite else "not finite"
        raise UsageError(f"{path} is {fault}: restore it from a copy, or record {task.name} anew")
