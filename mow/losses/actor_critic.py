"""Policy and value, trained on imagined returns. Each term is averaged with the weight of its state, per task."""

import math

import torch
from torch import Tensor

from mow.kernels import two_hot_loss

MAX_RATIO = 3.0


def _weighted_mean(x: Tensor, weight: Tensor) -> Tensor:
    return (x * weight).sum(dim=(1, 2)) / weight.sum(dim=(1, 2)).clamp_min(1.0)


def policy_loss(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, weight: Tensor, *, clip: float = 0.2
) -> Tensor:
    """Clipped surrogate: - mean min(r A, clip(r, 1 - clip, 1 + clip) A), r = pi(a | s) / pi_old(a | s), A constant.

    All [K, B, T] -> [K]. pi_old drew the actions; in the first step after that r = 1, and the gradient is that of the
    score function, - A grad ln pi. Source: MoW section 3 (actor), with A = (R_t - v(s_t)) / max(1, S).

    Addition of this package: later steps on the same rollout stop pulling where the policy has moved by `clip`, and
    where it has moved towards an action by more than MAX_RATIO: a bad action would else pull without bound. Source: PPO
    (arXiv 1707.06347), Ye et al. 2020 (arXiv 1912.09729) for the bound of 3.
    """
    ratio = (log_prob - old_log_prob.detach()).clamp(max=math.log(MAX_RATIO)).exp()
    advantage = advantage.detach()
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1.0 - clip, 1.0 + clip) * advantage)
    return -_weighted_mean(surrogate, weight)


def entropy_bonus(entropy: Tensor, weight: Tensor) -> Tensor:
    """Mean entropy of the policy, nats: [K, B, T] -> [K]; the actor's loss takes eta times it away.

    Source: MoW section 3 (actor).
    """
    return _weighted_mean(entropy, weight)


def entropy_unit(discrete: Tensor, continuous: Tensor) -> Tensor:
    """Unit of the entropy of a task: ln(number of actions), or the number of dimensions.

    Args: discrete, continuous: legal actions and used dimensions, [K, A_d] and [K, A_c] bool.
    Returns: [K] nats; 1 for a task of one action, which has no entropy.
    """
    num_actions = discrete.sum(dim=1)
    logarithm = torch.where(num_actions > 1, num_actions.clamp_min(1).float().log(), 1.0)
    return torch.where(num_actions > 0, logarithm, continuous.sum(dim=1).clamp_min(1).float())


def value_loss(value_logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Two-hot cross-entropy of the critic: [K, B, T, V], [K, B, T] -> [K]. Source: MoW section 3 (critic)."""
    return _weighted_mean(two_hot_loss(value_logits, target.detach()), weight)
