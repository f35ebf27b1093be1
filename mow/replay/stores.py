"""Interface of a store of replay frames, and the plain store, a ring of raw frames.

A frame is named by the ring row r of its task and its absolute step t = 0, 1, 2, ... since the start of the run. Of
each row the last `size = min(num_steps, capacity)` steps can be seen.
Letters: R rows, K tasks, B windows per task, L steps per window, H and W the sides of a frame in pixels.
"""

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Int64Array = NDArray[np.int64]

BLOCK_STEPS = 8  # that are packed together, in memory and in files


class FrameStore(Protocol):
    """The last `capacity` frames of R rows; all stores give the same bytes."""

    @property
    def num_steps(self) -> int:
        """Steps per row ever appended."""

    @property
    def capacity(self) -> int:
        """Steps per row that can be seen."""

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """(H, W, 3)."""

    @property
    def frame_bytes(self) -> int:
        """Of one frame."""

    @property
    def memory_bytes(self) -> int:
        """Main memory occupied now."""

    @property
    def disk_bytes(self) -> int:
        """Occupied now on a disk, by frames that memory has no room for."""

    @property
    def projected_bytes(self) -> int:
        """Main memory occupied once full, if the frames to come are like those held."""

    @property
    def ratio(self) -> float:
        """Raw bytes of the frames held over the bytes that they take."""

    def append(self, frame: Frames) -> None:
        """Take the next step of every row: uint8 [R, H, W, 3].

        Raises: ValueError for another shape or dtype; OSError where a disk does not take what memory has no room for,
            which stays in memory then, as does the step.
        """

    def resume(self, num_steps: int) -> None:
        """Let an empty store count from `num_steps`, a multiple of 8; the caller then appends what was held.

        Raises: ValueError if steps were appended already, or for another number.
        """

    def begin_gather(self, rows: Int64Array, first: Int64Array, length: int, out: Frames) -> Callable[[], None]:
        """Fix the windows of a gather; returns the function that finishes writing them to `out`.

        Steps appended between the two calls change nothing. Arguments and errors are those of gather.
        """

    def gather(self, rows: Int64Array, first: Int64Array, length: int, out: Frames) -> None:
        """Copy windows: out[k, b, i] = frame (rows[k], first[k, b] + i), 0 <= i < L.

        Args:
            rows: int64 [K], 0 to R - 1.
            first: int64 [K, B], absolute steps.
            length: L.
            out: uint8 [K, B, L, H, W, 3], contiguous and writeable; all of it is written.
        Raises: ValueError where an argument does not fit or a window is not held whole; RuntimeError naming task and
            step where stored frames are damaged.
        """


class RawStore:
    """A ring of raw frames, row-major, so that a window is one block of memory, or two where it wraps.

    Needs no compiler; what the other store gives is compared with it. One thread at a time.
    """

    def __init__(self, num_rows: int, capacity: int, frame_shape: Sequence[int]) -> None:
        """Raises: ValueError for a size below 1."""
        check_sizes(num_rows, capacity, frame_shape)
        self.capacity = capacity
        self.frame_shape = tuple(frame_shape)
        self.frame_bytes = math.prod(self.frame_shape)
        self.num_steps = 0
        # np.zeros takes a page of memory only once a step is written to it.
        self._ring = np.zeros((num_rows, capacity, *self.frame_shape), dtype=np.uint8)

    @property
    def memory_bytes(self) -> int:
        return len(self._ring) * min(self.num_steps, self.capacity) * self.frame_bytes

    @property
    def disk_bytes(self) -> int:
        return 0

    @property
    def projected_bytes(self) -> int:
        return self._ring.nbytes

    @property
    def ratio(self) -> float:
        return 1.0

    def append(self, frame: Frames) -> None:
        check_frames("frame of one step", frame, (len(self._ring), *self.frame_shape))
        self._ring[:, self.num_steps % self.capacity] = frame
        self.num_steps += 1

    def resume(self, num_steps: int) -> None:
        check_resume(self.num_steps, num_steps)
        self.num_steps = num_steps

    def begin_gather(self, rows: Int64Array, first: Int64Array, length: int, out: Frames) -> Callable[[], None]:
        self.gather(rows, first, length, out)  # at once: the ring's places are written again
        return nothing_left

    def gather(self, rows: Int64Array, first: Int64Array, length: int, out: Frames) -> None:
        check_windows(self, len(self._ring), rows, first, length, out)
        position = (first[:, :, None] + np.arange(length)) % self.capacity  # [K, B, L]
        index = torch.from_numpy((rows[:, None, None] * self.capacity + position).reshape(-1))  # [K * B * L]
        ring = torch.from_numpy(self._ring.reshape(-1, self.frame_bytes))
        # Into the caller's memory: a fresh array costs as much again in page faults as the copy itself.
        torch.index_select(ring, 0, index, out=torch.from_numpy(out.reshape(-1, self.frame_bytes)))


