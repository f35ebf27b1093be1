"""--profile: a tiny run leaves a timeline that names its parts, and learns the same."""

import json

import torch

from mow.engine.profile import Trace
from mow.train import main
from tests.test_train import DUMMY

CPU = torch.device("cpu")
FLAGS = ["quickstart", *DUMMY, "--evaluation-episodes", "0", "--schedule.world-model-every", "1"]


def names(path):
    return [event.get("name") for event in json.loads(path.read_text())["traceEvents"]]


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line).get("loss/world_model/dummy:slide") for line in lines]


def test_a_run_leaves_a_timeline_of_two_rounds(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main([*FLAGS, "--profile", "--folder", str(folder)]) == 0
    assert f"trace of 4 steps: {folder / 'trace.json'}" in capsys.readouterr().out
    found = names(folder / "trace.json")
    # An update of the agent at every second step, one of the world model at each.
    assert found.count("mow.world_model") == 4
    assert found.count("mow.acting") >= 4
    assert found.count("mow.imagination") == found.count("mow.actor_critic") == 2
    assert "mow.gather" in found
    assert "mow.prefetch" in found  # on a thread of its own
    assert any(name.startswith("aten::convolution") for name in found if name)
    assert main([*FLAGS, "--folder", str(tmp_path / "other")]) == 0
    assert not (tmp_path / "other" / "trace.json").exists()
    assert losses(folder) == losses(tmp_path / "other")


def test_a_run_that_ends_early_keeps_what_there_is(tmp_path):
    said = []
    trace = Trace(tmp_path / "trace.json", CPU, said.append, skip=1, record=10)
    trace.close()
    assert said == []
    for _ in range(3):
        torch.ones(2) @ torch.ones(2)
        trace.step()
    trace.close()
    trace.close()
    assert len(said) == 1
    assert "trace of 2 steps" in said[0]
    assert names(tmp_path / "trace.json").count("aten::dot") == 2
