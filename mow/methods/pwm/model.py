"""The world model: an encoder, dynamics in the latent and a reward head, shared by all tasks; no decoder.

    z_t = E(o_t, e_k)        z_{t+1} = F(z_t, a_t, e_k)        r_t ~ R(z_t, a_t, e_k)        c_{t+1} = c(z_{t+1}, e_k)

Letters beside those of mow/batch.py: O size of an observation. What a narrower task sees and does ends in zeros.
Source: TD-MPC2 (arXiv 2310.16828). Differs: rows of the task table are projected after each step of the optimiser; a
table that rescales them in its look-up changes when it is only read.
"""

import torch
from torch import Tensor, nn

from mow.kernels import two_hot_decode
from mow.methods.pwm.config import ModelConfig

NUM_BINS, LOW, HIGH = 101, -10.0, 10.0  # V bins of the reward, in units of symlog
GROUP = 8  # entries of a latent that sum to 1
ACTIVATIONS = {"mish": nn.Mish, "relu": nn.ReLU}


class SimNorm(nn.Module):
    """Softmax within each group of 8 consecutive entries. Source: TD-MPC2 (simplicial normalisation)."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., Z] -> [..., Z], every group sums to 1."""
        return x.unflatten(-1, (-1, GROUP)).softmax(dim=-1).flatten(-2)


def normed_linear(inputs: int, outputs: int, last: nn.Module) -> nn.Sequential:
    """Linear, layer norm, then `last`."""
    return nn.Sequential(nn.Linear(inputs, outputs), nn.LayerNorm(outputs), last)


def head(inputs: int, width: int, outputs: int, activation: type[nn.Module], *, zero: bool = False) -> nn.Sequential:
    """Two normed layers and a Linear, `zero`: whose weight starts at 0."""
    output = nn.Linear(width, outputs)
    module = nn.Sequential(
        normed_linear(inputs, width, activation()), normed_linear(width, width, activation()), output
    )  # fmt: skip
    initialise(module)
    if zero:
        nn.init.zeros_(output.weight)
    return module


def initialise(module: nn.Module) -> None:
    """Weights of all Linears N(0, 0.02^2), biases 0. Source: TD-MPC2."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.02)
            nn.init.zeros_(part.bias)


_CONSTANT = 1e-5  # deviation of an observed number that never changes, as of padding


class WorldModel(nn.Module):
    """Encoder E, dynamics F, reward R and, if configured, termination c; a table of K task embeddings."""

    bins: Tensor  # [V] float32
    mean: Tensor  # [K, O], of standard observations
    deviation: Tensor  # [K, O]

    def __init__(self, config: ModelConfig, *, num_tasks: int, observation_size: int, action_size: int) -> None:
        super().__init__()
        self.config, self.num_tasks = config, num_tasks
        self.observation_size, self.action_size = observation_size, action_size
        size, activation = config.widths(num_tasks), ACTIVATIONS[config.activation]
        self.latent_size, d = size.latent, size.embedding
        latent = SimNorm if config.norm == "simnorm" else activation
        encoder, wide = [], observation_size + d
        for _ in range(max(size.encoder_layers - 1, 1)):
            encoder.append(normed_linear(wide, size.encoder_width, activation()))
            wide = size.encoder_width
        self.encoder = nn.Sequential(*encoder, normed_linear(wide, size.latent, latent()))
        inputs = size.latent + d + action_size
        self.dynamics = nn.Sequential(
            normed_linear(inputs, size.width, activation()), normed_linear(size.width, size.width, activation()),
            normed_linear(size.width, size.latent, latent()),
        )  # fmt: skip
        for part in (self.encoder, self.dynamics):
            initialise(part)
        self.reward = head(inputs, size.width, NUM_BINS, activation, zero=True)
        self.termination = head(size.latent + d, size.width, 1, activation) if config.termination else None
        self.embedding = nn.Parameter(torch.empty(num_tasks, d).uniform_(-0.02, 0.02)) if d else None  # e_k [K, d]
        self.register_buffer("bins", torch.linspace(LOW, HIGH, NUM_BINS), persistent=False)
        if config.observations == "standard":
            self.register_buffer("mean", torch.zeros(num_tasks, observation_size))
            self.register_buffer("deviation", torch.ones(num_tasks, observation_size))

    @torch.no_grad()
    def project(self) -> None:
        """Bring every task embedding to a norm of at most 1; after each step of the optimiser."""
        if self.embedding is not None:
            self.embedding.div_(self.embedding.norm(dim=-1, keepdim=True).clamp_min(1.0))

    def join(self, x: Tensor, action: Tensor | None = None) -> Tensor:
        """[x, e_k, a]: [K, ..., n], [K, ..., A] -> [K, ..., n + d + A]."""
        parts = [x] if self.embedding is None else [x, self._over(x)]
        return torch.cat(parts if action is None else [*parts, action], dim=-1)

    def _over(self, x: Tensor) -> Tensor:
        """e_k for every row of x [K, ..., n]: [K, ..., d]."""
        assert self.embedding is not None
        middle = [1] * (x.dim() - 2)
        return self.embedding.view(len(self.embedding), *middle, -1).expand(*x.shape[:-1], -1)

    @torch.no_grad()
    def measure(self, observation: Tensor) -> None:
        """Take mean and deviation of observations [K, N, O] for the standard form; an entry that never changes is left
        as it is but for its mean.
        """
        deviation = observation.std(dim=1, correction=0)
        self.mean.copy_(observation.mean(dim=1))
        self.deviation.copy_(torch.where(deviation > _CONSTANT, deviation, 1.0))

    def encode(self, observation: Tensor) -> Tensor:
        """[K, ..., O] -> z [K, ..., Z]."""
        if self.config.observations == "standard":
            middle = (len(observation), *[1] * (observation.dim() - 2), -1)
            observation = (observation - self.mean.view(middle)) / self.deviation.view(middle)
        return self.encoder(self.join(observation))

    def next_latent(self, latent: Tensor, action: Tensor) -> Tensor:
        """z_t [K, ..., Z], a_t [K, ..., A] -> z_{t+1} [K, ..., Z]."""
        return self.dynamics(self.join(latent, action))

    def reward_logits(self, latent: Tensor, action: Tensor) -> Tensor:
        """[K, ..., Z], [K, ..., A] -> logits of the reward's two-hot code [K, ..., V]."""
        return self.reward(self.join(latent, action))

    def predict_reward(self, latent: Tensor, action: Tensor, *, objective: str = "symexp") -> Tensor:
        """Mean of the reward's bins, [K, ...]: `symexp`, in units of the task; `symlog`, left in those of the bins."""
        logits = self.reward_logits(latent, action)
        if objective == "symexp":
            return two_hot_decode(logits, low=LOW, high=HIGH)
        return logits.softmax(dim=-1) @ self.bins.to(logits.dtype)

    def termination_logit(self, latent: Tensor) -> Tensor:
        """Logit of "z is terminal" [K, ..., Z] -> [K, ...]. Raises: TypeError without that head."""
        if self.termination is None:
            raise TypeError("this world model predicts no ends: build it with model.termination")
        return self.termination(self.join(latent)).squeeze(-1)

    def continuation(self, latent: Tensor) -> Tensor:
        """Probability that the episode goes on at z [K, ..., Z]: [K, ...]; 1 where ends are not predicted."""
        if self.termination is None:
            return latent.new_ones(latent.shape[:-1])
        return torch.sigmoid(-self.termination_logit(latent))
