"""The Triton side of two_hot_loss: reads the logits once and forms no code over the bins.

Also what two_hot_decode_triton shares with it: the bins, the tiles, the launch.
"""

from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mow.kernels.custom_op import custom_op
from mow.kernels.dispatch import INTERPRETED, compute_dtype
from mow.kernels.row_layout_triton import row_layout, row_offset
from mow.kernels.sample_onehot_triton import load_logits

# A program is one warp and some rows, 32 elements per thread: sums along a row need no word between warps, and what is
# computed once per row is computed once per warp. The interpreter gets small tiles, so that small tests have several
# programs.
_TILE = 512 if INTERPRETED else 1024
_MAX_WARPS = 16


@triton.jit
def _log1p(x):  # type: ignore[no-untyped-def]
    """ln(1 + x), x >= 0: the logarithm of the rounded sum, and to first order the part that rounding dropped."""
    w = 1.0 + x
    is_small = x < 1e6  # beyond, what was dropped is nothing beside ln(w), and at infinity it would not be a number
    dropped = tl.where(is_small, x, 0.0) - (tl.where(is_small, w, 1.0) - 1.0)
    return tl.log(w) + dropped / w


@triton.jit
def from_centre(bin, V: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """Bin number -> its distance from (low + high) / 2, exactly antisymmetric; the reference's up to one rounding."""
    return (2 * bin - (V - 1)).to(dtype) * ((HIGH - LOW) / (2 * (V - 1)))


@triton.jit
def _two_hot_code(target, V: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """[rows] targets -> the lower bin, and the weight of the bin above it, in [0, 1]; exactly 0 or 1 beyond the ends.

    A NaN gives a weight that is NaN. Works on rows alone: a search among the bins would cost each of them. A target
    that is on a bin, or next to it, may count to either side of it; the weight then says so, up to rounding.
    """
    bins_per_unit: tl.constexpr = (V - 1) / (HIGH - LOW)
    magnitude = _log1p(tl.abs(target))
    y = tl.where(target < 0.0, -magnitude, magnitude)
    # Written so that a NaN passes: minimum and maximum would drop it. Only the bin number must not be one.
    y = tl.where(y < LOW, LOW, tl.where(y > HIGH, HIGH, y))
    lower = tl.minimum((tl.where(y == y, y - LOW, 0.0) * bins_per_unit).to(tl.int32), V - 2)
    weight = (y - (from_centre(lower, V, LOW, HIGH, dtype) + (LOW + HIGH) / 2)) * bins_per_unit
    weight = tl.where(weight < 0.0, 0.0, tl.where(weight > 1.0, 1.0, weight))
    return lower, tl.where(y == LOW, 0.0, tl.where(y == HIGH, 1.0, weight))


@triton.jit
def two_hot_loss_kernel(  # type: ignore[no-untyped-def]
    logits_ptr,
    target_ptr,
    loss_ptr,
    num_rows,
    inner,
    outer_stride,
    inner_stride,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    dtype: tl.constexpr = loss_ptr.dtype.element_ty
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    bin = tl.arange(0, BLOCK)
    is_row = row < num_rows
    start = row_offset(row, inner, outer_stride, inner_stride)
    z = load_logits(logits_ptr + start[:, None] + bin[None, :], is_row, bin < V, dtype)
    target = tl.load(target_ptr + row, mask=is_row, other=0.0).to(dtype)
    lower, weight = _two_hot_code(target, V, LOW, HIGH, dtype)
    # Two logits per row, read again from the cache: cheaper than two more sums over the bins.
    z_lower = tl.load(logits_ptr + start + lower, mask=is_row, other=0.0).to(dtype)
    z_upper = tl.load(logits_ptr + start + lower + 1, mask=is_row, other=0.0).to(dtype)
    largest = tl.max(z, axis=1)
    log_total = tl.log(tl.sum(tl.exp(z - largest[:, None]), axis=1))
    log_p_lower = z_lower - largest - log_total
    log_p_upper = z_upper - largest - log_total
    tl.store(loss_ptr + row, -(1.0 - weight) * log_p_lower - weight * log_p_upper, mask=is_row)


@triton.jit
def two_hot_loss_backward_kernel(  # type: ignore[no-untyped-def]
    logits_ptr,
    target_ptr,
    grad_ptr,
    logits_grad_ptr,
    num_rows,
    inner,
    outer_stride,
    inner_stride,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """dz = g (p - code)."""
    dtype: tl.constexpr = grad_ptr.dtype.element_ty
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    bin = tl.arange(0, BLOCK)
    is_row, is_bin = row < num_rows, bin < V
    start = row_offset(row, inner, outer_stride, inner_stride)
    z = load_logits(logits_ptr + start[:, None] + bin[None, :], is_row, is_bin, dtype)
    target = tl.load(target_ptr + row, mask=is_row, other=0.0).to(dtype)
    grad = tl.load(grad_ptr + row, mask=is_row, other=0.0)
    lower, weight = _two_hot_code(target, V, LOW, HIGH, dtype)
    e = tl.exp(z - tl.max(z, axis=1)[:, None])
    # The weights add up to 1, or to a NaN, which then reaches all bins as in the reference.
    scale = ((1.0 - weight) + weight) / tl.sum(e, axis=1)
    code = tl.where(bin[None, :] == lower[:, None], (1.0 - weight)[:, None], 0.0)
    code = tl.where(bin[None, :] == lower[:, None] + 1, weight[:, None], code)
    logits_grad = grad[:, None] * (e * scale[:, None] - code)
    place = row.to(tl.int64)[:, None] * V + bin[None, :]
    logits_grad = logits_grad.to(logits_grad_ptr.dtype.element_ty)
    tl.store(logits_grad_ptr + place, logits_grad, mask=is_row[:, None] & is_bin[None, :])


def tile_of(num_bins: int, width: int) -> tuple[int, int, int]:
    """The padded width, the rows of a tile and the warps of a program, for kernels that hold a row as one block of its
    bins or as two blocks, the `width` of which is half of them."""
    padded = triton.next_power_of_2(num_bins)
    return triton.next_power_of_2(width), max(1, _TILE // padded), min(_MAX_WARPS, max(1, padded // _TILE))


def two_hot_loss_triton(logits: Tensor, target: Tensor, low: float, high: float) -> Tensor:
    """two_hot_loss; arguments already checked, the target detached."""
    loss: Tensor = torch.ops.mow.two_hot_loss(logits, target, low, high)
    return loss


def run(
    kernel: Any, logits: Tensor, others: tuple[Tensor, ...], low: float, high: float, width: int, **constants: bool
) -> None:
    """Launch one of the four kernels: they take the logits, `others`, and the same sizes; `width` as in tile_of.

    Args: constants: what a kernel is compiled for besides.
    """
    num_bins = logits.shape[-1]
    num_rows = logits.numel() // num_bins
    if num_rows == 0:
        return
    layout = row_layout(logits, 1)
    block, block_rows, num_warps = tile_of(num_bins, width)
    # Triton launches on the current device, which need not be the one of the tensors.
    with torch.cuda.device(logits.device) if logits.is_cuda else nullcontext():
        kernel[(triton.cdiv(num_rows, block_rows),)](
            layout.tensor,
            *others,
            num_rows,
            *layout.strides,
            LOW=low,
            HIGH=high,
            **constants,
            V=num_bins,
            BLOCK=block,
            BLOCK_ROWS=block_rows,
            num_warps=num_warps,
            enable_fp_fusion=True,
        )


def _launch(logits: Tensor, target: Tensor, low: float, high: float) -> Tensor:
    loss = _fake(logits, target, low, high)
    run(two_hot_loss_kernel, logits, (target.contiguous(), loss), low, high, logits.shape[-1])
    return loss


def _fake(logits: Tensor, target: Tensor, low: float, high: float) -> Tensor:
    return torch.empty(target.shape, dtype=compute_dtype(logits, target), device=logits.device)


def _launch_backward(grad: Tensor, logits: Tensor, target: Tensor, low: float, high: float) -> Tensor:
    logits_grad = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    others = (target.contiguous(), grad.contiguous(), logits_grad)
    run(two_hot_loss_backward_kernel, logits, others, low, high, logits.shape[-1])
    return logits_grad


def _fake_backward(grad: Tensor, logits: Tensor, target: Tensor, low: float, high: float) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float, float], output: Tensor) -> None:
    logits, target, ctx.low, ctx.high = inputs
    ctx.save_for_backward(logits, target)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    return torch.ops.mow.two_hot_loss_backward(grad, *ctx.saved_tensors, ctx.low, ctx.high), None, None, None


custom_op(
    "two_hot_loss(Tensor logits, Tensor target, float low, float high) -> Tensor",
    _launch,
    _fake,
    setup_context=_setup_context,
    backward=_backward,
)
custom_op(
    "two_hot_loss_backward(Tensor grad, Tensor logits, Tensor target, float low, float high) -> Tensor",
    _launch_backward,
    _fake_backward,
)
