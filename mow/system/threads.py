"""Assignment of cores: one rule for PyTorch, the replay and the environments.

    PyTorch        as many threads as it takes by itself, at most one per core that this process may use (affinity,
                   cpusets, CPU quotas: mow.system.machine); or the value of OMP_NUM_THREADS or MKL_NUM_THREADS
    replay         half as many, at most four: copying saturates memory long before cores, and runs beside updates;
                   raw frames are copied by one, because a second team of OpenMP threads would slow all updates
    environments   this process where there is but one spare core, else a worker per spare core, at most one per task
"""

import os
from dataclasses import dataclass, replace

from mow.system.machine import allowed_cores, available_cores
from mow.system.ranks import local_size, threads_are_torchruns

_SET_BY_USER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Threads:
    """Threads of PyTorch and of the replay, processes for the environments (0: none beside this one)."""

    torch: int
    replay: int
    workers: int
    cores: str = ""  # why there are fewer cores than the affinity mask has, in words

    def __str__(self) -> str:
        where = f"{self.workers} worker processes" if self.workers else "this process"
        why = f" ({self.cores})" if self.cores else ""
        return f"threads: {self.torch} for PyTorch, {self.replay} for replay; environments in {where}{why}"


def limit_torch() -> int:
    """Give PyTorch no more threads than a CPU quota leaves cores, unless the user has set their number; returns it."""
    import torch

    cores = max(1, available_cores() // local_size())
    is_set = any(os.environ.get(name) for name in _SET_BY_USER)
    by_torchrun = threads_are_torchruns() and not os.environ.get("MKL_NUM_THREADS")
    if by_torchrun or (not is_set and torch.get_num_threads() > cores):
        torch.set_num_threads(cores)
    return torch.get_num_threads()


def threads_here(num_tasks: int, num_workers: int) -> Threads:
    """The rule, on this machine. Args: num_workers: worker processes; -1 leaves their number to the rule."""
    cores, allowed = available_cores(), allowed_cores()
    why = f"a CPU quota leaves {cores} of {allowed} cores" if cores < allowed else ""
    own = max(1, cores // local_size())
    why = f"{cores} cores for {local_size()} ranks" if local_size() > 1 else why
    return replace(share(limit_torch(), own, num_tasks, num_workers), cores=why)


def share(num_torch: int, num_cores: int, num_tasks: int, num_workers: int) -> Threads:
    """The rule above, for the threads of PyTorch and the cores available. Args: num_tasks: K. num_workers: as above."""
    spare = num_cores - 1
    # One worker alone would gain nothing.
    workers = num_workers if num_workers >= 0 else min(spare, num_tasks) if spare > 1 else 0
    return Threads(torch=num_torch, replay=max(1, min(4, num_torch // 2)), workers=workers)
