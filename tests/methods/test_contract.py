"""Every method keeps the contract of mow/methods/base.py: it collects, updates, acts, saves, resumes and reorders."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import mow
from mow import train
from mow.cli.command import main
from mow.engine.trainer import Trainer
from mow.methods import registry
from mow.methods.base import Phase, Reorder, TaskSet, Update
from mow.methods.registry import MODULES, get_method, presets
from mow.runs.paths import checkpoints
from tests.methods.toy import ToyActor, ToyLearner
from tests.test_train import DUMMY

# The arguments of a run of seconds, and its updates by kind at the end.
RUNS: dict[str, list[str]] = {
    "toy": ["toy"],
    "toy_states": ["toy_states"],
    "pwm": ["pwm", "--tasks", "vec:lq", "vec:reach", "--total-steps", "120", "--schedule.prefill-steps", "60",
            "--schedule.first-updates", "3", "--schedule.world-model-every", "10", "--model.width", "16",
            "--model.latent-size", "16", "--batch.num-sequences", "2", "--batch.horizon", "4", "--policy.starts", "4",
            "--policy.horizon", "2", "--policy.width", "16", "--log-every", "20", "--checkpoint-every", "30",
            "--keep-checkpoints", "9", "--evaluation-episodes", "0", "--insight-every", "2"],
    "bc": ["bc", "--tasks", "vec:lq", "vec:reach", "--collect-episodes", "3", "--updates", "20", "--hidden", "16",
           "--log-every", "5", "--checkpoint-every", "10", "--evaluation-episodes", "0"],
    "mow": ["quickstart", *DUMMY, "--checkpoint-every", "3", "--keep-checkpoints", "9"],
}


@pytest.fixture(autouse=True)
def with_the_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("toy", "toy_states"):
        monkeypatch.setitem(MODULES, name, f"tests.methods.{name}")


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": tensor
        for name, module in trainer.learner.networks.items()
        for key, tensor in module.state_dict().items()
    }


@pytest.mark.parametrize("name", ["toy", "toy_states", *registry.MODULES])
def test_a_method_trains_and_goes_on_from_a_checkpoint(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    straight: list[Trainer] = []
    trained = Trainer.train
    monkeypatch.setattr(Trainer, "train", lambda self: (straight.append(self), trained(self))[1])
    folder = tmp_path / "run"
    assert train.main([*RUNS[name], "--folder", str(folder)]) == 0
    (run,) = straight
    assert json.loads((folder / "config.json").read_text())["method"] == name
    declared = {update.kind for phase in run.learner.phases for update in phase.updates}
    assert declared
    assert set(run.counts) == declared
    assert all(number > 0 for number in run.counts.values())
    assert run.phase_index == len(run.learner.phases)
    assert run.step == sum(phase.steps for phase in run.learner.phases) == run.config.total_steps
    assert sorted(run.tasks) == sorted(run.config.tasks)
    assert [spec.name for spec in run.collector.envs.specs] == run.tasks
    losses = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert any(key.startswith(run.method.loss) for record in losses for key in record)

    middle = checkpoints(folder)[0]
    assert middle != checkpoints(folder)[-1]
    assert train.main(["--resume", str(middle)]) == 0
    again = straight[1]
    assert (again.counts, again.tasks, again.step) == (run.counts, run.tasks, run.step)
    for key, tensor in weights(again).items():
        assert torch.equal(tensor, weights(run)[key]), key
    capsys.readouterr()


@pytest.mark.parametrize("name", ["toy", "toy_states", *registry.MODULES])
def test_actors_act_in_one_episode_and_in_many(name: str, tmp_path: Path) -> None:
    run = train.run(_config(name, tmp_path))
    assert run is not None
    num_tasks, size = len(run.tasks), run.collector.envs.layout.size
    for shape in ((num_tasks,), (num_tasks, 3)):
        actor = run.learner.actor()
        for is_first in (True, False):
            seen = TaskSet.of(run.collector.envs.specs).observation
            frame = torch.zeros(*shape, *seen.shape, dtype=getattr(torch, seen.dtype))
            chosen = actor.act(frame, torch.full(shape, is_first))
            assert chosen.action.shape == (*shape, size)
            for column, width in run.method.columns(run.config, run.collector.envs.layout).items():
                assert chosen.extra[column].shape == (*shape, width)
            actor.record(chosen.action)
        other = run.learner.actor()
        other.load_state_dict(actor.state_dict())


def _config(name: str, folder: Path) -> object:
    from mow.cli.parse import parse

    return parse([*RUNS[name], "--folder", str(folder / "acting")])


def test_the_column_of_a_method_is_in_replay_in_the_new_order(tmp_path: Path) -> None:
    run = train.run(_config("toy", tmp_path))
    assert run is not None
    batch = run.collector.replay.sample(4, 4, counter=0, stream=9)
    chance = batch.extra["chance"]  # [K, B, L, 1]
    assert ((chance >= 0) & (chance <= 1)).all()
    assert (chance > 0).any()
    assert run.tasks == [*reversed(run.config.tasks)]


def test_replay_of_states_is_what_the_environments_showed(tmp_path: Path) -> None:
    """Zero-padded to the longest state, final states as rows of their own, in the new order of the tasks."""
    run = train.run(_config("toy_states", tmp_path))
    assert run is not None
    replay, envs = run.collector.replay, run.collector.envs
    assert run.tasks == ["vec:pendulum", "vec:reach", "vec:lq"]
    sizes = [spec.state_size for spec in envs.specs]
    assert sizes == [3, 4, 2]
    batch = replay.sample(4, run.step, counter=0, stream=9)  # all that there is
    assert batch.frame.dtype == torch.float32
    assert batch.frame.shape == (3, 4, 120, 4)
    for k, size in enumerate(sizes):
        assert not batch.frame[k, :, :, size:].any()
        assert batch.frame[k, :, :, :size].any(-1).all()
    assert batch.is_last[1, 0].nonzero().flatten().tolist() == [50, 101]  # reach: 50 steps and the final state
    goal = batch.frame[1, 0, :, 2:]
    assert torch.equal(goal[0], goal[50])
    assert not torch.equal(goal[50], goal[51])
    on = ~batch.is_last[1, 0, :-1]
    moved = (batch.frame[1, 0, :-1, :2] + 0.1 * batch.action[1, 0, :-1, :2]).clamp(-1, 1)
    assert torch.allclose(moved[on], batch.frame[1, 0, 1:, :2][on], atol=1e-6)


def test_an_event_moves_environments_and_replay() -> None:
    method = get_method("toy")
    config = method.presets["toy"]()
    from mow.engine.assemble import make_replay
    from mow.runs.restore import environments

    with environments(config, seed=config.seed, workers=0) as envs:
        tasks = TaskSet.of(envs.specs)
        learner = method.build(config, tasks, torch.device("cpu"))
        replay = make_replay(config, tasks)
        frame, is_first = envs.reset()
        zeros = np.zeros(2, np.bool_)
        for _ in range(3):
            replay.add(frame, np.zeros((2, envs.layout.size), np.float32), np.array([1.0, 2.0], np.float32), zeros,
                       zeros, is_first, zeros)  # fmt: skip
        (event, *_) = learner.end_phase("prefill", replay.sample)
    assert isinstance(event, Reorder)
    replay.reorder(event.order)
    assert replay.sample(1, 2, counter=0, stream=0).reward[:, 0, 0].tolist() == [2.0, 1.0]


def test_presets_of_two_methods_must_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"toy", "quickstart", "atari26"} <= set(presets())
    monkeypatch.setitem(MODULES, "mow2", "mow.methods.mow")
    with pytest.raises(ValueError, match="two methods have a preset"):
        presets()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--method", "pmw"], "--method: unknown method 'pmw': did you mean "),
        (["quickstart", "--method", "toy"], "quickstart is a preset of mow, not of toy: leave --method out, or"),
        (["toy", "--model.width", "8"], "unknown field --model.width: did you mean "),
        (["quickstart", "--env.obs", "state"], "mow learns from frames, got env.obs state: leave it out, or take a "
         "method that learns from states (pwm, bc, toy_states)"),
        (["toy_states", "--tasks", "tiny:slide"], "task 'tiny:slide' has no state observations: set env.obs to frame, "
         "or take tasks of dmc, gym, metaworld, vec"),
        (["toy", "--tasks", "vec4"], "task 'vec:lq' has no frame observations: set env.obs to state, or take "),
        (["toy_states", "--replay.store", "packed"], "states stay in main memory as they are, got store 'packed'"),
        (["toy", "--batching", "storm"], "--batching must be one of none, got 'storm'"),
    ],
)
def test_mistakes_about_methods(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        train.main(arguments)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"mow.train: {says}")
    assert error.count("\n") == 1
    assert [*tmp_path.iterdir()] == []


def test_a_method_is_enough_to_name_its_first_preset(tmp_path: Path) -> None:
    assert train.main(["--method", "toy", "--folder", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize("name", ["toy", "toy_states"])
def test_a_run_of_another_method_is_scored_and_all_else_ends_in_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Films, exports and mow.load are made for the world model of mow; a report holds what the run has."""
    folder = tmp_path / "run"
    assert train.main([name, "--folder", str(folder)]) == 0
    scores = []
    for _ in range(2):
        assert main(["evaluate", str(folder), "--episodes", "2", "--device", "cpu"]) == 0
        scores.append(json.loads((folder / "evaluation.json").read_text())["tasks"])
        (folder / "evaluation.json").unlink()
    assert scores[0] == scores[1], "the draws depend on --seed alone"
    capsys.readouterr()
    assert main(["report", str(folder)]) == 0
    assert '<section id="metrics">' in (folder / "report.html").read_text()
    capsys.readouterr()
    for command in ("film", "export"):
        assert main([command, str(folder)]) == 2, command
        error = capsys.readouterr().err
        assert f"this run is of the method {name}, and this needs one of mow" in error
        assert error.count("\n") == 1
    with pytest.raises(ValueError, match=f"this run is of the method {name}"):
        mow.load(folder, device="cpu")
    if name == "toy_states":
        assert main(["evaluate", str(folder), "--video", "1", "--episodes", "1"]) == 0
        assert len(list((folder / "videos").glob("*-1.gif"))) == 3


def test_an_actor_begins_anew_where_tasks_change_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[ToyActor] = []
    monkeypatch.setattr(ToyLearner, "actor", lambda self, **_: made.append(ToyActor(self)) or made[-1])
    run = train.run(_config("toy", tmp_path))
    assert run is not None
    assert len(made) == 2, "one before the tasks change places, one after"
    assert run.actor is made[1]


def test_a_phase_that_acts_has_updates_by_steps() -> None:
    with pytest.raises(AssertionError, match="joint: `every` where it acts"):
        Phase("joint", 10, "agent", updates=(Update("policy", 1, 2, stream=0, count=3),))
    with pytest.raises(AssertionError, match="warm-up: `every` where it acts"):
        Phase("warm-up", updates=(Update("policy", 1, 2, stream=0, every=3),))
