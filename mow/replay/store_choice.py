"""Raw or packed frames: by arithmetic on the memory that is free, and said once."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from mow.replay.packed import PackedStore, Spill, why_not_packed
from mow.replay.stores import FrameStore, RawStore
from mow.system.machine import free_memory

StoreKind = Literal["auto", "raw", "packed"]


def make_store(
    kind: StoreKind,
    num_rows: int,
    capacity: int,
    frame_shape: Sequence[int],
    *,
    free_bytes: int | None = None,
    disk: Path | None = None,
) -> FrameStore:
    """A store of the kind asked for; "auto" takes raw where it fits into half of the free memory, else packed.

    Half, because the models, the batches and the simulators need memory too. Where frames cannot be packed, "auto"
    takes raw and warns. Packed frames that outgrow the half go to `disk`.

    Args:
        num_rows, capacity, frame_shape: R, steps per row, (H, W, 3).
        free_bytes: memory to decide by; None asks the operating system.
        disk: a folder, made where it is missing; None keeps all in memory.
    Raises: ValueError for an unknown kind, a size below 1 or raw frames with a disk; ImportError for "packed" where it
        is impossible; OSError where `disk` takes no file.
    """
    if kind not in get_args(StoreKind):
        raise ValueError(f"store must be one of {', '.join(get_args(StoreKind))}, got {kind!r}")
    free = free_memory() if free_bytes is None else free_bytes
    spill = None if disk is None else Spill(disk, free // 2)
    if kind == "packed":
        return PackedStore(num_rows, capacity, frame_shape, spill=spill)
    if kind == "raw":
        if disk is not None:
            raise ValueError(f"only packed frames go to a disk, got store 'raw' and disk {disk}: use store 'packed'")
        return RawStore(num_rows, capacity, frame_shape)
    # By arithmetic and not by trying: a system may refuse a ring far larger than its memory, though it starts empty.
    raw_bytes = num_rows * capacity * math.prod(frame_shape)
    logger = logging.getLogger("mow")
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
