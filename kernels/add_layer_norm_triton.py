"""The Triton side of add_layer_norm: one pass over each row, sums in float32."""

from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mow.kernels.custom_op import custom_op
from mow.kernels.dispatch import INTERPRETED
from mow.kernels.route_plan import RoutePlan

_TILE = 4096  # numbers of a program: 32 per thread
_NUM_WARPS = 4
_CHUNK = 8 if INTERPRETED else 64  # rows that a program of the backward pass adds up the affine's gradient of


@triton.jit
def normalised(x_ptr, residual_ptr, place, inside, eps, W: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows of x + residual with mean 0 and variance 1, and the factor of each: [rows, W], [rows]; 0 outside."""
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        x += tl.load(residual_ptr + place, mask=inside, other=0.0).to(tl.float32)
    x = tl.where(inside, x - (tl.sum(x, axis=1) / W)[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(x * x, axis=1) / W + eps)
    return x * scale[:, None], scale


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
    x, _ = normalised(x_ptr, residual_ptr, place, inside, eps, W)
    if routes_ptr is None:
        affine, is_affine = w[None, :], is_w[None, :]
    else:
        expert = tl.load(routes_ptr + row // rows_of_pair, mask=is_row, other=0)
        affine, is_affine = expert[:, None] * W + w[None, :], inside
    weight = tl.load(weight_ptr + affine, mask=is_affine, other=0.0).to(tl.float32)
    y = x * weight + tl.load(bias_ptr + affine, mask=is_affine, other=0.0).to(tl.float32)
    if RELU:
        y = tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def add_layer_norm_backward_kernel(  # type: ignore[no-untyped-def]
    grad_ptr, x_ptr, residual_ptr, weight_ptr, bias_ptr, routes_ptr, dx_ptr, dresidual_ptr, sums_ptr, rows_of_pair,
    chunks, rows_of_chunk, eps, W: tl.constexpr, RELU: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Gradients of x and, if dresidual_ptr, the residual; sums of a chunk's rows for weight and bias [P, chunks, 2, W].

        g = dy act'(y) w,   dx = (g - mean g - n mean(g n)) / std,   dw = sum dy act'(y) n,   db = sum dy act'(y)
    """
    pair, chunk = (tl.program_id(0) // chunks).to(tl.int64), tl.program_id(0) % chunks
    w = tl.arange(0, BLOCK_W)
    is_w = w < W
    affine = w
    if routes_ptr is not None:
        affine = tl.load(routes_ptr + pair) * W + w
    weight = tl.load(weight_ptr + affine, mask=is_w, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + affine, mask=is_w, other=0.0).to(tl.float32)
    dweight, dbias = tl.zeros((BLOCK_W,), tl.float32), tl.zeros((BLOCK_W,), tl.float32)
    begin = chunk * rows_of_chunk
    stop = tl.minimum(begin + rows_of_chunk, rows_of_pair)
    for first in range(begin, stop, BLOCK_ROWS):
        row = first + tl.arange(0, BLOCK_ROWS)
        inside = (row < stop)[:, None] & is_w[None, :]
        place = (pair * rows_of_pair + row)[:, None] * W + w[None, :]
        n, scale = normalised(x_ptr, residual_ptr, place, inside, eps, W)
        grad = tl.load(grad_ptr + place, mask=inside, other=0.0).to(tl.float32)
        if RELU:
            grad = tl.where(n * weight[None, :] + bias[None, :] <= 0.0, 0.0, grad)
        dweight += tl.sum(grad * n, axis=0)
        dbias += tl.sum(grad, axis=0)
        g = grad * weight[None, :]
        dx = (g - (tl.sum(g, axis=1) / W)[:, None] - n * (tl.sum(g * n, axis=1) / W)[:, None]) * scale[:, None]
        tl.store(dx_ptr + place, dx.to(dx_ptr.dtype.element_ty), mask=inside)
        if dresidual_ptr is not None:
            tl.store(dresidual_ptr + place, dx.to(dresidual_ptr.dtype.element_ty), mask=inside)
    sums = sums_ptr + (pair * chunks + chunk) * 2 * W + w
    tl.store(sums, dweight, mask=is_w)
    tl.store(sums + W, dbias, mask=is_w)


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


def _launch_backward(
    grad: Tensor, input: Tensor, weight: Tensor, bias: Tensor, routes: Tensor | None, residual: Tensor | None,
    eps: float, relu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dx, dresidual, dweight, dbias = _fake_backward(grad, input, weight, bias, routes, residual, eps, relu)
    if dx.numel() == 0:
        return dx, dresidual, dweight.zero_(), dbias.zero_()
    width, num_pairs = input.shape[-1], input.shape[:2].numel()
    rows_of_pair = input.numel() // width // num_pairs
    chunks = triton.cdiv(rows_of_pair, _CHUNK)
    block_rows, block_w = tile_of(width)
    sums = torch.empty((num_pairs, chunks, 2, width), dtype=torch.float32, device=input.device)
    with torch.cuda.device(input.device) if input.is_cuda else nullcontext():
        add_layer_norm_backward_kernel[(num_pairs * chunks,)](
            grad.contiguous(), input.contiguous(), None if residual is None else residual.contiguous(),
            weight.contiguous(), bias.contiguous(), None if routes is None else routes.contiguous(), dx,
            None if residual is None else dresidual, sums, rows_of_pair, chunks, _CHUNK, eps, W=width, RELU=relu,
            BLOCK_ROWS=block_rows, BLOCK_W=block_w, num_warps=_NUM_WARPS, enable_fp_fusion=True,
        )  # fmt: skip
    of_pairs = sums.sum(dim=1)  # [P, 2, W]
    if routes is None:
        total = of_pairs.sum(dim=0, keepdim=True)
    else:
        total = sums.new_zeros(len(weight), 2, width).index_add_(0, routes.flatten(), of_pairs)
    dweight.copy_(total[:, 0])
    dbias.copy_(total[:, 1])
    return dx, dresidual, dweight, dbias


def _fake_backward(
    grad: Tensor, input: Tensor, weight: Tensor, bias: Tensor, routes: Tensor | None, residual: Tensor | None,
    eps: float, relu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The residual's is empty where there is none."""
    dx = torch.empty(input.shape, dtype=input.dtype, device=input.device)
    dresidual = dx.new_empty((0,)) if residual is None else dx.new_empty(input.shape, dtype=residual.dtype)
    return dx, dresidual, torch.empty_like(weight), torch.empty_like(bias)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps, ctx.relu, _ = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, residual = ctx.saved_tensors
    dx, dresidual, dweight, dbias = torch.ops.mow.add_layer_norm_backward(grad, *tensors, residual, ctx.eps, ctx.relu)
    return dx, dweight, dbias, None, None if residual is None else dresidual, None, None, None


custom_op(
    "add_layer_norm(Tensor input, Tensor weight, Tensor bias, Tensor? routes, Tensor? residual, float eps, bool relu, "
    "ScalarType dtype) -> Tensor",
    _launch,
    _fake,
    setup_context=_setup_context,
    backward=_backward,
)
custom_op(
    "add_layer_norm_backward(Tensor grad, Tensor input, Tensor weight, Tensor bias, Tensor? routes, Tensor? residual, "
    "float eps, bool relu) -> (Tensor, Tensor, Tensor, Tensor)",
    _launch_backward,
    _fake_backward,
)
