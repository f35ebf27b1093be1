"""Raw or packed frames: by arithmetic on the memory that is free, and said once."""

import logging
import math
import os
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from mow.replay.packed import PackedStore, Spill, why_not_packed
from mow.replay.stores import FrameStore, RawStore

StoreKind = Literal["auto", "raw", "packed"]

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
STATM = Path("/proc/self/statm")


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


def free_memory() -> int:
    """Bytes that this process can still take: the least of what the system, its control group and `ulimit -v` leave it.

    Where the system does not tell (it is not Linux), all of its memory.
    """
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if MEMINFO.exists():
        free = 1024 * _entry(MEMINFO, "MemAvailable:")
    limit = CGROUP / "memory.max"
    if limit.exists() and (text := limit.read_text().strip()) != "max":
        # What was read from files counts as current, but is given back when memory runs short.
        used = int((CGROUP / "memory.current").read_text()) - _entry(CGROUP / "memory.stat", "inactive_file")
        free = min(free, max(int(text) - used, 0))
    addresses, _ = resource.getrlimit(resource.RLIMIT_AS)
    if addresses != resource.RLIM_INFINITY and STATM.exists():
        taken = int(STATM.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        free = min(free, max(addresses - taken, 0))
    return free


def _entry(path: Path, name: str) -> int:
    """The number after `name` in a file of names and numbers."""
    lines = (line.split() for line in path.read_text().splitlines())
    return next(int(words[1]) for words in lines if words[0] == name)
