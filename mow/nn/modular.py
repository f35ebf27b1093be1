"""Layers whose weights are stacked on a module axis: each task is sent through the weights of its own module.

A layer holds [M, ...] weights and is called with a RoutePlan that names the module of every (task, slot) pair. The task
embedding e_k is never concatenated to the input: its columns of the weight are multiplied once per task and enter as a
bias, which gives the same value for less work.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from mow.kernels import Activation, RoutePlan, add_layer_norm, expert_linear, gathered, rows_of
from mow.nn.weight_cache import cached, gathers, is_active

_VECTOR = 16  # numbers


def uniform_parameter(*shape: int, fan_in: int) -> nn.Parameter:
    """Uniform in +-1/sqrt(fan_in), the default of torch.nn.Linear and of the convolutions."""
    return nn.Parameter(torch.empty(shape).uniform_(-1.0, 1.0) / math.sqrt(fan_in))


def matmul_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a matmul or a convolution reads x: that of autocast where it is on, else that of x."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def for_matmul(x: Tensor) -> Tensor:
    """x in its matmul_dtype: converted once for all that read it."""
    return x.to(matmul_dtype(x))


def in_whole_vectors(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy [..., I] of x whose rows begin on whole vectors of a GPU: kernels read it as it lies."""
    return _vector_rows(x, x.shape[-1], dtype).copy_(x)


def concatenated(first: Tensor, second: Tensor) -> Tensor:
    """[..., I] and [..., J] of one dtype -> [..., I + J]; in a rollout on a GPU in whole vectors."""
    if not is_active() or gathers():
        return torch.cat([first, second], dim=-1)
    out = _vector_rows(first, first.shape[-1] + second.shape[-1], first.dtype)
    return torch.cat([first, second], dim=-1, out=out)


