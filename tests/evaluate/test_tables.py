"""Numbers and tables of an evaluation, worked by hand."""

import numpy as np
import pytest

from mow.evaluate.aggregates import summarise
from mow.evaluate.tables import (
    as_json,
    compare,
    grids,
    markdown,
    normalised_scores,
    plain,
    published_grid,
    task_grid,
    task_rows,
)


def run(**returns):
    """A run whose tasks tiny:NAME and atari:NAME (capitalised) had these returns."""
    tasks = {}
    for name, values in returns.items():
        task = f"atari:{name}" if name[0].isupper() else f"tiny:{name}"
        tasks[task] = {"returns": values, "lengths": (7,) * len(values), "successes": (None,) * len(values)}
    return {"folder": "runs/a", "tasks": tasks}


def test_a_task_by_hand():
    two = [run(pole=(10.0, 10.0)), run(pole=(0.948,))]
    (row,) = task_rows(two, ["tiny:pole"])
    # Each run counts as one: the mean of 10 and of 0.948, which are the expert's return and that of random play.
    assert row.run_returns == (10.0, 0.948)
    assert row.value == pytest.approx(5.474)
    assert row.normalised == pytest.approx(0.5)
    assert row.deviation == pytest.approx(np.std([10, 10, 0.948], ddof=1))
    assert (row.episodes, row.success, row.published) == (3, None, None)
    assert normalised_scores([row]).tolist() == [[1.0], [0.0]]


def test_success_is_a_share_of_episodes():
    played = run(goal=(0.9, 0.1, 0.9, 0.9))
    played["tasks"]["tiny:goal"]["successes"] = (True, False, True, True)
    rows = task_rows([played], ["tiny:goal"])
    assert rows[0].success == 0.75
    heading, line = task_grid(rows)
    assert heading[-2:] == ("success", "episodes")
    assert line[-2:] == ("0.75", "4")
    assert task_grid(task_rows([run(pole=(1.0,))], ["tiny:pole"]))[1][-2:] == ("-", "1")


def test_tasks_without_references_or_episodes_are_not_aggregated():
    one = run(Tetris=(5.0,), pole=(), catch=(1.0,))
    rows = task_rows([one], list(one["tasks"]))
    assert [row.normalised for row in rows] == [None, None, 1.0]
    assert normalised_scores(rows).tolist() == [[1.0]]
    assert task_grid(rows)[2] == ("tiny:pole", "0.95", "-", "-", "10.00", "-", "-", "0")
    assert summarise(normalised_scores(rows[:2])) == {}


def test_aggregates_by_hand():
    scores = np.array([[0.0, 0.2, 0.4, 2.0], [0.0, 0.4, 0.6, 4.0]])
    found = summarise(scores)
    # All eight in order: 0 0 .2 .4 | .4 .6 2 4; the middle half is .2 .4 .4 .6. Means of the tasks: 0 .3 .5 3.
    assert found["mean"].value == pytest.approx(7.6 / 8)
    assert found["median"].value == pytest.approx(0.4)
    assert found["IQM"].value == pytest.approx(0.4)
    # Below 1 by: 1 .8 .6 0 and 1 .6 .4 0.
    assert found["optimality gap"].value == pytest.approx(4.4 / 8)
    assert summarise(scores) == found
    # Two draws from two numbers, task by task: sums of the tasks' means are 2.6 in 1 of 64 cases, 2.7 in 4 of 64, ...,
    # 4.9 in 4 of 64 and 5.0 in 1 of 64, so the percentiles 2.5 and 97.5 are 2.7 and 4.9.
    assert found["mean"].interval == pytest.approx((2.7 / 4, 4.9 / 4))


def test_one_run_has_no_intervals():
    assert summarise(np.array([[0.0, 1.0]]))["mean"].interval is None
    one = run(catch=(1.0,), pole=(10.0,))
    rows = task_rows([one], list(one["tasks"]))
    _, aggregated = grids(rows, summarise(normalised_scores(rows)))
    assert aggregated[:2] == [("normalised, 2 tasks", "value", "95 % interval"), ("mean", "1.000", "-")]


def test_several_runs_have_a_table_of_their_returns():
    two = [run(pole=(10.0,)), run(pole=())]
    _, of_runs = grids(task_rows(two, ["tiny:pole"]), {})
    assert of_runs == [("return of run", "1", "2"), ("tiny:pole", "10.00", "-")]


def test_beside_the_published():
    one = run(Pong=(14.6,), Boxing=(0.1,), pole=(10.0,))
    rows = task_rows([one], list(one["tasks"]))
    compared = compare(rows)
    assert list(compared)[:2] == ["this", "storm"]
    # A human's return in Pong and a random one in Boxing; the third task is none of the games.
    assert compared["this"]["mean"] == pytest.approx(0.5)
    pong, boxing = (11.28 + 20.7) / (14.6 + 20.7), (79.68 - 0.1) / (12.1 - 0.1)
    assert compared["storm"]["mean"] == pytest.approx((pong + boxing) / 2)
    assert compared["storm"]["optimality gap"] == pytest.approx((1 - pong) / 2)
    grid = published_grid(rows, compared)
    assert grid[0][:3] == ("published returns", "this", "storm")
    assert grid[1][:3] == ("atari:Pong", "14.6", "11.3")
    assert len(grid) == 1 + 2 + 4
    assert compare(rows[2:]) == {}


def test_everything_is_in_the_json():
    runs = [run(pole=(10.0, 9.0)), run(pole=(8.0,))]
    rows = task_rows(runs, ["tiny:pole"])
    content = as_json(runs, rows, summarise(normalised_scores(rows), resamples=10))
    assert content["runs"][0]["tasks"]["tiny:pole"]["returns"] == (10.0, 9.0)
    assert content["tasks"]["tiny:pole"]["run_returns"] == (9.5, 8.0)
    assert set(content["aggregates"]) == {"mean", "median", "IQM", "optimality gap"}


def test_grids_for_eyes():
    grid = [("task", "return"), ("tiny:pole", "10.00"), ("a", "-")]
    assert list(plain(grid)) == ["task       return", "tiny:pole   10.00", "a               -"]
    assert list(markdown(grid)) == ["| task | return |", "| --- | ---: |", "| tiny:pole | 10.00 |", "| a | - |"]
