"""Extraction on problems whose true reward has a jump, where the gradient of the simulator itself is of no use."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mow.batch import TransitionBatch
from mow.methods.pwm.config import BatchConfig, ScheduleConfig
from mow.methods.pwm.first_order import objective_of, roll_out
from mow.methods.pwm.learner import Learner
from tests.methods.pwm.test_first_order import Quadratic
from tests.methods.pwm.tiny import batch_of, learner_of

SMALL = {"model": {"width": 64, "latent_size": 64, "embedding_size": 0}}


class Jump(Quadratic):
    """Reward 1[a > 0.5] - 0.1 a^2."""

    def predict_reward(self, latent: Tensor, action: Tensor, *, objective: str) -> Tensor:
        return ((action > 0.5).double() - 0.1 * action.square()).sum(dim=-1)


def test_the_true_gradient_does_not_see_a_jump() -> None:
    mean = torch.full((1, 100, 1), 0.4, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(1, 100, 1, 1, dtype=torch.float64)
    rollout = roll_out(Jump(), lambda z, eps: mean + 0.24 * eps, torch.zeros(1, 100, 1).double(), noise)
    (gradient,) = torch.autograd.grad(objective_of(rollout, torch.zeros(1, 100), discount=1.0).sum(), mean)
    torch.testing.assert_close(gradient, -0.2 * rollout.action[:, :, 0].detach(), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_fitted_model_leads_the_policy_over_a_jump(seed: int) -> None:
    learner = learner_of((("vec:jump", 1),), observation_size=1, seed=seed, **SMALL,
                         policy={"lr": 2e-3, "horizon": 1})  # fmt: skip
    rng = np.random.default_rng(seed)
    batch = batch_of(num_tasks=1, windows=256, length=2, observation_size=1, action_size=1)
    batch = replace(batch, frame=torch.zeros_like(batch.frame))
    for _ in range(400):
        action = torch.from_numpy(rng.uniform(-1, 1, (1, 256, 2, 1)).astype(np.float32))
        reward = ((action > 0.5).float() - 0.1 * action.square())[..., 0]
        learner.update("world_model", replace(batch, action=action, reward=reward))
    for _ in range(150):
        learner.update("policy", batch)
    action = learner.actor(explore=False).act(torch.zeros(1, 1), torch.ones(1, dtype=torch.bool)).action
    assert action.item() > 0.5


class Button:
    """x' = clip(x + 0.1 a, -1, 1), reward 1[x' > 0.5], 50 steps; seen as (x, x^2, 0, 0), of one number"""

    STEPS, BEST = 50, 45.39

    def __init__(self, episodes: int, seed: int) -> None:
        self.x = np.random.default_rng(seed).uniform(-1, 1, episodes)

    def state(self) -> np.ndarray:
        return np.stack([self.x, self.x**2, 0 * self.x, 0 * self.x], axis=-1).astype(np.float32)

    def step(self, action: np.ndarray) -> np.ndarray:
        self.x = np.clip(self.x + 0.1 * action, -1, 1)
        return (self.x > 0.5).astype(np.float32)


def button_episodes(episodes: int, seed: int) -> TransitionBatch:
    """Random play, [1, E, 51, ...]."""
    env, rng = Button(episodes, seed), np.random.default_rng(seed + 100)
    batch = batch_of(num_tasks=1, windows=episodes, length=Button.STEPS + 1, observation_size=4, action_size=1)
    frame, action, reward = batch.frame.zero_(), batch.action.zero_(), batch.reward.zero_()
    for t in range(Button.STEPS):
        chosen = rng.uniform(-1, 1, episodes)
        frame[0, :, t], action[0, :, t, 0] = torch.from_numpy(env.state()), torch.from_numpy(chosen)
        reward[0, :, t] = torch.from_numpy(env.step(chosen))
    frame[0, :, -1] = torch.from_numpy(env.state())
    return batch


def button_return(learner: Learner) -> float:
    env, actor, total = Button(200, seed=9), learner.actor(explore=False), 0.0
    for _ in range(Button.STEPS):
        seen = torch.from_numpy(env.state()).unsqueeze(0)
        total += env.step(actor.act(seen, torch.zeros(1, 200)).action[0, :, 0].numpy()).mean()
    return float(total)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_sparse_button_is_held(seed: int) -> None:
    """Random play scores 10 to 13; 0.98 of the best return is required."""
    episodes, rng = button_episodes(300, seed), np.random.default_rng(seed)
    learner = learner_of(
        (("vec:button", 1),), observation_size=4, seed=seed, **SMALL,
        policy={"horizon": 8, "passes": 4, "parts": 4}, batch=BatchConfig(horizon=8),
        schedule=ScheduleConfig(policy_updates=150),
    )  # fmt: skip
    assert 9 < episodes.reward.sum(dim=2).mean() < 16, "random play: 10 to 13, with a standard error of 1"

    def draw(windows: int, length: int) -> TransitionBatch:
        window = torch.from_numpy(rng.integers(300, size=(windows, 1)))
        step = torch.from_numpy(rng.integers(Button.STEPS + 2 - length, size=(windows, 1)) + np.arange(length))
        picked = episodes.map(lambda tensor: tensor[:, window, step])
        first = torch.zeros_like(picked.is_first)
        first[:, :, 0] = True
        return replace(picked, is_first=first)

    for _ in range(800):
        learner.update("world_model", draw(128, 9))
    for _ in range(150):
        learner.update("policy", draw(128, 1))
    assert button_return(learner) >= 0.98 * Button.BEST
