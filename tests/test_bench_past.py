"""What the past decides: the measure by hand, and the bars that a model of tiny:bounce must clear.

No picture of bounce shows where the ball goes. A model that foretells as well without its past as with it, or an agent
that acts alike whatever its past, has learnt nothing of that.
"""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.past import PastUse, past_use
from mow.batch import TransitionBatch
from mow.envs.tiny import expert_action, make
from mow.evaluate.held_out import HeldOutWindows
from mow.kernels import PhiloxState
from mow.methods.mow.config import BatchConfig
from mow.methods.mow.config_model import ExpertsConfig, RoutingConfig
from mow.methods.mow.learner import Learner
from mow.methods.mow.presets import quickstart
from mow.methods.mow.records import Imagination
from mow.methods.mow.world_model import WorldModel
from mow.nn.policy import ActionMask
from mow.replay import ReplayBuffer
from tests.small import MODEL, TWO_FRAMES, agent, transitions, world_model

ACTIONS = 3


# By hand -------------------------------------------------------------------------------------------------------------


def use(
    model: WorldModel, batch: TransitionBatch, length: torch.Tensor, longest: int = 9, **changes: object
) -> PastUse:
    torch.manual_seed(1)
    windows = HeldOutWindows(batch, length)
    return past_use(
        model, agent(model.config, **changes), windows, model.route(), PhiloxState.from_seed(3, "cpu"), longest=longest
    )


@pytest.mark.parametrize("config", [MODEL, TWO_FRAMES], ids=["dense", "two frames"])
def test_where_no_step_has_a_past_there_is_nothing_to_compare(config):
    batch = transitions()
    batch.is_first[:] = True
    found = use(world_model(config).eval(), batch, torch.full((3, 2), 6))
    assert all(getattr(found, field.name).isnan().all() for field in dataclasses.fields(found))


def test_a_model_that_reads_no_past_is_told_apart_by_nothing():
    torch.manual_seed(0)
    model = world_model(TWO_FRAMES).eval()
    with torch.no_grad():
        model.heads.prior.hidden.weight.zero_()
        cells = model.heads.prior.neighbours.weight.view(2, 128, 9, 2, 8)
        cells[:, :, :, 1] = 0.0  # z_{t-1}
    batch = transitions()
    batch.is_first[:, :, 1:] = False  # so that all three are means over the same steps
    found = use(model, batch, torch.full((3, 2), 6), memory_gain=1e-9)
    torch.testing.assert_close(found.kl_without, found.kl)
    torch.testing.assert_close(found.kl_other, found.kl)
    assert found.policy_kl.abs().max() < 1e-6


@pytest.mark.parametrize("changes", [{}, {"memory_gain": 1e-9, "frames": 2}], ids=["h", "z"])
def test_a_model_that_reads_it_is(changes):
    torch.manual_seed(0)
    found = use(world_model(TWO_FRAMES).eval(), transitions(), torch.full((3, 2), 6), **changes)
    assert (found.kl_without - found.kl).abs().min() > 1e-4
    assert (found.kl_other - found.kl).abs().min() > 1e-4
    assert found.policy_kl.min() > 1e-5


def test_what_lies_behind_an_end_counts_for_nothing():
    torch.manual_seed(0)
    model, length = world_model(TWO_FRAMES).eval(), torch.tensor([[4, 6], [5, 4], [6, 5]])
    batch, changed = transitions(), transitions()
    for k in range(3):
        for b in range(2):
            changed.frame[k, b, length[k, b] :] = 0
    for one, other in zip(*(dataclasses.astuple(use(model, x, length)) for x in (batch, changed)), strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)
    for frames in (batch.frame, changed.frame):
        frames[:, :, 3:] = torch.randint(0, 256, frames[:, :, 3:].shape, dtype=torch.uint8)
    for one, other in zip(*(dataclasses.astuple(use(model, x, length, 3)) for x in (batch, changed)), strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)
    alone = transitions(num_sequences=1)
    assert use(model, alone, torch.full((3, 1), 6)).policy_kl.isnan().all(), "there is no other window"


# The bars ------------------------------------------------------------------------------------------------------------


def recorded(steps: int, seed: int) -> ReplayBuffer:
    """Mixed play of bounce: the expert's action every other step on average, else a random one."""
    env, rng = make("bounce", seed=seed), np.random.default_rng(seed)
    replay = ReplayBuffer(1, steps, (64, 64, 3), ACTIONS, seed=seed, store="raw")
    frame, is_first = env.reset()[0], True
    for _ in range(steps):
        action = expert_action(env) if rng.random() < 0.5 else int(rng.integers(ACTIONS))
        after, reward, terminated, truncated, _ = env.step(action)
        ends = np.array([terminated]), np.array([truncated])
        replay.add(
            frame[None], np.eye(ACTIONS, dtype=np.float32)[[action]], np.array([reward], np.float32), *ends,
            np.array([is_first]), np.zeros(1, np.bool_),
        )  # fmt: skip
        is_first = terminated or truncated
        frame = env.reset()[0] if is_first else after
    return replay


