"""The optional TD head: an ensemble Q_j(z, a, e) and a policy pi(z, e), which shape the latent while the model trains.

    y_t  = r_t + gamma_k (1 - d_{t+1}) min of 2 random slow Q_j of (zbar_{t+1}, a' ~ pi),   zbar_{t+1} = sg E(o_{t+1})
    L_v  = 1/(T N_q) sum_t sum_j rho^t mean_B CE(Q_j(z_t, a_t), two-hot(symlog y_t))
    L_pi = 1/T sum_t rho^t mean_B (1e-4 log pi(a | z_t) - mean of 2 random Q_j(z_t, a) / S),   S: running spread of Q
    gamma_k = clip((f - 1) / f, 0.95, 0.995),   f = episode steps / 5

Policies that are extracted from the model read none of it.
Source: TD-MPC2 (arXiv 2310.16828). Differs: pi is trained on latents of the model just updated, without dropout.
"""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mow.kernels import PhiloxState, two_hot_decode, two_hot_loss, uniform
from mow.methods.pwm.config import ModelConfig
from mow.methods.pwm.model import ACTIVATIONS, HIGH, LOW, NUM_BINS, WorldModel, head
from mow.methods.pwm.policies import StackedLinear, StackedNorm
from mow.nn.policy import normal

DROPOUT, TAU, ENTROPY = 0.01, 0.01, 1e-4
LEAST_LOG_STD, MOST_LOG_STD = -10.0, 2.0


def discount_of(episode_steps: int) -> float:
    """gamma of the module's docstring, of a task whose episodes have so many agent steps."""
    fraction = episode_steps / 5
    return min(max((fraction - 1) / fraction, 0.95), 0.995)


class QEnsemble(nn.Module):
    """N_q value functions side by side, of the form of the reward head; the last layer starts at 0."""

    def __init__(self, count: int, inputs: int, width: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.count = count
        self.first, self.second = StackedLinear(count, inputs, width), StackedLinear(count, width, width)
        self.norms = nn.ModuleList(StackedNorm(count, width) for _ in range(2))
        self.activation, self.last = activation(), StackedLinear(count, width, NUM_BINS)
        for layer in (self.first, self.second):
            nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor, rng: PhiloxState | None = None) -> Tensor:
        """[..., I] -> logits [N_q, ..., V]; with `rng` 1 % of the first layer's outputs are dropped."""
        hidden = self.first(x.reshape(1, -1, x.shape[-1]).expand(self.count, -1, -1))
        if rng is not None:
            kept = uniform(rng, hidden.numel()).view(hidden.shape) >= DROPOUT
            rng.advance()
            hidden = hidden * kept / (1 - DROPOUT)
        hidden = self.activation(self.norms[0](hidden))
        return self.last(self.activation(self.norms[1](self.second(hidden)))).view(self.count, *x.shape[:-1], NUM_BINS)


class TdHead(nn.Module):
    """Q ensemble, its slow copy, pi, and the running spread of Q."""

    discount: Tensor  # [K] float32
    mask: Tensor  # [K, A] float32, 0 in padded entries
    spread: Tensor  # scalar

    def __init__(self, config: ModelConfig, model: WorldModel, mask: Tensor, episode_steps: Sequence[int]) -> None:
        """Args: mask: [K, A] bool. episode_steps: of each task, or one number for all."""
        super().__init__()
        size, activation = config.widths(model.num_tasks), ACTIVATIONS[config.activation]
        inputs = size.latent + size.embedding
        self.q = QEnsemble(size.values, inputs + model.action_size, size.width, activation)
        self.slow = copy.deepcopy(self.q).requires_grad_(False)
        self.pi = head(inputs, size.width, 2 * model.action_size, activation)
        discounts = torch.tensor([discount_of(steps) for steps in episode_steps])
        self.register_buffer("discount", discounts.expand(model.num_tasks).clone(), persistent=False)
        self.register_buffer("mask", mask.float(), persistent=False)
        self.register_buffer("spread", torch.ones(()))

    def act(self, model: WorldModel, latent: Tensor, rng: PhiloxState) -> tuple[Tensor, Tensor]:
        """a ~ pi at z [K, ..., Z]: [K, ..., A], and log pi(a | z) over the task's own entries [K, ...]."""
        mean, raw = self.pi(model.join(latent)).chunk(2, dim=-1)
        log_std = LEAST_LOG_STD + 0.5 * (MOST_LOG_STD - LEAST_LOG_STD) * (raw.tanh() + 1)
        mask = self.mask.view(len(self.mask), *[1] * (latent.dim() - 2), -1).to(mean.dtype)
        noise = normal(mean.shape, rng).to(mean.dtype)
        action = (mean + log_std.exp() * noise).tanh()
        normal_density = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        log_density = normal_density - torch.log(1 - action.square() + 1e-6)
        return action * mask, (log_density * mask).sum(dim=-1)

    def two_values(self, q: QEnsemble, joined: Tensor, rng: PhiloxState) -> Tensor:
        """Of 2 random members of an ensemble at [z, e, a] [..., I], in units of the task: [2, ...]."""
        order = uniform(rng, q.count).argsort(stable=True)[:2]
        rng.advance()
        return two_hot_decode(q(joined)[order], low=LOW, high=HIGH)

    @torch.no_grad()
    def targets(
        self, model: WorldModel, following: Tensor, reward: Tensor, terminated: Tensor, rng: PhiloxState
    ) -> Tensor:
        """y_t [K, B, T]. Args: following: zbar_{t+1} [K, B, T, Z]. reward: r_t, terminated: d_{t+1} [K, B, T]."""
        action, _ = self.act(model, following, rng)
        value = self.two_values(self.slow, model.join(following, action), rng).amin(dim=0)
        return reward + self.discount.view(-1, 1, 1) * (~terminated) * value

    def value_surprise(
        self, model: WorldModel, latent: Tensor, action: Tensor, target: Tensor, rng: PhiloxState
    ) -> Tensor:
        """Mean over j of the cross-entropy of Q_j(z_t, a_t) and y_t: [K, B, T].

        Args: latent: z_t [K, B, T, Z], rolled, with its gradient. action: [K, B, T, A]. target: y_t [K, B, T].
        """
        logits = self.q(model.join(latent, action), rng)  # [N_q, K, B, T, V]
        return two_hot_loss(logits, target.expand(logits.shape[:-1]), low=LOW, high=HIGH).mean(dim=0)

    def policy_loss(self, model: WorldModel, latent: Tensor, rng: PhiloxState) -> Tensor:
        """L_pi before its mean over windows and steps [K, B, T], at z_t [K, B, T, Z]; moves the spread of Q."""
        action, log_density = self.act(model, latent, rng)
        value = self.two_values(self.q, model.join(latent, action), rng).mean(dim=0)
        first = value[:, :, 0].detach().flatten()
        wide = torch.quantile(first, 0.95) - torch.quantile(first, 0.05)
        self.spread.lerp_(wide.clamp_min(1.0).to(self.spread.dtype), TAU)
        return ENTROPY * log_density - value / self.spread

    @torch.no_grad()
    def follow(self) -> None:
        """Slow copy <- 0.99 slow copy + 0.01 Q; after each step of the optimiser."""
        for slow, fast in zip(self.slow.parameters(), self.q.parameters(), strict=True):
            slow.lerp_(fast, TAU)
