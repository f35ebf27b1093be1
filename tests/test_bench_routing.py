"""The planted tasks are what they are said to be, and the arms route as their names say."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import routing


@pytest.fixture
def asked() -> argparse.Namespace:
    return argparse.Namespace(width=8, prior="dense", updates=5)


def test_kinds_differ_in_mirrored_controls_and_in_where_the_ball_falls() -> None:
    codes, action = routing.windows(6, np.random.default_rng(0))
    grid = codes.unflatten(3, (routing.GRID, routing.GRID))
    assert codes.sum(dim=-1).eq(3).all(), "a ball (1) and a walker (2), or both in one cell (3)"
    where = {code: (grid & code).bool() for code in (1, 2)}
    for task, kind in enumerate(routing.KIND_OF_TASK):
        fall = (1, 0) if kind < 2 else (0, 1)
        assert torch.equal(where[1][task, :, 0].roll(fall, dims=(1, 2)), where[1][task, :, 1])
        for sequence in range(6):
            move = routing.MOVES[int(action[task, sequence, 0].argmax())] * (-1 if kind % 2 else 1)
            before, after = where[2][task, sequence, 0], where[2][task, sequence, 1]
            assert torch.equal(before.roll(tuple(int(m) for m in move), dims=(0, 1)), after)


def test_routes_of_the_arms(asked: argparse.Namespace) -> None:
    routes = {arm: routing.make_model(arm, 0, asked).route().plan.routes[:, 0].tolist() for arm in routing.ARMS}
    assert routes["oracle"] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert routes["hash"] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert sorted(routes["random"]) == sorted(routes["hash"])
    assert routes["one"] == [0] * 8


def test_a_few_updates_of_two_arms_are_written_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "routing.json"
    words = ["--arms", "oracle", "learned", "--seeds", "1", "--updates", "20", "--width", "8", "--json", str(path)]
    assert routing.main(words) == 0
    rows = json.loads(path.read_text())
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows
    assert [row["arm"] for row in rows] == ["oracle", "learned"]
    assert all(row["kl"][-1] < row["kl"][0] for row in rows), "it learns"


def test_what_cannot_be_run_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        routing.main(["--width", "7"])
    assert ended.value.code == 2
    assert "width even" in capsys.readouterr().err
