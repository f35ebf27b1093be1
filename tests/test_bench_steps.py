"""Benchmarks of whole updates and rollouts: contestants are right on a small model, and a wrong one is not timed."""

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import pytest
import torch

from bench import bench_train_step
from bench.bench_train_step import Way, check_same, plain_ops, ways_of
from bench.clock import Device
from bench.floors import Ceilings
from bench.learners import TaskCount, cases, make_learner, random_batch, single, task_by_task
from bench.race import Race
from mow.kernels import dispatch
from mow.kernels.dispatch import choose
from mow.methods.mow.compile import UpdateSteps
from mow.methods.mow.config import MowConfig
from mow.methods.mow.learner import Learner
from mow.methods.mow.presets import storm
from mow.methods.mow.world_model import WorldModel
from mow.methods.mow.world_model_loss import world_model_losses
from tests.small import run_config
from tests.test_bench_replay import QuietBenchmark

CPU = torch.device("cpu")


class Small(TaskCount):
    @property
    def config(self) -> MowConfig:
        return dataclasses.replace(run_config(), tasks=tuple(f"task:{k}" for k in range(self.K)))


SMALL = Small("small", 2)


def run(test: Callable[..., None]) -> QuietBenchmark:
    benchmark = QuietBenchmark()
    test(Race(benchmark, Device(), Ceilings(1e9, 1e9), "reference", rounds=1), SMALL)
    return benchmark


TESTS = [bench_train_step.test_world_model, bench_train_step.test_agent, bench_train_step.test_imagination]


@pytest.mark.parametrize("test", TESTS)
def test_every_contestant_passes_its_check(test: Callable[..., None]) -> None:
    benchmark = run(test)
    assert benchmark.extra_info["tasks"] == 2
    assert benchmark.extra_info["tflop"] > 0


def louder() -> AbstractContextManager[Any]:
    """A way of computing an update whose losses are one percent larger."""

    def loud(*arguments: Any, **how: Any) -> Any:
        found = world_model_losses(*arguments, **how)
        return found._replace(terms={name: 1.01 * loss for name, loss in found.terms.items()})

    return mock.patch("mow.methods.mow.learner.update_steps", return_value=UpdateSteps(world_model_losses=loud))


def test_a_way_with_other_losses_is_not_timed() -> None:
    race = Race(QuietBenchmark(), Device(), Ceilings(1e9, 1e9), "reference", rounds=1)
    batch = random_batch(2, 2, 6, CPU)
    check_same(SMALL, Learner.update_world_model, batch, {"plain": Way(context=plain_ops)}, race)
    with pytest.raises(AssertionError, match=r"louder has other losses: relative error 1.0e-02"):
        check_same(SMALL, Learner.update_world_model, batch, {"louder": Way(context=louder)}, race)


def test_another_rollout_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    predict_next_latent, calls = WorldModel.predict_next_latent, []

    def drifting(model: WorldModel, moment: Any) -> Any:
        calls.append(1)
        logits, events = predict_next_latent(model, moment)
        return logits + 0.5 * len(calls) * torch.linspace(-1, 1, logits.shape[-1]), events

    monkeypatch.setattr(WorldModel, "predict_next_latent", drifting)
    with pytest.raises(AssertionError, match=r"subject is wrong, so nothing is timed.*differ"):
        run(bench_train_step.test_imagination)


def test_plain_ops_are_plain_and_only_inside() -> None:
    with plain_ops():
        assert choose("a door of this test", "auto", ("triton", "reference")) == "reference"
    assert choose("a door of this test", "auto", ("triton", "reference")) == "triton"
    assert dispatch._CHOSEN.pop(("a door of this test", "auto", ("triton", "reference"))) == "triton"


def test_the_baseline_is_storm() -> None:
    """At the paper's size, parameter by parameter; and it sees the same rows."""
    parent = TaskCount("atari26", 3).config
    assert single(parent).model == dataclasses.replace(storm().model)
    learner = make_learner(single(SMALL.config), CPU)
    assert len(learner.config.tasks) == 1
    batch = random_batch(3, 2, 4, CPU)
    rows = task_by_task(batch)
    assert len(rows) == 3
    assert torch.equal(torch.cat([one.frame for one in rows]), batch.frame)
    assert torch.equal(torch.cat([one.action for one in rows]), batch.action)


def test_the_curve_is_longer_on_a_gpu() -> None:
    assert [case.K for case in cases("cpu")] == [1, 2, 4, 8]
    assert [case.K for case in cases("cuda")][-2:] == [26, 50]
    assert all(len(case.config.tasks) == case.K for kind in ("cpu", "cuda") for case in cases(kind))


def test_ways_are_switches_of_the_config() -> None:
    assert ways_of("cpu", graph=True) == {}
    ways = ways_of("cuda", graph=True)
    assert [name for name, way in ways.items() if way.optim.get("cuda_graph")] == ["CUDA graph", "compiled, CUDA graph"]
    assert [name for name, way in ways.items() if way.context is plain_ops] == ["plain ops"]
    assert not any("graph" in name for name in ways_of("cuda", graph=False))
    compiled = Way({"compile": True}).contestant(lambda learner, batch: learner.config.optim, SMALL.config, CPU)
    assert compiled(random_batch(2, 2, 6, CPU)).compile
