"""The door to drawing and copying replay windows: the checks, the NumPy reference, the choice between it and mow._C.

Both backends return the same bytes. Letters: K tasks, B windows per task, L steps per window, R rows of a ring.
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
    """What was built into mow._C, as far as it is there."""

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
def _say_reference(reason: str) -> None:
    """Cached, so that a run says it once."""
    logging.getLogger("mow").warning("replay uses the slower NumPy reference (%s): %s", reason, REMEDY)


def takes_compiled(backend: Backend) -> bool:
    """Whether `backend` means mow._C here.

    Raises: ValueError for an unknown backend; ImportError for "compiled" where mow._C cannot be imported.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}, got {backend!r}")
    reason = _why_not_compiled()
    if backend == "reference" or not reason:
        return backend != "reference"
    if backend == "compiled":
        raise ImportError(f"backend 'compiled' needs the extension mow._C ({reason}): {REMEDY}")
    _say_reference(reason)
    return False


def build_info() -> BuildInfo:
    """What the installed extension can do, and why it cannot do more; pip hides what the build says."""
    if reason := _why_not_compiled():
        return BuildInfo(compiled=False, cuda=False, archs=[], nvcc="", reason=reason)
    from mow import _C

    archs = _C.cuda_archs.split(";") if _C.with_cuda else []
    return BuildInfo(compiled=True, cuda=_C.with_cuda, archs=archs, nvcc=_C.nvcc_version, reason=_C.cuda_reason)


def set_num_threads(num_threads: int) -> None:
    """How many threads copy windows, the caller included; changes no result. The NumPy reference uses one.

    Raises: ValueError if num_threads is not in 1 to 256.
    """
    if not 1 <= num_threads <= 256:
        raise ValueError(f"num_threads must be in 1 to 256, got {num_threads}")
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
    Raises: ValueError for an argument outside these ranges, or a task with fewer than L steps; ImportError for
        backend "compiled" without the extension.
    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox).
    """
    compiled = takes_compiled(backend)
    _check_draw(seed, counter, stream, size, head, capacity, num_windows, length)
    if compiled:
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
    Raises: ValueError where an array or an index does not fit; ImportError for backend "compiled" without the
        extension.
    """
    compiled = takes_compiled(backend)
    _check_gather(rings, rows, start, length, out)
    if compiled:
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
    if start.dim() != 2 or ring.dim() < 2:
        raise ValueError(f"expected start [K, B] and ring [R, capacity, ...], got {[*start.shape]} and {[*ring.shape]}")
    num_tasks, num_windows = start.shape
    _expect("rows", [num_tasks], [*rows.shape], "one ring row per task")
    _expect("out", [num_tasks, num_windows, length, *ring.shape[2:]], [*out.shape], "allocate [K, B, L, ...]")
    _expect("out", ring.dtype, out.dtype, "allocate it with the ring's dtype")
    if not 1 <= length <= ring.shape[1]:
        raise ValueError(f"length must be in 1 to capacity {ring.shape[1]}, got {length}")
    _expect("rows", torch.int64, rows.dtype, "convert it with .long()")
    _expect("start", torch.int64, start.dtype, "convert it with .long()")
    tensors = {"ring": ring, "rows": rows, "start": start, "out": out}
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()}: call .contiguous()")
    for name, tensor in tensors.items():
        if tensor.device.type != "cuda" or tensor.device != ring.device:
            raise ValueError(f"{name} must be on the ring's CUDA device, got {tensor.device} and {ring.device}: "
                             "move it, or call gather_windows for arrays in main memory")
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
                               ring.shape[0], ring.shape[1], num_tasks, num_windows, length, ring.get_device(), stream)


def _expect(name: str, expected: object, got: object, remedy: str) -> None:
    if expected != got:
        raise ValueError(f"{name}: expected {expected}, got {got}: {remedy}")


def _check_range(name: str, low: int, high: int, got: int) -> None:
    if not low <= got <= high:
        raise ValueError(f"{name} must be in {low} to {high}, got {got}")


def _check_index(name: str, index: Int64Array, num_axes: int, letters: str) -> None:
    if index.dtype != np.int64 or index.ndim != num_axes or not index.flags.c_contiguous:
        raise ValueError(f"{name} must be a contiguous int64 array {letters}, got {index.dtype} {[*index.shape]} with "
                         f"strides {index.strides}: convert it with np.ascontiguousarray({name}, dtype=np.int64)")


def _check_values(name: str, index: Int64Array, low: int, high: int) -> None:
    if index.size and not (low <= index.min() and index.max() <= high):
        place = np.argwhere((index < low) | (index > high))[0]
        raise ValueError(f"{name}{place.tolist()} must be in {low} to {high}, got {index[tuple(place)]}")


def _check_draw(
    seed: int,
    counter: int,
    stream: int,
    size: Int64Array,
    head: Int64Array,
    capacity: int,
    num_windows: int,
    length: int,
) -> None:
    _check_range("seed", 0, 2**64 - 1, seed)
    _check_range("counter", 0, 2**64 - 1, counter)
    _check_range("stream", 0, 2**32 - 1, stream)
    _check_index("size", size, 1, "[K]")
    _check_index("head", head, 1, "[K]")
    _expect("head", [*size.shape], [*head.shape], "one entry per task, as size")
    _check_range("capacity", 1, 2**62, capacity)
    _check_range("length", 1, capacity, length)
    _check_range("num_windows", 1, 2**32 // max(len(size), 1), num_windows)  # k * B + b is one word of the counter
    _check_values("size", size, 0, capacity)
    _check_values("head", head, 0, capacity - 1)
    if (size < length).any():
        task = int((size < length).argmax())
        raise ValueError(f"task {task} holds {size[task]} steps, a window needs {length}: collect more steps before "
                         "sampling, or shorten the window")


def _check_gather(
    rings: Sequence[NDArray[Any]], rows: Int64Array, start: Int64Array, length: int, out: Sequence[NDArray[Any]]
) -> None:
    if not rings or len(rings) != len(out):
        raise ValueError(f"expected one out array per ring and at least one, got {len(out)} for {len(rings)} rings: "
                         "pass both as sequences in the same order")
    _check_index("rows", rows, 1, "[K]")
    _check_index("start", start, 2, "[K, B]")
    _expect("rows", [*start.shape[:1]], [*rows.shape], "one ring row per task, as start")
    for i, (ring, window) in enumerate(zip(rings, out, strict=True)):
        if ring.ndim < 2 or ring.shape[:2] != rings[0].shape[:2]:
            raise ValueError(f"rings[{i}]: expected [R, capacity, ...] with the R and capacity of rings[0], "
                             f"got {[*ring.shape]} and {[*rings[0].shape]}")
        expected = [*start.shape, length, *ring.shape[2:]]
        _expect(f"out[{i}]", expected, [*window.shape], "allocate [K, B, L, ...]")
        _expect(f"out[{i}]", ring.dtype, window.dtype, "allocate it with the ring's dtype")
        if not (ring.flags.c_contiguous and window.flags.c_contiguous and window.flags.writeable):
            raise ValueError(f"rings[{i}] and out[{i}] must be contiguous and out writeable, got {ring.strides=} "
                             f"{window.strides=} {window.flags.writeable=}: pass whole arrays, not slices")
        if ring.dtype.hasobject:
            raise ValueError(f"rings[{i}]: expected numbers, got dtype {ring.dtype}: convert it to a numeric dtype")
    num_rows, capacity = rings[0].shape[:2]
    _check_range("length", 1, capacity, length)
    _check_values("rows", rows, 0, num_rows - 1)
    _check_values("start", start, 0, capacity - 1)
