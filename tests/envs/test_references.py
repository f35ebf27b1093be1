import pytest

from mow.envs.references import normalised_return, reference_returns
from mow.envs.task_sets import ATARI26


def test_every_game_of_the_benchmark_has_its_row():
    assert all(reference_returns(task) is not None for task in ATARI26)
    assert reference_returns("atari:Pong") == (-20.7, 14.6)
    assert reference_returns("tiny:catch") == (-0.778, 1.0)


def test_a_task_that_nobody_measured_has_none():
    assert reference_returns("dummy:slide") is None
    assert reference_returns("other:Pong") is None
    assert normalised_return("dummy:slide", 3.0) is None


@pytest.mark.parametrize(("value", "want"), [(1.7, 0.0), (30.5, 1.0), (59.3, 2.0), (-27.1, -1.0)])
def test_normalised_by_hand(value, want):
    assert normalised_return("atari:Breakout", value) == pytest.approx(want)
