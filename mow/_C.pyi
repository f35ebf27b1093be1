"""What csrc/bindings.cpp exports. Call it through mow.replay and mow.offline, which check and explain."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

with_cuda: bool
cuda_archs: str  # such as "80;90"; empty without CUDA
nvcc_version: str  # empty without CUDA
cuda_reason: str  # why there is no CUDA; empty with it

def philox(x: int, y: int, z: int, w: int, key: int) -> list[int]: ...
def draw_windows(
    seed: int,
    counter: int,
    stream: int,
    size: NDArray[np.int64],
    head: NDArray[np.int64],
    capacity: int,
    num_windows: int,
    length: int,
    recent: bool,
) -> NDArray[np.int64]: ...
def gather_windows(
    rings: Sequence[NDArray[Any]],
    rows: NDArray[np.int64],
    start: NDArray[np.int64],
    length: int,
    out: Sequence[NDArray[Any]],
) -> None: ...
def draw_slices(
    seed: int,
    counter: int,
    stream: int,
    starts: Sequence[NDArray[np.int64]],
    rows: Sequence[NDArray[np.int64]],
    num_windows: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...
def gather_rows(
    files: Sequence[NDArray[np.float32]],
    offset: NDArray[np.int64],
    width: NDArray[np.int64],
    file: NDArray[np.int64],
    start: NDArray[np.int64],
    length: int,
    out: Sequence[NDArray[np.float32]],
) -> None: ...
def set_num_threads(num_threads: int) -> None: ...
def num_threads() -> int: ...

block_steps: int  # steps of a sealed block

def use_lz4(compress: int, decompress: int, decompress_first: int) -> None: ...  # addresses; before a PackedStore
def crc32c(data: bytes, by_table: bool = False) -> int: ...

class PendingFrames:
    def finish(self) -> None: ...

# Frames without their height and width: [..., frame_bytes]. Called by mow.replay.packed.
class PackedStore:
    def __init__(self, num_rows: int, capacity: int, frame_bytes: int) -> None: ...
    def spill_to(self, folder: str, memory_limit: int) -> None: ...
    def append(self, frames: NDArray[np.uint8]) -> None: ...  # [R, frame_bytes]; the rows may lie apart
    def append_block(self, blocks: Sequence[tuple[bytes, bool, int]]) -> None: ...
    def resume(self, num_steps: int) -> None: ...
    def begin_gather(
        self, rows: NDArray[np.int64], first: NDArray[np.int64], length: int, out: NDArray[np.uint8]
    ) -> PendingFrames: ...
    @property
    def num_steps(self) -> int: ...
    @property
    def memory_bytes(self) -> int: ...
    @property
    def disk_bytes(self) -> int: ...
    @property
    def ratio(self) -> float: ...
    def block_range(self) -> tuple[int, int]: ...
    def block_bytes(self, row: int, block: int) -> tuple[bytes, bool, int]: ...
    def open_frames(self, row: int) -> NDArray[np.uint8]: ...
    def _flip_bit(self, row: int, block: int) -> None: ...

# Present only where with_cuda is true. Addresses are those of device memory.
def gather_windows_cuda(
    ring: int,
    out: int,
    step_bytes: int,
    rows: int,
    start: int,
    num_rows: int,
    capacity: int,
    num_tasks: int,
    num_windows: int,
    length: int,
    device: int,
    stream: int,
) -> None: ...
