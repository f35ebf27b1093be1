"""The Triton side of add_layer_norm: one pass over each row, sums in float32."""

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from mow.kernels.custom_op import custom_op
from mow.kernels.dispatch import INTERPRETED
from mow.kernels.route_plan import RoutePlan

_TILE = 4096  # numbers of a program: 32 per thread
_NUM_WARPS = 4


@triton.jit
def add_layer_norm_kernel(  # type: ignore[no-untyped-def]
    x_ptr, residual_ptr, weight_ptr, bias_ptr, routes_ptr, y_ptr, num_rows, rows_of_pair, eps,
    W: tl.constexpr, RELU: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """residual_ptr and routes_ptr may be None: no residual; one affine for all pairs."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    w = tl.arange(0, BLOCK_W)
    is_row, is_w = row < num_rows, w < W
    inside = is_row[:, None] & is_w[None, :]
    place = row.to(tl.int64)[:, None] * W + w[None, :]
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        x += tl.load(residual_ptr + place, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=1) / W
    x = tl.where(inside, x - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(x * x, axis=1) / W + eps)
    if routes_ptr is None:
        affine, is_affine = w[None, :], is_w[None, :]
    else:
        expert = tl.load(routes_ptr + row // rows_of_pair, mask=is_row, other=0)
        affine, is_affine = expert[:, None] * W + w[None, :], inside
    weight = tl.load(weight_ptr + affine, mask=is_affine, other=0.0).to(tl.float32)
    y = x * scale[:, None] * weight + tl.load(bias_ptr + affine, mask=is_affine, other=0.0).to(tl.float32)
    if RELU:
        y = tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=inside)


def tile_of(width: int) -> tuple[int, int]:
    """BLOCK_ROWS and BLOCK_W."""
    block_w = triton.next_power_of_2(width)
    return max(1, (1024 if INTERPRETED else _TILE) // block_w), block_w


def add_layer_norm_triton(
    input: Tensor, weight: Tensor, bias: Tensor, plan: RoutePlan, residual: Tensor | None, eps: float, relu: bool,
    dtype: torch.dtype | None,
) -> Tensor:  # fmt: skip
    """add_layer_norm; arguments already checked."""
    routes = None if len(weight) == 1 else plan.routes
    y: Tensor = torch.ops.mow.add_layer_norm(input, weight, bias, routes, residual, eps, relu, dtype or torch.float32)
    return y


def _launch(
    input: Tensor, weight: Tensor, bias: Tensor, routes: Tensor | None, residual: Tensor | None, eps: float, relu: bool,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    y = _fake(input, weight, bias, routes, residual, eps, relu, dtype)
    if y.numel() == 0:
        return y
    width = input.shape[-1]
    num_rows = input.numel() // width
    block_rows, block_w = tile_of(width)
    # Triton launches on the current device, which need not be the one of the tensors.
    with torch.cuda.device(input.device) if input.is_cuda else nullcontext():
        add_layer_norm_kernel[(triton.cdiv(num_rows, block_rows),)](
            input.contiguous(), None if residual is None else residual.contiguous(), weight.contiguous(),
            bias.contiguous(), None if routes is None else routes.contiguous(), y, num_rows,
            num_rows // input.shape[:2].numel(), eps, W=width, RELU=relu, BLOCK_ROWS=block_rows, BLOCK_W=block_w,
            num_warps=_NUM_WARPS, enable_fp_fusion=True,
        )  # fmt: skip
    return y


def _fake(
    input: Tensor, weight: Tensor, bias: Tensor, routes: Tensor | None, residual: Tensor | None, eps: float, relu: bool,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    return torch.empty(input.shape, dtype=dtype, device=input.device)


custom_op(
    "add_layer_norm(Tensor input, Tensor weight, Tensor bias, Tensor? routes, Tensor? residual, float eps, bool relu, "
    "ScalarType dtype) -> Tensor",
    _launch,
    _fake,
)
