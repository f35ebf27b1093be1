"""The Triton side of two_hot_decode: the mean over the bins, taken in mirrored pairs, before or after symexp."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mow.kernels.custom_op import custom_op
from mow.kernels.dispatch import compute_dtype
from mow.kernels.row_layout_triton import row_offset
from mow.kernels.sample_onehot_triton import load_logits
from mow.kernels.two_hot_triton import from_centre, run


@triton.jit
def _expm1(x):  # type: ignore[no-untyped-def]
    """exp(x) - 1, x >= 0. Near zero, the quotient x / ln(exp(x)) puts back what the rounding of exp(x) dropped."""
    w = tl.exp(x)
    is_small = (x < 1.0) & (w > 1.0)
    corrected = (w - 1.0) * x / tl.where(is_small, tl.log(w), 1.0)
    return tl.where(is_small, corrected, tl.where(x < 1.0, x, w - 1.0))


@triton.jit
def _surplus(upper, lower, ahead):  # type: ignore[no-untyped-def]
    """p_u - p_l of mirrored bins, `ahead` z_u - z_l; as p_l expm1(z_u - z_l) where they are nearly as likely."""
    near = tl.where(tl.abs(ahead) < 1.0, ahead, 0.0)
    w = tl.exp(near)
    expm1 = tl.where(w == 1.0, near, (w - 1.0) * near / tl.where(w == 1.0, 1.0, tl.log(w)))
    return tl.where(tl.abs(ahead) < 1.0, lower * expm1, upper - lower)


@triton.jit
def _symexp(x):  # type: ignore[no-untyped-def]
    magnitude = _expm1(tl.abs(x))
    return tl.where(x < 0.0, -magnitude, magnitude)


@triton.jit
def _worth(distance, is_pair, LOW: tl.constexpr, HIGH: tl.constexpr):  # type: ignore[no-untyped-def]
    """symexp of the bins above the centre and of those below it; exactly opposite where the centre is 0."""
    centre: tl.constexpr = (LOW + HIGH) / 2
    above = tl.where(is_pair, _symexp(centre + distance), 0.0)
    return above, tl.where(is_pair, _symexp(centre - distance), 0.0)


@triton.jit
def _mean_worth(  # type: ignore[no-untyped-def]
    upper, lower, ahead, middle, total, above, below, LOW: tl.constexpr, HIGH: tl.constexpr
):
    """sum_i p_i symexp(bin_i) of each row: differences of mirrored bins, and their sums where the centre is not 0."""
    value = tl.sum(_surplus(upper, lower, ahead) * ((above - below) / 2)[None, :], axis=1)
    if LOW != -HIGH:
        centre = tl.full([1], (LOW + HIGH) / 2, value.dtype)
        value += tl.sum((upper + lower) * ((above + below) / 2)[None, :], axis=1) + middle * _symexp(centre)
    return value / total


@triton.jit
def _mirrored_softmax(  # type: ignore[no-untyped-def]
    upper_ptr, lower_ptr, middle_ptr, is_row, is_pair, V: tl.constexpr, dtype: tl.constexpr
):
    """Rows as pairs of mirrored bins: exp(z - max) of both sides, z_u - z_l, exp of the middle bin, and the sum.

    An even number of bins has no middle one; its place counts 0.
    """
    upper = load_logits(upper_ptr, is_row, is_pair, dtype)
    lower = load_logits(lower_ptr, is_row, is_pair, dtype)
    largest = tl.max(tl.maximum(upper, lower), axis=1)
    if V % 2 == 1:
        middle = tl.load(middle_ptr, mask=is_row, other=0.0).to(dtype)
        largest = tl.maximum(largest, middle)
        middle = tl.exp(middle - largest)
    else:
        middle = tl.zeros_like(largest)
    ahead = tl.maximum(upper, -1e38) - tl.maximum(lower, -1e38)  # beyond the last pair both are -inf
    upper = tl.exp(upper - largest[:, None])
    lower = tl.exp(lower - largest[:, None])
    return upper, lower, ahead, middle, tl.sum(upper + lower, axis=1) + middle


@triton.jit
def two_hot_decode_kernel(  # type: ignore[no-untyped-def]
    logits_ptr,
    value_ptr,
    num_rows,
    inner,
    outer_stride,
    inner_stride,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    MEAN_OF_SYMEXP: tl.constexpr,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Mirrored bins are subtracted first, as in the reference: what is symmetric decodes to exactly the centre."""
    dtype: tl.constexpr = value_ptr.dtype.element_ty
    half: tl.constexpr = V // 2
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    pair = tl.arange(0, BLOCK)
    is_row, is_pair = row < num_rows, pair < half
    start = logits_ptr + row_offset(row, inner, outer_stride, inner_stride)
    upper, lower, ahead, middle, total = _mirrored_softmax(
        start[:, None] + (V - half + pair)[None, :],
        start[:, None] + (half - 1 - pair)[None, :],
        start + half,
        is_row,
        is_pair,
        V,
        dtype,
    )
    distance = tl.where(is_pair, from_centre(V - half + pair, V, LOW, HIGH, dtype), 0.0)
    if MEAN_OF_SYMEXP:
        above, below = _worth(distance, is_pair, LOW, HIGH)
        value = _mean_worth(upper, lower, ahead, middle, total, above, below, LOW, HIGH)
    else:
        value = _symexp(tl.sum((upper - lower) * distance[None, :], axis=1) / total + (LOW + HIGH) / 2)
    tl.store(value_ptr + row, value, mask=is_row)


