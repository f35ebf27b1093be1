"""Updates and imagined rollouts of K tasks at once beside one task after the other.

    python -m bench -k train_step          one row per K: a curve

Subjects: an update of the world model; one of the agent (imagination, then actor and critics), each with forward,
backward, clipping and the optimisers' steps; and a rollout alone. Peers: the same of K learners of the single-task
baseline, one after the other, on the same rows; on a GPU also the same model with plain PyTorch ops (on a CPU the
subject itself is that), through optim.compile and optim.cuda_graph. Before any clock starts, learners of one seed must
have the same losses, or rollouts, on the same batch. The floor is the arithmetic at the rate of a large matmul, so its
share is the use of that rate.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from bench.clock import this_device
from bench.floors import Work
from bench.learners import (
    NUM_ACTIONS,
    TaskCount,
    cases,
    context_batch,
    make_learner,
    single,
    task_by_task,
    world_model_batch,
)
from bench.race import Check, Contestant, Eager, Race
from mow.batch import TransitionBatch
from mow.estimate.flops import agent_update, world_model_update
from mow.kernels import dispatch
from mow.methods.base import Metrics
from mow.methods.mow.config import MowConfig
from mow.methods.mow.learner import Learner
from mow.methods.mow.records import Imagination

CASES = cases(this_device().kind)
_ROUNDS = {"cpu": 7, "cuda": 20}
# Float32 sums in another order; bf16 keeps eight bits, and a latent may be drawn from the other side of a border.
_TOLERANCE = {"cpu": 1e-4, "cuda": 2e-2}
# Share of the latents that may differ between two ways to compute a rollout: rounding draws another class here and
# there, and what follows differs with it.
_MAX_DIFFERENT = 0.05
_PLAIN: dict[Any, str] = {}  # what ops have chosen where all are plain

Update = Callable[[Learner, TransitionBatch], Metrics]


def all_losses(metrics: Metrics) -> Tensor:
    """Losses of an update, of every task, in one vector."""
    names = [name for name in sorted(metrics) if name.startswith(("loss/", "agent/"))]
    return torch.cat([metrics[name].float().flatten() for name in names])


def rollout(learner: Learner, context: TransitionBatch) -> Imagination:
    """A rollout as the learner's update makes it, always from the same random state."""
    learner.world_model.eval()
    learner.rng.seed_offset.zero_()
    return learner.imagine_rollout(context)


def plain_ops() -> AbstractContextManager[Any]:
    """Inside, every op is plain PyTorch, as with MOW_BACKEND=reference in a whole process."""
    return mock.patch.multiple(dispatch, _DEFAULT="reference", _CHOSEN=_PLAIN)


@dataclass(frozen=True)
class Way:
    """A way to compute an update: switches of its config, and a context while it runs."""

    optim: Mapping[str, Any] = field(default_factory=dict)
    context: Callable[[], AbstractContextManager[Any]] = nullcontext

    def contestant(self, call: Contestant, config: MowConfig, device: torch.device) -> Contestant:
        """`call` with a fresh learner, which equals all others of this config."""
        with self.context():
            learner = make_learner(replace(config, optim=replace(config.optim, **self.optim)), device)

        def inside(batch: TransitionBatch) -> Any:
            with self.context():
                return call(learner, batch)

        return Eager(inside)


def ways_of(kind: str, *, graph: bool) -> dict[str, Way]:
    """The peers that are the same model. Args: graph: there is a rollout, which a CUDA graph can replay."""
    if kind != "cuda":
        return {}
    ways = {"plain ops": Way(context=plain_ops), "compiled": Way({"compile": True})}
    if graph:
        ways["CUDA graph"] = Way({"cuda_graph": True})
        ways["compiled, CUDA graph"] = Way({"compile": True, "cuda_graph": True})
    return ways


def check_same(case: TaskCount, update: Update, batch: TransitionBatch, ways: dict[str, Way], race: Race) -> None:
    """Fresh learners of one seed have the same losses at their first update, whichever way it is computed.

    Raises: AssertionError naming the way that differs.
    """
    device = torch.device(race.device.kind)
    want = all_losses(update(make_learner(case.config, device), batch))
    assert want.isfinite().all(), "a loss of the update itself is not finite"
    for name, way in ways.items():
        got = all_losses(way.contestant(update, case.config, device)(batch))
        error = float((got - want).norm() / want.norm())
        assert error <= _TOLERANCE[race.device.kind], f"{name} has other losses: relative error {error:.1e}"


