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
    free_bytes: int | None = None,
    disk: Path | None = None,
    device: torch.device | None = None,
) -> FrameStore:
    """Make a store of that kind.

    "auto" takes the memory of `device` where raw frames fit into a third of what is free there, else raw frames in main
    memory where they fit into half of what is free, else packed ones; the rest is for models, batches and simulators.
    Where frames cannot be packed, "auto" takes raw and warns. Packed frames that outgrow the half go to `disk`.

    Args:
        num_rows, capacity, frame_shape: R, steps per row, (H, W, 3).
        free_bytes: memory to decide by; None asks the operating system.
        disk: a folder, made where it is missing; None keeps all in memory.
        device: the learner's; None, or a CPU, has no memory for "gpu".
    Raises: ValueError for an unknown kind, a size below 1, frames of another kind than packed with a disk, or "gpu"
        without a CUDA device; ImportError for "packed" or "gpu" without the part of the extension that it needs;
        MemoryError for "gpu" where the device has less memory free; OSError where `disk` takes no file.
    """
    if kind not in get_args(StoreKind):
        raise ValueError(f"store must be one of {', '.join(get_args(StoreKind))}, got {kind!r}")
    free = free_memory() if free_bytes is None else free_bytes
    spill = None if disk is None else Spill(disk, free // 2)
    if kind == "packed":
        return PackedStore(num_rows, capacity, frame_shape, spill=spill)
    if kind != "auto" and disk is not None:
        raise ValueError(f"only packed frames go to a disk, got store {kind!r} and disk {disk}: use store 'packed'")
    if kind == "raw":
        return RawStore(num_rows, capacity, frame_shape)
    if kind == "gpu":
        if reason := why_not_on_gpu(device):
            error = ValueError if device is None or device.type != "cuda" else ImportError
            raise error(f"replay.store gpu cannot be used: {reason}")
        assert device is not None
        return GpuStore(num_rows, capacity, frame_shape, device)
    # By arithmetic and not by trying: a system may refuse a ring far larger than its memory, though it starts empty.
    raw_bytes = num_rows * capacity * math.prod(frame_shape)
    logger = logging.getLogger("mow")
    if disk is None and device is not None and fits_on_gpu(raw_bytes, device):
        logger.info("replay store: gpu (raw frames take %.2f GB, at most a third of what is free on %s)",
                    raw_bytes / 1e9, device)
        return GpuStore(num_rows, capacity, frame_shape, device)
    needed = f"raw frames take {raw_bytes / 1e9:.2f} GB once full, {free / 1e9:.2f} GB is free"
    if 2 * raw_bytes <= free:
        logger.info("replay store: raw (%s)", needed)
        return RawStore(num_rows, capacity, frame_shape)
    if reason := why_not_packed():
        logger.warning("replay store: raw, though %s, because frames cannot be packed: %s", needed, reason)
        return RawStore(num_rows, capacity, frame_shape)
    beyond = f"; what outgrows that goes to {disk}" if disk is not None else ""
    logger.info("replay store: packed (%s, of which half may go to replay%s)", needed, beyond)
    return PackedStore(num_rows, capacity, frame_shape, spill=spill)