def _vector_rows(like: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    return like.new_empty(*like.shape[:-1], -(-size // _VECTOR) * _VECTOR, dtype=dtype)[..., :size]


class ModularLinear(nn.Module):
    """y = act(W_i [x, e_k] + b_i) for the module i of each (task, slot) pair."""

    def __init__(
        self, num_modules: int, in_features: int, out_features: int, *, bias: bool = True, embedding_size: int = 0
    ) -> None:
        super().__init__()
        self.in_features = in_features
        fan_in = in_features + embedding_size
        self.weight = uniform_parameter(num_modules, out_features, fan_in, fan_in=fan_in)
        self.bias = uniform_parameter(num_modules, out_features, fan_in=fan_in) if bias else None

    def forward(
        self, x: Tensor, plan: RoutePlan, embedding: Tensor | None = None, *, activation: Activation = "none"
    ) -> Tensor:
        """[K, J or 1, R, I] -> [K, J, R, O]; `embedding` [K, d] is given exactly when the layer was built with one."""
        weight, bias, task_bias, plan = cached(self, plan, lambda: self._ready(plan, embedding))
        return expert_linear(x, weight, plan, bias=bias, task_bias=task_bias, activation=activation)

    def _ready(self, plan: RoutePlan, embedding: Tensor | None) -> tuple[Tensor, Any, Any, RoutePlan]:
        """Weight, bias, task bias and plan for expert_linear; where cached, converted, or gathered and added up."""
        weight, of_embedding = self.weight[:, :, : self.in_features], self.weight[:, :, self.in_features :]
        task_bias = None
        if embedding is not None and plan.single_expert is not None:
            task_bias = torch.mv(of_embedding[plan.single_expert], embedding[0]).view(1, 1, -1)
        elif embedding is not None:
            task_bias = torch.einsum("kjod,kd->kjo", rows_of(of_embedding, plan), embedding)  # [K, J, O]
        if not gathers():
            return in_whole_vectors(weight, matmul_dtype(weight)) if is_active() else weight, self.bias, task_bias, plan
        if self.bias is not None:
            bias = rows_of(self.bias, plan)
            task_bias = bias if task_bias is None else bias + task_bias
        if len(weight) == 1:  # serves all tasks as it lies
            return weight, None, task_bias, plan
        weight, plan = gathered(weight, plan)
        return weight, None, task_bias, plan


class ModularLayerNorm(nn.Module):
    """Layer norm over the last axis with one affine per module."""

    def __init__(self, num_modules: int, width: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_modules, width))
        self.bias = nn.Parameter(torch.zeros(num_modules, width))

    def forward(
        self, x: Tensor, plan: RoutePlan, *, residual: Tensor | None = None, relu: bool = False
    ) -> Tensor:
        """x, plus a residual, [K, J, ..., W] -> the same shape; with `relu` rectified, in the dtype of a matmul."""
        weight, bias, plan = cached(self, plan, lambda: self._ready(plan))
        dtype = matmul_dtype(x) if relu else None
        return add_layer_norm(x, weight, bias, plan, residual=residual, eps=self.eps, relu=relu, dtype=dtype)

    def _ready(self, plan: RoutePlan) -> tuple[Tensor, Tensor, RoutePlan]:
        """Weight, bias and plan for add_layer_norm; gathered where weights are."""
        if not gathers() or len(self.weight) == 1 or plan.routes.numel() == 1:
            return self.weight, self.bias, plan
        weight, in_order = gathered(self.weight, plan)
        return weight, gathered(self.bias, plan)[0], in_order


class ModularMLP(nn.Module):
    """Hidden layers (Linear without bias, layer norm, ReLU), then one Linear. Source: STORM's heads.

    `zero_output` starts the last layer at zero, so that a two-hot head begins by predicting exactly 0.
    Differs: STORM starts it at random; zero as in DreamerV3.
    """

    def __init__(
        self, num_modules: int, in_features: int, hidden: int, out_features: int, *, num_layers: int = 2,
        embedding_size: int = 0, zero_output: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        sizes = [(in_features, embedding_size)] + [(hidden, 0)] * (num_layers - 1)
        self.linears = nn.ModuleList(
            ModularLinear(num_modules, size, hidden, bias=False, embedding_size=d) for size, d in sizes
        )
        self.norms = nn.ModuleList(ModularLayerNorm(num_modules, hidden) for _ in range(num_layers))
        self.output = ModularLinear(num_modules, hidden, out_features)
        if zero_output:
            for parameter in self.output.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, plan: RoutePlan, embedding: Tensor | None = None) -> Tensor:
        """[K, 1, R, I] -> [K, 1, R, O]."""
        for index, (linear, norm) in enumerate(zip(self.linears, self.norms, strict=True)):
            x = norm(linear(x, plan, embedding if index == 0 else None), plan, relu=True)
        return self.output(x, plan)


class Stem(nn.Module):
    """Two Linears without bias, layer norm after each, ReLU between: joins the parts of a token to width D.

    Source: STORM's stem; MoW calls it an expert's mixer.
    """

    def __init__(self, num_modules: int, in_features: int, width: int, *, embedding_size: int) -> None:
        super().__init__()
        self.input = ModularLinear(num_modules, in_features, width, bias=False, embedding_size=embedding_size)
        self.input_norm = ModularLayerNorm(num_modules, width)
        self.output = ModularLinear(num_modules, width, width, bias=False)
        self.output_norm = ModularLayerNorm(num_modules, width)

    def forward(self, x: Tensor, plan: RoutePlan, embedding: Tensor | None) -> Tensor:
        """[K, 1, R, I] -> [K, J, R, D]."""
        x = self.input_norm(self.input(x, plan, embedding), plan, relu=True)
        return self.output_norm(self.output(x, plan), plan)


def rows_in(x: Tensor) -> Tensor:
    """[K, B, L, ...] as the rows of one slot: [K, 1, B * L, ...]."""
    return x.flatten(1, 2).unsqueeze(1)
