"""One update of K tasks beside K updates of one task.

    python -m bench -k train_step          one row per K: a curve

The subject is an update of the world model, or of the agent (imagination, then actor and critics), with everything in
it: forward, backward, clipping, the optimisers' steps. Peers: K updates of K learners of the single-task baseline, one
after the other, on the same rows; the same model with plain PyTorch ops (on a CPU the subject itself is that); that
through torch.compile; and the switches of the package itself, optim.compile and, for the agent, optim.cuda_graph.
Before any clock starts, learners of one seed must lose the same on the same batch. The floor is the update's arithmetic
at the rate of a large matmul, so its share is the use of that rate. On a CPU what compiles takes minutes: it joins
there only if MOW_BENCH_COMPILE is set.
"""

import os
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
from bench.learners import NUM_ACTIONS, TaskCount, cases, make_learner, random_batch, single, task_by_task
from bench.race import Contestant, Eager, Race
from mow.batch import TransitionBatch
from mow.estimate.flops import agent_update, world_model_update
from mow.kernels import dispatch
from mow.methods.base import Metrics
from mow.methods.mow.config import MowConfig
from mow.methods.mow.learner import Learner

CASES = cases(this_device().kind)
_ROUNDS = {"cpu": 7, "cuda": 20}
# Float32 sums in another order; bf16 keeps eight bits, and a latent may be drawn from the other side of a border.
_TOLERANCE = {"cpu": 1e-4, "cuda": 2e-2}
_PLAIN: dict[Any, str] = {}  # what ops have chosen where all are plain

Update = Callable[[Learner, TransitionBatch], Metrics]


def update_world_model(learner: Learner, batch: TransitionBatch) -> Metrics:
    return learner.update_world_model(batch)


def update_agent(learner: Learner, context: TransitionBatch) -> Metrics:
    return learner.update_agent(context)


def all_losses(metrics: Metrics) -> Tensor:
    """Losses of an update, of every task, in one vector."""
    names = [name for name in sorted(metrics) if name.startswith(("loss/", "agent/"))]
    return torch.cat([metrics[name].float().flatten() for name in names])


def one_by_one(learners: list[Learner], update: Update, batch: TransitionBatch) -> list[Metrics]:
    return [update(learner, rows) for learner, rows in zip(learners, task_by_task(batch), strict=True)]


def plain_ops() -> AbstractContextManager[Any]:
    """Inside, every op is plain PyTorch, as with MOW_BACKEND=reference in a whole process."""
    return mock.patch.multiple(dispatch, _DEFAULT="reference", _CHOSEN=_PLAIN)


@dataclass(frozen=True)
class Way:
    """A way to compute an update: switches of its config, and a context while it runs."""

    optim: Mapping[str, Any] = field(default_factory=dict)
    context: Callable[[], AbstractContextManager[Any]] = nullcontext

    def learner(self, config: MowConfig, device: torch.device) -> Learner:
        """A fresh learner; those of one config are equal."""
        return make_learner(replace(config, optim=replace(config.optim, **self.optim)), device)


def ways_of(kind: str, *, graph: bool) -> dict[str, Way]:
    """The peers that are the same model. Args: graph: there is a rollout, which a CUDA graph can replay."""
    compiled = {"compile": True}
    ways: dict[str, Way] = {}
    if kind == "cuda":
        ways["plain ops"] = Way(context=plain_ops)
        ways["plain ops, compiled"] = Way(compiled, plain_ops)
    if kind == "cuda" or os.environ.get("MOW_BENCH_COMPILE"):
        ways["compiled"] = Way(compiled)
    if kind == "cuda" and graph:
        ways["CUDA graph"] = Way({"cuda_graph": True})
        ways["compiled, CUDA graph"] = Way({"compile": True, "cuda_graph": True})
    return ways


def within(context: Callable[[], AbstractContextManager[Any]], call: Contestant) -> Contestant:
    def inside(*inputs: Any) -> Any:
        with context():
            return call(*inputs)

    return inside


def check_same(case: TaskCount, update: Update, batch: TransitionBatch, ways: dict[str, Way], race: Race) -> None:
    """Fresh learners of one seed lose the same at their first update, whichever way it is computed.

    Raises: AssertionError naming the way that does not.
    """
    device = torch.device(race.device.kind)
    want = all_losses(update(make_learner(case.config, device), batch))
    assert want.isfinite().all(), "the update itself loses what is not finite"
    for name, way in ways.items():
        with way.context():
            got = all_losses(update(way.learner(case.config, device), batch))
        error = float((got - want).norm() / want.norm())
        assert error <= _TOLERANCE[race.device.kind], f"{name} loses something else: relative error {error:.1e}"


def race_update(
    race: Race, case: TaskCount, update: Update, batch: TransitionBatch, flops: float, ways: dict[str, Way]
) -> None:
    """Check, then time the update against the baseline and the other ways of computing it."""
    race = replace(race, rounds=_ROUNDS[race.device.kind])
    device, config = torch.device(race.device.kind), case.config
    check_same(case, update, batch, ways, race)
    learners = [make_learner(single(config), device) for _ in range(case.K)]
    peers: dict[str, Contestant] = {"K updates of one task": Eager(partial(one_by_one, learners, update))}
    for name, way in ways.items():
        peers[name] = Eager(within(way.context, partial(update, way.learner(config, device))))
    subject = Eager(partial(update, make_learner(config, device)))
    race.run(subject, peers, make=lambda: (batch,), check=check_finite, work=Work(flops, 0.0))
    race.benchmark.extra_info.update(tasks=case.K, tflop=flops / 1e12, peak_gb=peaks(race, subject, peers, batch))


def check_finite(output: Metrics | list[Metrics], inputs: tuple[Any, ...]) -> None:
    """Check that losses are finite; they were compared before, as the state changes with every call."""
    every = output if isinstance(output, list) else [output]
    (batch,) = inputs
    assert sum(len(next(m for n, m in one.items() if m.dim() == 1)) for one in every) == len(batch.frame)
    assert all(all_losses(metrics).isfinite().all() for metrics in every), "a loss is not finite"


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
    config = case.config
    device = torch.device(race.device.kind)
    batch = random_batch(case.K, config.batch.num_sequences, config.batch.length, device)
    flops = sum(world_model_update(config, NUM_ACTIONS).values())
    race_update(race, case, update_world_model, batch, flops, ways_of(device.type, graph=False))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agent(race: Race, case: TaskCount) -> None:
    config = case.config
    device = torch.device(race.device.kind)
    context = random_batch(case.K, config.imagination.num_sequences, config.imagination.context, device)
    flops = sum(agent_update(config, NUM_ACTIONS, NUM_ACTIONS).values())
    race_update(race, case, update_agent, context, flops, ways_of(device.type, graph=True))
