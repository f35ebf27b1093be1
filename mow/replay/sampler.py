"""Drawing and copying replay windows: the NumPy reference, mow._C, and the choice between them.

Both return the same bytes. Letters: K tasks, B windows per task, L steps per window, R rows of a ring.
"""

import importlib
import logging
import math
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, TypedDict, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Backend = Literal["auto", "reference", "compiled"]
Int64Array = NDArray[np.int64]

REMEDY = "run `pip install -e .` in the checkout (it needs a C++ compiler)"


class BuildInfo(TypedDict):
    """Parts that were built into mow._C, as far as it is there."""

    compiled: bool
    cuda: bool
    archs: list[str]  # such as ["80", "90"]
    nvcc: str  # release of the compiler, such as "13.0"
    reason: str  # why the extension or its CUDA part is missing; empty where both are there


@cache
def _why_not_compiled() -> str:
    """Why mow._C cannot be imported; empty where it can."""
    try:
        importlib.import_module("mow._C")
    except ImportError as error:
        return str(error)
    return ""


@cache
def _warn_reference(reason: str) -> None:
    """Cached, so that a run logs it once."""
    logging.getLogger("mow").warning("replay uses the slower NumPy reference (%s): %s", reason, REMEDY)


def takes_compiled(backend: Backend) -> bool:
    """True if `backend` means mow._C here.

    Raises: ValueError for an unknown backend; ImportError for "compiled" where mow._C cannot be imported.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}, got {backend!r}")
    reason = _why_not_compiled()
    if backend == "reference" or not reason:
        return backend != "reference"
    if backend == "compiled":
        raise ImportError(f"backend 'compiled' needs the extension mow._C ({reason}): {REMEDY}")
    _warn_reference(reason)
    return False


def build_info() -> BuildInfo:
    """The parts of the installed extension, and why others are missing; pip hides the output of the build."""
    if reason := _why_not_compiled():
        return BuildInfo(compiled=False, cuda=False, archs=[], nvcc="", reason=reason)
    from mow import _C

    archs = _C.cuda_archs.split(";") if _C.with_cuda else []
    return BuildInfo(compiled=True, cuda=_C.with_cuda, archs=archs, nvcc=_C.nvcc_version, reason=_C.cuda_reason)


def set_num_threads(num_threads: int) -> None:
    """Threads that copy windows, 1 to 256, the caller included; changes no result. The NumPy reference uses one."""
    if takes_compiled("auto"):
        from mow import _C

        _C.set_num_threads(num_threads)


def draw_windows(
    seed: int,
    counter: int,
    stream: int,
    size: Int64Array,
    head: Int64Array,
    capacity: int,
    num_windows: int,
    length: int,
    *,
    recent: bool = False,
    backend: Backend = "auto",
) -> Int64Array:
    """Draw where windows start, uniformly over all windows that a ring holds whole, or more often late.

        age ~ Uniform{0, ..., size - L},   start = (head - size + age) mod capacity
        recent: age = max(age_1, age_2) of two such draws, so P(age) = (2 age + 1) / (size - L + 1)^2

    Age 0 starts at the oldest step, so no window crosses the write pointer. The draw of window b of task k is
    Philox4x32-10 of the counter words (k * B + b, stream, counter low, counter high) under the key `seed`: it depends
    on its arguments alone, so a resumed run, and any number of threads, draws the same.

    Args:
        seed: of the run, 0 to 2^64 - 1.
        counter: of the batch, such as the number of the update, 0 to 2^64 - 1.
        stream: what the batch is for, 0 to 2^32 - 1; streams are independent of each other.
        size: int64 [K], steps stored for task k.
        head: int64 [K], ring position that the next write will take.
        capacity: steps that a ring holds.
        num_windows: B.
        length: L, in steps.
        recent: draw the newest windows twice as often as on average, and the oldest hardly ever.
    Returns: int64 [K, B], ring position of the first step of each window.
    Raises: ValueError for a task with fewer than L steps; ImportError for backend "compiled" without the extension.
    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox).
    """
    if (size < length).any():
        task = int((size < length).argmax())
        raise ValueError(f"task {task} holds {size[task]} steps, a window needs {length}: collect more steps before "
                         "sampling, or shorten the window")
    if takes_compiled(backend):
        from mow import _C

        return _C.draw_windows(seed, counter, stream, size, head, capacity, num_windows, length, recent)
    num_tasks = len(size)
    words = np.zeros((num_tasks * num_windows, 4), dtype=np.uint32)
    words[:, 0] = np.arange(num_tasks * num_windows)
    words[:, 1:] = stream, counter & 0xFFFFFFFF, counter >> 32
    random = philox(words, seed).astype(np.uint64).reshape(num_tasks, num_windows, 2, 2)
    bits = random[..., 0] << np.uint64(32) | random[..., 1]  # [K, B, 2]: each window has two draws of 64 bits
    num_ages = (size - length + 1).tolist()
    # Python's integers hold the product of 64 by 64 bits; its upper half is uniform where `bits % num_ages` is not.
    ages = [[[bit * num_ages[k] >> 64 for bit in draws] for draws in bits[k].tolist()] for k in range(num_tasks)]
    both = np.array(ages, dtype=np.int64)  # [K, B, 2]
    age = both.max(axis=-1) if recent else both[..., 0]
    return ((head - size)[:, None] + age) % capacity  # [K, B]


def philox(counter: NDArray[np.uint32], key: int) -> NDArray[np.uint32]:
    """Philox4x32-10 of counter words [..., 4] under a key of 64 bits; the same shape, four random words each.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3 and table 2.
    """
    x, y, z, w = np.moveaxis(counter.astype(np.uint64), -1, 0)
    half, low_bits = np.uint64(32), np.uint64(0xFFFFFFFF)
    for i in range(10):
        key_low = np.uint64((key + i * 0x9E3779B9) & 0xFFFFFFFF)
        key_high = np.uint64(((key >> 32) + i * 0xBB67AE85) & 0xFFFFFFFF)
        product_x, product_z = np.uint64(0xD2511F53) * x, np.uint64(0xCD9E8D57) * z
        x, y = (product_z >> half) ^ y ^ key_low, product_z & low_bits
        z, w = (product_x >> half) ^ w ^ key_high, product_x & low_bits
    return np.stack([x, y, z, w], axis=-1).astype(np.uint32)


def gather_windows(
    rings: Sequence[NDArray[Any]],
    rows: Int64Array,
    start: Int64Array,
    length: int,
    out: Sequence[NDArray[Any]],
    *,
    backend: Backend = "auto",
) -> None:
    """Copy windows out of rings into the caller's arrays; every field in one call, on the thread pool, without the GIL.

        out[k, b, i] = ring[rows[k], (start[k, b] + i) mod capacity],   0 <= i < L

    Args:
        rings: one [R, capacity, ...] per field, contiguous, of any numeric or boolean dtype.
        rows: int64 [K], the ring row of each task, 0 to R - 1.
        start: int64 [K, B], 0 to capacity - 1.
        length: L, 1 to capacity.
        out: one [K, B, L, ...] per field, contiguous, writeable, of the ring's dtype; all of it is written.
    Raises: ValueError where an array or an index does not fit (compiled); ImportError for backend "compiled" without
        the extension.
    """
    if takes_compiled(backend):
        from mow import _C

        _C.gather_windows(rings, rows, start, length, out)
        return
    for ring, window in zip(rings, out, strict=True):
        position = (start[:, :, None] + np.arange(length)) % ring.shape[1]  # [K, B, L]
        window[...] = ring[rows[:, None, None], position]  # [K, B, L, ...]


def gather_windows_cuda(ring: Tensor, rows: Tensor, start: Tensor, length: int, out: Tensor) -> None:
    """gather_windows for one field whose ring lies on a GPU; queued on torch's current stream.

    The values of `rows` and `start` are not looked at here, as that would wait for the GPU; one out of range stops the
    kernel with a device-side assertion, as indexing in torch does.

    Args: ring [R, capacity, ...], rows int64 [K], start int64 [K, B], out [K, B, L, ...], all contiguous on one device.
    Raises: ValueError where a tensor does not fit; ImportError where the extension lacks its CUDA part; RuntimeError
        with CUDA's words where the launch fails.
    """
    expected = (*start.shape, length, *ring.shape[2:])
    if rows.shape != start.shape[:1] or out.shape != expected or not 1 <= length <= ring.shape[1]:
        raise ValueError(f"expected ring [R, capacity, ...], rows [K], start [K, B], out [K, B, L, ...], got "
                         f"{[*ring.shape]}, {[*rows.shape]}, {[*start.shape]}, {[*out.shape]} with L {length}")
    if (rows.dtype, start.dtype, out.dtype) != (torch.int64, torch.int64, ring.dtype):
        raise ValueError(f"expected rows and start int64 and out of the ring's {ring.dtype}, got {rows.dtype}, "
                         f"{start.dtype}, {out.dtype}")
    if not all(one.is_contiguous() and one.is_cuda and one.device == ring.device for one in (ring, rows, start, out)):
        raise ValueError(f"expected contiguous tensors on one CUDA device, got {ring.device}, {rows.device}, "
                         f"{start.device}, {out.device}: call gather_windows for arrays in main memory")
    info = build_info()
    if not info["cuda"]:
        raise ImportError(f"mow._C lacks its CUDA part ({info['reason']}): install the CUDA toolkit and {REMEDY}")
    if out.numel() == 0:
        return
    from mow import _C

    step_bytes = ring.element_size() * math.prod(ring.shape[2:])
    with torch.cuda.device(ring.device):
        stream = torch.cuda.current_stream().cuda_stream
        _C.gather_windows_cuda(ring.data_ptr(), out.data_ptr(), step_bytes, rows.data_ptr(), start.data_ptr(),
                               ring.shape[0], ring.shape[1], start.shape[0], start.shape[1], length,
                               ring.get_device(), stream)
