"""The rule for threads, case by case."""

import pytest

from mow.threads import Threads, share


@pytest.mark.parametrize(
    ("num_torch", "num_cores", "num_tasks", "asked", "want"),
    [
        (1, 1, 5, -1, Threads(1, 1, 0)),
        (2, 2, 5, -1, Threads(2, 1, 0)),  # one spare core: a lone worker would gain nothing
        (3, 3, 5, -1, Threads(3, 1, 2)),
        (4, 4, 2, -1, Threads(4, 2, 2)),
        (16, 16, 26, -1, Threads(16, 4, 15)),
        (1, 16, 26, -1, Threads(1, 1, 15)),  # OMP_NUM_THREADS=1
        (2, 2, 5, 3, Threads(2, 1, 3)),
        (16, 16, 26, 0, Threads(16, 4, 0)),
    ],
)
def test_the_rule(num_torch: int, num_cores: int, num_tasks: int, asked: int, want: Threads) -> None:
    assert share(num_torch, num_cores, num_tasks, asked) == want


def test_in_words() -> None:
    assert str(Threads(2, 1, 0)) == "threads: 2 for PyTorch, 1 for replay; environments in this process"
    assert str(Threads(4, 2, 3)) == "threads: 4 for PyTorch, 2 for replay; environments in 3 worker processes"
