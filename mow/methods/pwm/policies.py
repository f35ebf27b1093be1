"""Policies and critics of K tasks, trained side by side: every weight has a leading axis, a row for each task.

    a = m_k tanh(mu(z) + sigma eps)        V_c(z), c < C

A row depends on the run's seed and the name of its task alone, so that tasks together and one by one are the same.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTOR, CRITIC = (400, 200, 100), (400, 200)  # hidden units
FIRST_LOG_STD = -1.0


def seed_of(seed: int, *names: str) -> int:
    """A seed in [0, 2^63) that depends on a run's seed and on names."""
    digest = hashlib.sha256("\n".join((str(seed), *names)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class StackedLinear(nn.Module):
    """y_n = W_n x_n + b_n for N rows of weights; their values come later, row by row."""

    def __init__(self, rows: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(rows, 1, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[N, R, I] -> [N, R, O]."""
        return torch.baddbmm(self.bias, x, self.weight.mT)


class StackedNorm(nn.Module):
    """Layer norm with one affine per row."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(rows, 1, width))
        self.bias = nn.Parameter(torch.zeros(rows, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        """[N, R, W] -> the same shape."""
        return torch.addcmul(self.bias, F.layer_norm(x, x.shape[-1:]), self.weight)


def stacked_mlp(rows: int, inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Linear, Mish, layer norm for each hidden width, then Linear. Source: PWM; the order is not the world model's."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [StackedLinear(rows, inputs, width), nn.Mish(), StackedNorm(rows, width)]
        inputs = width
    return nn.Sequential(*layers, StackedLinear(rows, inputs, outputs))


@torch.no_grad()
def draw_row(mlp: nn.Sequential, row: int, seed: int, *, orthogonal: bool) -> None:
    """Initial weights of one row: orthogonal with gain sqrt(2) and bias 0, or uniform as torch.nn.Linear."""
    generator = torch.Generator().manual_seed(seed)
    for layer in mlp:
        if isinstance(layer, StackedLinear):
            weight, bound = torch.empty(layer.weight.shape[1:]), layer.weight.shape[2] ** -0.5
            if orthogonal:
                nn.init.orthogonal_(weight, gain=2**0.5, generator=generator)
            else:
                weight.uniform_(-bound, bound, generator=generator)
                layer.bias[row, 0] = torch.empty(layer.bias.shape[2]).uniform_(-bound, bound, generator=generator)
            layer.weight[row] = weight


class Actors(nn.Module):
    """Policies: one per task, or a single row that all tasks share and that reads [z, e_k].

    The logarithm of the spread is a free parameter per dimension, the same in all states.
    Source: PWM. Differs: padded entries of an action are held at 0.
    """

    mask: Tensor  # [K, 1, A] float32, 0 in padded entries

    def __init__(self, inputs: int, mask: Tensor, names: Sequence[str], seed: int, *, width: int = 0) -> None:
        """Args: mask: [K, A] bool, entries that each task uses. names: of the rows, K tasks or one. width: of every
        hidden layer; 0: the published ones.
        """
        super().__init__()
        self.rows = len(names)
        self.mlp = stacked_mlp(self.rows, inputs, [width or one for one in ACTOR], mask.shape[1])
        self.log_std = nn.Parameter(torch.full((len(names), 1, mask.shape[1]), FIRST_LOG_STD))
        self.register_buffer("mask", mask.float().unsqueeze(1), persistent=False)
        for row, name in enumerate(names):
            draw_row(self.mlp, row, seed_of(seed, "actor", name), orthogonal=False)

    def forward(self, state: Tensor, noise: Tensor | None = None) -> Tensor:
        """Actions [K, B, A] in [-1, 1] at states [K, B, I], with noise eps [K, B, A]; None: tanh(mu)."""
        flat = state.reshape(self.rows, -1, state.shape[-1])  # [K, B, I], or [1, K * B, I]
        mean = self.mlp(flat).view(*state.shape[:-1], -1)
        raw = mean if noise is None else mean + self.log_std.exp() * noise
        return self.mask.to(raw.dtype) * raw.tanh()

    @torch.no_grad()
    def bound_spread(self, least: float) -> None:
        """Raise every log-std below `least` to it; after each step of the optimiser."""
        self.log_std.clamp_(min=least)


class Critics(nn.Module):
    """C value functions per row; they differ by their initial weights. Source: PWM."""

    def __init__(self, inputs: int, count: int, names: Sequence[str], seed: int, *, width: int = 0) -> None:
        super().__init__()
        self.rows, self.count = len(names), count
        self.mlp = stacked_mlp(self.rows * count, inputs, [width or one for one in CRITIC], 1)
        for row, (name, c) in enumerate((name, c) for name in names for c in range(count)):
            draw_row(self.mlp, row, seed_of(seed, "critic", name, str(c)), orthogonal=True)

    def forward(self, state: Tensor) -> Tensor:
        """Values [K, C, B] at states [K, B, I]."""
        flat = state.reshape(self.rows, 1, -1, state.shape[-1])  # [rows, 1, R, I], a row per task or one for all
        wide = flat.expand(-1, self.count, -1, -1).flatten(0, 1)  # [rows * C, R, I]
        value = self.mlp(wide).view(self.rows, self.count, -1, state.shape[1])  # [rows, C, K / rows, B]
        return value.transpose(1, 2).reshape(len(state), self.count, -1)

    def least(self, state: Tensor) -> Tensor:
        """min_c V_c at states [K, B, I]: [K, B]."""
        return self(state).amin(dim=1)


def clip_per_row(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor], rows: int, most: float) -> Tensor:
    """Put gradients into `.grad`, those of each of `rows` tasks scaled to a norm of at most `most`.

    Returns: the norms before, [rows].
    """
    norm = torch.stack([g.reshape(rows, -1).square().sum(dim=1) for g in gradients]).sum(dim=0).sqrt()  # [rows]
    scale = (most / (norm + 1e-6)).clamp(max=1.0)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        scales = scale.repeat_interleave(len(gradient) // rows).view(-1, *[1] * (gradient.dim() - 1))
        parameter.grad = (gradient * scales).contiguous()  # fused Adam reads memory in the order of the parameter
    return norm