def bounce_learner(updates: int, *, prior_frames: int = 2, memory_gain: float = 1.0, norm: bool = True) -> Learner:
    """Quickstart's networks at half their width, for bounce alone; step sizes have fallen after `updates` of the model.

    The switches of the past are given, so that the bars do not move with the preset.
    """
    whole = quickstart()
    config = dataclasses.replace(
        whole,
        tasks=("tiny:bounce",),
        total_steps=updates + 9,
        model=dataclasses.replace(
            whole.model, width=64, feedforward=128, prior_width=64, prior_frames=prior_frames,
            perception=dataclasses.replace(whole.model.perception, channels=(16, 32)),
            routing=RoutingConfig(hidden=16), experts=ExpertsConfig(num_experts=2, experts_per_task=1, num_layers=1),
        ),
        batch=BatchConfig(num_sequences=8, length=8),
        imagination=dataclasses.replace(whole.imagination, num_sequences=32),
        actor_critic=dataclasses.replace(
            whole.actor_critic, hidden=64, frames=1, memory_gain=memory_gain, memory_norm=norm
        ),
        optim=dataclasses.replace(whole.optim, agent_lr=1e-3),
        schedule=dataclasses.replace(whole.schedule, prefill_steps=0, warmup_updates=0, world_model_every=1),
    )  # fmt: skip
    torch.manual_seed(0)
    mask = ActionMask(torch.ones(1, ACTIONS, dtype=torch.bool), torch.zeros(1, 0, dtype=torch.bool))
    return Learner(config, mask, torch.device("cpu"))


def learn_bounce(learner: Learner, updates: int) -> ReplayBuffer:
    """The world model alone, on a fixed recording, which is given back."""
    replay = recorded(3000, seed=0)
    learner.world_model.set_background(replay.sample(32, 8, counter=0, stream=3).frame.flatten(1, 2))
    for update in range(updates):
        learner.update_world_model(replay.sample(8, 8, counter=update, stream=0))
    return replay


def measured(learner: Learner) -> PastUse:
    """On windows of another recording."""
    windows = HeldOutWindows(recorded(600, seed=99).sample(32, 8, counter=0, stream=0), torch.full((1, 32), 8))
    rng = PhiloxState.from_seed(5, "cpu")
    return past_use(learner.world_model.eval(), learner.agent, windows, learner.routing(), rng, longest=8)


def test_bounce_is_foretold_by_its_past():
    learner = bounce_learner(300)
    learn_bounce(learner, 300)
    found = measured(learner)
    assert found.kl < 0.5 * found.kl_without
    assert found.kl < 0.5 * found.kl_other


def planted_dream(learner: Learner, generator: torch.Generator) -> tuple[Imagination, Tensor]:
    """Rollouts in which h alone, in an eighth of its entries and beside as much noise, shows which action pays.

    Returns: the rollout, and the mean KL of the policy from the policy with h of the rollout beside it.
    """
    agent, shape = learner.agent, (1, 32, 6)
    model = learner.config.model
    side = torch.randint(0, 2, (1, 32, 1, 1), generator=generator)  # left or right pays
    hidden = torch.randn(*shape, model.width, generator=generator)
    hidden[..., : model.width // 8] += 2.0 * side - 1.0
    drawn = torch.randint(0, model.perception.classes, (*shape, model.perception.groups), generator=generator)
    latent = torch.nn.functional.one_hot(drawn, model.perception.classes).flatten(-2).float()
    before = torch.zeros_like(latent)
    state = agent.actor_critic_input(latent, hidden, before)
    embedding = learner.world_model.embedding("actor").detach()
    action, raw_action = agent.policy(state[:, :, :-1], embedding).sample(learner.rng)
    dream = Imagination(
        before=before[:, :, :1], latent=latent, hidden=hidden, action=action, raw_action=raw_action,
        reward=action.gather(-1, (2 * side).expand(1, 32, 5, 1)).squeeze(-1),
        terminated=torch.zeros(1, 32, 5), valid=torch.ones(1, 32, dtype=torch.bool),
    )  # fmt: skip
    states = [agent.actor_critic_input(latent, h, before) for h in (hidden, hidden.roll(1, dims=1))]
    policies = [agent.policy(state, embedding) for state in states]
    return dream, policies[0].divergence(policies[1]).mean().detach()


@pytest.mark.parametrize(("memory_gain", "norm", "clears"), [(1.0, True, True), (0.1, False, False)])
def test_a_policy_takes_from_h_what_only_h_shows(memory_gain, norm, clears):
    """Quickstart's former 0.1 x h is too quiet: an agent of as many updates acts alike whatever the past."""
    learner, generator = bounce_learner(300, memory_gain=memory_gain, norm=norm), torch.Generator().manual_seed(0)
    for _ in range(8):
        dream, shift = planted_dream(learner, generator)
        learner._update_actor_critic(dream)
    assert (shift > 0.05) == clears, float(shift)


@pytest.mark.slow
@pytest.mark.parametrize(("memory_gain", "norm", "clears"), [(1.0, True, True), (0.1, False, False)])
def test_the_policy_of_bounce_depends_on_the_past(memory_gain, norm, clears):
    """The same of an agent that has learnt in what the world model imagines; minutes."""
    switches = {"memory_gain": memory_gain, "norm": norm}
    learner = bounce_learner(1200, **switches)
    replay = learn_bounce(learner, 1200)
    other = bounce_learner(1200, **switches)  # its step sizes and its bonus on entropy have not fallen yet
    other.world_model.load_state_dict(learner.world_model.state_dict())
    for update in range(250):
        other.updates = 1 + update * 1200 // 250
        other.update_agent(replay.sample(32, 2, counter=update, stream=1))
    found = measured(other)
    assert (found.policy_kl > 0.05) == clears, float(found.policy_kl)
