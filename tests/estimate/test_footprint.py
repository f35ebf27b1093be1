"""Estimated memory against what autograd really keeps on small configs."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from mow.estimate.footprint import activations
from mow.kernels import PhiloxState
from mow.losses.returns import ReturnScale
from mow.methods.mow.actor_critic_loss import actor_critic_losses, compute_targets
from mow.methods.mow.config_agent import ActorCriticConfig
from mow.methods.mow.imagination import imagine
from mow.methods.mow.presets import atari26
from mow.methods.mow.world_model_loss import world_model_losses
from tests.estimate.test_flops import CONFIGS
from tests.small import ACTION_SIZE, agent, transitions, world_model

# What lives for a moment is not estimated, and attention on a CPU keeps its probabilities.
TOLERANCE = 0.15


@contextmanager
def kept(*own: Tensor) -> Iterator[dict[int, int]]:
    """Bytes of the memory blocks that autograd holds on to, less those of `own`."""
    known = {tensor.untyped_storage().data_ptr() for tensor in own}
    found: dict[int, int] = {}
    alive = []  # so that no block is given out twice

    def pack(tensor: Tensor) -> Tensor:
        block = tensor.untyped_storage()
        if block.data_ptr() not in known:
            found[block.data_ptr()] = block.nbytes()
            alive.append(tensor.detach())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_as_autograd_keeps(name: str, dropout: float) -> None:
    config = CONFIGS[name]
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, dropout=dropout))
    num_tasks = len(config.tasks)
    model = world_model(config.model, (0, 0, 1)[:num_tasks])
    batch = transitions(num_tasks, config.batch.num_sequences, config.batch.length)
    rng, routing = PhiloxState.from_seed(0, "cpu"), model.route()
    with kept(*model.parameters(), *model.buffers(), batch.action) as blocks:
        losses = world_model_losses(model, batch, routing, rng, config.loss)
    assert losses.terms
    estimate = activations(config, ACTION_SIZE, bf16=False)
    assert estimate.world_model == pytest.approx(sum(blocks.values()), rel=TOLERANCE)


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("name", ["small", "storm"])
def test_the_agents_share(name: str, frames: int) -> None:
    """What its losses keep, and the rollout that they are of; as wide that a policy's few outputs count for little."""
    config = dataclasses.replace(CONFIGS[name], actor_critic=ActorCriticConfig(hidden=32, frames=frames))
    num_tasks, dreams = len(config.tasks), config.imagination
    modules = (0, 0, 1)[:num_tasks]
    model, learner = world_model(config.model, modules).eval(), agent(config.model, modules, hidden=32, frames=frames)
    context = transitions(num_tasks, dreams.num_sequences, dreams.context)
    rng = PhiloxState.from_seed(0, "cpu")
    dream = imagine(model, learner, context, model.route(), rng, horizon=dreams.horizon, start=dreams.start)
    scale = ReturnScale(num_tasks, 0.9, torch.device("cpu"))
    lesson, _ = compute_targets(learner, dream, scale, config.actor_critic)
    with kept(*learner.parameters()) as blocks:
        losses = actor_critic_losses(learner, lesson, entropy=0.1, clip=0.2)
    assert losses.total.requires_grad
    held = sum(blocks.values()) + dream.latent.nbytes + dream.hidden.nbytes
    assert activations(config, ACTION_SIZE, bf16=False).agent == pytest.approx(held, rel=TOLERANCE)


def test_atari26_at_its_size() -> None:
    """26,624 frames in bf16: about 20 GB, as estimated before anything was written."""
    estimate = activations(atari26(), 18, bf16=True)
    assert 18e9 < estimate.world_model < 24e9
    assert activations(atari26(), 18, bf16=False).world_model > 1.5 * estimate.world_model


def test_half_the_sequences_take_half() -> None:
    config = CONFIGS["small"]
    batch = dataclasses.replace(config.batch, num_sequences=config.batch.num_sequences // 2)
    half, whole = (activations(c, 6, bf16=False) for c in (dataclasses.replace(config, batch=batch), config))
    assert half.world_model == pytest.approx(whole.world_model / 2)
    assert half.agent == whole.agent
    assert half.rollout == whole.rollout
    assert whole.peak == max(whole.world_model, whole.rollout, whole.agent)


def test_switches_that_save_memory() -> None:
    def estimate(**optim: object) -> float:
        config = dataclasses.replace(atari26(), optim=dataclasses.replace(atari26().optim, **optim))
        return activations(config, 18, bf16=True).world_model

    plain = estimate()
    assert estimate(checkpoint_activations="transformers") < 0.93 * plain
    # What is left is mostly the decoder's error, latents and heads.
    assert estimate(checkpoint_activations="all") < 0.4 * plain
    assert estimate(task_groups=4) == pytest.approx(plain / 4)
    assert estimate(task_groups=1000) == pytest.approx(plain / 26)


@pytest.mark.parametrize(("again", "tolerance"), [("transformers", 0.15), ("all", 0.35)])
def test_as_autograd_keeps_for_computing_again(again: str, tolerance: float) -> None:
    """The estimate adds what is at work at a time, which is much where groups are few."""
    optim = dataclasses.replace(CONFIGS["small"].optim, checkpoint_activations=again)
    config = dataclasses.replace(CONFIGS["small"], optim=optim)
    model = world_model(config.model, recompute=again)
    batch = transitions(3, config.batch.num_sequences, config.batch.length)
    with kept(*model.parameters(), *model.buffers(), batch.action, batch.frame) as blocks:
        losses = world_model_losses(model, batch, model.route(), PhiloxState.from_seed(0, "cpu"), config.loss)
    assert losses.terms
    estimate = activations(config, ACTION_SIZE, bf16=False).world_model
    groups, tokens = len(model.encoder.groups), batch.reward.numel()
    working = 4 * tokens * (12288 + 4 * 4512) / groups if again == "all" else 0
    assert estimate - working == pytest.approx(sum(blocks.values()), rel=tolerance)
