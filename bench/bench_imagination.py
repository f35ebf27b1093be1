"""Imagined rollouts in K tasks at once beside one task after the other.

    python -m bench -k imagination         one row per K: a curve

The subject is a rollout of the world model under the policy, without the update from it (in bench_train_step). Peers: K
rollouts of K single-task baselines on the same contexts; and the same rollout with plain PyTorch ops (on a CPU the
subject itself is that), through torch.compile, and replayed from a CUDA graph. Before any clock starts, every way of
computing it must give the same rollout from one random state.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from bench.bench_train_step import ways_of, within
from bench.clock import this_device
from bench.floors import Work
from bench.learners import NUM_ACTIONS, TaskCount, cases, make_learner, random_batch, single, task_by_task
from bench.race import Contestant, Eager, Race
from mow.batch import TransitionBatch
from mow.estimate.flops import agent_update
from mow.methods.mow.learner import Learner
from mow.methods.mow.records import Imagination

CASES = cases(this_device().kind)
_ROUNDS = {"cpu": 7, "cuda": 20}
# Share of the latents' groups that may differ: a number on the other side of a border draws another class, and what
# follows differs with it.
_MAX_DIFFERENT = 0.05


def rollout(learner: Learner, context: TransitionBatch) -> Imagination:
    """A rollout as the learner's update makes it, always from the same random state."""
    learner.world_model.eval()
    learner.rng.seed_offset.zero_()
    return learner.imagine_rollout(context)


def one_by_one(learners: list[Learner], context: TransitionBatch) -> list[Imagination]:
    return [rollout(learner, rows) for learner, rows in zip(learners, task_by_task(context), strict=True)]


def check(want: Imagination, max_different: float, output: Any, inputs: tuple[Any, ...]) -> None:
    """A rollout equals the one before; those of K other models have its shape and finite rewards."""
    if isinstance(output, list):
        assert len(output) == len(want.latent), "a task is missing"
        assert all(dream.latent.shape[1:] == want.latent.shape[1:] for dream in output), "other rollouts"
        assert all(dream.reward.isfinite().all() for dream in output), "a reward is not finite"
        return
    different = (output.latent != want.latent).flatten(3).any(dim=-1).float().mean()
    assert float(different) <= max_different, f"{float(different):.1%} of the latents differ"
    if max_different == 0.0:
        assert torch.equal(output.reward, want.reward), "rewards differ"


def context_flops(case: TaskCount) -> float:
    """FLOPs of the context and of the rollout, without the update from it."""
    parts = agent_update(case.config, NUM_ACTIONS, NUM_ACTIONS)
    return parts["context"] + parts["imagination"]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rollout(race: Race, case: TaskCount) -> None:
    race = dataclasses.replace(race, rounds=_ROUNDS[race.device.kind])
    device, config = torch.device(race.device.kind), case.config
    how = config.imagination
    context = random_batch(case.K, how.num_sequences, how.context, device)
    learner = make_learner(config, device)
    learners = [make_learner(single(config), device) for _ in range(case.K)]
    subject: Callable[..., Any] = partial(rollout, learner)
    peers: dict[str, Contestant] = {"K rollouts of one task": Eager(partial(one_by_one, learners))}
    ways = ways_of(race.device.kind, graph=True)
    for name, way in ways.items():
        peers[name] = Eager(within(way.context, partial(rollout, way.learner(config, device))))
    race.run(
        Eager(subject),
        peers,
        make=lambda: (context,),
        check=partial(check, rollout(learner, context), _MAX_DIFFERENT if ways else 0.0),
        work=Work(context_flops(case), 0.0),
    )
    race.benchmark.extra_info.update(tasks=case.K, tflop=context_flops(case) / 1e12)
