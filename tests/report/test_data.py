"""What a folder holds is read; what is broken is left out and named."""

import json
from dataclasses import asdict

import pytest

from mow.report.data import read_metrics, read_run
from tests.small import run_config

EPISODE = {"step": 7, "task": "a", "episode_return": 1.5, "length": 7, "success": None}
RECORD = {"step": 8, "frames": 32, "updates": 3, "seconds": 2.0, "loss/reward/a": 0.5, "loss/balance": 0.25}


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


def read(tmp_path, text):
    path, remarks = tmp_path / "metrics.jsonl", []
    path.write_text(text)
    return read_metrics(path, remarks), remarks


def test_episodes_and_metrics(tmp_path):
    later = {**RECORD, "step": 16, "frames": 64, "updates": 7, "seconds": 4.0, "loss/reward/a": 0.125}
    found, remarks = read(tmp_path, lines(EPISODE, RECORD, later))
    assert remarks == []
    assert (found.episodes["a"].step, found.episodes["a"].value) == ((7.0,), (1.5,))
    reward = found.curves["loss/reward/a"]
    assert (reward.step, reward.updates, reward.value) == ((8.0, 16.0), (3.0, 7.0), (0.5, 0.125))
    assert (found.step, found.frame_skip, found.seconds) == (16, 4, 4.0)
    assert found.speed == ((2.0 / 60, 1.5), (4.0 / 60, 2.0))


def test_broken_lines_are_left_out_and_counted(tmp_path):
    whole = lines(EPISODE, RECORD)
    found, remarks = read(tmp_path, whole + lines({**EPISODE, "step": 9})[:25])  # torn: the run was killed
    assert found.step == 8
    assert remarks == ["Lines of metrics.jsonl that cannot be read and are left out: 1."]
    # A whole last line that only lacks its end is read.
    found, remarks = read(tmp_path, whole.rstrip("\n"))
    assert (found.curves["loss/balance"].value, remarks) == ((0.25,), [])
    found, remarks = read(tmp_path, "{half\n" + lines(EPISODE) + '["no", "record"]\n{"step": "x"}\n')
    assert found.episodes["a"].value == (1.5,)
    assert remarks == ["Lines of metrics.jsonl that cannot be read and are left out: 3."]


def test_what_is_no_number_has_no_point(tmp_path):
    text = lines({**EPISODE, "episode_return": float("nan")}, {**RECORD, "loss/balance": float("inf")})
    found, _ = read(tmp_path, text)
    assert found.episodes == {}
    assert "loss/balance" not in found.curves
    assert found.curves["loss/reward/a"].value == (0.5,)


def test_a_clock_that_starts_anew_has_no_speed_there(tmp_path):
    records = [{**RECORD, "updates": u, "seconds": s} for u, s in ((10, 5.0), (12, 1.0), (16, 3.0))]
    found, _ = read(tmp_path, lines(*records))
    assert [speed for _, speed in found.speed] == [2.0, 2.0]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(asdict(run_config())))
    return tmp_path


def test_a_config_alone_is_a_run(folder):
    run = read_run(folder)
    assert run.config == run_config()
    assert (run.scores, run.metrics.step) == (None, 0)
    assert run.remarks == ("There is no metrics.jsonl: the run has logged nothing.",)


def test_a_folder_without_config_is_none(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json cannot be read .*: name a folder that mow\.train wrote"):
        read_run(tmp_path)


def test_scores_by_hand(folder):
    entry = {"random": 0.0, "agent": 2.0, "expert": 4.0, "normalised": 0.5, "task": "a", "returns": [1.0, 3.0]}
    endless = {"random": None, "agent": None, "expert": None, "normalised": None, "task": "b", "returns": []}
    content = {"tasks": {"a": entry, "b": endless}, "mean_normalised": 0.5, "parameters": 12, "wall_seconds": 1.5}
    (folder / "scores.json").write_text(json.dumps(content))
    scores = read_run(folder).scores
    assert scores.tasks == {"a": (0.0, 2.0, 1.0, 4.0, 0.5, 2), "b": (None, None, None, None, None, 0)}
    assert (scores.mean_normalised, scores.parameters) == (0.5, 12.0)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"tasks": {"a": {}}}', '{"tasks": []}'])
def test_scores_that_cannot_be_read(folder, text):
    (folder / "scores.json").write_text(text)
    run = read_run(folder)
    assert run.scores is None
    assert any(remark.startswith("scores.json cannot be read (") for remark in run.remarks)
