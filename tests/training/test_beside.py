"""An agent that learns beside the world model learns what the order of the updates says, whoever computes it."""

import copy
import dataclasses
import json
import os
import signal
from pathlib import Path

import pytest
import torch

from mow.config import Config, OptimConfig
from mow.training.beside import Beside
from mow.training.guard import NotFinite
from mow.training.learner import Learner
from mow.training.logger import Stopwatch
from tests.faults.runs import assert_equal, assert_same_end, gone_on, lines, stopped, to_the_end
from tests.small import action_mask, run_config, transitions
from tests.training.test_loop import wire

CPU = torch.device("cpu")


def beside(**changes: object) -> Config:
    """Updates of the agent that last two steps, one of the world model at every step."""
    config = run_config(**changes)
    return dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, agent_every=2, agent_beside=True))


def learner() -> Learner:
    torch.manual_seed(0)
    made = Learner(beside(), action_mask(), CPU)
    made.update_world_model(transitions())
    return made


def values(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("num_threads", [0, 1])
def test_who_acts_is_the_agent_before_until_the_update_ends(num_threads: int) -> None:
    made = learner()
    other = Beside(made, Stopwatch(), num_threads=num_threads)
    before = values(made.agent)
    with other.sharing():
        other.begin(transitions(length=3))
        assert other.busy
        assert_equal(values(made.acting), before)
        metrics = other.end()
    assert not other.busy
    assert "agent/policy" in metrics
    assert_equal(values(made.acting), values(made.agent))
    changed = [name for name, value in values(made.acting).items() if not torch.equal(value, before[name])]
    assert any(name.startswith("actor") for name in changed)


def test_what_the_world_model_learns_meanwhile_does_not_matter() -> None:
    """The process takes seconds to start: by then the world model is another one, and the old one is dreamt in."""
    made, again = learner(), learner()
    other = Beside(made, Stopwatch(), num_threads=1)
    with other.sharing():
        other.begin(transitions(length=3))
        for seed in range(3):
            made.update_world_model(transitions(seed=seed))
        other.end()
    grounds = again.grounds(copy.deepcopy(again.world_model), Beside(again, Stopwatch(), num_threads=0).rng)
    again.update_agent(transitions(length=3), grounds)
    assert_equal(values(made.agent), values(again.agent))
    assert_equal(made.agent_optimiser.state_dict(), again.agent_optimiser.state_dict())
    assert_equal(made.return_scale.state_dict(), again.return_scale.state_dict())
    assert not torch.equal(made.rng.state(), again.rng.state()), "the world model draws from a stream of its own"


def test_with_a_process_or_without_it_is_the_same_run(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # so that sums are made in one order in both
    try:
        runs = []
        for num_threads in (0, 1):
            run, *_ = wire(beside(), tmp_path / str(num_threads), num_threads)
            with run.prefetch:
                run.train()
            run.logger.close()
            runs.append(run)
    finally:
        torch.set_num_threads(before)
    assert_same_end(*runs)
    inside, apart = (run.logger for run in runs)
    assert inside.cpu_beside == 0 < apart.cpu_beside < apart.cpu_seconds
    times = [set(json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])) for name in "01"]
    assert {"time/imagination", "time/actor_critic"} <= times[0]
    assert {"time/beside/imagination", "time/beside/actor_critic", "time/waiting"} <= times[1]
    assert not any(name.startswith("time/beside") for name in times[0])


def test_it_is_another_run_than_one_after_the_other(tmp_path: Path) -> None:
    config = beside()
    apart = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, agent_beside=False))
    one, other = (to_the_end(c, tmp_path / name) for c, name in ((config, "beside"), (apart, "apart")))
    assert one.agent_updates == other.agent_updates
    assert lines(one.logger.folder) != lines(other.logger.folder)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> object:
    return to_the_end(beside(), tmp_path_factory.mktemp("beside") / "run")


# While it acts at random, after grouping, with an update under way, when one has just begun, at the last step but one.
@pytest.mark.parametrize("moment", [2, 13, 16, 17, 33])
def test_stopped_anywhere_it_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, straight: object, moment: int
) -> None:
    stopped(beside(), tmp_path / "run", moment, monkeypatch)
    assert_same_end(gone_on(tmp_path / "run"), straight)


def test_a_bad_update_is_left_out_when_it_ends(tmp_path: Path) -> None:
    run, _, said = wire(beside(), tmp_path / "run")
    losses, calls = run.learner.steps.actor_critic_losses, []

    def broken_once(*args: object, **options: object) -> object:
        calls.append(1)
        made = losses(*args, **options)
        return dataclasses.replace(made, total=made.total * float("inf")) if len(calls) == 2 else made

    run.learner.steps = dataclasses.replace(run.learner.steps, actor_critic_losses=broken_once)
    run.train()
    run.logger.close()
    assert len([line for line in said if "left out: agent: the gradient of" in line]) == 1
    assert all(bool(parameter.isfinite().all()) for parameter in run.learner.agent.parameters())
    assert_equal(values(run.learner.acting), values(run.learner.agent))


@pytest.mark.parametrize("num_threads", [0, 1])
def test_one_that_failed_is_not_kept(num_threads: int) -> None:
    made = learner()
    other = Beside(made, Stopwatch(), num_threads=num_threads)
    with torch.no_grad():
        next(made.agent.parameters()).fill_(float("nan"))
    with other.sharing():
        other.begin(transitions(length=3))
        state = other.state_dict()
    assert state is not None
    assert state["metrics"] is None
    with pytest.raises(NotFinite):
        other.end()


@pytest.mark.parametrize(("has", "left"), [(3, 2), (1, 1)])
def test_the_agent_takes_its_threads_for_as_long_as_it_learns(has: int, left: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(has)
    try:
        with Beside(learner(), Stopwatch(), num_threads=1).sharing():
            assert torch.get_num_threads() == left
        assert torch.get_num_threads() == has
    finally:
        torch.set_num_threads(before)


def test_ctrl_c_is_not_for_the_process() -> None:
    """Not while it starts either, when it has not had a chance to say so."""
    other = Beside(learner(), Stopwatch(), num_threads=1)
    with other.sharing():
        for _ in range(2):
            other.begin(transitions(length=3))
            os.kill(other._process._process.pid, signal.SIGINT)
            assert "agent/policy" in other.end()


def test_a_process_that_dies_is_told() -> None:
    made = learner()
    other = Beside(made, Stopwatch(), num_threads=1)
    with other.sharing():
        other.begin(transitions(length=3))
        other.end()
        other._process._process.kill()
        other._process._process.join(10)
        other.begin(transitions(length=3))
        with pytest.raises(RuntimeError, match=r"has died \(exit code -9.*go on from the last"):
            other.end()


def test_a_process_beside_compiled_updates_is_refused() -> None:
    made = Learner(beside(optim=OptimConfig(compile=True)), action_mask(), CPU)
    with pytest.raises(ValueError, match="has no process of its own: num_threads=0"):
        Beside(made, Stopwatch(), num_threads=1)
