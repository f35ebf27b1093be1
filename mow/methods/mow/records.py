"""Records between the parts of mow: latents, predictions, rollouts. Letters and time axis: mow/batch.py.

Additions of this package: a `token` that is stale in part, z_{t-1} beside z_t, a `terminated` between 0 and 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Posterior:
    """Latents and hidden states of a TransitionBatch: one entry per token."""

    logits: Tensor  # [K, B, L, S, C] of q(z_t | o_t, e_k)
    latent: Tensor  # [K, B, L, Z] one-hot sample; its gradient is that of the probabilities
    token: Tensor  # [K, B, L, Z] input of sequence model and heads: `latent`, or stale in part
    hidden: Tensor  # [K, B, L, D] h_t, of tokens up to t of the same episode
    before: Tensor | None = None  # [K, B, L, Z] the token before, where the prior reads it


@dataclass(frozen=True)
class HeadInput:
    """Input of the heads: latent and action of step t, and the hidden state of the sequence model."""

    latent: Tensor  # z_t [K, B, L, Z] one-hot
    action: Tensor  # a_t [K, B, L, A]
    hidden: Tensor  # h_t [K, B, L, D], of tokens up to t
    before: Tensor | None = None  # z_{t-1} [K, B, L, Z], zeros where an episode opens; None where it is not read


@dataclass(frozen=True)
class Prediction:
    """Outputs of the heads for a HeadInput."""

    next_latent_logits: Tensor  # [K, B, L, S, C] of p(z_{t+1} | h_t, e_k)
    reward_logits: Tensor  # [K, B, L, V]
    termination_logits: Tensor  # [K, B, L]
    task_logits: Tensor | None  # [K, B, L, K]; None where the task head is switched off


@dataclass(frozen=True)
class Imagination:
    """A rollout of the world model under the policy; carries no gradient. Source: MoW section 3, STORM."""

    before: Tensor  # [K, B, 1, Z] z_{-1}, what came before the first latent; zeros where it opens an episode
    latent: Tensor  # [K, B, T + 1, Z]
    hidden: Tensor  # [K, B, T + 1, D] h_{t-1}, the part of s_t that holds the past
    action: Tensor  # [K, B, T, A] as fed to the world model
    raw_action: Tensor  # [K, B, T, A] before the clip to [-1, 1]; what log-probabilities are taken of
    reward: Tensor  # [K, B, T] float32, after a_t
    terminated: Tensor  # [K, B, T] float32, probability that the episode ended after a_t; 0 or 1 where decided hard
    valid: Tensor  # [K, B] bool, False where the context had ended its episode: what follows it means nothing

    @property
    def alive(self) -> Tensor:
        """Probability that the imagined episode had not ended before s_t: [K, B, T + 1] float32."""
        going_on = torch.cat([self.valid.unsqueeze(-1).float(), 1.0 - self.terminated], dim=-1)
        return going_on.cumprod(dim=-1)

    @property
    def latent_before(self) -> Tensor:
        """z_{t-1} of every state: [K, B, T + 1, Z]."""
        return torch.cat([self.before, self.latent[:, :, :-1]], dim=2)
