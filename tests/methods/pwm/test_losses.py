"""Losses of pwm's world model: time indices, weights, ends inside a window."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mow.batch import TransitionBatch
from mow.methods.pwm.config import LossConfig, ModelConfig
from mow.methods.pwm.losses import (
    WorldModelLosses,
    counted_steps,
    discounted_mean,
    distillation_loss,
    world_model_losses,
)
from mow.methods.pwm.model import WorldModel
from tests.methods.pwm.tiny import batch_of, double, with_end


class Adds(nn.Module):
    """E(o) = o, F(z, a) = z + a, all reward logits 0."""

    termination = None

    def encode(self, observation: Tensor) -> Tensor:
        return observation

    def next_latent(self, latent: Tensor, action: Tensor) -> Tensor:
        return latent + action

    def reward_logits(self, latent: Tensor, action: Tensor) -> Tensor:
        return torch.zeros(*latent.shape[:-1], 101, dtype=latent.dtype)


class FirstReward(Adds):
    """A reward head that reads z_t: nearly sure of the bin of a reward of e^2 - 1 where z_t is 1, of 0 elsewhere."""

    def reward_logits(self, latent: Tensor, action: Tensor) -> Tensor:
        logits = super().reward_logits(latent, action)
        logits[..., 60] = 100.0 * (latent[..., 0] == 1)
        logits[..., 50] = 100.0 * (latent[..., 0] != 1)
        return logits


def walk(shift_actions: int = 0, shift_rewards: int = 0) -> TransitionBatch:
    """One window of T 2: o = 0, 1, 3; a = 1, 2; the reward e^2 - 1 follows the action at o = 1."""
    frame = torch.tensor([0.0, 1.0, 3.0]).view(1, 1, 3, 1)
    action = torch.tensor([1.0, 2.0, 0.0]).roll(shift_actions).view(1, 1, 3, 1)
    reward = torch.tensor([0.0, math.e**2 - 1, 0.0]).roll(shift_rewards).view(1, 1, 3)
    no = torch.zeros(1, 1, 3, dtype=torch.bool)
    first = torch.tensor([True, False, False]).view(1, 1, 3)
    return TransitionBatch(frame, action, reward, no, no, first, no)


def test_an_exact_model_has_no_loss() -> None:
    losses = world_model_losses(FirstReward(), walk(), rho=0.5)  # type: ignore[arg-type]
    assert losses.consistency.tolist() == [0.0]
    assert losses.reward.item() < 1e-6


def test_shifted_actions_cost_by_hand() -> None:
    """Actions 0, 1: z = 0, 0, 1 against 1, 3. (1 * 1 + 0.5 * 4) / 2."""
    losses = world_model_losses(Adds(), walk(shift_actions=1), rho=0.5)  # type: ignore[arg-type]
    assert losses.consistency.tolist() == [1.5]


def test_shifted_rewards_cost() -> None:
    for shift in (1, -1):
        losses = world_model_losses(FirstReward(), walk(shift_rewards=shift), rho=0.5)  # type: ignore[arg-type]
        assert losses.reward.item() > 20.0


@pytest.mark.parametrize(("rho", "horizon", "expected"), [(0.99, 16, 0.92839), (0.5, 3, 0.58333)])
def test_weights_of_the_steps(rho: float, horizon: int, expected: float) -> None:
    ones = torch.ones(2, 3, horizon)
    mean = discounted_mean(ones, ones.bool(), rho)
    assert mean.tolist() == pytest.approx([expected] * 2, abs=1e-5)
    value = torch.zeros(1, 1, horizon)
    value[0, 0, 2] = 6.0
    assert discounted_mean(value, value.ge(0), rho).item() == pytest.approx(6 * rho**2 / horizon)


def test_the_first_reward_loss_is_that_of_equal_bins() -> None:
    model = WorldModel(ModelConfig(width=16, latent_size=16), num_tasks=2, observation_size=5, action_size=3)
    loss = world_model_losses(model, batch_of(), rho=1.0).reward
    torch.testing.assert_close(loss, torch.full((2,), 4.615121))


def test_what_follows_an_end_counts_nothing() -> None:
    batch = with_end(batch_of(length=6), window=1, at=2)
    taken, arrived = counted_steps(batch)  # [K, B, 5]
    assert arrived[0, 1].tolist() == [True, True, False, False, False]
    assert taken[0, 1].tolist() == [True, True, False, False, False]
    assert taken[:, [0, 2, 3]].all()
    model = WorldModel(ModelConfig(width=16, latent_size=16, termination=True), num_tasks=2, observation_size=5,
                       action_size=3).double()  # fmt: skip
    nn.init.normal_(model.reward[-1].weight)
    batch = double(batch)
    before = world_model_losses(model, batch, rho=0.9)
    spoilt = {name: getattr(batch, name).clone() for name in ("frame", "action", "reward")}
    for tensor in spoilt.values():
        tensor[:, 1, 3:] += 7.0
    spoilt["action"][:, 1, 2:] += 7.0
    after = world_model_losses(model, replace(batch, **spoilt), rho=0.9)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_window_that_ends_at_once_counts_nothing() -> None:
    batch = batch_of(windows=1)
    last = batch.is_last.clone()
    last[:, 0, 0] = True
    losses = world_model_losses(Adds(), replace(batch, action=batch.frame[..., :5], is_last=last), rho=1.0)  # type: ignore[arg-type]
    assert losses.consistency.tolist() == [0.0, 0.0]
    assert losses.reward.tolist() == [0.0, 0.0]


def test_terminations_by_hand() -> None:
    class Ends(Adds):
        def termination_logit(self, latent: Tensor) -> Tensor:
            return torch.where(latent[..., 0] == 3.0, 50.0, -50.0)

    Ends.termination = Ends()  # type: ignore[assignment]
    batch = walk()
    assert world_model_losses(Ends(), batch, rho=0.5).termination.item() == pytest.approx(25.0)  # type: ignore
    ended = torch.tensor([False, True, False]).view(1, 1, 3)
    assert world_model_losses(Ends(), replace(batch, terminated=ended), rho=0.5).termination.item() < 1e-9  # type: ignore


def test_distillation_by_hand() -> None:
    """Rewards of 0 and of e^2 - 1, 2 in symlog units; an episode's last row counts nothing."""
    config = ModelConfig(width=16, latent_size=16)
    student, teacher = (WorldModel(config, num_tasks=1, observation_size=5, action_size=3) for _ in range(2))
    batch = batch_of(num_tasks=1)
    batch = replace(batch, is_last=torch.tensor([[True, False, False, False]]).unsqueeze(-1) & batch.is_first)
    assert distillation_loss(student, teacher, batch, "symlog").abs().max() < 1e-9
    teacher.reward[-1].bias.data[60] = 100.0
    found = distillation_loss(student, teacher, batch, "symlog")
    assert found.tolist() == pytest.approx([4.0], abs=1e-4)
    raw = distillation_loss(student, teacher, batch, "symexp")
    assert raw.tolist() == pytest.approx([(math.e**2 - 1) ** 2], abs=1e-3)
    found.sum().backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert student.encoder[0][0].weight.grad is not None


def test_terms_are_added_with_their_weights() -> None:
    one = torch.ones(1)
    assert WorldModelLosses(one, 2 * one, None).weighted(LossConfig()).item() == pytest.approx(20.2)
    assert WorldModelLosses(one, 2 * one, 3 * one).weighted(LossConfig()).item() == pytest.approx(23.2)
