"""Frames packed across time: blocks of 8 steps through LZ4 with a checksum each, unpacked inside the gather (mow._C).

From one frame to the next little changes, and LZ4 looks five frames of 64 x 64 back. A block that would not shrink
below 90 % stays raw, so noise costs no more than a ring of raw frames.
Letters: R rows, K tasks, B windows per task, L steps per window, H and W the sides of a frame in pixels.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from mow.replay.sampler import REMEDY, build_info
from mow.replay.stores import Frames, Int64Array, check_frames, check_sizes, check_windows

BLOCK_STEPS = 8

# The stored bytes of a block, whether they are raw frames, their CRC32C.
Block = tuple[bytes, bool, int]


def why_not_packed() -> str:
    """Why frames cannot be packed here, with the remedy; empty where they can."""
    if reason := build_info()["reason"] if not build_info()["compiled"] else "":
        return f"the extension mow._C is missing ({reason}): {REMEDY}"
    from mow import _C

    return _C.why_no_lz4()


class PackedStore:
    """The last `capacity` frames of R rows; memory grows with what is stored, and old blocks are freed.

    One thread may append while others gather: a gather reads blocks that never change, and keeps those it needs.
    Packing and unpacking run on the process's thread pool, without Python's lock.
    """

    def __init__(self, num_rows: int, capacity: int, frame_shape: Sequence[int]) -> None:
        """Raises: ValueError for a size below 1; ImportError where mow._C or liblz4 is missing."""
        check_sizes(num_rows, capacity, frame_shape)
        if reason := why_not_packed():
            raise ImportError(f"a packed store cannot be made here: {reason}")
        from mow import _C

        self.num_rows = num_rows
        self.capacity = capacity
        self.frame_shape = tuple(frame_shape)
        self.frame_bytes = math.prod(self.frame_shape)
        self._store = _C.PackedStore(num_rows, capacity, self.frame_bytes)
        self._fixed_bytes = self._store.memory_bytes  # the open block and the space to pack it in

    @property
    def num_steps(self) -> int:
        return self._store.num_steps

    @property
    def memory_bytes(self) -> int:
        """Occupied now, with the open block and the space to pack it in."""
        return self._store.memory_bytes

    @property
    def projected_bytes(self) -> int:
        """Occupied once full at the ratio seen so far; until a block is sealed, the upper bound."""
        sealed = self.num_rows * (self.capacity + BLOCK_STEPS) * self.frame_bytes  # the oldest block leaves whole
        return self._fixed_bytes + round(sealed / self.ratio)

    @property
    def ratio(self) -> float:
        """Raw bytes of the sealed frames over the bytes that they take, tables included; 1 where none is sealed."""
        return self._store.ratio

    def append(self, frame: Frames) -> None:
        check_frames("frame of one step", frame, (self.num_rows, *self.frame_shape))
        self._store.append(np.ascontiguousarray(frame).reshape(self.num_rows, self.frame_bytes))

    def begin_gather(self, rows: Int64Array, first: Int64Array, length: int, out: Frames) -> Callable[[], None]:
        check_windows(self, self.num_rows, rows, first, length, out)
        windows = out.reshape(*out.shape[:3], self.frame_bytes)
        return self._store.begin_gather(rows, first, length, windows).finish

    def gather(self, rows: Int64Array, first: Int64Array, length: int, out: Frames) -> None:
        self.begin_gather(rows, first, length, out)()

    # For files ------------------------------------------------------------------------------------------------------

    def block_range(self, row: int) -> tuple[int, int]:
        """Absolute numbers (first, end) of the sealed blocks of a row; block n holds steps 8 n to 8 n + 7."""
        self._check_row(row)
        return self._store.block_range()

    def block_bytes(self, row: int, block: int) -> Block:
        """The stored bytes of a block, whether they are raw, their CRC32C.

        Raises: ValueError for a block that is not held; RuntimeError naming row and steps if its bytes are damaged.
        """
        return self._store.block_bytes(row, block)

    def open_frames(self, row: int) -> Frames:
        """Frames that are not sealed yet: uint8 [m, H, W, 3], m < 8."""
        return self._store.open_frames(row).reshape(-1, *self.frame_shape)

    def restore(
        self, num_steps: int, blocks: Sequence[Sequence[tuple[int, bytes, bool, int]]], open_frames: Frames
    ) -> None:
        """Fill an empty store with what another one gave.

        Args:
            num_steps: of the other store.
            blocks: per row, in rising order, (number, stored bytes, whether they are raw, their CRC32C).
            open_frames: uint8 [R, num_steps % 8, H, W, 3].
        Raises: ValueError if the store is not empty, a block is missing or damaged, or visible steps are not covered;
            the store stays empty then.
        """
        end = num_steps // BLOCK_STEPS
        first = end - len(blocks[0]) if blocks else end
        for row, numbered in enumerate(blocks):
            if [entry[0] for entry in numbered] != [*range(first, end)]:
                raise ValueError(f"row {row}: expected the blocks {first} to {end - 1} in order, got "
                                 f"{[entry[0] for entry in numbered]}: pass all blocks of all rows up to the open one")
        expected = (self.num_rows, num_steps % BLOCK_STEPS, *self.frame_shape)
        check_frames("open_frames", open_frames, expected)
        payloads = [[entry[1:] for entry in numbered] for numbered in blocks]
        flat = np.ascontiguousarray(open_frames).reshape(*expected[:2], self.frame_bytes)
        self._store.restore(num_steps, first, payloads, flat)

    def _check_row(self, row: int) -> None:
        if not 0 <= row < self.num_rows:
            raise ValueError(f"row must be in 0 to {self.num_rows - 1}, got {row}")
