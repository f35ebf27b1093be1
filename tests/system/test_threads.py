"""The rule for threads, case by case."""

import pytest
import torch

from mow.system import threads
from mow.system.threads import Threads, limit_torch, share, threads_here


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


def quota(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a machine with 64 cores."""
    monkeypatch.setattr(threads, "allowed_cores", lambda: 64)
    monkeypatch.setattr(threads, "available_cores", lambda: cores)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


def test_under_a_quota_there_are_fewer_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    quota(2, monkeypatch)
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    try:
        found = threads_here(26, -1)
        assert torch.get_num_threads() == 2
        assert found == threads_here(26, -1), "the second time too"
    finally:
        torch.set_num_threads(before)
    assert (found.torch, found.workers) == (2, 0)
    assert str(found).endswith("environments in this process (a CPU quota leaves 2 of 64 cores)")


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_what_the_user_sets_is_left_as_it_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    quota(2, monkeypatch)
    monkeypatch.setenv(name, "3")
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert limit_torch() == 3
    finally:
        torch.set_num_threads(before)
