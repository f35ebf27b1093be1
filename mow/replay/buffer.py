"""Replay of K tasks in rings of `capacity` steps, and batches of windows drawn from it."""

import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mow.batch import TransitionBatch
from mow.replay.gpu_store import GpuStore
from mow.replay.sampler import draw_windows, gather_windows
from mow.replay.store_choice import StoreKind, make_store
from mow.replay.stores import FrameStore, nothing_left
from mow.system.machine import free_memory

Draw = Literal["uniform", "recent"]

_STEPS_PER_CHECK = 1_000  # between two comparisons of the memory to come with what was free

# The fields of TransitionBatch, in their order, and how a step of each is stored.
_DTYPES: dict[str, np.dtype[Any]] = {
    "frame": np.dtype(np.uint8),
    "action": np.dtype(np.float32),
    "reward": np.dtype(np.float32),
    "terminated": np.dtype(np.bool_),
    "truncated": np.dtype(np.bool_),
    "is_first": np.dtype(np.bool_),
    "is_last": np.dtype(np.bool_),
}


class ReplayBuffer:
    """The last `capacity` steps of each of K tasks; once full, the oldest step makes room.

    All tasks step together. Frames lie in a store, raw, packed or on a GPU, which gives the same bytes, and states in a
    raw one; all other fields in rings [K, capacity, ...]. Windows may cross the borders of episodes; `is_first` and
    `is_last` mark them.
    One thread may add while others sample: they take turns, and the unpacking of packed frames needs no turn.
    """

    def __init__(
        self,
        num_tasks: int,
        capacity: int,
        frame_shape: Sequence[int],
        action_size: int,
        *,
        frame_dtype: str = "uint8",
        seed: int,
        draw: Draw = "uniform",
        store: StoreKind = "auto",
        free_bytes: int | None = None,
        disk: Path | None = None,
        extra: Mapping[str, int] | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Set the rings up; memory is taken page by page as steps arrive.

        Args:
            num_tasks: K.
            capacity: steps per task.
            frame_shape: of one observation, (height, width, 3), or (D,) of states.
            action_size: A.
            frame_dtype: "uint8", or "float32" of states.
            seed: of all draws, 0 to 2^64 - 1.
            draw: uniform over the windows held, or recent: the newer of two such draws.
            store: of the frames; "auto" keeps them on `device` where they fit into a third of its free memory, and
                packs them where raw ones would take over half of the free main memory.
            free_bytes: memory to decide by; None takes what is free now.
            disk: a folder for the packed frames that outgrow half of the free memory; None keeps all in memory.
            extra: columns of the method, and their numbers per step: float32 [n] each.
            device: the learner's, for store "gpu".
        Raises: ValueError for a column with the name of a field, and as make_store; its other errors too.
        """
        self._extra = {name: (size,) for name, size in (extra or {}).items()}
        if taken := self._extra.keys() & _DTYPES.keys():
            raise ValueError(f"extra column {', '.join(taken)} has the name of a field: take another one")
        self._free_bytes = free_memory() if free_bytes is None else free_bytes  # before the first step
        self._has_warned = False
        self._frames = make_store(store, num_tasks, capacity, frame_shape, dtype=frame_dtype,
                                  free_bytes=self._free_bytes, disk=disk, device=device)
        self._step_shapes: dict[str, tuple[int, ...]] = {
            **dict.fromkeys(_DTYPES, ()), "frame": tuple(frame_shape), "action": (action_size,), **self._extra
        }  # fmt: skip
        self._dtypes = {**_DTYPES, "frame": self._frames.dtype, **dict.fromkeys(self._extra, np.dtype(np.float32))}
        self._columns: dict[str, NDArray[Any]] = {
            # np.zeros takes a page of memory only once a step is written to it.
            name: np.zeros((num_tasks, capacity, *self._step_shapes[name]), dtype)
            for name, dtype in self._dtypes.items()
            if name != "frame"
        }
        self._rows = np.arange(num_tasks)  # [K] ring row of each task
        self._tasks: NDArray[np.int64] | None = None  # [R] task of each ring row; None while that is its own number
        self._capacity, self._seed, self._recent = capacity, seed, draw == "recent"
        self.places = slice(0, num_tasks)  # of these tasks among all of the run, by which windows are drawn
        self.num_drawn = num_tasks  # tasks of the run
        self._turn = threading.Lock()
        self.saved_as: Path | None = None  # manifest of the last save or load (mow.replay.segments)

    @property
    def num_steps(self) -> int:
        """Steps per task ever added."""
        return self._frames.num_steps

    @property
    def memory_bytes(self) -> int:
        """Main memory taken once full; with packed frames, if those to come are like those held."""
        return self._frames.projected_bytes + sum(ring.nbytes for ring in self._columns.values())

    @property
    def store(self) -> FrameStore:
        """The store of the frames."""
        return self._frames

    @property
    def columns(self) -> dict[str, NDArray[Any]]:
        """The rings of all fields but the frame: [R, capacity, ...], step t at place t mod capacity."""
        return self._columns

    @property
    def rows(self) -> NDArray[np.int64]:
        """[K] ring row of each task."""
        return self._rows.copy()

    def describe(self) -> str:
        """One line: the steps held, how far frames are packed, the memory taken now and once full."""
        store, held = self._frames, min(self.num_steps, self._capacity)
        step_bytes = sum(ring.nbytes for ring in self._columns.values()) // self._capacity
        parts = [f"{(store.memory_bytes + held * step_bytes) / 1e9:.2f} GB"]
        if isinstance(store, GpuStore):
            parts.append(f"{store.device_bytes / 1e9:.2f} GB more on {store.device}")
        if store.disk_bytes:
            parts.append(f"{store.disk_bytes / 1e9:.2f} GB more on disk")
        if store.ratio != 1.0:
            parts.append(f"frames packed {store.ratio:.1f}x")
        kind = type(store).__name__.removesuffix("Store").lower()
        return (f"replay ({kind}): {held:,} of {self._capacity:,} steps of {len(self._rows)} tasks in "
                f"{', '.join(parts)}, {self.memory_bytes / 1e9:.2f} GB once full")

    def add(
        self,
        frame: NDArray[Any],
        action: NDArray[np.float32],
        reward: NDArray[np.float32],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        is_first: NDArray[np.bool_],
        is_last: NDArray[np.bool_],
        **extra: NDArray[np.float32],
    ) -> None:
        """Add one step of every task; TransitionBatch has the meaning of the fields.

        Args: frame uint8 [K, H, W, 3] or float32 [K, D], action float32 [K, A], reward float32 [K], the others bool
            [K]; of each extra column float32 [K, n], zeros where it is left out.
        Raises: ValueError for another shape or dtype, or a float that is not finite; nothing is added then.
            OSError where the disk does not take what memory has no room for; the step is in, in memory.
        """
        columns: dict[str, NDArray[Any]] = {
            "action": action,
            "reward": reward,
            "terminated": terminated,
            "truncated": truncated,
            "is_first": is_first,
            "is_last": is_last,
            **{name: np.zeros((len(self._rows), *shape), np.float32) for name, shape in self._extra.items()},
            **extra,
        }
        self._check_step({"frame": frame, **columns})
        with self._turn:
            head = self.num_steps % self._capacity
            tasks = self._tasks
            for name, value in columns.items():
                self._columns[name][:, head] = value if tasks is None else value[tasks]
            self._frames.append(frame if tasks is None else frame[tasks])
        if self.num_steps % _STEPS_PER_CHECK == 0 and not self._has_warned and self.memory_bytes > self._free_bytes:
            self._has_warned = True  # how far frames can be packed is known only when they come
            logging.getLogger("mow").warning(
                "%s, but %.2f GB was free before its first step: give packed frames a disk (replay.disk), lower the "
                "number of steps or tasks, or take a machine with more memory",
                self.describe(), self._free_bytes / 1e9)

    def sample(
        self,
        num_sequences: int,
        length: int,
        *,
        counter: int,
        stream: int,
        as_of: int | None = None,
        pin: bool = False,
        out: TransitionBatch | None = None,
    ) -> TransitionBatch:
        """Draw B windows of L steps per task among all that are held; is_first is true at index 0 of each.

        Args:
            num_sequences: B.
            length: L, in steps.
            counter: of the batch; the same buffer, counter and stream give the same windows.
            stream: what the batch is for, 0 to 2^32 - 1.
            as_of: draw what was to be drawn when the buffer had this many steps per task; None: as it is now.
            pin: put the batch into page-locked memory, from where copies to a GPU need not wait.
            out: an earlier batch of the same shape in main memory to write into; None makes a new one.
        Returns: tensors in main memory that the buffer does not touch again, `out` if it was given; frames in a store
            on a GPU stay there, unless `out` was given.
        Raises: ValueError if a task has fewer than L steps or a window drawn `as_of` a step is no longer held;
            RuntimeError naming task and steps where packed frames are damaged.
        """
        with self._turn:  # steps added once the windows are fixed change nothing
            seen = self.num_steps if as_of is None else as_of
            if not 0 <= seen <= self.num_steps:
                raise ValueError(f"as_of must be in 0 to the {self.num_steps} steps added, got {seen}")
            size = np.full(self.num_drawn, min(seen, self._capacity), dtype=np.int64)
            head = np.full(self.num_drawn, seen % self._capacity, dtype=np.int64)
            start = draw_windows(self._seed, counter, stream, size, head, self._capacity, num_sequences, length,
                                 recent=self._recent)[self.places]  # [K, B]
            oldest = max(seen - self._capacity, 0)
            first = oldest + (start - oldest) % self._capacity  # [K, B] absolute steps
            if out is None and isinstance(self._frames, GpuStore):
                frame = self._frames.gather_on_device(self._rows, first, length)
                batch, finish = self._new_batch(num_sequences, length, pin, frame=frame), nothing_left
            else:
                batch = self._new_batch(num_sequences, length, pin) if out is None else out
                finish = self._frames.begin_gather(self._rows, first, length, batch.frame.numpy())
            tensors = batch.tensors()
            gather_windows([*self._columns.values()], self._rows, start, length,
                           [tensors[name].numpy() for name in self._columns])
        batch.is_first[:, :, 0] = True
        finish()
        return batch

    def reorder(self, order: Sequence[int] | NDArray[np.int64]) -> None:
        """Renumber the tasks: task k becomes what was task order[k]. No step is moved.

        Raises: ValueError if `order` [K] does not name every task once.
        """
        order = np.asarray(order)
        if sorted(order.tolist()) != [*range(len(self._rows))]:
            raise ValueError(f"order must name each of the tasks 0 to {len(self._rows) - 1} once, got {order.tolist()}")
        with self._turn:
            self._rows = self._rows[order]
            is_plain = (self._rows == np.arange(len(self._rows))).all()
            self._tasks = None if is_plain else np.argsort(self._rows)

    def _check_step(self, step: dict[str, NDArray[Any]]) -> None:
        if unknown := step.keys() - self._step_shapes.keys():
            raise ValueError(f"unknown column {', '.join(sorted(unknown))}: declare it as extra of the replay")
        for name, value in step.items():
            expected, dtype = (len(self._rows), *self._step_shapes[name]), self._dtypes[name]
            if value.shape != expected or value.dtype != dtype:
                raise ValueError(f"{name} of one step: expected {dtype} {[*expected]}, got {value.dtype} "
                                 f"{[*value.shape]}: pass one entry per task, in the buffer's dtype")
        for name in (name for name, dtype in self._dtypes.items() if dtype == np.float32):
            if not np.isfinite(step[name]).all():
                finite = np.isfinite(step[name]).reshape(len(self._rows), -1).all(axis=1)  # [K]
                task = int(finite.argmin())
                raise ValueError(f"{name} of task {task}: expected finite numbers, got {step[name][task].tolist()} at "
                                 f"step {self.num_steps}: look for the cause in its environment or policy")

    def _new_batch(
        self, num_sequences: int, length: int, pin: bool, *, frame: Tensor | None = None
    ) -> TransitionBatch:
        """Empty tensors, page-locked with `pin`; `frame` takes the place of the frames."""
        made = {} if frame is None else {"frame": frame}
        for name in self._step_shapes.keys() - made.keys():
            shape = (len(self._rows), num_sequences, length, *self._step_shapes[name])
            # NumPy takes pages of 2 MB from the system, torch pages of 4 KB. Each is cleared at its first touch,
            # which for small pages takes several times as long as the copy; with `out` there is no first touch.
            made[name] = torch.from_numpy(np.empty(0 if pin else shape, self._dtypes[name]))
            if pin:
                made[name] = torch.empty(shape, dtype=made[name].dtype, pin_memory=True)
        own = {name: tensor for name, tensor in made.items() if name not in self._extra}
        return TransitionBatch(**own, extra={name: made[name] for name in self._extra})
