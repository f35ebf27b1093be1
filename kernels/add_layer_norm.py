"""Residual sum, layer norm, the affine of each pair's expert and ReLU: what stands between two expert_linear."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mow.kernels.dispatch import Backend, backends, choose
from mow.kernels.route_plan import RoutePlan, rows_of


def add_layer_norm(
    input: Tensor, weight: Tensor, bias: Tensor, plan: RoutePlan, *, residual: Tensor | None = None,
    eps: float = 1e-5, relu: bool = False, dtype: torch.dtype | None = None, backend: Backend = "auto",
) -> Tensor:  # fmt: skip
    """Normalise the rows of every (task, slot) pair, each with the affine of its expert.

        y[k, j] = act((s - mean s) / sqrt(var s + eps) * weight[e] + bias[e]),   s = x[k, j] + residual[k, j]

    Args:
        input: [K, J, ..., W], contiguous.
        weight, bias: [E, W] float; with E = 1 they serve all pairs.
        plan: routes [K, J] for E experts.
        residual: shape of the input.
        eps: added to the variance.
        relu: act is max(., 0), else nothing.
        dtype: of the result; None: that of PyTorch's layer norm, on a GPU under autocast float32.
        backend: "auto", or the name of an implementation. In float64 there is the reference alone.
    Returns: shape of the input.
    Raises: ValueError if a shape does not fit the plan.
    Source: Ba et al. 2016; the affine per expert is this package's.
    """
    shapes = (len(weight) in (1, plan.num_experts), weight.shape == bias.shape, input.shape[-1:] == weight.shape[1:],
              input.shape[:2] == plan.routes.shape, residual is None or residual.shape == input.shape)  # fmt: skip
    if not all(shapes):
        raise ValueError(
            f"input {list(input.shape)}, residual {None if residual is None else list(residual.shape)}, weight "
            f"{list(weight.shape)} and bias {list(bias.shape)} do not fit {plan.num_experts} experts and routes "
            f"{list(plan.routes.shape)}: give [K, J, ..., W] with [E, W]"
        )
    tensors = [tensor for tensor in (input, weight, bias, residual) if tensor is not None]
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    if choose("add_layer_norm", backend, ("reference",) if wide else backends(input)) == "triton":
        from mow.kernels.add_layer_norm_triton import add_layer_norm_triton

        return add_layer_norm_triton(input, weight, bias, plan, residual, eps, relu, dtype)
    return _reference(input, weight, bias, plan, residual, eps, relu, dtype)


def _reference(
    input: Tensor, weight: Tensor, bias: Tensor, plan: RoutePlan, residual: Tensor | None, eps: float, relu: bool,
    dtype: torch.dtype | None,
) -> Tensor:  # fmt: skip
    x = input if residual is None else input + residual
    only = 0 if len(weight) == 1 else plan.single_expert
    if only is not None:
        y = F.layer_norm(x, x.shape[-1:], weight[only], bias[only], eps)
    else:
        affine = (*plan.routes.shape, *[1] * (x.dim() - 3), x.shape[-1])
        scale, shift = (rows_of(stacked, plan).view(affine) for stacked in (weight, bias))
        y = torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=eps), scale)
    y = y if dtype is None else y.to(dtype)
    return y.relu_() if relu else y
