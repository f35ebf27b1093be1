"""One linear layer whose weight depends on the task: experts, cluster heads, cluster embeddings."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mow.kernels.dispatch import Backend, backends, choose
from mow.kernels.route_plan import RoutePlan, rows_of
from mow.kernels.tuned import tiling

Activation = Literal["none", "relu", "silu", "gelu"]
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
}


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
    Raises: ValueError if a shape does not fit the plan, a tensor is elsewhere than the input or not of a floating
        dtype, input and weight differ in dtype outside autocast, or the activation is unknown.
    Source: MoW section 3 (experts of a task, modules of a cluster).
    """
    _check_shapes(input, weight, plan, bias, task_bias, residual)
    _check_kinds(input, weight, plan, bias, task_bias, residual)
    autocast = torch.is_autocast_enabled(input.device.type)
    if input.dtype != weight.dtype and not autocast:
        raise ValueError(f"input is {input.dtype} and weight {weight.dtype}: convert one, or switch autocast on")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}: choose one of {sorted(_ACTIVATIONS)}")
    dtype = torch.get_autocast_dtype(input.device.type) if autocast else input.dtype
    plain = activation == "none" and bias is None and task_bias is None and residual is None
    if choose(*_offer(input, weight, plan, dtype, backend, plain)) == "reference":
        return _reference(input, weight, plan, bias, task_bias, _ACTIVATIONS[activation], residual)
    # Loaded only here: without a GPU nobody should wait for triton.
    from mow.kernels.expert_linear_triton import launch

    return launch(input.to(dtype), weight, plan, bias, task_bias, activation, residual)


def _offer(
    input: Tensor, weight: Tensor, plan: RoutePlan, dtype: torch.dtype, backend: Backend, plain: bool
) -> tuple[str, Backend, tuple[str, ...]]:
    """The arguments of choose for this call: on a GPU a table says for which sizes cuBLAS comes before our kernels."""
    available = backends(input)
    if len(available) == 1:
        return "expert_linear", backend, available
    if torch.float64 in (input.dtype, weight.dtype, dtype):
        return "expert_linear in float64", backend, ("reference",)
    if available[0] == "triton" and backend == "auto":
        # A single expert without terms is one matmul, which cuBLAS does best; terms would be passes of their own. So is
        # one with few outputs, which the kernels store number by number.
        sizes = input.shape[2], weight.shape[1], weight.shape[2]
        single = plan.num_experts == 1 and (plain or sizes[1] % 16 > 0)
        if single or tiling("forward", input.device, dtype, *sizes).implementation == "bmm":
            return "expert_linear of sizes that suit cuBLAS", backend, ("reference", "triton")
    return "expert_linear", backend, available


def _check_kinds(
    input: Tensor,
    weight: Tensor,
    plan: RoutePlan,
    bias: Tensor | None,
    task_bias: Tensor | None,
    residual: Tensor | None,
) -> None:
    tensors = (("weight", weight), ("bias", bias), ("task_bias", task_bias), ("residual", residual))
    for name, tensor in (("input", input), *tensors):
        if tensor is not None and not tensor.is_floating_point():
            raise ValueError(f"{name} must be of a floating dtype, got {tensor.dtype}: convert with .float()")
    for name, tensor in (*tensors, ("the plan", plan.routes)):
        if tensor is not None and tensor.device != input.device:
            raise ValueError(
                f"input is on {input.device} and {name} on {tensor.device}: move them to one device with .to(...)"
            )


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
    if plan.single_expert is not None:
        shift = _shift_of_single_expert(plan.single_expert, bias, task_bias)
        if not _mixes(input, shift):
            output = activation(F.linear(input, weight[plan.single_expert], shift))
            return output if residual is None else output + residual
    shift = None if bias is None else rows_of(bias, plan)  # [K, J, N]
    if task_bias is not None:
        shift = task_bias if shift is None else shift + task_bias
    # A lone expert is one matmul over the folded rows: the gather would copy its weight once per pair.
    lone = plan.num_experts == 1 and plan.routes.numel() > 1
    if not lone and not _mixes(input, shift):
        output = activation(_pair_by_pair(input, rows_of(weight, plan), shift))
        return output if residual is None else output + residual
    output = F.linear(input, weight[0]) if lone else input @ rows_of(weight, plan).mT  # [K, J or 1, R, N]
    dtype = output.dtype
    # Sums with a float32 bias are float32, so under autocast the activation sees more than the matmul's digits.
    if shift is not None:
        output = output + shift.unsqueeze(2)  # [K, J, R, N]
    output = activation(output).to(dtype).expand(*plan.routes.shape, -1, -1)
    return output if residual is None else output + residual


def _shift_of_single_expert(expert: int, bias: Tensor | None, task_bias: Tensor | None) -> Tensor | None:
    """What is added for the only pair: [N]. Without the axes of K and J, whose making and unmaking takes time."""
    of_task = None if task_bias is None else task_bias[0, 0]
    if bias is None:
        return of_task
    return bias[expert] if of_task is None else bias[expert] + of_task


def _pair_by_pair(input: Tensor, weight: Tensor, shift: Tensor | None) -> Tensor:
    """input [K, J or 1, R, I], weight [K, J, N, I], shift [K, J, N] -> x W^T + shift [K, J, R, N].

    What is added is where the sums of the matmul begin. All slots of a task side by side in one wide matmul were
    measured no faster.
    """
    (num_tasks, num_slots, num_outputs, num_inputs), num_rows = weight.shape, input.shape[2]
    num_pairs = num_tasks * num_slots
    x = input.expand(-1, num_slots, -1, -1).reshape(num_pairs, num_rows, num_inputs)
    by_pair = weight.flatten(0, 1).mT  # [K * J, I, N]
    if shift is None:
        output = torch.bmm(x, by_pair)
    else:
        output = torch.baddbmm(shift.reshape(num_pairs, 1, num_outputs), x, by_pair)
    return output.view(num_tasks, num_slots, num_rows, num_outputs)


def _mixes(input: Tensor, shift: Tensor | None) -> bool:
    """The matmul may have fewer digits than the bias."""
    return torch.is_autocast_enabled(input.device.type) or (shift is not None and shift.dtype != input.dtype)
