"""The Triton side of sample_onehot: softmax, floor, uniform number and draw in one pass; saves the logits alone."""

from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mow.kernels.custom_op import custom_op
from mow.kernels.dispatch import INTERPRETED, compute_dtype
from mow.kernels.philox import PhiloxState
from mow.kernels.philox_triton import uniform_rows
from mow.kernels.row_layout_triton import row_layout, row_offset

# Elements of a tile: sixteen per thread. The interpreter gets small ones, so that small tests have several programs.
_TILE = 512 if INTERPRETED else 2048
_NUM_WARPS = 4


@triton.jit
def load_logits(pointer, is_row, is_class, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """A tile [rows, classes] in `dtype`: -inf in the padding of the classes, 0 in rows past the end."""
    z = tl.load(pointer, mask=is_row[:, None] & is_class[None, :], other=0.0).to(dtype)
    return tl.where(is_class[None, :], z, -float("inf"))


@triton.jit
def softmax_rows(z):  # type: ignore[no-untyped-def]
    """softmax over the last axis of [rows, classes]; a row with a NaN becomes all NaN."""
    e = tl.exp(z - tl.max(z, axis=1)[:, None])
    return e * (1.0 / tl.sum(e, axis=1))[:, None]  # one division per row


@triton.jit
def draw(prob, u):  # type: ignore[no-untyped-def]
    """[rows, classes] probabilities and [rows] uniform numbers -> [rows] classes, int32; 0 for a row of NaN.

    The first class whose cdf exceeds u times the sum, as the reference counts it. A parallel sum may round the cdf of
    an impossible class past its neighbour's, so only possible ones stand for election, and the sum is read off them:
    u * sum < sum also after rounding (u <= 1 - 2^-24), so one is elected, unless the row is NaN.
    """
    num: tl.constexpr = prob.shape[1]
    cdf = tl.cumsum(prob, axis=1)
    is_possible = prob > 0.0
    total = tl.max(tl.where(is_possible, cdf, 0.0), axis=1)  # [rows]
    is_above = is_possible & (cdf > (u * total)[:, None])
    first = tl.min(tl.where(is_above, tl.arange(0, num)[None, :], num), axis=1)
    return tl.where(first == num, 0, first)


@triton.jit
def sample_onehot_kernel(  # type: ignore[no-untyped-def]
    logits_ptr,
    seed_offset_ptr,
    onehot_ptr,
    index_ptr,
    num_rows,
    inner,
    outer_stride,
    inner_stride,
    UNIMIX: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,  # a multiple of 4: a program draws whole Philox blocks
):
    dtype: tl.constexpr = onehot_ptr.dtype.element_ty
    first = tl.program_id(0) * BLOCK_ROWS
    row = first + tl.arange(0, BLOCK_ROWS)
    c = tl.arange(0, BLOCK_C)
    is_row, is_class = row < num_rows, c < C
    start = row_offset(row, inner, outer_stride, inner_stride)
    z = load_logits(logits_ptr + start[:, None] + c[None, :], is_row, is_class, dtype)
    prob = tl.where(is_class[None, :], softmax_rows(z) * (1.0 - UNIMIX) + UNIMIX / C, 0.0)

    index = draw(prob, uniform_rows(seed_offset_ptr, first // 4, BLOCK_ROWS // 4))  # [rows]
    onehot = tl.where(c[None, :] == index[:, None], 1.0, 0.0)
    onehot = tl.where(prob == prob, onehot, float("nan")).to(dtype)
    place = row.to(tl.int64)[:, None] * C + c[None, :]
    tl.store(onehot_ptr + place, onehot, mask=is_row[:, None] & is_class[None, :])
    tl.store(index_ptr + row, index.to(tl.uint8), mask=is_row)


@triton.jit
def sample_onehot_backward_kernel(  # type: ignore[no-untyped-def]
    logits_ptr,
    grad_ptr,
    logits_grad_ptr,
    num_rows,
    inner,
    outer_stride,
    inner_stride,
    grad_inner,
    grad_outer_stride,
    grad_inner_stride,
    UNIMIX: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """dz = (1 - unimix) s (g - sum(s g)),   s = softmax(z)."""
    dtype: tl.constexpr = grad_ptr.dtype.element_ty
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    c = tl.arange(0, BLOCK_C)
    is_row, is_class = row < num_rows, c < C
    inside = is_row[:, None] & is_class[None, :]
    start = row_offset(row, inner, outer_stride, inner_stride)
    z = load_logits(logits_ptr + start[:, None] + c[None, :], is_row, is_class, dtype)
    grad_start = row_offset(row, grad_inner, grad_outer_stride, grad_inner_stride)
    grad = tl.load(grad_ptr + grad_start[:, None] + c[None, :], mask=inside, other=0.0)
    s = softmax_rows(z)
    logits_grad = (1.0 - UNIMIX) * s * (grad - tl.sum(s * grad, axis=1)[:, None])
    place = row.to(tl.int64)[:, None] * C + c[None, :]
    tl.store(logits_grad_ptr + place, logits_grad.to(logits_grad_ptr.dtype.element_ty), mask=inside)


def tile_of(num_classes: int) -> tuple[int, int]:
    """BLOCK_C and BLOCK_ROWS for rows of `num_classes`."""
    block_c = triton.next_power_of_2(num_classes)
    return block_c, max(4, _TILE // block_c)


def sample_onehot_triton(logits: Tensor, rng: PhiloxState, unimix: float) -> tuple[Tensor, Tensor]:
    """(onehot, index) of sample_onehot, drawn at the current offset; arguments already checked.

    Does not advance the stream: an op that only reads can be repeated and traced like any other.
    """
    onehot, index = torch.ops.mow.sample_onehot(logits, rng.seed_offset, unimix)
    return onehot, index


def _launch(logits: Tensor, seed_offset: Tensor, unimix: float) -> tuple[Tensor, Tensor]:
    onehot, index = _fake(logits, seed_offset, unimix)
    num_classes, num_rows = logits.shape[-1], index.numel()
    if num_rows == 0:
        return onehot, index
    layout = row_layout(logits, 1)
    block_c, block_rows = tile_of(num_classes)
    # Triton launches on the current device, which need not be the one of the tensors.
    with torch.cuda.device(logits.device) if logits.is_cuda else nullcontext():
        sample_onehot_kernel[(triton.cdiv(num_rows, block_rows),)](
            layout.tensor,
            seed_offset,
            onehot,
            index,
            num_rows,
            *layout.strides,
            UNIMIX=unimix,
            C=num_classes,
            BLOCK_C=block_c,
            BLOCK_ROWS=block_rows,
            num_warps=_NUM_WARPS,
            enable_fp_fusion=True,
        )
    return onehot, index


def _fake(logits: Tensor, seed_offset: Tensor, unimix: float) -> tuple[Tensor, Tensor]:
    onehot = torch.empty(logits.shape, dtype=compute_dtype(logits), device=logits.device)
    return onehot, torch.empty(logits.shape[:-1], dtype=torch.uint8, device=logits.device)


def _launch_backward(grad: Tensor, logits: Tensor, unimix: float) -> Tensor:
    logits_grad = _fake_backward(grad, logits, unimix)
    num_classes = logits.shape[-1]
    num_rows = logits.numel() // num_classes
    if num_rows == 0:
        return logits_grad
    layout, grad_layout = row_layout(logits, 1), row_layout(grad, 1)
    block_c, block_rows = tile_of(num_classes)
    with torch.cuda.device(logits.device) if logits.is_cuda else nullcontext():
        sample_onehot_backward_kernel[(triton.cdiv(num_rows, block_rows),)](
            layout.tensor,
            grad_layout.tensor,
            logits_grad,
            num_rows,
            *layout.strides,
            *grad_layout.strides,
            UNIMIX=unimix,
            C=num_classes,
            BLOCK_C=block_c,
            BLOCK_ROWS=block_rows,
            num_warps=_NUM_WARPS,
            enable_fp_fusion=True,
        )
    return logits_grad


def _fake_backward(grad: Tensor, logits: Tensor, unimix: float) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: tuple[Tensor, Tensor]) -> None:
    logits, _, ctx.unimix = inputs
    ctx.save_for_backward(logits)
    ctx.set_materialize_grads(False)  # the index has none


def _backward(ctx: Any, grad: Tensor, index_grad: None) -> tuple[Tensor, None, None]:
    (logits,) = ctx.saved_tensors
    return torch.ops.mow.sample_onehot_backward(grad, logits, ctx.unimix), None, None


custom_op(
    "sample_onehot(Tensor logits, Tensor seed_offset, float unimix) -> (Tensor, Tensor)",
    _launch,
    _fake,
    setup_context=_setup_context,
    backward=_backward,
)
custom_op(
    "sample_onehot_backward(Tensor grad, Tensor logits, float unimix) -> Tensor", _launch_backward, _fake_backward
)
