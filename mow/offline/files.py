"""Folder of recorded episodes: its files, and how they grow.

    manifest.json    version, checksum, and a StoredTask per task: sizes, counts, returns, CRC-32 of both files below
    NAME.rows        float32 [rows, D + A + 2], a row per observation: o_t, a_t, r_t, d_{t+1}; an episode of n steps has
                     n + 1 rows, the last one with o_n and zeros. D and A are the task's own sizes: nothing is padded.
    NAME.episodes    an EPISODE record per episode, in the order of the rows

Episodes are appended: rows and records are flushed to the disk, then the manifest is replaced, which makes them part of
the data. A process that is killed loses the episodes that it had not appended. The bytes behind what the manifest
counts are the rest of such a process: they are ignored, and cut off by the next one that appends.
"""

import fcntl
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mow.envs.base import TaskSpec
from mow.errors import UsageError
from mow.system.file_names import file_name
from mow.system.whole_file import flush_file, flush_folder, read_object, write_whole

VERSION = 1
MANIFEST = "manifest.json"
EPISODE = np.dtype([
    ("steps", "<i8"), ("seed", "<i8"), ("episode_return", "<f8"), ("noise", "<f4"),
    ("success", "i1"), ("final_success", "i1"),  # at any step, at the last one; -1: the task has no success
    ("terminated", "i1"),  # 0: a time limit cut the episode
    ("behaviour", "<u2"),  # place in StoredTask.behaviours
])  # fmt: skip


@dataclass(frozen=True)
class StoredTask:
    """Recorded episodes of one task, as the manifest counts them."""

    name: str
    state_size: int  # D
    action_size: int  # A
    protocol: str  # of the environment, in words
    references: tuple[float, ...] = ()  # returns of a random policy and of an expert, where they are known
    episodes: int = 0
    rows: int = 0
    behaviours: tuple[str, ...] = ()  # policies that acted, such as "scripted" and "random"
    returns: tuple[float, ...] = ()  # min, mean and max over the episodes
    success: float | None = None  # share of the episodes that succeeded at any step
    final_success: float | None = None  # share that succeeded at the last step
    rows_crc32: int = 0
    episodes_crc32: int = 0

    @property
    def width(self) -> int:
        """Numbers per row."""
        return self.state_size + self.action_size + 2

    @property
    def behaviour(self) -> str:
        return ", ".join(self.behaviours)

    @property
    def rows_file(self) -> str:
        return f"{file_name(self.name)}.rows"

    @property
    def episodes_file(self) -> str:
        return f"{file_name(self.name)}.episodes"


@dataclass(frozen=True, eq=False)
class RecordedEpisode:
    """One recorded episode of n steps."""

    state: NDArray[np.float32]  # [n + 1, D], the final observation included
    action: NDArray[np.float32]  # [n, A] in [-1, 1]
    reward: NDArray[np.float32]  # [n]
    terminated: bool  # the task ended by itself; else a time limit cut it
    behaviour: str  # the policy
    noise: float = 0.0  # standard deviation added to its actions
    seed: int = 0  # that the environment was reset with
    success: bool | None = None  # at any step; None: the task has no success
    final_success: bool | None = None  # at the last step


def stored_task(spec: TaskSpec, references: Sequence[float] | None = None) -> StoredTask:
    """A task to record. Raises: UsageError for one with discrete actions, or without states."""
    if spec.discrete:
        raise UsageError(f"{spec.name} has discrete actions: only continuous tasks are recorded, leave it out")
    if spec.state_size is None:
        raise UsageError(f"{spec.name} has no state observations: leave it out")
    return StoredTask(spec.name, spec.state_size, spec.num_actions, spec.protocol, tuple(references or ()))


def read_manifest(folder: Path) -> dict[str, StoredTask]:
    """Tasks of a folder by name. Raises: UsageError if it holds no manifest, a damaged one, or another version's."""
    path = folder / MANIFEST
    if not os.path.exists(path):
        raise UsageError(f"{folder} holds no recorded episodes: make some with mow collect TASK... --out {folder}")
    try:
        content = read_object(path)
        version, crc32, tasks = content["version"], content["crc32"], content["tasks"]
        if version != VERSION:
            raise UsageError(f"{path} is of version {version}, this mow reads {VERSION}: use the mow that wrote it")
        if checksum(tasks) != crc32:
            raise ValueError("its checksum does not fit")
        lists = ("references", "behaviours", "returns")
        stored = [StoredTask(**{**task, **{name: tuple(task[name]) for name in lists}}) for task in tasks]
    except UsageError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is damaged ({error}): restore it from a copy") from error
    return {task.name: task for task in stored}


def checksum(tasks: list[dict[str, Any]]) -> int:
    """CRC-32 of StoredTasks, which hold those of their files."""
    return zlib.crc32(json.dumps(tasks, sort_keys=True).encode())


def rows_path(folder: Path, task: StoredTask) -> Path:
    """The file of a task's rows. Raises: UsageError if it is missing or cut."""
    path, size = folder / task.rows_file, 4 * task.rows * task.width
    held = path.stat().st_size if path.exists() else 0
    if held < size:
        raise UsageError(f"{path} is cut by {size - held:,} bytes: restore it from a copy, or record {task.name} anew")
    return path


def read_episodes(folder: Path, task: StoredTask) -> NDArray[Any]:
    """EPISODE [E] of a task. Raises: UsageError if the file is cut or damaged."""
    path = folder / task.episodes_file
    expected = task.episodes * EPISODE.itemsize
    content = path.read_bytes()[:expected] if path.exists() else b""
    if len(content) < expected or zlib.crc32(content) != task.episodes_crc32:
        raise UsageError(f"{path} is damaged or cut ({len(content)} of {expected} bytes): restore it from a copy")
    return np.frombuffer(content, EPISODE)


