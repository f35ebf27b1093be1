"""Aggregates and intervals, worked by hand and beside the package that the method comes from."""

import numpy as np
import pytest

from mow.evaluate.aggregates import AGGREGATES, aggregates, summarise


def intervals(scores, resamples):
    return {name: one.interval for name, one in summarise(scores, resamples=resamples).items()}


def test_aggregates_by_hand() -> None:
    scores = np.array([[0.0, 0.2, 0.4, 2.0], [0.0, 0.4, 0.6, 4.0]])
    # All eight in order: 0 0 .2 .4 | .4 .6 2 4; the middle half is .2 .4 .4 .6. Means of the tasks: 0 .3 .5 3.
    # Below 1 by: 1 .8 .6 0 and 1 .6 .4 0.
    assert aggregates(scores) == pytest.approx([7.6 / 8, 0.4, 0.4, 4.4 / 8])
    assert aggregates(np.stack([scores, 2 * scores]))[0] == pytest.approx([7.6 / 8, 15.2 / 8])  # leading axes stay


def test_intervals_by_hand() -> None:
    # One task, two runs: a resample is 0 or 1 with probability 1/4 each, 1/2 else, so 95 % reach from 0 to 1.
    assert intervals(np.array([[0.0], [1.0]]), resamples=200)["mean"] == (0.0, 1.0)
    # Every run has the same scores, so drawing within tasks always gives their mean, 0.4, and their IQM: of the six
    # scores the lowest and the highest go, and 0.1, 0.2, 0.2, 0.9 are left.
    found = intervals(np.array([[0.1, 0.9, 0.2], [0.1, 0.9, 0.2]]), resamples=50)
    assert found["mean"] == pytest.approx((0.4, 0.4), abs=1e-12)  # rounding of double precision
    assert found["IQM"] == pytest.approx((0.35, 0.35), abs=1e-12)


def test_one_run_has_no_interval() -> None:
    assert set(intervals(np.array([[0.0, 1.0]]), resamples=50).values()) == {None}


def test_intervals_are_the_same_at_every_call_and_leave_the_generator_alone() -> None:
    scores = np.random.default_rng(3).normal(size=(3, 5))
    np.random.seed(11)
    before = np.random.get_state()[1].copy()
    first = intervals(scores, resamples=100)
    assert np.array_equal(before, np.random.get_state()[1])
    assert first == intervals(scores, resamples=100)
    for name, value in zip(AGGREGATES, aggregates(scores), strict=True):
        assert first[name][0] < value < first[name][1]


def test_they_are_those_of_rliable() -> None:
    pytest.importorskip("rliable")
    try:
        from rliable import library, metrics
    except (ImportError, TypeError):  # arch 8 and pandas 3 break it
        pytest.skip("rliable does not load beside the installed arch and pandas")
    scores = np.random.default_rng(3).normal(0.5, 0.4, (5, 7))

    def theirs(scores):
        return np.array([
            metrics.aggregate_mean(scores), metrics.aggregate_median(scores), metrics.aggregate_iqm(scores),
            metrics.aggregate_optimality_gap(scores),
        ])  # fmt: skip

    assert aggregates(scores) == pytest.approx(theirs(scores), rel=1e-12)
    _, found = library.get_interval_estimates({"runs": scores}, theirs, reps=2000)
    ours = intervals(scores, resamples=2000)
    for i, name in enumerate(AGGREGATES):
        # Other draws: an end of either interval is off by about 0.006, one standard deviation.
        assert ours[name] == pytest.approx(tuple(found["runs"][:, i]), abs=0.03)
