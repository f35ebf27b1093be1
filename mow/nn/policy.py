"""The policy: a masked categorical for discrete tasks, a Gaussian with a squashed mean for continuous ones."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mow.kernels import PhiloxState, sample_onehot, uniform

_ILLEGAL = -1e9  # a logit whose probability is exactly 0 in float32, with finite products in the entropy
_MIN_STD, _MAX_STD = 0.1, 1.0


@dataclass(frozen=True)
class ActionMask:
    """Entries of the action vector that each task uses; a task uses only one of the two blocks."""

    discrete: Tensor  # [K, A_d] bool: legal actions of a discrete task, all False for a continuous one
    continuous: Tensor  # [K, A_c] bool
    illegal: Tensor = field(init=False)  # [K, A_d] bool: not discrete
    is_discrete: Tensor = field(init=False)  # [K, 1] bool: of the task

    def __post_init__(self) -> None:
        object.__setattr__(self, "illegal", ~self.discrete)
        object.__setattr__(self, "is_discrete", self.discrete.any(dim=1, keepdim=True))

    def to(self, device: torch.device) -> "ActionMask":
        return ActionMask(self.discrete.to(device), self.continuous.to(device))

    def reorder(self, order: Tensor | slice) -> "ActionMask":
        """Task k becomes the old task order[k]; a slice takes some tasks."""
        return ActionMask(self.discrete[order], self.continuous[order])

    @property
    def num_outputs(self) -> int:
        """Numbers that a policy network must give: one logit per discrete action, mean and spread per dimension."""
        return self.discrete.shape[1] + 2 * self.continuous.shape[1]

    @property
    def action_size(self) -> int:
        return self.discrete.shape[1] + self.continuous.shape[1]


@dataclass(frozen=True)
class Policy:
    """pi(a | s) for all tasks at once.

        discrete:    a ~ Categorical(softmax(logits)), illegal actions at -1e9
        continuous:  a ~ Normal(tanh(mean), std), std = 0.1 + 0.9 sigmoid(spread)

    The continuous sample is clipped to [-1, 1] where it acts; log-probabilities are of the sample before the clip.
    Source: MoW section 3 (score-function actor); std range as DreamerV3.
    """

    outputs: Tensor  # [K, ..., A_d + 2 A_c]
    mask: ActionMask

    def _over(self, mask: Tensor) -> Tensor:
        """A [K, n] mask with the middle axes of the outputs: [K, 1, ..., n]."""
        middle = [1] * (self.outputs.dim() - 2)
        return mask.reshape(mask.shape[0], *middle, mask.shape[1])

    @property
    def _logits(self) -> Tensor:
        num_discrete = self.mask.discrete.shape[1]
        logits = self.outputs[..., :num_discrete].float()
        return logits.masked_fill(self._over(self.mask.illegal), _ILLEGAL)  # [K, ..., A_d]

    @property
    def _gaussian(self) -> tuple[Tensor, Tensor]:
        num_discrete, num_continuous = self.mask.discrete.shape[1], self.mask.continuous.shape[1]
        mean, spread = self.outputs[..., num_discrete:].float().split(num_continuous, dim=-1)
        return mean.tanh(), _MIN_STD + (_MAX_STD - _MIN_STD) * spread.sigmoid()  # [K, ..., A_c] each

    def sample(self, rng: PhiloxState) -> tuple[Tensor, Tensor]:
        """Draw (action as it acts, raw action): [K, ..., A] float32 each, without gradient."""
        parts = []
        with torch.no_grad():
            if self.mask.discrete.shape[1]:
                onehot, _ = sample_onehot(self._logits.unsqueeze(-2), rng, unimix=0.0)
                if not self.mask.continuous.shape[1]:  # every task is discrete
                    return onehot.squeeze(-2), onehot.squeeze(-2)
                parts.append(onehot.squeeze(-2) * self._over(self.mask.is_discrete))
            if self.mask.continuous.shape[1]:
                mean, std = self._gaussian
                parts.append((mean + std * normal(mean.shape, rng)) * self._over(self.mask.continuous))
        raw = torch.cat(parts, dim=-1)
        return raw.clamp(-1.0, 1.0), raw

    def log_prob(self, raw_action: Tensor) -> Tensor:
        """ln pi(a | s) of raw actions [K, ..., A]: [K, ...], nats."""
        num_discrete = self.mask.discrete.shape[1]
        total = torch.zeros(self.outputs.shape[:-1], device=self.outputs.device)
        if num_discrete:
            total = total + (self._logits.log_softmax(dim=-1) * raw_action[..., :num_discrete]).sum(dim=-1)
        if self.mask.continuous.shape[1]:
            mean, std = self._gaussian
            z = (raw_action[..., num_discrete:] - mean) / std
            density = -0.5 * z.square() - std.log() - 0.5 * math.log(2 * math.pi)
            total = total + (density * self._over(self.mask.continuous)).sum(dim=-1)
        return total

    def entropy(self) -> Tensor:
        """H(pi): [K, ...], nats; of the Gaussian before the clip."""
        total = torch.zeros(self.outputs.shape[:-1], device=self.outputs.device)
        if self.mask.discrete.shape[1]:
            log_prob = self._logits.log_softmax(dim=-1)
            entropy = -(log_prob.exp() * log_prob).sum(dim=-1)  # [K, ...]
            total = total + entropy * self._over(self.mask.is_discrete).squeeze(-1)
        if self.mask.continuous.shape[1]:
            _, std = self._gaussian
            entropy = std.log() + 0.5 * math.log(2 * math.pi * math.e)  # [K, ..., A_c]
            total = total + (entropy * self._over(self.mask.continuous)).sum(dim=-1)
        return total

    def divergence(self, other: "Policy") -> Tensor:
        """KL(self || other) of two policies of the same tasks: [K, ...], nats; of the Gaussians before the clip.

            discrete:    sum_a p_a (ln p_a - ln q_a)
            continuous:  sum_d ln(s_q / s_p) + (s_p^2 + (m_p - m_q)^2) / (2 s_q^2) - 1/2
        """
        total = torch.zeros(self.outputs.shape[:-1], device=self.outputs.device)
        if self.mask.discrete.shape[1]:
            own, theirs = self._logits.log_softmax(dim=-1), other._logits.log_softmax(dim=-1)
            total = total + (own.exp() * (own - theirs)).sum(dim=-1)  # 0 where no action is discrete: both are uniform
        if self.mask.continuous.shape[1]:
            (mean, std), (other_mean, other_std) = self._gaussian, other._gaussian
            ratio = (std.square() + (mean - other_mean).square()) / other_std.square()
            each = (other_std / std).log() + 0.5 * (ratio - 1.0)  # [K, ..., A_c]
            total = total + (each * self._over(self.mask.continuous)).sum(dim=-1)
        return total


def normal(shape: torch.Size, rng: PhiloxState) -> Tensor:
    """Standard normal numbers from two uniforms each (Box and Muller, 1958); advances."""
    u = uniform(rng, 2 * math.prod(shape)).reshape(2, *shape)
    rng.advance()
    return (-2.0 * torch.log1p(-u[0])).sqrt() * torch.cos(2 * math.pi * u[1])
