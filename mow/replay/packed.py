"""Frames packed across time: blocks of 8 steps through LZ4 with a checksum each, unpacked inside the gather (mow._C).

From one frame to the next little changes, and LZ4 looks five frames of 64 x 64 back. A block that would not shrink
below 90 % stays raw, so noise costs no more than a ring of raw frames.
Letters: R rows, K tasks, B windows per task, L steps per window, H and W the sides of a frame in pixels.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mow.replay import lz4
from mow.replay.sampler import REMEDY, build_info
from mow.replay.stores import BLOCK_STEPS, Frames, Int64Array, check_frames, check_sizes, check_windows

# The stored bytes of a block, whether they are raw frames, their CRC32C.
Block = tuple[bytes, bool, int]


def why_not_packed() -> str:
    """Reason why frames cannot be packed here, with the remedy; empty where they can."""
    if not build_info()["compiled"]:
        return f"the extension mow._C is missing ({build_info()['reason']}): {REMEDY}"
    return lz4.why_missing()


@dataclass(frozen=True)
class Spill:
    """A disk for the blocks that memory has no room for."""

    folder: Path
    memory_bytes: int  # that blocks may take in memory; the oldest beyond go to the disk

    def __post_init__(self) -> None:
        if self.memory_bytes < 0:
            raise ValueError(f"memory_bytes must be at least 0, got {self.memory_bytes}: 0 keeps no block in memory")


class PackedStore:
    """The last `capacity` frames of R rows; memory grows with what is stored, and old blocks are freed.

    One thread may append while others gather: a gather reads blocks that never change, and keeps those it needs.
    Packing and unpacking run on the process's thread pool, without Python's lock.
    """

    def __init__(
        self, num_rows: int, capacity: int, frame_shape: Sequence[int], *, spill: Spill | None = None
    ) -> None:
        """Make an empty store.

        Args: spill: folder for blocks that have no room in memory; None keeps all in memory.

        The file in its folder has no name, so nothing is left of it when the process ends, however it ends.
        Raises: ValueError for a size below 1; ImportError where mow._C or liblz4 is missing; OSError where the folder
            takes no file.
        """
        check_sizes(num_rows, capacity, frame_shape)
        if reason := why_not_packed():
            raise ImportError(f"a packed store cannot be made here: {reason}")
        from mow import _C

        _C.use_lz4(*lz4.addresses())
        self.num_rows = num_rows
        self.capacity = capacity
        self.frame_shape = tuple(frame_shape)
        self.frame_bytes = math.prod(self.frame_shape)
        self._store = _C.PackedStore(num_rows, capacity, self.frame_bytes)
        self._fixed_bytes = self._store.memory_bytes  # the open block and the space to pack it in
        self._spill = spill
        if spill is not None:
            try:
                spill.folder.mkdir(parents=True, exist_ok=True)
                self._store.spill_to(str(spill.folder), spill.memory_bytes)
            except OSError as error:
                raise OSError(error.errno, f"no file for packed frames can be made there ({error.strerror}): name a "
                                           "folder that can be written to", str(spill.folder)) from error

    @property
    def num_steps(self) -> int:
        return self._store.num_steps

    @property
    def memory_bytes(self) -> int:
        """Occupied now, with the open block and the space to pack it in."""
        return self._store.memory_bytes

    @property
    def disk_bytes(self) -> int:
        return self._store.disk_bytes

    @property
    def projected_bytes(self) -> int:
        """Memory occupied once full at the ratio seen so far; until a block is sealed, the upper bound."""
        sealed = self.num_rows * (self.capacity + BLOCK_STEPS) * self.frame_bytes  # the oldest block leaves whole
        packed = round(sealed / self.ratio)
        return self._fixed_bytes + (packed if self._spill is None else min(packed, self._spill.memory_bytes))

    @property
    def ratio(self) -> float:
        """Raw bytes of the sealed frames over the bytes that they take, tables included; 1 where none is sealed."""
        return self._store.ratio

    def append(self, frame: Frames) -> None:
        check_frames("frame of one step", frame, (self.num_rows, *self.frame_shape))
        flat = frame.reshape(self.num_rows, self.frame_bytes)  # copied only where a frame is not in one piece
        with self._disk():
            self._store.append(flat if flat.strides[1] == 1 else np.ascontiguousarray(flat))

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

    def resume(self, num_steps: int) -> None:
        self._store.resume(num_steps)

    def append_block(self, blocks: Sequence[Block]) -> None:
        """Take the next eight steps of every row, packed as block_bytes of another store gave them: [R].

        Raises: ValueError if some steps are not sealed yet, a row is missing or its block is damaged; nothing is taken
            then; OSError as append.
        """
        with self._disk():
            self._store.append_block(blocks)

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            assert self._spill is not None
            raise OSError(error.errno, f"packed frames beyond {self._spill.memory_bytes / 1e9:.2f} GB cannot be moved "
                                       f"there ({error.strerror}): free some space; no frame is lost so far",
                          str(self._spill.folder)) from error

    def _check_row(self, row: int) -> None:
        if not 0 <= row < self.num_rows:
            raise ValueError(f"row must be in 0 to {self.num_rows - 1}, got {row}")
