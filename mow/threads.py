"""Who may use which core: one rule for PyTorch, the replay and the environments.

    PyTorch        as many threads as it takes by itself: all cores it may use, or what OMP_NUM_THREADS says
    replay         half as many, at most four: copying saturates memory long before cores, and runs beside updates;
                   raw frames are copied by one, because a second team of OpenMP threads would slow all updates
    environments   this process where there is but one spare core, else a worker per spare core, at most one per task

Workers step while the world model is updated. On a CPU they then share cores with PyTorch, for a small part of the time
that an update takes; on a GPU the cores are idle. The replay's threads sleep when nothing is gathered.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Threads:
    """Threads of PyTorch and of the replay, processes for the environments (0: none beside this one)."""

    torch: int
    replay: int
    workers: int

    def __str__(self) -> str:
        where = f"{self.workers} worker processes" if self.workers else "this process"
        return f"threads: {self.torch} for PyTorch, {self.replay} for replay; environments in {where}"


def share(num_torch: int, num_cores: int, num_tasks: int, num_workers: int) -> Threads:
    """The rule above.

    Args:
        num_torch: what PyTorch is set to.
        num_cores: that this process may use.
        num_tasks: K.
        num_workers: what was asked for; -1 leaves it to the rule.
    """
    spare = num_cores - 1
    workers = num_workers
    if num_workers < 0:
        workers = min(spare, num_tasks) if spare > 1 else 0  # one alone would gain nothing
    return Threads(torch=num_torch, replay=max(1, min(4, num_torch // 2)), workers=workers)
