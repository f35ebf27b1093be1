"""Replay of K tasks in rings of `capacity` steps, and batches of windows drawn from it."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mow.batch import TransitionBatch
from mow.replay.gpu_store import GpuStore
from mow.replay.sampler import Backend, draw_windows, gather_windows, takes_compiled
from mow.replay.store_choice import StoreKind, make_store
from mow.replay.stores import FrameStore, nothing_left
from mow.system.machine import free_memory

Draw = Literal["uniform", "recent"]

# How many steps lie between two looks at the size to come.
STEPS_PER_LOOK = 1_000

# The fields of TransitionBatch, in their order, and how a step of each is stored.
FIELD_DTYPES: dict[str, torch.dtype] = {
    "frame": torch.uint8,
    "action": torch.float32,
    "reward": torch.float32,
    "terminated": torch.bool,
    "truncated": torch.bool,
    "is_first": torch.bool,
    "is_last": torch.bool,
}


# The same for NumPy; asking torch for it at every step takes as long as packing a frame.
_NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    name: torch.empty(0, dtype=dtype).numpy().dtype for name, dtype in FIELD_DTYPES.items()
}


class ReplayBuffer:
    """The last `capacity` steps of each of K tasks; once full, the oldest step makes room.

    All tasks step together. Frames lie in a store, raw, packed or on a GPU, which gives the same bytes; all other
    fields in rings [K, capacity, ...]. Windows may cross the borders of episodes; `is_first` and `is_last` mark them.
    One thread may add while others sample: they take turns, and the unpacking of packed frames needs no turn.
    """

    def __init__(
        self,
        num_tasks: int,
        capacity: int,
        frame_shape: Sequence[int],
        action_size: int,
        *,
        seed: int,
        draw: Draw = "uniform",
        backend: Backend = "auto",
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
            frame_shape: of one observation, (height, width, 3).
            action_size: A.
            seed: of all draws, 0 to 2^64 - 1.
            draw: uniform over the windows held, or recent: the newer of two such draws.
            backend: see sampler.draw_windows.
            store: of the frames; "auto" keeps them on `device` where they fit into a third of its free memory, and
                packs them where raw ones would take over half of the free main memory.
            free_bytes: memory to decide by; None asks the operating system.
            disk: a folder for the packed frames that outgrow half of the free memory; None keeps all in memory.
            extra: columns of the method, and their numbers per step: float32 [n] each.
            device: the learner's, for store "gpu".
        Raises: ValueError for a size below 1, a column with the name of a field, a seed out of range, an unknown draw,
            raw frames with a disk or store "gpu" without a CUDA device; ImportError for backend "compiled" or store
            "packed" or "gpu" without the extension; MemoryError where the device has no room; OSError where `disk`
            takes no file.
        """
        sizes = {"num_tasks": num_tasks, "capacity": capacity, "action_size": action_size}
        for name, value in {**sizes, **{f"frame_shape[{i}]": side for i, side in enumerate(frame_shape)}}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name, size in (extra or {}).items():
            if name in FIELD_DTYPES or size < 1:
                raise ValueError(f"extra column {name!r} of {size} numbers: take another name, and 1 or more")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed must be in 0 to {2**64 - 1}, got {seed}")
        if draw not in get_args(Draw):
            raise ValueError(f"draw must be one of {', '.join(get_args(Draw))}, got {draw!r}")
        takes_compiled(backend)  # an impossible backend is an error now, not at the first sample
        self._free_bytes = free_memory() if free_bytes is None else free_bytes  # before the first step
        self._has_warned = False
        self._frames = make_store(store, num_tasks, capacity, frame_shape, free_bytes=self._free_bytes,
                                  disk=disk, device=device)
        self._step_shapes: dict[str, tuple[int, ...]] = {
            name: {"frame": tuple(frame_shape), "action": (action_size,)}.get(name, ()) for name in FIELD_DTYPES
        }
        self._extra = {name: (size,) for name, size in (extra or {}).items()}
        self._step_shapes.update(self._extra)
        self._dtypes = {**_NUMPY_DTYPES, **dict.fromkeys(self._extra, np.dtype(np.float32))}
        self._columns: dict[str, NDArray[Any]] = {
            # np.zeros takes a page of memory only once a step is written to it.
            name: np.zeros((num_tasks, capacity, *self._step_shapes[name]), dtype)
            for name, dtype in self._dtypes.items()
            if name != "frame"
        }
        self._rows = np.arange(num_tasks)  # [K] ring row of each task
        self._tasks: NDArray[np.int64] | None = None  # [R] task of each ring row; None while that is its own number
        self._capacity = capacity
        self._seed = seed
        self._recent = draw == "recent"
        self._backend = backend
        self._turn = threading.Lock()

    @property
    def num_steps(self) -> int:
        """Steps per task ever added."""
        return self._frames.num_steps

    @property
    def size(self) -> NDArray[np.int64]:
        """[K] steps held for each task."""
        return np.full(len(self._rows), min(self.num_steps, self._capacity), dtype=np.int64)

    @property
    def memory_bytes(self) -> int:
        """Of memory, that the buffer takes once full; with packed frames, if those to come are like those held."""
        return self._frames.projected_bytes + sum(ring.nbytes for ring in self._columns.values())

    def describe(self) -> str:
        """One line: what is held, how far the frames are packed, the size to come."""
        kind = type(self._frames).__name__.removesuffix("Store").lower()
        held = min(self.num_steps, self._capacity)
        step_bytes = sum(ring.nbytes for ring in self._columns.values()) // self._capacity
        now = self._frames.memory_bytes + held * step_bytes
        packed = f"frames packed {self._frames.ratio:.1f}x, " if kind == "packed" else ""
        disk = f"{self._frames.disk_bytes / 1e9:.2f} GB more on disk, " if self._frames.disk_bytes else ""
        if isinstance(self._frames, GpuStore):
            disk = f"{self._frames.device_bytes / 1e9:.2f} GB more on {self._frames.device}, "
        return (f"replay ({kind}): {held:,} of {self._capacity:,} steps of {len(self._rows)} tasks in {now / 1e9:.2f} "
                f"GB, {disk}{packed}{self.memory_bytes / 1e9:.2f} GB once full")

    def add(
        self,
        frame: NDArray[np.uint8],
        action: NDArray[np.float32],
        reward: NDArray[np.float32],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        is_first: NDArray[np.bool_],
        is_last: NDArray[np.bool_],
        **extra: NDArray[np.float32],
    ) -> None:
        """Add one step of every task; TransitionBatch has the meaning of the fields.

        Args: frame uint8 [K, H, W, 3], action float32 [K, A], reward float32 [K], the others bool [K]; of each extra
            column float32 [K, n], zeros where it is left out.
        Raises: ValueError for another shape or dtype, or a reward or action that is not finite; nothing is added then.
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
        if self.num_steps % STEPS_PER_LOOK == 0:
            self._warn_of_too_little_memory()

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
            out: a batch of the same shape in main memory to write into, page-locked or not; None makes a new one.
        Returns: tensors in main memory that the buffer does not touch again, `out` if it was given; frames in a store
            on a GPU stay there, unless `out` was given.
        Raises: ValueError if a task has fewer than L steps, a window drawn `as_of` a step is no longer held, `out` does
            not fit, or for pin without a CUDA device; RuntimeError naming task and steps where packed frames are
            damaged.
        """
        return self.begin_sample(num_sequences, length, counter=counter, stream=stream, as_of=as_of, pin=pin, out=out)()

    def begin_sample(
        self,
        num_sequences: int,
        length: int,
        *,
        counter: int,
        stream: int,
        as_of: int | None = None,
        pin: bool = False,
        out: TransitionBatch | None = None,
    ) -> Callable[[], TransitionBatch]:
        """The first part of sample: draws and fixes the windows; returns the function that finishes the batch.

        Steps added between the two calls change nothing. With packed frames nearly all work is in the second; with raw
        frames all of it is done here. Arguments and errors are those of sample.
        """
        num_tasks = len(self._rows)
        if out is not None:
            self._check_out(num_sequences, length, out)
        if pin and not torch.cuda.is_available():
            raise ValueError("pin=True needs a CUDA device, got none: sample with pin=False")
        if pin and out is not None:
            raise ValueError("pin=True makes a new batch, got `out` too: sample with pin=False into a pinned `out`")
        with self._turn:
            seen = self.num_steps if as_of is None else self._check_as_of(as_of)
            size = np.full(num_tasks, min(seen, self._capacity), dtype=np.int64)
            head = np.full(num_tasks, seen % self._capacity, dtype=np.int64)
            start = draw_windows(self._seed, counter, stream, size, head, self._capacity, num_sequences, length,
                                 recent=self._recent, backend=self._backend)  # [K, B]
            oldest = max(seen - self._capacity, 0)
            first = oldest + (start - oldest) % self._capacity  # [K, B] absolute steps
            self._check_held(first)
            if out is None and isinstance(self._frames, GpuStore):
                frame = self._frames.gather_on_device(self._rows, first, length)
                batch, finish_frames = self._new_batch(num_sequences, length, pin, frame=frame), nothing_left
            else:
                batch = self._new_batch(num_sequences, length, pin) if out is None else out
                finish_frames = self._frames.begin_gather(self._rows, first, length, batch.frame.numpy())
            tensors = batch.tensors()
            gather_windows([*self._columns.values()], self._rows, start, length,
                           [tensors[name].numpy() for name in self._columns], backend=self._backend)
        batch.is_first[:, :, 0] = True

        def finish() -> TransitionBatch:
            finish_frames()
            return batch

        return finish

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

    # For files ------------------------------------------------------------------------------------------------------

    @property
    def store(self) -> FrameStore:
        """Where the frames are."""
        return self._frames

    @property
    def columns(self) -> dict[str, NDArray[Any]]:
        """The rings of all fields but the frame: [R, capacity, ...], step t at place t mod capacity."""
        return self._columns

    @property
    def rows(self) -> NDArray[np.int64]:
        """[K] ring row of each task."""
        return self._rows.copy()

    def _warn_of_too_little_memory(self) -> None:
        """Once, as soon as it shows: how far frames can be packed is known only when they come."""
        if self.memory_bytes > self._free_bytes and not self._has_warned:
            self._has_warned = True
            logging.getLogger("mow").warning(
                "%s, but %.2f GB was free before its first step: give packed frames a disk (replay.disk), lower the "
                "number of steps or tasks, or take a machine with more memory",
                self.describe(), self._free_bytes / 1e9)

    # Checks ---------------------------------------------------------------------------------------------------------

    def _check_step(self, step: dict[str, NDArray[Any]]) -> None:
        if unknown := set(step) - set(self._step_shapes):
            raise ValueError(f"unknown column {', '.join(sorted(unknown))}: declare it as extra of the replay")
        for name, value in step.items():
            expected = (len(self._rows), *self._step_shapes[name])
            dtype = self._dtypes[name]
            if value.shape != expected or value.dtype != dtype:
                raise ValueError(f"{name} of one step: expected {dtype} {[*expected]}, got {value.dtype} "
                                 f"{[*value.shape]}: pass one entry per task, in the buffer's dtype")
        for name in ("reward", "action", *self._extra):
            is_finite = np.isfinite(step[name])
            if not is_finite.all():
                finite = is_finite.reshape(len(self._rows), -1).all(axis=1)  # [K]
                task = int(finite.argmin())
                raise ValueError(f"{name} of task {task}: expected finite numbers, got {step[name][task].tolist()} at "
                                 f"step {self.num_steps}: look for the cause in its environment or policy")

    def _check_as_of(self, step: int) -> int:
        if not 0 <= step <= self.num_steps:
            raise ValueError(f"as_of must be in 0 to the {self.num_steps} steps added, got {step}: name a past step")
        return step

    def _check_held(self, first: NDArray[np.int64]) -> None:
        """Windows drawn as of a step of the past may have been written over."""
        oldest = max(self.num_steps - self._capacity, 0)
        if first.min() < oldest:
            raise ValueError(f"step {first.min()} is no longer held, the oldest is {oldest}: draw before "
                             f"{self._capacity} more steps are added")

    def _new_batch(
        self, num_sequences: int, length: int, pin: bool, *, frame: Tensor | None = None
    ) -> TransitionBatch:
        """Empty tensors, page-locked with `pin`; `frame` takes the place of the frames."""
        shapes = {name: (len(self._rows), num_sequences, length, *shape) for name, shape in self._step_shapes.items()}
        made = {} if frame is None else {"frame": frame}
        for name in shapes.keys() - made.keys():
            if pin:
                dtype = FIELD_DTYPES.get(name, torch.float32)
                made[name] = torch.empty(shapes[name], dtype=dtype, pin_memory=True)
            else:
                # NumPy asks the system for pages of 2 MB, torch for pages of 4 KB. Each is cleared at its first touch,
                # which for small pages takes several times as long as the copy; with `out` there is no first touch.
                made[name] = torch.from_numpy(np.empty(shapes[name], self._dtypes[name]))
        own = {name: tensor for name, tensor in made.items() if name not in self._extra}
        return TransitionBatch(**own, extra={name: made[name] for name in self._extra})

    def _check_out(self, num_sequences: int, length: int, out: TransitionBatch) -> None:
        tensors = out.tensors()
        if tensors.keys() != self._step_shapes.keys():
            raise ValueError(f"out has the columns {', '.join(tensors)}, not {', '.join(self._step_shapes)}: pass a "
                             "batch of this replay")
        for name, tensor in tensors.items():
            dtype = FIELD_DTYPES.get(name, torch.float32)
            expected = (len(self._rows), num_sequences, length, *self._step_shapes[name])
            if tensor.shape != expected or tensor.dtype != dtype or tensor.device.type != "cpu":
                raise ValueError(f"out.{name}: expected {dtype} {[*expected]} on the CPU, got {tensor.dtype} "
                                 f"{[*tensor.shape]} on {tensor.device}: pass a batch of these arguments")
            if not tensor.is_contiguous():
                raise ValueError(f"out.{name}: expected a contiguous tensor, got strides {tensor.stride()}: pass "
                                 "whole tensors, not slices")
