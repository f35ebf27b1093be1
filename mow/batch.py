"""The records that travel between rooms, the letters they are written in, and the time axis.

Letters, the same in every file:

    K tasks      B sequences per task      L replay steps    T imagined steps    N = K * B * L
    D width      S latent groups           C classes/group   Z = S * C           A action size
    M modules    E experts                 J experts/task    V value bins        d task-embedding size

Time axis. Token t holds what the agent saw and did. The next latent is predicted from it, and what it leads to is read
off with the latent that it leads to (arrival form), or without (transition form; WorldModelConfig.outcome):

    token t = (z_t, a_t)  ->  h_t  ->  next latent z_{t+1};   (h_t, z_{t+1})  ->  reward r_t, termination c_t
    agent state s_t = (z_t, h_{t-1}), by a switch z_{t-1} too;  action a_t ~ policy(s_t)

In the arrival form the final frame of an episode is a token too (`is_last`), so that its last step has a z_{t+1}. The
action of that token is zero and its reward 0; it is reconstructed and foretold, and nothing is predicted from it.

An action is always one float vector [A]: a one-hot block for the discrete tasks of the run, then a block of
continuous entries; a task leaves the block that it does not use at zero.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class TransitionBatch:
    """Windows of replay, B per task. Source: MoW section 3 (sampling), STORM (window length)."""

    frame: Tensor  # [K, B, L, 64, 64, 3] uint8, the observation o_t
    action: Tensor  # [K, B, L, A] float32, taken at o_t
    reward: Tensor  # [K, B, L] float32, received after a_t
    terminated: Tensor  # [K, B, L] bool, the task ended after a_t (for Atari also: a life was lost)
    truncated: Tensor  # [K, B, L] bool, a time limit cut the episode after a_t
    is_first: Tensor  # [K, B, L] bool, o_t opens an episode; true at index 0 of every window
    is_last: Tensor  # [K, B, L] bool, o_t is the final frame of an episode: a_t is zero and leads nowhere

    def to(self, device: torch.device) -> "TransitionBatch":
        """The same windows on `device`; copies of pinned memory overlap with the device's work."""
        return TransitionBatch(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))

    @property
    def leads_on(self) -> Tensor:
        """[K, B, L - 1] bool: the window holds what token t leads to, o_{t+1} of the same episode."""
        return ~(self.is_first[:, :, 1:] | self.is_last[:, :, :-1])


@dataclass(frozen=True)
class Posterior:
    """What the world model makes of a TransitionBatch: one entry per token."""

    logits: Tensor  # [K, B, L, S, C] of q(z_t | o_t, e_k)
    latent: Tensor  # [K, B, L, Z] one-hot sample; its gradient is that of the probabilities
    token: Tensor  # [K, B, L, Z] what sequence model and heads were given for it: the same, or stale in part
    hidden: Tensor  # [K, B, L, D] h_t, sees tokens up to t of the same episode
    before: Tensor | None = None  # [K, B, L, Z] the token before, where the prior reads it


@dataclass(frozen=True)
class Moment:
    """What the heads read: a step as the agent left it, and what the sequence model makes of it and its past."""

    latent: Tensor  # z_t [K, B, L, Z] one-hot
    action: Tensor  # a_t [K, B, L, A]
    hidden: Tensor  # h_t [K, B, L, D], has seen z_t and a_t
    before: Tensor | None = None  # z_{t-1} [K, B, L, Z], zeros where an episode opens; None where it is not read


@dataclass(frozen=True)
class Prediction:
    """What the heads say of a moment."""

    next_latent_logits: Tensor  # [K, B, L, S, C] of p(z_{t+1} | h_t, e_k)
    reward_logits: Tensor  # [K, B, L, V]
    termination_logits: Tensor  # [K, B, L]
    task_logits: Tensor | None  # [K, B, L, K]; None where the task head is switched off


@dataclass(frozen=True)
class Imagination:
    """A rollout of the world model under the policy; carries no gradient. Source: MoW section 3, STORM."""

    before: Tensor  # [K, B, 1, Z] z_{-1}, what came before the first latent; zeros where it opens an episode
    latent: Tensor  # [K, B, T + 1, Z]
    hidden: Tensor  # [K, B, T + 1, D] h_{t-1}, the part of s_t that remembers
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
