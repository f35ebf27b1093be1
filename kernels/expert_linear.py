"""One linear layer whose weight depends on the task: experts, cluster heads, cluster embeddings."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mow.kernels.dispatch import Backend, choose

_BACKENDS = ("reference",)

Activation = Literal["none", "relu", "silu", "gelu"]
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
}


@dataclass(frozen=True)
class RoutePlan:
    """Which expert serves which task in which slot; made and checked by route_plan, once per change of routing."""

    routes: Tensor  # [K, J] int64 in [0, num_experts)
    num_experts: int


def route_plan(routes: Tensor, num_experts: int) -> RoutePlan:
    """Check routes [K, J] int64 and keep them. Reads their values on the host, so it waits for the device.

    Raises: ValueError if the shape or dtype is wrong or an index is outside [0, num_experts).
    """
    if routes.dtype != torch.int64 or routes.dim() != 2:
        raise ValueError(f"routes must be int64 [K, J], got {routes.dtype} {list(routes.shape)}: convert them")
    if routes.numel() == 0:
        raise ValueError(f"routes need a task and a slot, got {list(routes.shape)}: give every task an expert")
    smallest, largest = int(routes.min()), int(routes.max())
    if smallest < 0 or largest >= num_experts:
        raise ValueError(
            f"routes must be in [0, {num_experts}), got {smallest} to {largest}: num_experts counts the weights"
        )
    return RoutePlan(routes=routes, num_experts=num_experts)


def rows_of(stacked: Tensor, plan: RoutePlan) -> Tensor:
    """What belongs to the expert of each pair: stacked [E, ...] -> [K, J, ...].

    Same as stacked[plan.routes]; but index_select adds gradients up by index_add, where indexing scatters them one by
    one, several times slower.
    """
    return stacked.index_select(0, plan.routes.flatten()).unflatten(0, plan.routes.shape)


def expert_linear(
    input: Tensor,
    weight: Tensor,
    plan: RoutePlan,
    *,
    bias: Tensor | None = None,
    task_bias: Tensor | None = None,
    activation: Activation = "none",
    residual: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Apply to every (task, slot) pair the weight of its expert.

        y[k, j] = act(x[k, j] W[e]^T + bias[e] + task_bias[k, j]) + residual[k, j],   e = routes[k, j]

    Routing is per task, not per token: all R rows of a pair share one expert, so the pair is an axis of the matmul and
    nothing is sorted, padded or dropped.

    Args:
        input: [K, J, R, I], or [K, 1, R, I] where all slots of a task read the same rows.
        weight: [E, N, I]; may be a strided view, such as some columns of a wider weight.
        plan: routes [K, J] for E experts.
        bias: [E, N], follows the expert.
        task_bias: [K, J, N], follows the pair: what a constant part of the input, such as the task embedding, adds.
        activation: "gelu" is the exact form, with the error function.
        residual: [K, J, R, N], added after the activation.
        backend: "auto", or the name of an implementation.
    Returns: [K, J, R, N] in the dtype of the matmul (under autocast that of autocast), promoted with the residual's.
        An expert that no pair uses gets gradient zero.
    Raises: ValueError if a shape does not fit the plan, input and weight differ in dtype outside autocast, or the
        activation is unknown.
    Source: MoW section 3 (experts of a task, modules of a cluster).
    """
    _check_shapes(input, weight, plan, bias, task_bias, residual)
    if input.dtype != weight.dtype and not torch.is_autocast_enabled(input.device.type):
        raise ValueError(f"input is {input.dtype} and weight {weight.dtype}: convert one, or switch autocast on")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}: choose one of {sorted(_ACTIVATIONS)}")
    choose("expert_linear", backend, _BACKENDS)
    return _reference(input, weight, plan, bias, task_bias, _ACTIVATIONS[activation], residual)


def _check_shapes(
    input: Tensor,
    weight: Tensor,
    plan: RoutePlan,
    bias: Tensor | None,
    task_bias: Tensor | None,
    residual: Tensor | None,
) -> None:
    num_tasks, num_slots = plan.routes.shape
    if input.dim() != 4 or input.shape[0] != num_tasks or input.shape[1] not in (1, num_slots):
        raise ValueError(
            f"input must be [{num_tasks}, {num_slots} or 1, R, I] to fit the plan, got {list(input.shape)}: "
            "unsqueeze the slot axis and fold time into R"
        )
    num_rows, num_inputs = input.shape[2:]
    if weight.dim() != 3 or weight.shape[0] != plan.num_experts or weight.shape[2] != num_inputs:
        raise ValueError(
            f"weight must be [{plan.num_experts}, N, {num_inputs}] to fit plan and input, got {list(weight.shape)}: "
            "stack nn.Linear weights, one per expert"
        )
    num_outputs = weight.shape[1]
    for name, tensor, shape in (
        ("bias", bias, (plan.num_experts, num_outputs)),
        ("task_bias", task_bias, (num_tasks, num_slots, num_outputs)),
        ("residual", residual, (num_tasks, num_slots, num_rows, num_outputs)),
    ):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} must be {list(shape)}, got {list(tensor.shape)}: expand it to the full shape")


def _reference(
    input: Tensor,
    weight: Tensor,
    plan: RoutePlan,
    bias: Tensor | None,
    task_bias: Tensor | None,
    activation: Callable[[Tensor], Tensor],
    residual: Tensor | None,
) -> Tensor:
    # A lone expert is one matmul over the folded rows: the gather would copy its weight once per pair. Otherwise the
    # plain form stays: on the CPU, baddbmm and all slots side by side in one wide matmul were measured no faster.
    lone = plan.num_experts == 1
    output = F.linear(input, weight[0]) if lone else input @ rows_of(weight, plan).mT  # [K, J or 1, R, N]
    dtype = output.dtype
    # Sums with a float32 bias are float32, so under autocast the activation sees more than the matmul's digits.
    if bias is not None:
        output = output + rows_of(bias, plan).unsqueeze(2)  # [K, J, R, N]
    if task_bias is not None:
        output = output + task_bias.unsqueeze(2)
    output = activation(output).to(dtype).expand(*plan.routes.shape, -1, -1)
    return output if residual is None else output + residual