def nothing_left() -> None:
    """The rest of a gather that is done already."""


def check_resume(held: int, num_steps: int) -> None:
    """Raises: ValueError unless a store that holds no step is to count from a multiple of 8."""
    if held != 0 or num_steps < 0 or num_steps % BLOCK_STEPS != 0:
        raise ValueError(f"resume needs an empty store and a multiple of {BLOCK_STEPS}, got a store of {held} steps "
                         f"and {num_steps}: make a new store")


def check_sizes(num_rows: int, capacity: int, frame_shape: Sequence[int]) -> None:
    """Raises: ValueError for a size below 1."""
    sides = {f"frame_shape[{i}]": side for i, side in enumerate(frame_shape)}
    for name, value in {"num_rows": num_rows, "capacity": capacity, **sides}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def check_frames(name: str, frame: Frames, expected: tuple[int, ...]) -> None:
    """Raises: ValueError if frames of all rows are not uint8 of the expected shape."""
    if frame.shape != expected or frame.dtype != np.uint8:
        raise ValueError(f"{name}: expected uint8 {[*expected]}, got {frame.dtype} {[*frame.shape]}: "
                         "pass them for every row, unscaled")


def check_windows(
    store: FrameStore, num_rows: int, rows: Int64Array, first: Int64Array, length: int, out: Frames | None
) -> None:
    """Check the arguments of gather; without `out` the others alone.

    Raises: ValueError where an argument does not fit, or a window is not held whole.
    """
    for name, index, num_axes in (("rows", rows, 1), ("first", first, 2)):
        if index.dtype != np.int64 or index.ndim != num_axes or not index.flags.c_contiguous:
            raise ValueError(f"{name} must be a contiguous int64 array of {num_axes} axes, got {index.dtype} "
                             f"{[*index.shape]}: convert it with np.ascontiguousarray({name}, dtype=np.int64)")
    if len(rows) != len(first):
        raise ValueError(f"rows and first must name the same tasks, got {len(rows)} and {len(first)}: pass a row each")
    if rows.size and not (rows.min() >= 0 and rows.max() < num_rows):
        raise ValueError(f"rows must be in 0 to {num_rows - 1}, got {rows.tolist()}: name rows of this store")
    newest = store.num_steps - length
    oldest = max(store.num_steps - store.capacity, 0)
    if length < 1 or oldest > newest:
        raise ValueError(f"length must be in 1 to the {store.num_steps - oldest} steps held, got {length}: "
                         "collect more steps, or shorten the window")
    if first.size and not (first.min() >= oldest and first.max() <= newest):
        raise ValueError(f"first must be in {oldest} to {newest} for windows of {length} steps, got {first.min()} to "
                         f"{first.max()}: draw windows among the steps held")
    if out is None:
        return
    expected = (*first.shape, length, *store.frame_shape)
    if out.shape != expected or out.dtype != np.uint8 or not (out.flags.c_contiguous and out.flags.writeable):
        raise ValueError(f"out must be contiguous, writeable uint8 {[*expected]}, got {out.dtype} {[*out.shape]} "
                         f"{out.flags.c_contiguous=} {out.flags.writeable=}: allocate it with torch.empty")