@triton.jit
def two_hot_decode_backward_kernel(  # type: ignore[no-untyped-def]
    logits_ptr,
    grad_ptr,
    logits_grad_ptr,
    num_rows,
    inner,
    outer_stride,
    inner_stride,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    MEAN_OF_SYMEXP: tl.constexpr,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """The gradient of the logits.

        mean_of_symexp:  dz_i = g p_i (symexp(bin_i) - value)
        symexp_of_mean:  dz_i = g exp|x| p_i (bin_i - x),   x = sum_i p_i bin_i; 0 where x is, as autograd has sign(x)
    """
    dtype: tl.constexpr = grad_ptr.dtype.element_ty
    half: tl.constexpr = V // 2
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    pair = tl.arange(0, BLOCK)
    is_row, is_pair = row < num_rows, pair < half
    inside = is_row[:, None] & is_pair[None, :]
    start = logits_ptr + row_offset(row, inner, outer_stride, inner_stride)
    upper_bin, lower_bin = (V - half + pair)[None, :], (half - 1 - pair)[None, :]
    upper, lower, ahead, middle, total = _mirrored_softmax(
        start[:, None] + upper_bin, start[:, None] + lower_bin, start + half, is_row, is_pair, V, dtype
    )
    distance = tl.where(is_pair, from_centre(V - half + pair, V, LOW, HIGH, dtype), 0.0)
    scale = tl.load(grad_ptr + row, mask=is_row, other=0.0) / total
    if MEAN_OF_SYMEXP:
        above, below = _worth(distance, is_pair, LOW, HIGH)
        mean = _mean_worth(upper, lower, ahead, middle, total, above, below, LOW, HIGH)
        at_centre = _symexp(tl.full([1], (LOW + HIGH) / 2, dtype))
    else:
        above, below = distance, -distance
        mean = tl.sum((upper - lower) * distance[None, :], axis=1) / total  # from the centre
        at_centre = tl.full([1], 0.0, dtype)
        x = mean + (LOW + HIGH) / 2
        scale = tl.where(x == 0.0, 0.0, scale * tl.exp(tl.abs(x)))
    upper_grad = scale[:, None] * upper * (above[None, :] - mean[:, None])
    lower_grad = scale[:, None] * lower * (below[None, :] - mean[:, None])
    place = logits_grad_ptr + row.to(tl.int64) * V
    grad_dtype: tl.constexpr = logits_grad_ptr.dtype.element_ty
    tl.store(place[:, None] + upper_bin, upper_grad.to(grad_dtype), mask=inside)
    tl.store(place[:, None] + lower_bin, lower_grad.to(grad_dtype), mask=inside)
    if V % 2 == 1:
        tl.store(place + half, (scale * middle * (at_centre - mean)).to(grad_dtype), mask=is_row)


def two_hot_decode_triton(logits: Tensor, low: float, high: float, form: str) -> Tensor:
    """two_hot_decode; arguments already checked."""
    value: Tensor = torch.ops.mow.two_hot_decode(logits, low, high, form)
    return value


def _launch(logits: Tensor, low: float, high: float, form: str) -> Tensor:
    value = _fake(logits, low, high, form)
    _run(two_hot_decode_kernel, logits, (value,), low, high, form)
    return value


def _run(kernel: Any, logits: Tensor, others: tuple[Tensor, ...], low: float, high: float, form: str) -> None:
    run(kernel, logits, others, low, high, logits.shape[-1] // 2, MEAN_OF_SYMEXP=form == "mean_of_symexp")


def _fake(logits: Tensor, low: float, high: float, form: str) -> Tensor:
    return torch.empty(logits.shape[:-1], dtype=compute_dtype(logits), device=logits.device)


def _launch_backward(grad: Tensor, logits: Tensor, low: float, high: float, form: str) -> Tensor:
    logits_grad = _fake_backward(grad, logits, low, high, form)
    _run(two_hot_decode_backward_kernel, logits, (grad.contiguous(), logits_grad), low, high, form)
    return logits_grad


def _fake_backward(grad: Tensor, logits: Tensor, low: float, high: float, form: str) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


def _setup_context(ctx: Any, inputs: tuple[Tensor, float, float, str], output: Tensor) -> None:
    logits, ctx.low, ctx.high, ctx.form = inputs
    ctx.save_for_backward(logits)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    logits_grad = torch.ops.mow.two_hot_decode_backward(grad, *ctx.saved_tensors, ctx.low, ctx.high, ctx.form)
    return logits_grad, None, None, None


custom_op(
    "two_hot_decode(Tensor logits, float low, float high, str form) -> Tensor",
    _launch,
    _fake,
    setup_context=_setup_context,
    backward=_backward,
)
custom_op(
    "two_hot_decode_backward(Tensor grad, Tensor logits, float low, float high, str form) -> Tensor",
    _launch_backward,
    _fake_backward,
)
