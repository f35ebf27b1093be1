"""The published scores, against what is known of them from elsewhere."""

import numpy as np
import pytest

from mow.envs.published import _rows, published_returns
from mow.envs.references import normalised_return, reference_returns
from mow.envs.task_sets import ATARI26


def test_every_game_of_the_benchmark_has_a_row_and_the_references_of_this_package():
    assert {f"atari:{game}" for game in _rows()} == set(ATARI26)
    for game, row in _rows().items():
        assert reference_returns(f"atari:{game}") == (float(row["random"]), float(row["human"]))


@pytest.mark.parametrize(
    ("method", "mean", "median"),
    [("storm", 122.2, 42.5), ("storm_rerun", 114.2, 42.5), ("iris", 104.6, 28.9), ("simulus", 164.5, 98.2)],
)
def test_the_aggregates_are_those_that_the_methods_are_known_by(method, mean, median):
    scores = [100 * normalised_return(task, published_returns(task)[method]) for task in ATARI26]
    assert np.mean(scores) == pytest.approx(mean, abs=0.05)
    assert np.median(scores) == pytest.approx(median, abs=0.05)


def test_other_tasks_have_none():
    assert published_returns("tiny:catch") is None
    assert published_returns("atari:Tetris") is None
    assert "random" not in published_returns("atari:Pong")
