"""Analytic FLOP counts against what PyTorch's own counter sees the real updates do."""

import dataclasses
import warnings

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mow.estimate.flops import agent_update, decoder, encoder, world_model_update
from mow.kernels import PhiloxState
from mow.losses.returns import ReturnScale
from mow.methods.mow.actor_critic_loss import actor_critic_losses, compute_targets
from mow.methods.mow.config import BatchConfig, LossConfig, MowConfig
from mow.methods.mow.config_agent import ImaginationConfig
from mow.methods.mow.config_model import PerceptionConfig, SharedConfig
from mow.methods.mow.imagination import imagine
from mow.methods.mow.presets import storm
from mow.methods.mow.world_model_loss import world_model_losses
from tests.small import (
    ACTION_SIZE,
    ARRIVAL,
    LOCAL,
    LOCAL_ARRIVAL,
    action_mask,
    agent,
    run_config,
    transitions,
    world_model,
)

# What is left out does not grow with the rows: task embeddings and router. Here it is up to 5e-5.
TOLERANCE = 2e-4

BATCH = BatchConfig(num_sequences=8, length=8)
SMALL_AGENT = run_config().actor_critic
DREAM = ImaginationConfig(num_sequences=64, context=3, horizon=5)


def small(**changes: object) -> MowConfig:
    return run_config(batch=BATCH, imagination=DREAM, **changes)


def patches() -> MowConfig:
    perception = PerceptionConfig(channels=(4, 6), groups=64, classes=3, latent="spatial", norm="group")
    model = dataclasses.replace(LOCAL, perception=perception, shared=SharedConfig(kind="mlp"))
    return small(model=model, loss=LossConfig(reconstruct_every=4))


def lone() -> MowConfig:
    """One expert and one task, nothing shared, nothing embedded."""
    model = dataclasses.replace(
        storm().model, width=16, num_heads=2, feedforward=24, perception=run_config().model.perception
    )
    dream = dataclasses.replace(DREAM, start="posterior")
    schedule = dataclasses.replace(storm().schedule, acting_context=7)
    return dataclasses.replace(
        storm(), model=model, batch=BATCH, imagination=dream, actor_critic=SMALL_AGENT, schedule=schedule
    )


def rollouts_twice() -> MowConfig:
    actor_critic = dataclasses.replace(SMALL_AGENT, rollout_epochs=2, rollout_parts=2)
    return small(actor_critic=actor_critic, model=LOCAL)


def two_frames() -> MowConfig:
    """Prior and agent read z_{t-1} too."""
    return small(
        model=dataclasses.replace(LOCAL, prior_frames=2), actor_critic=dataclasses.replace(SMALL_AGENT, frames=2)
    )


CONFIGS = {
    "small": small(),
    "patches": patches(),
    "storm": lone(),
    "rollouts twice": rollouts_twice(),
    "arrival": small(model=ARRIVAL),
    "local arrival": small(model=LOCAL_ARRIVAL),
    "two frames": two_frames(),
}


def counted(config: MowConfig) -> tuple[float, float]:
    """What PyTorch counts in one world-model update and one agent update."""
    imagination, actor_critic, num_tasks = config.imagination, config.actor_critic, len(config.tasks)
    modules = (0, 0, 1)[:num_tasks]
    model = world_model(config.model, modules)
    learner_agent = agent(config.model, modules, rollout_epochs=actor_critic.rollout_epochs, frames=actor_critic.frames)
    rng = PhiloxState.from_seed(0, "cpu")
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        # The counter hooks into modules and looks at gradients that nobody asked for.
        warnings.simplefilter("ignore", UserWarning)
        batch = transitions(num_tasks, config.batch.num_sequences, config.batch.length)
        with FlopCounterMode(display=False) as learning:
            for turn in range(config.loss.reconstruct_every):
                losses = world_model_losses(model, batch, model.route(), rng, config.loss, turn=turn)
                losses.weighted(config.loss).sum().backward()
        context = transitions(num_tasks, imagination.num_sequences, imagination.context)
        model.eval()
        with FlopCounterMode(display=False) as dreaming:
            horizon, start = imagination.horizon, imagination.start
            dream = imagine(model, learner_agent, context, model.route(), rng, horizon=horizon, start=start)
            scale = ReturnScale(num_tasks, 0.9, torch.device("cpu"))
            lesson, _ = compute_targets(learner_agent, dream, scale, actor_critic)
            for _ in range(actor_critic.rollout_epochs):
                for part in lesson.parts(actor_critic.rollout_parts):
                    actor_critic_losses(learner_agent, part, entropy=0.1, clip=0.2).total.backward()
    return learning.get_total_flops() / config.loss.reconstruct_every, dreaming.get_total_flops()


@pytest.mark.parametrize("name", CONFIGS)
def test_as_pytorch_counts(name: str) -> None:
    config = CONFIGS[name]
    world_model_flops, agent_flops = counted(config)
    num_outputs = action_mask().num_outputs
    assert sum(world_model_update(config, ACTION_SIZE).values()) == pytest.approx(world_model_flops, rel=TOLERANCE)
    assert sum(agent_update(config, ACTION_SIZE, num_outputs).values()) == pytest.approx(agent_flops, rel=TOLERANCE)


def test_by_hand() -> None:
    """Four convolutions of one channel: 32, 16, 8, 4 pixels a side, 16 weights for each of the channels read."""
    config = PerceptionConfig(channels=(1, 1, 1, 1), groups=2, classes=3)
    first, others = 2 * 3 * 16 * 32**2, 2 * 16 * (16**2 + 8**2 + 4**2)
    code = 2 * 16 * 6
    assert encoder(config) == (first + others + code, 2 * first + 3 * (others + code))
    assert decoder(config) == (first + others + code, 3 * (first + others + code))
