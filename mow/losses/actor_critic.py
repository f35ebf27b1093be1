"""Policy and value, trained on imagined returns. Each term is averaged with the weight of its state, per task."""

from torch import Tensor

from mow.kernels import two_hot_loss


def _weighted_mean(x: Tensor, weight: Tensor) -> Tensor:
    return (x * weight).sum(dim=(1, 2)) / weight.sum(dim=(1, 2)).clamp_min(1.0)


def policy_loss(log_prob: Tensor, advantage: Tensor, weight: Tensor) -> Tensor:
    """Score-function loss: - mean sg(advantage) ln pi(a | s). All [K, B, T] -> [K].

    Source: MoW section 3 (actor), with advantage = (R_t - v(s_t)) / max(1, S).
    """
    return -_weighted_mean(advantage.detach() * log_prob, weight)


def entropy_bonus(entropy: Tensor, weight: Tensor) -> Tensor:
    """Mean entropy of the policy, nats: [K, B, T] -> [K]; the actor's loss takes eta times it away.

    Source: MoW section 3 (actor).
    """
    return _weighted_mean(entropy, weight)


def value_loss(value_logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Two-hot cross-entropy of the critic: [K, B, T, V], [K, B, T] -> [K]. Source: MoW section 3 (critic)."""
    return _weighted_mean(two_hot_loss(value_logits, target.detach()), weight)
