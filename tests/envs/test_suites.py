"""Reference and published returns, which scores are normalised with and compared to."""

import numpy as np
import pytest

from mow.envs.suites import SUITES, normalised_return, published_returns, reference_returns
from mow.envs.task_sets import ATARI26


def test_references_are_of_tasks_that_exist() -> None:
    for suite in SUITES.values():
        assert set(suite.references) <= set(suite.tasks)
    assert all(reference_returns(task) is not None for task in ATARI26)
    assert reference_returns("atari:Pong") == (-20.7, 14.6)
    assert reference_returns("tiny:catch") == (-0.778, 1.0)


def test_other_tasks_have_no_reference() -> None:
    assert reference_returns("dummy:slide") is None
    assert reference_returns("other:Pong") is None
    assert normalised_return("dummy:slide", 3.0) is None


@pytest.mark.parametrize(("value", "want"), [(1.7, 0.0), (30.5, 1.0), (59.3, 2.0), (-27.1, -1.0)])
def test_normalised_by_hand(value, want):
    assert normalised_return("atari:Breakout", value) == pytest.approx(want)


@pytest.mark.parametrize(
    ("method", "mean", "median"),
    [("storm", 122.2, 42.5), ("storm_rerun", 114.2, 42.5), ("iris", 104.6, 28.9), ("simulus", 164.5, 98.2)],
)
def test_the_aggregates_are_those_that_the_methods_are_known_by(method, mean, median):
    assert set(SUITES["atari"].references) == set(ATARI26)
    scores = [100 * normalised_return(task, published_returns(task)[method]) for task in ATARI26]
    assert np.mean(scores) == pytest.approx(mean, abs=0.05)
    assert np.median(scores) == pytest.approx(median, abs=0.05)


def test_other_tasks_have_no_published_returns():
    assert published_returns("tiny:catch") is None
    assert published_returns("atari:Tetris") is None
    assert "random" not in published_returns("atari:Pong")
