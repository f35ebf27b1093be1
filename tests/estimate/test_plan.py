"""The plan of a run: sums that are known, a pace that is measured or says what it assumes."""

import dataclasses

import pytest
import torch

from mow.estimate import plan
from mow.estimate.flops import world_model_update
from mow.estimate.plan import long, make_pace, make_plan, matmul_rate, short
from mow.methods.mow.config import OptimConfig
from mow.methods.mow.learner import Learner
from mow.methods.mow.presets import PRESETS, atari26
from mow.nn.policy import ActionMask
from mow.train import main
from tests.small import action_mask, run_config
from tests.test_train import DUMMY

CPU = torch.device("cpu")


def full_actions(num_tasks: int) -> ActionMask:
    return ActionMask(torch.ones(num_tasks, 18, dtype=torch.bool), torch.zeros(num_tasks, 0, dtype=torch.bool))


def test_atari26() -> None:
    config = atari26()
    before = torch.random.get_rng_state()
    planned = make_plan(config, full_actions(26), bf16=True)
    assert torch.equal(torch.random.get_rng_state(), before), "a plan must not change the run that follows"
    # The size that the paper reports, less the scales of harmony, which belong to no model, and eight counters of batch
    # norm per module whose numbers take eight bytes.
    assert planned.weights == pytest.approx(254_926_526 * 4, rel=1e-5)
    assert planned.weights > planned.gradients  # target critics learn nothing
    assert planned.optimiser == 2 * planned.gradients
    assert planned.world_model_updates == 100_000
    assert planned.agent_updates == 95_000
    assert sum(planned.update_flops) == pytest.approx(52e12, rel=0.01)
    text = short(planned) + long(planned, 0.1, 0.2, "of a guess")
    assert "12.3 TFLOP per world-model update, 39.5 TFLOP per agent update" in text
    assert "8.06 hours of updates" in text  # (100,000 x 0.1 + 95,000 x 0.2) / 3,600
    assert "4.98 EFLOP in all" in text
    assert "because of a guess" in text


def test_parameters_are_those_of_a_grouped_learner() -> None:
    config = run_config(optim=OptimConfig(matrices="muon"))
    planned = make_plan(config, action_mask(), bf16=False)
    learner = Learner(config, action_mask(), CPU)
    learner.regroup(plan.from_labels(plan.np.array([0, 0, 1]), plan.np.eye(3)))
    assert sum(planned.parameters.values()) == sum(
        p.numel() for module in (learner.world_model, learner.agent) for p in module.parameters()
    )
    assert planned.optimiser < 2 * planned.gradients  # Muon keeps one number where Adam keeps two


def test_short_updates_are_timed_and_long_ones_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_config()
    monkeypatch.setattr(plan, "matmul_rate", lambda *_: 1e12)
    planned = make_plan(config, action_mask(), bf16=False)
    state = torch.random.get_rng_state()
    world_model, agent, why = make_pace(planned, config, action_mask(), CPU, bf16=False)
    assert "timed on random frames" in why
    assert 0 < world_model < 60
    assert 0 < agent < 60
    assert torch.equal(torch.random.get_rng_state(), state)
    monkeypatch.setattr(plan, "matmul_rate", lambda *_: 1e6)
    world_model, _, why = make_pace(planned, config, action_mask(), CPU, bf16=False)
    assert "ASSUMED to reach 35%" in why
    assert world_model == pytest.approx(sum(world_model_update(config, 6).values()) / 0.35e6)


def test_a_matmul_has_a_rate() -> None:
    assert 1e9 < matmul_rate(CPU, torch.float32) < 1e15


def test_a_dry_run_says_it_all_and_leaves_nothing(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["quickstart", *DUMMY, "--dry-run", "--replay.store", "packed", "--replay.disk", "there"]) == 0
    said = capsys.readouterr().out
    for words in (
        "quickstart: 2 tasks x 20 steps",
        "threads: 1 for PyTorch",
        "replay: packed, at most 0.00 GB once full, less as far as frames pack, what outgrows memory in there",
        "parameters, millions: encoder ",
        "memory, GB: weights ",
        "world-model update: ",
        "hours of updates",
        "because updates timed",
    ):
        assert words in said, words
    assert list(tmp_path.iterdir()) == []


def test_a_run_says_what_it_expects_and_then_what_it_takes(tmp_path, capsys) -> None:
    assert main(["quickstart", *DUMMY, "--evaluation-episodes", "0", "--folder", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert said.count("estimated: ") == 1
    assert said.count("threads: 1 for PyTorch, 1 for replay; environments in ") == 1
    assert "peak memory " in said[said.index("done in ") :]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--resume", "runs/a", "--dry-run"], "leave --resume out"),
        (["--dry-run", "--device", "tpu9"], "unknown device 'tpu9'"),
        (["quikstart", "--dry-run"], "unknown preset"),
    ],
)
def test_mistakes(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_plan(name: str) -> None:
    config = PRESETS[name]()
    planned = make_plan(config, full_actions(len(config.tasks)), bf16=False)
    assert planned.peak > planned.fixed > 0
    assert dataclasses.is_dataclass(planned)


def test_raw_frames_without_room_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    tasks = ["--tasks", "tiny5", "dummy:count-0", "dummy:count-1", "dummy:slide"]  # 211 TB, beyond any address space
    steps = ["--total-steps", str(2**31 - 1), "--replay.store", "raw"]
    with pytest.raises(SystemExit) as stopped:
        main(["quickstart", *DUMMY, *tasks, "--dry-run", *steps])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "no room for raw frames" in error
    assert error.endswith("take --replay.store packed\n")