def check_finite(output: Metrics | list[Metrics], inputs: tuple[Any, ...]) -> None:
    """Check that losses are finite; they were compared before, as the state changes with every call."""
    every = output if isinstance(output, list) else [output]
    (batch,) = inputs
    assert sum(len(next(m for n, m in one.items() if m.dim() == 1)) for one in every) == len(batch.frame)
    assert all(all_losses(metrics).isfinite().all() for metrics in every), "a loss is not finite"


def check_rollout(want: Imagination, max_different: float, output: Any, inputs: tuple[Any, ...]) -> None:
    """A rollout equals the one before; those of K other models have its shape and finite rewards."""
    if isinstance(output, list):
        assert len(output) == len(want.latent), "a task is missing"
        assert all(one.latent.shape[1:] == want.latent.shape[1:] for one in output), "other rollouts"
        assert all(one.reward.isfinite().all() for one in output), "a reward is not finite"
        return
    different = (output.latent != want.latent).flatten(3).any(dim=-1).float().mean()
    assert float(different) <= max_different, f"{float(different):.1%} of the latents differ"
    if max_different == 0.0:
        assert torch.equal(output.reward, want.reward), "rewards differ"


def race_learners(
    race: Race, case: TaskCount, call: Contestant, batch: TransitionBatch, flops: float, check: Check,
    ways: dict[str, Way], what: str = "updates",
) -> None:  # fmt: skip
    """Time `call(learner, batch)` of K tasks against the baseline and the other ways of computing it."""
    race = replace(race, rounds=_ROUNDS[race.device.kind])
    device, config = torch.device(race.device.kind), case.config
    learners = [make_learner(single(config), device) for _ in range(case.K)]

    def one_by_one(batch: TransitionBatch) -> list[Any]:
        return [call(learner, rows) for learner, rows in zip(learners, task_by_task(batch), strict=True)]

    peers: dict[str, Contestant] = {f"K {what} of one task": Eager(one_by_one)}
    peers |= {name: way.contestant(call, config, device) for name, way in ways.items()}
    subject = Way().contestant(call, config, device)
    race.run(subject, peers, make=lambda: (batch,), check=check, work=Work(flops, 0.0))
    race.benchmark.extra_info.update(tasks=case.K, tflop=flops / 1e12, peak_gb=peaks(race, subject, peers, batch))


def peaks(race: Race, subject: Contestant, peers: dict[str, Contestant], batch: TransitionBatch) -> dict[str, float]:
    """Peak memory of a call on a GPU beyond what all contestants hold, in GB. Empty on a CPU."""
    found = {}
    if race.device.kind == "cuda":
        for name, contestant in {"subject": subject, **peers}.items():
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            contestant(batch)
            torch.cuda.synchronize()
            found[name] = (torch.cuda.max_memory_allocated() - before) / 1e9
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_world_model(race: Race, case: TaskCount) -> None:
    batch = world_model_batch(case.config, torch.device(race.device.kind))
    flops = sum(world_model_update(case.config, NUM_ACTIONS).values())
    ways = ways_of(race.device.kind, graph=False)
    check_same(case, Learner.update_world_model, batch, ways, race)
    race_learners(race, case, Learner.update_world_model, batch, flops, check_finite, ways)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agent(race: Race, case: TaskCount) -> None:
    context = context_batch(case.config, torch.device(race.device.kind))
    flops = sum(agent_update(case.config, NUM_ACTIONS, NUM_ACTIONS).values())
    ways = ways_of(race.device.kind, graph=True)
    check_same(case, Learner.update_agent, context, ways, race)
    race_learners(race, case, Learner.update_agent, context, flops, check_finite, ways)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_imagination(race: Race, case: TaskCount) -> None:
    device = torch.device(race.device.kind)
    context = context_batch(case.config, device)
    parts = agent_update(case.config, NUM_ACTIONS, NUM_ACTIONS)
    flops = parts["context"] + parts["imagination"]  # without the update of actor and critics
    ways = ways_of(device.type, graph=True)
    want = rollout(make_learner(case.config, device), context)
    check = partial(check_rollout, want, _MAX_DIFFERENT if ways else 0.0)
    race_learners(race, case, rollout, context, flops, check, ways, "rollouts")
