"""What csrc/bindings.cpp exports. Call it through mow.replay.sampler, which checks and explains."""

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
) -> NDArray[np.int64]: ...
def gather_windows(
    rings: Sequence[NDArray[Any]],
    rows: NDArray[np.int64],
    start: NDArray[np.int64],
    length: int,
    out: Sequence[NDArray[Any]],
) -> None: ...
def set_num_threads(num_threads: int) -> None: ...
def num_threads() -> int: ...

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
