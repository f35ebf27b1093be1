"""Weights given away as safetensors, and taken back."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

import mow
from mow import train
from mow.evaluate import __main__ as evaluate
from mow.evaluate import film
from mow.inference.export import main, read_arguments
from mow.inference.model_card import read_scores
from mow.runs.restore import environments, find_run, newest_checkpoint, restore
from mow.runs.weights import digest, read_weights
from tests.test_train import DUMMY

TASKS = ("dummy:count-0", "dummy:slide", "tiny:catch", "dummy:count-1")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "run"
    tasks = ["--tasks", *TASKS, "--clustering.method", "random", "--clustering.num-modules", "2"]
    settings = ["--seed", "2", "--evaluation-episodes", "2", "--actor-critic.entropy", "0.5", "--folder", str(folder)]
    assert train.main(["quickstart", *DUMMY, *tasks, *settings]) == 0
    return folder


@pytest.fixture(scope="module")
def exported(run_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "weights"
    assert main([str(run_folder), "--out", str(out)]) == 0
    return out


@pytest.fixture
def copied(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "weights")


def test_nothing_of_the_models_is_lost(run_folder, exported):
    state = torch.load(newest_checkpoint(run_folder), weights_only=True)
    tensors, content = read_weights(exported / "model.safetensors")
    for part in ("world_model", "agent"):
        for name, tensor in state["learner"][part].items():
            assert torch.equal(tensor, tensors.pop(f"{part}.{name}"))
    routes = state["learner"]["frozen_routes"]
    assert torch.equal(routes, tensors.pop("frozen_routes"))
    assert not tensors
    # Sorted by cluster; this order is not its own inverse, so that a mix-up of the two directions would show below.
    assert content["tasks"] == state["tasks"] == [TASKS[0], TASKS[3], TASKS[1], TASKS[2]]
    assert (content["step"], content["updates"]) == (20, state["learner"]["updates"])


def test_the_learner_is_what_it_was(run_folder, exported):
    learners = []
    for folder in (run_folder, exported):
        run = find_run(folder)
        with environments(run.config, seed=0, workers=0) as envs:
            learner, step = restore(run.checkpoint, run.config, envs, torch.device("cpu"))
            assert [spec.name for spec in envs.specs] == [TASKS[0], TASKS[3], TASKS[1], TASKS[2]]
        assert step == 20
        learners.append(learner)
    one, other = learners
    assert one.updates == other.updates > 0
    assert torch.equal(one.frozen_routes, other.frozen_routes)
    assert one.world_model.module_of_task == other.world_model.module_of_task == (0, 0, 1, 1)


def test_it_acts_and_scores_like_the_run(run_folder, exported, tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    agents = [mow.load(folder, device="cpu", seed=3) for folder in (run_folder, exported)]
    for task in TASKS:
        one, other = ([agent.act(frame, task) for frame in frames] for agent in agents)
        assert np.array_equal(one, other)
    played = []
    for folder in (run_folder, exported):
        out = tmp_path / folder.name
        assert evaluate.main([str(folder), "--episodes", "1", "--out", str(out)]) == 0
        played.append(json.loads((out / "evaluation.json").read_text())["runs"][0]["tasks"])
    assert played[0] == played[1]
    assert film.main([str(exported), "--steps", "2", "--windows", "1", "--out", str(tmp_path / "film.png")]) == 0


def test_the_card(run_folder, exported):
    card = (exported / "README.md").read_text()
    state = torch.load(newest_checkpoint(run_folder), weights_only=True)["learner"]
    scores = json.loads((run_folder / "scores.json").read_text())["tasks"]
    rows = [line for line in card.splitlines() if line.startswith(("| dummy", "| tiny"))]
    assert [row.split("|")[1].strip() for row in rows] == list(TASKS)
    order = state["grouping"]["order"]
    for k, row in enumerate(rows):
        _, task, module, experts, value, normalised, episodes, _ = (cell.strip() for cell in row.split("|"))
        at = order.index(k)
        assert int(module) == state["grouping"]["module_of_task"][at]
        assert sorted(map(int, experts.split())) == sorted(state["frozen_routes"][at].tolist())
        assert value == f"{scores[task]['agent']:.2f}"
        assert episodes == "2"
        assert (normalised == "-") == task.startswith("dummy")
    assert card.startswith("---\n")
    metadata = card.split("---\n")[1].splitlines()  # what the Hub reads: YAML
    assert {"license: mit", "library_name: mow", "tags:", "- reinforcement-learning", "- dummy"} <= set(metadata)
    assert all(re.fullmatch(r"[a-z_]+:( [a-z-]+)?|- [a-z-]+", line) for line in metadata)
    assert "`actor_critic.entropy` 0.5" in card
    assert "`model.width` 16" in card
    assert "`preset`" not in card
    assert torch.__version__ in card
    assert (exported / "config.json").read_text() == (run_folder / "config.json").read_text()


def test_whose_scores_are_told(run_folder, tmp_path):
    newest, older = newest_checkpoint(run_folder), run_folder / "checkpoints" / "step_00000003.pt"
    assert read_scores(run_folder, newest, newest)["tiny:catch"][2] == 2
    # What the run wrote at its end says nothing of an older checkpoint.
    assert read_scores(run_folder, older, newest) == {}
    assert read_scores(run_folder, newest.parent / "superseded" / newest.name, newest) == {}
    one = {"value": 0.5, "normalised": None, "episodes": 7}
    evaluation = {"runs": [{"checkpoint": f"elsewhere/{older.name}"}], "tasks": {"tiny:catch": one}}
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    assert read_scores(tmp_path, older, newest)["tiny:catch"][0] == 0.5
    assert read_scores(tmp_path, newest, newest) == {}
    evaluation["runs"] *= 2  # of several runs together: not the score of this one
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    assert read_scores(tmp_path, older, newest) == {}


def mistake(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("mow export: ")
    return error.removeprefix("mow export: ")


def test_mistakes_are_one_line_and_exit_2(run_folder, exported, capsys, tmp_path, monkeypatch):
    assert "is no run: name a run folder" in mistake(capsys, tmp_path / "gone")
    assert "is not empty: give another --out" in mistake(capsys, run_folder, "--out", exported)
    assert "the following arguments are required: RUN" in mistake(capsys)
    assert "a run of mow is exported as fp32 alone" in mistake(capsys, run_folder, "--precision", "int8")
    (tmp_path / "file").write_text("")
    assert "name another place with --out" in mistake(capsys, run_folder, "--out", tmp_path / "file" / "x")
    with pytest.raises(SystemExit) as stopped:
        read_arguments(["--help"])
    assert stopped.value.code == 0


def test_a_broken_table_of_scores(run_folder, capsys, tmp_path):
    broken = shutil.copytree(run_folder, tmp_path / "run")
    (broken / "scores.json").write_text("{")
    assert "is not as this version writes it" in mistake(capsys, broken)


def refused(folder):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is what the callers look at
        mow.load(folder, device="cpu")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_flipped_bit_is_found(copied):
    path = copied / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert "is damaged (its tensors have another SHA-256): export the run again" in refused(copied)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_half_a_file_is_refused(share, copied):
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert "is damaged or no safetensors file" in refused(copied)


def test_weights_of_something_else(copied, monkeypatch):
    from safetensors.torch import save_file

    path = copied / "model.safetensors"
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "model": {**config["model"], "width": 32}}))
    assert "does not fit the run's config.json (RuntimeError)" in refused(copied)
    (copied / "config.json").write_text(json.dumps({**config, "tasks": ["tiny:catch"]}))
    assert "was written with other tasks" in refused(copied)
    (copied / "config.json").write_text(json.dumps(config))
    save_file({"a": torch.zeros(2)}, path)
    assert "has format None, this version reads 3" in refused(copied)


def test_a_folder_without_weights(copied):
    (copied / "model.safetensors").unlink()
    assert "has no checkpoints/step_*.pt" in refused(copied)


def test_the_digest_sees_names_types_shapes_and_bytes():
    first = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    others = [
        {"a": torch.zeros(3, 2), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3, dtype=torch.int32), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3), "c": torch.ones(1)},
        {"a": torch.zeros(2, 3), "b": torch.full((1,), 1.0000001)},
    ]
    assert len({digest(tensors) for tensors in (first, *others)}) == 5
    assert digest(dict(reversed(first.items()))) == digest(first)
