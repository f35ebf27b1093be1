"""Losses of the world model on windows of replay, one number per task.

    z_0 = E(o_0),  z_{t+1} = F(z_t, a_t),  target sg E(o_{t+1})
    L_c = 1/T sum_t rho^t mean (z_{t+1} - target)^2        L_r = 1/T sum_t rho^t CE(R(z_t, a_t), two-hot(symlog r_t))
    L_d = mean BCE(c(z_{t+1}), d_{t+1})                    L   = 20 L_c + 0.1 L_r + 1 L_d [+ 0.1 L_v, of td_head.py]

The reward is read off the rolled latent, not the encoded one; the encoder has no slow copy.
Source: TD-MPC2 (arXiv 2310.16828), with PWM's T of 16 and rho of 0.99. Differs: steps after the end of an episode
inside a window count nothing.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mow.batch import TransitionBatch
from mow.kernels import PhiloxState, two_hot_loss
from mow.methods.pwm.config import LossConfig
from mow.methods.pwm.model import HIGH, LOW, WorldModel
from mow.methods.pwm.td_head import TdHead


class Steps(NamedTuple):
    """Steps of a window that count; the rest lies behind the end of an episode."""

    taken: Tensor  # [K, B, T] bool: a_t and r_t belong to the episode of o_0
    arrived: Tensor  # [K, B, T] bool: o_{t+1} does too


class WorldModelLosses(NamedTuple):
    """One unweighted number per task and term, [K]."""

    consistency: Tensor
    reward: Tensor
    termination: Tensor | None
    value: Tensor | None = None

    def weighted(self, config: LossConfig) -> Tensor:
        """Sum of the terms with their weights: [K]."""
        total = config.consistency * self.consistency + config.reward * self.reward
        total = total if self.termination is None else total + config.termination * self.termination
        return total if self.value is None else total + config.value * self.value

    def metrics(self, config: LossConfig) -> dict[str, Tensor]:
        """By name, and their weighted sum: [K] each."""
        terms = {f"loss/{name}": term.detach() for name, term in self._asdict().items() if term is not None}
        return {"loss/world_model": self.weighted(config).detach(), **terms}


def counted_steps(batch: TransitionBatch) -> Steps:
    """The steps of windows of T + 1 observations that lie before the first end in them: [K, B, T] each."""
    arrived = batch.leads_on.cumprod(dim=-1).bool()  # [K, B, T]
    alive = torch.cat([torch.ones_like(arrived[:, :, :1]), arrived[:, :, :-1]], dim=-1)
    return Steps(alive & ~batch.is_last[:, :, :-1], arrived)


def unroll(model: WorldModel, latent: Tensor, action: Tensor) -> Tensor:
    """z_0 [K, B, Z] and a_0 .. a_{T-1} [K, B, T, A] -> z_0 .. z_T [K, B, T + 1, Z]."""
    latents = [latent]
    for taken in action.unbind(dim=2):
        latents.append(model.next_latent(latents[-1], taken))
    return torch.stack(latents, dim=2)


def world_model_losses(
    model: WorldModel, batch: TransitionBatch, *, rho: float, td: tuple[TdHead, PhiloxState] | None = None
) -> WorldModelLosses:
    """The losses of the module's docstring.

    Args: batch: windows of T + 1 observations; the action of the last one does not matter. rho: in [0, 1]. td: the TD
        head and its random stream.
    Source: TD-MPC2 (arXiv 2310.16828).
    """
    action, reward = batch.action[:, :, :-1], batch.reward[:, :, :-1]  # [K, B, T, A], [K, B, T]
    taken, arrived = counted_steps(batch)
    with torch.no_grad():
        target = model.encode(batch.frame[:, :, 1:])  # [K, B, T, Z]
    latent = unroll(model, model.encode(batch.frame[:, :, 0]), action)  # [K, B, T + 1, Z]
    distance = (latent[:, :, 1:] - target).square().mean(dim=-1)  # [K, B, T]
    code = two_hot_loss(model.reward_logits(latent[:, :, :-1], action), reward, low=LOW, high=HIGH)  # [K, B, T]
    termination = None
    if model.termination is not None:
        ended = batch.terminated[:, :, :-1].to(latent.dtype)
        surprise = F.binary_cross_entropy_with_logits(model.termination_logit(latent[:, :, 1:]), ended,
                                                      reduction="none")  # fmt: skip
        termination = discounted_mean(surprise, taken, 1.0)
    value = None
    if td is not None:
        (td_head, rng), terminated = td, batch.terminated[:, :, :-1]
        y = td_head.targets(model, target, reward, terminated, rng)
        value = td_head.value_surprise(model, latent[:, :, :-1], action, y, rng)
        value = discounted_mean(value, taken & (arrived | terminated), rho)
    return WorldModelLosses(
        discounted_mean(distance, arrived, rho), discounted_mean(code, taken, rho), termination, value
    )  # fmt: skip


def distillation_loss(model: WorldModel, teacher: WorldModel, batch: TransitionBatch, objective: str) -> Tensor:
    """Squared distance between the rewards that two models predict for the first step of every window: [K].

        mean_B (rhat(E(o_0), a_0) - rhat_teacher(E_teacher(o_0), a_0))^2

    The teacher carries no gradient; a window whose first row is an episode's last has no action and counts nothing.
    Args: objective: `symlog` or `symexp`, units of the rewards.
    Source: TD-MPC-Opt (arXiv 2507.01823). Differs: symlog units by default, in which no task outweighs the others.
    """
    observation, action = batch.frame[:, :, 0], batch.action[:, :, 0]
    with torch.no_grad():
        aim = teacher.predict_reward(teacher.encode(observation), action, objective=objective)
    found = model.predict_reward(model.encode(observation), action, objective=objective)
    counted = (~batch.is_last[:, :, 0]).to(found.dtype)
    return ((found - aim).square() * counted).sum(dim=1) / counted.sum(dim=1).clamp_min(1.0)


def discounted_mean(value: Tensor, counted: Tensor, rho: float) -> Tensor:
    """1/T sum_t rho^t mean_B of steps that all count; where some do not, the others keep their relative weights.

        mean_t(rho^t) * sum_{b,t} w_bt value_bt / sum_{b,t} w_bt,   w_bt = rho^t where step t of window b counts, else 0

    Args: value: [K, B, T]. counted: [K, B, T] bool.
    Returns: [K]; 0 for a task without a step that counts.
    Source: TD-MPC2 (arXiv 2310.16828), for steps that all count.
    """
    discount = rho ** torch.arange(value.shape[-1], device=value.device, dtype=value.dtype)  # [T]
    weight = discount * counted  # [K, B, T]
    total = weight.sum(dim=(1, 2))
    return discount.mean() * (value * weight).sum(dim=(1, 2)) / torch.where(total > 0, total, 1.0)
