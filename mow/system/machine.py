"""Cores and memory that this process may use: the least of what the system, its control groups and `ulimit` allow.

Control groups of version 1 and 2 are read, from the group of this process (/proc/self/cgroup) up to the root: a job of
Slurm, a systemd slice or a container may be limited at any level. Every function takes the root of the file system, so
that tests can hand in a tree of their own.
"""

import os
import re
import resource
from collections.abc import Iterator
from math import ceil
from pathlib import Path

_UNLIMITED = 2**60  # version 1 writes a number near 2^63 for no limit
_USUAL = Path("sys/fs/cgroup")


def available_cores(root: Path = Path("/")) -> int:
    """Cores that the affinity mask, the cpusets and the CPU quotas of all groups leave; a part of one counts as one."""
    return max(1, min([allowed_cores(), *_quotas(root), *_cpusets(root)]))


def allowed_cores() -> int:
    """Cores of the affinity mask alone: those that the scheduler may place this process on."""
    return len(os.sched_getaffinity(0))


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that this process can still take.

    What was read from files counts as free: the system gives it back when memory runs short. Where /proc is not there,
    all memory counts as free.
    """
    free = [_entry(root / "proc/meminfo", "MemAvailable:", 1024) or _physical_memory()]
    for limit, folder in _memory_limits(root):
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
        stat = folder / "memory.stat"
        cached = _entry(stat, "total_inactive_file") or _entry(stat, "inactive_file") or 0
        free.append(limit - max(0, used - cached))
    addresses, _ = resource.getrlimit(resource.RLIMIT_AS)
    if addresses != resource.RLIM_INFINITY and (pages := _words(root / "proc/self/statm")):
        free.append(addresses - int(pages[0]) * os.sysconf("SC_PAGE_SIZE"))
    return max(0, min(free))


def total_memory(root: Path = Path("/")) -> int:
    """Bytes that this process could take if nothing else ran: the memory of the machine, or of its smallest group."""
    return min([_physical_memory(), *(limit for limit, _ in _memory_limits(root))])


def _physical_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _memory_limits(root: Path) -> Iterator[tuple[int, Path]]:
    """(bytes, folder of the group) of every limit. Above memory.high a group is slowed down to a halt."""
    for folder in _groups("memory", root):
        limits = [_number(folder / name) for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
        limits.append(_entry(folder / "memory.stat", "hierarchical_memory_limit"))  # of groups above, seen or not
        yield from ((limit, folder) for limit in limits if limit is not None and limit < _UNLIMITED)


def _quotas(root: Path) -> Iterator[int]:
    """CPU time per period of each group that has a quota, in cores, rounded up."""
    for folder in _groups("cpu", root):
        words = _words(folder / "cpu.max") or [
            *_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")
        ]  # fmt: skip
        if len(words) == 2 and words[0].isdecimal() and words[1].isdecimal() and int(words[1]) > 0:
            yield ceil(int(words[0]) / int(words[1]))


def _cpusets(root: Path) -> Iterator[int]:
    """Number of cores in each group's set, written like 0-3,8."""
    for folder in _groups("cpuset", root):
        for name in ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"):
            ranges = re.findall(r"(\d+)(?:-(\d+))?", " ".join(_words(folder / name)))
            if ranges:
                yield sum(int(last or first) - int(first) + 1 for first, last in ranges)
                break


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of the groups that limit this process, its own first, then those above."""
    for line in _lines(root / "proc/self/cgroup") or ["0::/", f"1:{controller}:/"]:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for folder, top in _hierarchies(controller if controllers else "", root):
            seen = top == "/" or path == top or path.startswith(f"{top}/")
            inside = path.removeprefix(top) if seen and ".." not in path else ""
            names = [name for name in inside.split("/") if name]
            yield from (folder.joinpath(*names[:depth]) for depth in range(len(names), -1, -1))


def _hierarchies(controller: str, root: Path) -> list[tuple[Path, str]]:
    """(folder, group that is mounted there) of a controller of version 1, or of version 2 for the empty name."""
    found = []
    for line in _lines(root / "proc/self/mountinfo"):
        # id parent major:minor ROOT FOLDER options ... - TYPE source OPTIONS
        before, _, after = line.partition(" - ")
        fields, (kind, _, options) = before.split(), after.split(" ", 2)
        if (kind == "cgroup2" and not controller) or (kind == "cgroup" and controller in options.split(",")):
            found.append((root / _unescaped(fields[4]).lstrip("/"), _unescaped(fields[3])))
    return found or [(root / _USUAL / controller, "/")]


def _unescaped(text: str) -> str:
    """mountinfo writes a space as \\040."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _lines(path: Path) -> list[str]:
    """Lines of a system file; none where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def _number(path: Path) -> int | None:
    """The number in a file; None for a missing file and for a word such as max."""
    words = _words(path)
    return int(words[0]) if words and words[0].isdecimal() else None


def _entry(path: Path, name: str, unit: int = 1) -> int | None:
    """The number after `name` in a file of names and numbers."""
    for line in _lines(path):
        words = line.split()
        if len(words) > 1 and words[0] == name and words[1].isdecimal():
            return unit * int(words[1])
    return None