class Writer:
    """Appends episodes to a folder, which is made with the first of them; one process at a time."""

    def __init__(self, folder: Path, tasks: Sequence[StoredTask]) -> None:
        """Compare what there is with `tasks`, and go on behind it; tasks that are not there yet are added.

        Raises: UsageError for a task of another size or protocol, or a folder with other files in it.
        """
        self._folder, self._lock = folder, -1
        self.tasks = {task.name: task for task in tasks}
        self._held: dict[str, StoredTask] = {}
        self._index: dict[str, NDArray[Any]] = {name: np.zeros(0, EPISODE) for name in self.tasks}
        if os.path.exists(folder / MANIFEST):
            held = self._held = read_manifest(folder)
            for name, task in self.tasks.items():
                for field in ("state_size", "action_size", "protocol"):
                    if name in held and (was := getattr(held[name], field)) != (now := getattr(task, field)):
                        raise UsageError(f"{folder} holds {name} with {field} {was}, now it is {now}: name another one")
            self.tasks = held | {name: task for name, task in self.tasks.items() if name not in held}
            self._index |= {name: read_episodes(folder, task) for name, task in held.items()}
            for task in held.values():
                rows_path(folder, task)
        elif os.path.exists(folder) and (not os.path.isdir(folder) or self._foreign()):
            raise UsageError(f"{folder} holds other files: name a new folder, or one of recorded episodes")

    def _foreign(self) -> bool:
        """True if the folder has files that no Writer of these tasks can have left before its first manifest."""
        own = {name for task in self.tasks.values() for name in (task.rows_file, task.episodes_file)}
        return bool(set(os.listdir(self._folder)) - own - {"manifest.partial"})

    def append(self, name: str, episodes: Sequence[RecordedEpisode]) -> None:
        """Add episodes of a task as one change. Raises: ValueError for one that cannot be stored; nothing is added."""
        if not episodes:
            return
        task = self.tasks[name]
        rows = [_rows(task, episode, task.episodes + i) for i, episode in enumerate(episodes)]
        behaviours = tuple(dict.fromkeys((*task.behaviours, *(episode.behaviour for episode in episodes))))
        index = np.concatenate([self._index[name], np.array([_record(each, behaviours) for each in episodes], EPISODE)])
        self._begin()
        data, records = np.concatenate(rows).tobytes(), index[task.episodes :].tobytes()
        for file, content, offset in ((task.rows_file, data, task.rows * task.width * 4),
                                      (task.episodes_file, records, task.episodes * EPISODE.itemsize)):
            with open(self._folder / file, "r+b" if (self._folder / file).exists() else "wb") as handle:
                handle.truncate(offset)  # the rest of a process that was killed
                handle.seek(offset)
                handle.write(content)
                flush_file(handle)
        returns, succeeded = index["episode_return"], index["success"]
        self.tasks[name] = replace(
            task, episodes=len(index), rows=task.rows + sum(map(len, rows)), behaviours=behaviours,
            returns=(float(returns.min()), float(returns.mean()), float(returns.max())),
            success=None if succeeded.min() < 0 else float(succeeded.mean()),
            final_success=None if succeeded.min() < 0 else float(index["final_success"].mean()),
            rows_crc32=zlib.crc32(data, task.rows_crc32), episodes_crc32=zlib.crc32(records, task.episodes_crc32),
        )  # fmt: skip
        self._index[name] = index
        tasks = [asdict(each) for each in self.tasks.values()]
        flush_folder(self._folder)
        text = json.dumps({"version": VERSION, "crc32": checksum(tasks), "tasks": tasks}, indent=1)
        write_whole(self._folder / MANIFEST, text + "\n")
        flush_folder(self._folder)

    def _begin(self) -> None:
        """Make the folder and lock it, once."""
        if self._lock >= 0:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._folder, os.O_RDONLY)
        except OSError as error:
            raise UsageError(f"cannot make {self._folder} ({error.strerror}): name another folder") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise UsageError(f"another process appends to {self._folder}: wait for it, or name another one") from error
        if os.path.exists(self._folder / MANIFEST) and read_manifest(self._folder) != self._held:
            self.close()
            raise UsageError(f"another process has appended to {self._folder} meanwhile: start again")

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _rows(task: StoredTask, episode: RecordedEpisode, number: int) -> NDArray[np.float32]:
    """The rows [n + 1, W] of an episode. Raises: ValueError."""
    steps, size = len(episode.reward), task.state_size
    shapes = [*episode.state.shape], [*episode.action.shape], [*episode.reward.shape]
    expected = [steps + 1, size], [steps, task.action_size], [steps]
    where = f"{task.name}, episode {number}"
    if shapes != expected or steps == 0:
        raise ValueError(f"{where}: expected states, actions, rewards {expected} of one step or more, got {shapes}: an "
                         "observation or action has changed its size")
    rows = np.zeros((steps + 1, task.width), np.float32)
    rows[:, :size] = episode.state
    rows[:-1, size:-2] = episode.action
    rows[:-1, -2] = episode.reward
    rows[-2, -1] = episode.terminated
    if not (finite := np.isfinite(rows).all(axis=1)).all():
        raise ValueError(f"{where}: step {int(finite.argmin())} holds a number that is not finite: look for the cause "
                         "in its environment or policy")
    return rows


def _record(episode: RecordedEpisode, behaviours: Sequence[str]) -> tuple[Any, ...]:
    success = [-1 if flag is None else int(flag) for flag in (episode.success, episode.final_success)]
    total = float(np.sum(episode.reward, dtype=np.float64))
    return (len(episode.reward), episode.seed, total, episode.noise, *success, int(episode.terminated),
            behaviours.index(episode.behaviour))
