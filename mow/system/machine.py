"""Cores and memory that this process may use: the least of what the system, its control groups and `ulimit` allow.

Control groups of version 1 and 2 are read at their usual place, from the group of this process up to the root: a job of
Slurm, a systemd slice or a container may be limited at any level. Every function takes the root of the file system, so
that tests can hand in a tree of their own.
"""

import os
import resource
from collections.abc import Iterator
from math import ceil
from pathlib import Path

from mow.system.ranks import local_size

_UNLIMITED = 2**60  # version 1 writes a number near 2^63 for no limit


def available_cores(root: Path = Path("/")) -> int:
    """Cores that the affinity mask (cpusets included) and CPU quotas leave; a part of one counts as one."""
    return max(1, min([allowed_cores(), *_quotas(root)]))


def allowed_cores() -> int:
    """Cores of the affinity mask alone: those that the scheduler may place this process on."""
    return len(os.sched_getaffinity(0))


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that this process can still take; of several ranks on this machine, its share.

    Cached file contents count as free, and all memory does without /proc.
    """
    available = _entry(root / "proc/meminfo", "MemAvailable:")
    free = [_physical_memory() if available is None else 1024 * available]
    for limit, group in _memory_limits(root):
        used = _number(group / "memory.current") or _number(group / "memory.usage_in_bytes") or 0
        stat = group / "memory.stat"
        cached = _entry(stat, "total_inactive_file") or _entry(stat, "inactive_file") or 0
        free.append(limit - max(0, used - cached))
    addresses, _ = resource.getrlimit(resource.RLIMIT_AS)
    if addresses != resource.RLIM_INFINITY and (pages := _number(root / "proc/self/statm")):
        free.append(addresses - pages * os.sysconf("SC_PAGE_SIZE"))
    return max(0, min(free)) // local_size()


def total_memory(root: Path = Path("/")) -> int:
    """Bytes that this process could take if nothing else ran: the memory of the machine, or of its smallest group."""
    return min([_physical_memory(), *(limit for limit, _ in _memory_limits(root))])


def _physical_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _memory_limits(root: Path) -> Iterator[tuple[int, Path]]:
    """(bytes, folder of the group) of every limit. Above memory.high a group is slowed down to a halt."""
    for group in _groups("memory", root):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            limit = _number(group / name)
            if limit is not None and limit < _UNLIMITED:
                yield limit, group


def _quotas(root: Path) -> Iterator[int]:
    """CPU time per period of each group that has a quota, in cores, rounded up."""
    for group in _groups("cpu", root):
        words = _words(group / "cpu.max") or [
            *_words(group / "cpu.cfs_quota_us"), *_words(group / "cpu.cfs_period_us")
        ]  # fmt: skip
        if words and words[0].isdecimal():  # else max or -1: no limit
            yield ceil(int(words[0]) / int(words[1]))


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of the groups that limit this process, its own first, then those above."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / controllers  # version 2 has no controllers here
        group = top / path.lstrip("/")  # not there in a container that sees the names of its host; its top is
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(top))


def _text(path: Path) -> str:
    """Content of a system file; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _words(path: Path) -> list[str]:
    return _text(path).split()


def _number(path: Path) -> int | None:
    """The first number in a file; None for a missing file and for a word such as max."""
    words = _words(path)
    return int(words[0]) if words and words[0].isdecimal() else None


def _entry(path: Path, name: str) -> int | None:
    """The number after `name` in a file of names and numbers."""
    words = _words(path)
    return int(words[words.index(name) + 1]) if name in words else None
