"""expert_linear on a GPU: four ops of torch and the gradients that join them.

They are registered under torch.ops.mow, so that torch.compile takes each as one step: the layer, the gradient before
the activation with its sums, that of the input, and that of the weight.
"""

from typing import Any

import torch
from torch import Tensor

from mow.kernels.custom_op import custom_op
from mow.kernels.expert_linear_launch import (
    launch_dpre,
    launch_dw,
    launch_dx,
    launch_forward,
    launch_sum_members,
    sum_chunks,
)
from mow.kernels.route_plan import RoutePlan


def launch(
    input: Tensor,
    weight: Tensor,
    plan: RoutePlan,
    bias: Tensor | None,
    task_bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
) -> Tensor:
    """expert_linear for checked arguments: the input in the dtype of the product, the weight in that or in float32."""
    # The gradient needs what the activation saw. relu tells it from what it gave, unless a residual was added to that.
    smooth = activation in ("silu", "gelu") or (activation == "relu" and residual is not None)
    learned = (input, weight, bias, task_bias)
    keep = smooth and torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in learned)
    output, _ = torch.ops.mow.expert_linear(
        input, weight, plan.routes, *plan.by_expert(), bias, task_bias, residual, activation, keep
    )
    return output


def _layer(
    input: Tensor, weight: Tensor, routes: Tensor, member_P: Tensor, offset_E: Tensor, bias: Tensor | None,
    task_bias: Tensor | None, residual: Tensor | None, activation: str, keep: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Output [K, J, R, N], and what the activation saw, [K, J, R, N] if keep, else empty."""
    output, pre = _empty_layer(
        input, weight, routes, member_P, offset_E, bias, task_bias, residual, activation, keep
    )  # fmt: skip
    if output.numel() > 0:
        kept = pre if keep else None
        launch_forward(
            input, weight, routes, member_P, offset_E, bias, task_bias, residual, activation, kept, output
        )  # fmt: skip
    return output, pre


def _empty_layer(
    input: Tensor, weight: Tensor, routes: Tensor, member_P: Tensor, offset_E: Tensor, bias: Tensor | None,
    task_bias: Tensor | None, residual: Tensor | None, activation: str, keep: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    shape = (*routes.shape, input.shape[2], weight.shape[1])
    dtype = input.dtype if residual is None else torch.promote_types(input.dtype, residual.dtype)
    return input.new_empty(shape, dtype=dtype), input.new_empty(shape if keep else (0,))


def _dpre(
    dy: Tensor, seen: Tensor | None, member_P: Tensor, offset_E: Tensor, activation: str, dtype: torch.dtype,
    write: bool, sums: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dy * act' [K, J, R, N] in dtype, its sums over rows [K, J, N] and over members [E, N], float32; or empty."""
    dpre, pair_sum, expert_sum = _empty_dpre(dy, seen, member_P, offset_E, activation, dtype, write, sums)
    if dy.numel() == 0:
        return dpre, pair_sum.zero_(), expert_sum.zero_()
    num_tasks, num_slots, num_rows, num_outputs = dy.shape
    partial = None
    if sums:
        partial = dy.new_empty((num_tasks * num_slots, sum_chunks(num_rows), num_outputs), dtype=torch.float32)
    launch_dpre(dy, seen, activation, dpre if write else None, partial)
    if partial is not None:
        torch.sum(partial.view(num_tasks, num_slots, -1, num_outputs), dim=2, out=pair_sum)
        launch_sum_members(pair_sum, member_P, offset_E, expert_sum)
    return dpre, pair_sum, expert_sum


def _empty_dpre(
    dy: Tensor, seen: Tensor | None, member_P: Tensor, offset_E: Tensor, activation: str, dtype: torch.dtype,
    write: bool, sums: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    num_outputs = dy.shape[3]
    pair_shape = (*dy.shape[:2], num_outputs) if sums else (0,)
    expert_shape = (offset_E.shape[0] - 1, num_outputs) if sums else (0,)
    return (
        dy.new_empty(dy.shape if write else (0,), dtype=dtype),
        dy.new_empty(pair_shape, dtype=torch.float32),
        dy.new_empty(expert_shape, dtype=torch.float32),
    )


def _dx(dpre: Tensor, weight: Tensor, routes: Tensor, member_P: Tensor, offset_E: Tensor, shared: bool) -> Tensor:
    dx = _empty_dx(dpre, weight, routes, member_P, offset_E, shared)
    if dx.numel() > 0:
        launch_dx(dpre, weight, routes, member_P, offset_E, dx)
    return dx


def _empty_dx(dpre: Tensor, weight: Tensor, routes: Tensor, member_P: Tensor, offset_E: Tensor, shared: bool) -> Tensor:
    num_tasks, num_slots, num_rows, _ = dpre.shape
    return dpre.new_empty((num_tasks, 1 if shared else num_slots, num_rows, weight.shape[2]))


def _dw(dpre: Tensor, input: Tensor, member_P: Tensor, offset_E: Tensor, dtype: torch.dtype) -> Tensor:
    dw = _empty_dw(dpre, input, member_P, offset_E, dtype)
    if dpre.numel() == 0 or input.numel() == 0:
        return dw.zero_()
    launch_dw(dpre, input, member_P, offset_E, dw)
    return dw


def _empty_dw(dpre: Tensor, input: Tensor, member_P: Tensor, offset_E: Tensor, dtype: torch.dtype) -> Tensor:
    return dpre.new_empty((offset_E.shape[0] - 1, dpre.shape[3], input.shape[3]), dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keeps only what the gradients that are asked for read: the weight as it was given, not a rounded copy."""
    input, weight, routes, member_P, offset_E, bias, task_bias, residual, activation, keep = inputs
    y, pre = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(pre)
    needs_input, needs_weight = ctx.needs_input_grad[:2]
    needs_pre = needs_input or needs_weight or any(ctx.needs_input_grad[5:7])
    if needs_pre and activation != "none" and not keep:
        assert (activation, residual) == ("relu", None), f"{activation}: keep what the activation saw"
    seen = None if activation == "none" or not needs_pre else pre if keep else y
    ctx.save_for_backward(
        input if needs_weight else None, weight if needs_input else None, seen, routes, member_P, offset_E
    )
    ctx.activation, ctx.dtype, ctx.weight_dtype = activation, input.dtype, weight.dtype
    ctx.shared = input.shape[1] == 1
    ctx.term_dtypes = [None if term is None else term.dtype for term in (bias, task_bias, residual)]


def _backward(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    nothing: tuple[Tensor | None, ...] = (None,) * 10
    if dy is None:
        return nothing
    input, weight, seen, routes, member_P, offset_E = ctx.saved_tensors
    needs_input, needs_weight = ctx.needs_input_grad[:2]
    needs_bias, needs_task_bias, needs_residual = ctx.needs_input_grad[5:8]
    bias_dtype, task_bias_dtype, residual_dtype = ctx.term_dtypes
    write = (needs_input or needs_weight) and (ctx.activation != "none" or dy.dtype != ctx.dtype)
    sums = needs_bias or needs_task_bias
    dpre, dx, dw, dbias, dtask_bias = dy, None, None, None, None
    if write or sums:
        written, pair_sum, expert_sum = torch.ops.mow.expert_linear_dpre(
            dy, seen, member_P, offset_E, ctx.activation, ctx.dtype, write, sums
        )
        dpre = written if write else dy
        dbias = expert_sum.to(bias_dtype) if needs_bias else None
        dtask_bias = pair_sum.to(task_bias_dtype) if needs_task_bias else None
    if needs_input:
        dx = torch.ops.mow.expert_linear_dx(dpre, weight, routes, member_P, offset_E, ctx.shared)
    if needs_weight:
        dw = torch.ops.mow.expert_linear_dw(dpre, input, member_P, offset_E, ctx.weight_dtype)
    dresidual = dy.to(residual_dtype) if needs_residual else None
    return dx, dw, None, None, None, dbias, dtask_bias, dresidual, None, None


custom_op(
    "expert_linear(Tensor input, Tensor weight, Tensor routes, Tensor member_P, Tensor offset_E, Tensor? bias, "
    "Tensor? task_bias, Tensor? residual, str activation, bool keep) -> (Tensor, Tensor)",
    _layer,
    _empty_layer,
    setup_context=_setup_context,
    backward=_backward,
)
custom_op(
    "expert_linear_dpre(Tensor dy, Tensor? seen, Tensor member_P, Tensor offset_E, str activation, ScalarType dtype, "
    "bool write, bool sums) -> (Tensor, Tensor, Tensor)",
    _dpre,
    _empty_dpre,
)
custom_op(
    "expert_linear_dx(Tensor dpre, Tensor weight, Tensor routes, Tensor member_P, Tensor offset_E, bool shared) "
    "-> Tensor",
    _dx,
    _empty_dx,
)
custom_op(
    "expert_linear_dw(Tensor dpre, Tensor input, Tensor member_P, Tensor offset_E, ScalarType dtype) -> Tensor",
    _dw,
    _empty_dw,
)
