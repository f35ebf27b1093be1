"""Cores and memory under control groups of both versions, nested and in containers, on trees of files."""

import os
import resource
from collections.abc import Mapping
from pathlib import Path

import pytest

from mow.system import machine
from mow.system.machine import allowed_cores, available_cores, free_memory, total_memory

MEMINFO = "MemTotal:  64000000 kB\nMemFree: 1000 kB\nMemAvailable:   40000000 kB\n"
NO_LIMIT = "9223372036854771712\n"


def tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.fixture(autouse=True)
def large_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))


def memory_v2(limit: str, used: int = 1_000_000_000, cached: int = 0) -> dict[str, str]:
    return {"memory.max": f"{limit}\n", "memory.current": f"{used}\n", "memory.stat": f"inactive_file {cached}\n"}


def under(folder: str, files: Mapping[str, str]) -> dict[str, str]:
    return {f"{folder}/{name}": text for name, text in files.items()}


def test_without_limits_it_is_what_the_system_has(tmp_path: Path) -> None:
    root = tree(tmp_path, {"proc/self/cgroup": "0::/\n"})
    assert free_memory(root) == 40_000_000 * 1024
    assert available_cores(root) == allowed_cores() == 64


def test_the_root_group_of_a_container(tmp_path: Path) -> None:
    """9 GB, 5 GB taken, of which 2 GB only cache files."""
    root = tree(tmp_path, {
        "proc/self/cgroup": "0::/\n", **under("sys/fs/cgroup", memory_v2("9000000000", 5_000_000_000, 2_000_000_000))
    })  # fmt: skip
    assert free_memory(root) == 6_000_000_000
    assert total_memory(root) <= 9_000_000_000
    (root / "sys/fs/cgroup/memory.current").write_text("50000000000\n")
    assert free_memory(root) == 0
    (root / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert free_memory(root) == 40_000_000 * 1024


@pytest.mark.parametrize("limited", ["job_7/step_0", "job_7", ""])
def test_a_nested_group_of_version_2_is_limited_at_any_level(tmp_path: Path, limited: str) -> None:
    top = "sys/fs/cgroup/slurm"
    files = {"proc/self/cgroup": "0::/slurm/job_7/step_0\n"}
    for level in ("job_7/step_0", "job_7", ""):
        files |= under(f"{top}/{level}", memory_v2("3000000000" if level == limited else "max"))
        files[f"{top}/{level}/cpu.max"] = "200000 100000\n" if level == limited else "max 100000\n"
    root = tree(tmp_path, files)
    assert free_memory(root) == 2_000_000_000
    assert available_cores(root) == 2


def test_the_least_limit_of_several_holds(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/slice/unit\n"}
    files |= under("sys/fs/cgroup/slice", memory_v2("8000000000", 7_500_000_000))
    files |= under("sys/fs/cgroup/slice/unit", memory_v2("4000000000"))
    files |= {"sys/fs/cgroup/slice/cpu.max": "150000 100000", "sys/fs/cgroup/slice/unit/cpu.max": "800000 100000"}
    root = tree(tmp_path, files)
    assert free_memory(root) == 500_000_000, "others in the slice have taken the rest"
    assert available_cores(root) == 2, "a core and a half"
    (root / "sys/fs/cgroup/slice/unit/memory.high").write_text("1200000000\n")
    assert free_memory(root) == 200_000_000


def memory_v1(limit: str, used: int) -> dict[str, str]:
    stat = "inactive_file 0\ntotal_inactive_file 500000000\n"
    return {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": f"{used}\n", "memory.stat": stat}


def test_version_1(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "12:cpuset:/\n5:cpu,cpuacct:/pod/box\n4:memory:/pod/box\n0::/elsewhere\n",
        "sys/fs/cgroup/cpu,cpuacct/pod/cpu.cfs_quota_us": "300000\n",
        "sys/fs/cgroup/cpu,cpuacct/pod/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu,cpuacct/pod/box/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu,cpuacct/pod/box/cpu.cfs_period_us": "100000\n",
    }
    files |= under("sys/fs/cgroup/memory/pod", memory_v1("6000000000\n", 1_500_000_000))
    files |= under("sys/fs/cgroup/memory/pod/box", memory_v1(NO_LIMIT, 1_000_000_000))
    root = tree(tmp_path, files)
    assert free_memory(root) == 5_000_000_000
    assert available_cores(root) == 3



@pytest.mark.parametrize("path", ["/docker/f00", "/../f00"])
def test_a_container_that_sees_the_host_s_names(tmp_path: Path, path: str) -> None:
    """Its own group is mounted as the root of the tree; /proc/self/cgroup gives the path on the host."""
    files = {"proc/self/cgroup": f"4:memory:{path}\n"}
    files |= under("sys/fs/cgroup/memory", memory_v1("4000000000\n", 1_000_000_000))
    root = tree(tmp_path, files)
    assert free_memory(root) == 3_500_000_000





def test_without_proc_all_memory_counts(tmp_path: Path) -> None:
    assert free_memory(tmp_path) == total_memory(tmp_path) > 0
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 64000000 kB\n")  # as old kernels and some sandboxes have it
    assert free_memory(tmp_path) == total_memory(tmp_path)


def test_ulimit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path, {"proc/self/statm": "1000 10 5 1 0 20 0\n"})  # pages of addresses taken
    page = os.sysconf("SC_PAGE_SIZE")
    for limit, expected in ((1_500 * page, 500 * page), (10 * page, 0), (resource.RLIM_INFINITY, 40_000_000 * 1024)):
        monkeypatch.setattr(machine.resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        assert free_memory(root) == expected


def test_this_machine() -> None:
    assert 1 <= available_cores() <= 64
    assert 0 < free_memory() <= total_memory()
