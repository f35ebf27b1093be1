"""Interface of a store of replay frames, and the plain store, a ring of raw frames or of states.

A frame is named by the ring row r of its task and its absolute step t = 0, 1, 2, ... since the start of the run. Of
each row the last min(num_steps, capacity) steps are held.
Letters: R rows, K tasks, B windows per task, L steps per window, H and W the sides of a frame in pixels.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Frames = NDArray[Any]  # uint8 [..., H, W, 3]; in a plain store also states float32 [..., D]
Int64Array = NDArray[np.int64]

BLOCK_STEPS = 8  # that are packed together, in memory and in files


class FrameStore(ABC):
    """The last `capacity` frames of R rows; all stores give the same bytes."""

    disk_bytes: int = 0  # occupied now on a disk, by frames that memory has no room for
    dtype: np.dtype[Any] = np.dtype(np.uint8)  # of a pixel, or of a number of a state
    ratio: float = 1.0  # raw bytes of the frames held over the bytes that they take

    def __init__(self, num_rows: int, capacity: int, frame_shape: Sequence[int]) -> None:
        """Raises: ValueError for a size below 1."""
        sides = {f"frame_shape[{i}]": side for i, side in enumerate(frame_shape)}
        for name, value in {"num_rows": num_rows, "capacity": capacity, **sides}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.num_rows, self.capacity, self.frame_shape = num_rows, capacity, tuple(frame_shape)  # R, steps, (H, W, 3)
        self.frame_bytes = math.prod(self.frame_shape) * self.dtype.itemsize
        self.num_steps = 0  # per row ever appended

    @property
    @abstractmethod
    def memory_bytes(self) -> int:
        """Main memory occupied now."""

    @property
    @abstractmethod
    def projected_bytes(self) -> int:
        """Main memory occupied once full, if the frames to come are like those held."""

    @property
    def oldest(self) -> int:
        """The oldest step that is held."""
        return max(self.num_steps - self.capacity, 0)

    @abstractmethod
    def append(self, frame: Frames) -> None:
        """Take the next step of every row: uint8 [R, H, W, 3].

        Raises: ValueError for another shape or dtype; OSError where a disk does not take what memory has no room for,
            which stays in memory then, as does the step.
        """

    def resume(self, num_steps: int) -> None:
        """Let an empty store count from `num_steps`, a multiple of 8; the caller then appends what was held."""
        assert self.num_steps == num_steps % BLOCK_STEPS == 0, (self.num_steps, num_steps)
        self.num_steps = num_steps

    @abstractmethod
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
            out: uint8 [K, B, L, H, W, 3], contiguous; all of it is written.
        Raises: ValueError where an argument does not fit or a window is not held whole; RuntimeError naming task and
            step where stored frames are damaged.
        """
        self.begin_gather(rows, first, length, out)()

    def _check_frames(self, frame: Frames) -> None:
        expected = (self.num_rows, *self.frame_shape)
        if frame.shape != expected or frame.dtype != self.dtype:
            raise ValueError(f"frame of one step: expected {self.dtype} {[*expected]}, got {frame.dtype} "
                             f"{[*frame.shape]}: pass them for every row, unscaled")

    def _check_windows(self, rows: Int64Array, first: Int64Array, length: int, out: Frames | None = None) -> None:
        """Raises: ValueError where an argument of gather does not fit, or a window is not held whole."""
        if not (rows.min() >= 0 and rows.max() < self.num_rows):
            raise ValueError(f"rows must be in 0 to {self.num_rows - 1}, got {rows.tolist()}")
        oldest, newest = self.oldest, self.num_steps - length
        if length < 1 or oldest > newest:
            raise ValueError(f"length must be in 1 to the {self.num_steps - oldest} steps held, got {length}: "
                             "collect more steps, or shorten the window")
        if not (first.min() >= oldest and first.max() <= newest):
            raise ValueError(f"first must be in {oldest} to {newest} for windows of {length} steps, got {first.min()} "
                             f"to {first.max()}: the others are no longer held, or not yet")
        expected = (*first.shape, length, *self.frame_shape)
        if out is not None and (out.shape != expected or out.dtype != self.dtype or not out.flags.carray):
            raise ValueError(f"out must be contiguous, writeable {self.dtype} {[*expected]}, got {out.dtype} "
                             f"{[*out.shape]}")


class RawStore(FrameStore):
    """A ring of raw frames or states, row-major, so that a window is one block of memory, or two where it wraps.

    Needs no compiler; the other stores are compared with it. One thread at a time.
    """

    def __init__(self, num_rows: int, capacity: int, frame_shape: Sequence[int], dtype: str = "uint8") -> None:
        self.dtype = np.dtype(dtype)
        super().__init__(num_rows, capacity, frame_shape)
        # np.zeros takes a page of memory only once a step is written to it.
        self._ring = np.zeros((num_rows, capacity, *self.frame_shape), self.dtype)

    @property
    def memory_bytes(self) -> int:
        return self.num_rows * min(self.num_steps, self.capacity) * self.frame_bytes

    @property
    def projected_bytes(self) -> int:
        return self._ring.nbytes

    def append(self, frame: Frames) -> None:
        self._check_frames(frame)
        self._ring[:, self.num_steps % self.capacity] = frame
        self.num_steps += 1

    def begin_gather(self, rows: Int64Array, first: Int64Array, length: int, out: Frames) -> Callable[[], None]:
        self._check_windows(rows, first, length, out)  # all is done now: places of the ring are written again
        position = (first[:, :, None] + np.arange(length)) % self.capacity  # [K, B, L]
        index = torch.from_numpy((rows[:, None, None] * self.capacity + position).reshape(-1))  # [K * B * L]
        ring = torch.from_numpy(self._ring).flatten(0, 1).flatten(1)  # [R * capacity, numbers of a frame]
        # Into the caller's memory: a fresh array costs as much again in page faults as the copy itself.
        torch.index_select(ring, 0, index, out=torch.from_numpy(out.reshape(-1, ring.shape[1])))
        return nothing_left


def nothing_left() -> None:
    """The rest of a gather that is done already."""
