"""Choice of the store of frames by the memory that is free, logged once."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import torch

from mow.replay.gpu_store import GpuStore, fits_on_gpu, why_not_on_gpu
from mow.replay.packed import PackedStore, Spill, why_not_packed
from mow.replay.stores import FrameStore, RawStore
from mow.system.machine import free_memory

StoreKind = Literal["auto", "raw", "packed", "gpu"]


def make_store(
    kind: StoreKind,
    num_rows: int,
    capacity: int,
    frame_shape: Sequence[int],
    *,
    dtype: str = "uint8",
    free_bytes: int | None = None,
    disk: Path | None = None,
    device: torch.device | None = None,
) -> FrameStore:
    """Make a store of that kind.

    "auto" takes the memory of `device` where raw frames fit into a third of what is free there, else raw frames in main
    memory where they fit into half of what is free, else packed ones; the rest is for models, batches and simulators.
    Where frames cannot be packed, "auto" takes raw and warns. Packed frames that outgrow the half go to `disk`.

    Args:
        num_rows, capacity, frame_shape: R, steps per row, (H, W, 3), or (D,) of states.
        dtype: of the frames; states, of another one than uint8, are kept raw in main memory.
        free_bytes: memory to decide by; None takes what is free now.
        disk: a folder, made where it is missing; None keeps all in memory.
        device: the learner's; None, or a CPU, has no memory for "gpu".
    Raises: ValueError for an unknown kind, a size below 1, states with another kind than raw, frames of another kind
        than packed with a disk, or "gpu" without a CUDA device or without CUDA in the extension; ImportError for
        "packed" without extension or liblz4; MemoryError for "gpu" where the device has less memory free; OSError
        where `disk` takes no file.
    """
    sizes = (num_rows, capacity, frame_shape)
    if kind not in get_args(StoreKind):
        raise ValueError(f"store must be one of {', '.join(get_args(StoreKind))}, got {kind!r}")
    if kind in ("raw", "gpu") and disk is not None:
        raise ValueError(f"only packed frames go to a disk, got store {kind!r} and disk {disk}: use store 'packed'")
    if dtype != "uint8":
        if kind in ("packed", "gpu") or disk is not None:
            raise ValueError(f"states stay in main memory as they are, got store {kind!r} and disk {disk}: use store "
                             "'auto' without a disk")
        return RawStore(*sizes, dtype)
    free = free_memory() if free_bytes is None else free_bytes
    spill = None if disk is None else Spill(disk, free // 2)
    # By arithmetic and not by trying: a system may refuse a ring far larger than its memory, though it starts empty.
    raw_bytes = num_rows * capacity * math.prod(frame_shape)
    needed = f"raw frames take {raw_bytes / 1e9:.2f} GB once full, {free / 1e9:.2f} GB is free"
    if kind == "gpu" and (reason := why_not_on_gpu(device)):
        raise ValueError(f"replay.store gpu cannot be used: {reason}")
    if kind == "auto":
        level = logging.INFO
        if disk is None and fits_on_gpu(raw_bytes, device):
            kind, why = "gpu", f"raw frames take {raw_bytes / 1e9:.2f} GB, at most a third of what is free on {device}"
        elif 2 * raw_bytes <= free:
            kind, why = "raw", needed
        elif reason := why_not_packed():
            kind, why, level = "raw", f"{needed}, but frames cannot be packed: {reason}", logging.WARNING
        else:
            beyond = f", the rest to {disk}" if disk else ""
            kind, why = "packed", f"{needed}, of which half may go to replay{beyond}"
        logging.getLogger("mow").log(level, "replay store: %s (%s)", kind, why)
    if kind == "gpu":
        assert device is not None
        return GpuStore(*sizes, device)
    return RawStore(*sizes) if kind == "raw" else PackedStore(*sizes, spill=spill)
