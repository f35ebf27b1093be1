"""Frames packed across time: blocks of 8 steps through LZ4 with a checksum each, unpacked inside the gather (mow._C).

From one frame to the next little changes, and LZ4 looks five frames of 64 x 64 back. A block that would not shrink
below 90 % stays raw, so noise costs no more than a ring of raw frames.
Letters: R rows, K tasks, B windows per task, L steps per window, H and W the sides of a frame in pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mow.replay import lz4
from mow.replay.sampler import REMEDY, build_info
from mow.replay.stores import BLOCK_STEPS, Frames, FrameStore, Int64Array

# The stored bytes of a block, whether they are raw frames, their CRC32C.
Block = tuple[bytes, bool, int]


def why_not_packed() -> str:
    """Reason why frames cannot be packed here, with the remedy; empty where they can."""
    if not build_info()["compiled"]:
        return f"the extension mow._C is missing ({build_info()['reason']}): {REMEDY}"
    return lz4.why_missing()


class Spill(NamedTuple):
    """A disk for the blocks that memory has no room for."""

    folder: Path
    memory_bytes: int  # that blocks may take in memory; the oldest beyond go to the disk


class PackedStore(FrameStore):
    """The last `capacity` frames of R rows; memory grows with what is stored, and old blocks are freed.

    One thread may append while others gather: a gather reads blocks that never change, and keeps those it needs.
    Packing and unpacking run on the process's thread pool, without Python's lock.
    """

    def __init__(
        self, num_rows: int, capacity: int, frame_shape: Sequence[int], *, spill: Spill | None = None
    ) -> None:
        """Make an empty store.

        Args: spill: folder for blocks that have no room in memory; None keeps all in memory. The file in it has no
            name, so nothing is left of it when the process ends, however it ends.
        Raises: ValueError for a size below 1; ImportError where mow._C or liblz4 is missing; OSError where the folder
            takes no file.
        """
        super().__init__(num_rows, capacity, frame_shape)
        if reason := why_not_packed():
            raise ImportError(f"a packed store cannot be made here: {reason}")
        from mow import _C

        _C.use_lz4(*lz4.addresses())
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
    def memory_bytes(self) -> int:
        """Occupied now, with the open block and the space to pack it in."""
        return self._store.memory_bytes

    @property
    def disk_bytes(self) -> int:  # type: ignore[override]
        return self._store.disk_bytes

    @property
    def projected_bytes(self) -> int:
        """Memory occupied once full at the ratio seen so far; until a block is sealed, the upper bound."""
        sealed = self.num_rows * (self.capacity + BLOCK_STEPS) * self.frame_bytes  # the oldest block leaves whole
        packed = round(sealed / self.ratio)
        return self._fixed_bytes + (packed if self._spill is None else min(packed, self._spill.memory_bytes))

    @property
    def ratio(self) -> float:  # type: ignore[override]
        """Raw bytes of the sealed frames over the bytes that they take, tables included; 1 where none is sealed."""
        return self._store.ratio

    def append(self, frame: Frames) -> None:
        self._check_frames(frame)
        flat = frame.reshape(self.num_rows, self.frame_bytes)  # copied only where a frame is not in one piece
        with self._writing():
            self._store.append(flat if flat.strides[1] == 1 else np.ascontiguousarray(flat))

    def begin_gather(self, rows: Int64Array, first: Int64Array, length: int, out: Frames) -> Callable[[], None]:
        self._check_windows(rows, first, length, out)
        windows = out.reshape(*out.shape[:3], self.frame_bytes)
        return self._store.begin_gather(rows, first, length, windows).finish

    def block_bytes(self, row: int, block: int) -> Block:
        """A sealed block of a row; block n holds steps 8 n to 8 n + 7.

        Raises: ValueError for a block that is not held; RuntimeError naming row and steps if its bytes are damaged.
        """
        return self._store.block_bytes(row, block)

    def resume(self, num_steps: int) -> None:
        self._store.resume(num_steps)
        self.num_steps = num_steps

    def append_block(self, blocks: Sequence[Block]) -> None:
        """Take the next eight steps of every row, packed as block_bytes of another store gave them: [R].

        Raises: ValueError if some steps are not sealed yet, a row is missing or its block is damaged; nothing is taken
            then; OSError as append.
        """
        with self._writing():
            self._store.append_block(blocks)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Count the steps afterwards; name the folder of the disk where it does not take them."""
        try:
            yield
        except OSError as error:
            assert self._spill is not None
            raise OSError(error.errno, f"packed frames beyond {self._spill.memory_bytes / 1e9:.2f} GB cannot be moved "
                                       f"there ({error.strerror}): free some space; no frame is lost so far",
                          str(self._spill.folder)) from error
        finally:
            self.num_steps = self._store.num_steps
