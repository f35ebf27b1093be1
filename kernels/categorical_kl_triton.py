"""The Triton side of categorical_kl: one program per state reads both grids once; saves the logits alone."""

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

# Elements of a tile. A state with more groups than fit takes several turns.
_TILE = 256 if INTERPRETED else 2048
_ELEMENTS_PER_WARP = 512  # sixteen per thread and grid
_MAX_WARPS = 4


@triton.jit
def _compare(z, y, is_class, UNIMIX: tl.constexpr, C: tl.constexpr):  # type: ignore[no-untyped-def]
    """Logits of both sides, [groups, classes] -> s = softmax(z), t = softmax(y), p, ln(p / q), (1 - unimix) t p / q.

    p, q = (1 - unimix) s, t + unimix / C. The padding adds nothing to any sum with p or s.
    """
    z -= tl.max(z, axis=1)[:, None]
    y -= tl.max(y, axis=1)[:, None]
    e, f = tl.exp(z), tl.exp(y)
    total_z, total_y = tl.sum(e, axis=1), tl.sum(f, axis=1)
    s, t = e * (1.0 / total_z)[:, None], f * (1.0 / total_y)[:, None]  # one division per group
    if UNIMIX == 0.0:
        # Without the floor p and q underflow: only this form of the logarithm stays finite, and t p / q is p.
        # In the padding -inf - -inf would not be a number.
        difference = tl.where(is_class[None, :], z, 0.0) - tl.where(is_class[None, :], y, 0.0)
        return s, t, s, difference - (tl.log(total_z) - tl.log(total_y))[:, None], s
    # With it p / q is far from the ends of the range, and its logarithm is one instead of two.
    p = s * (1.0 - UNIMIX) + UNIMIX / C
    ratio = p / (t * (1.0 - UNIMIX) + UNIMIX / C)
    return s, t, p, tl.log(ratio), (1.0 - UNIMIX) * t * ratio


@triton.jit
def categorical_kl_kernel(  # type: ignore[no-untyped-def]
    posterior_ptr,
    prior_ptr,
    dynamics_ptr,
    representation_ptr,
    posterior_inner,
    posterior_outer_stride,
    posterior_inner_stride,
    prior_inner,
    prior_outer_stride,
    prior_inner_stride,
    UNIMIX: tl.constexpr,
    S: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
):
    dtype: tl.constexpr = dynamics_ptr.dtype.element_ty
    state = tl.program_id(0)
    c = tl.arange(0, BLOCK_C)
    is_class = c < C
    posterior_ptr += row_offset(state, posterior_inner, posterior_outer_stride, posterior_inner_stride)
    prior_ptr += row_offset(state, prior_inner, prior_outer_stride, prior_inner_stride)
    kl = tl.zeros([BLOCK_GROUPS], dtype=dtype)
    for first in range(0, S, BLOCK_GROUPS):
        group = first + tl.arange(0, BLOCK_GROUPS)
        is_group = group < S
        place = group[:, None] * C + c[None, :]
        z = load_logits(posterior_ptr + place, is_group, is_class, dtype)
        y = load_logits(prior_ptr + place, is_group, is_class, dtype)
        _, _, p, log_ratio, _ = _compare(z, y, is_class, UNIMIX, C)
        kl += tl.sum(p * log_ratio, axis=1)
    total = tl.sum(kl, axis=0)
    tl.store(dynamics_ptr + state, total)
    tl.store(representation_ptr + state, total)


@triton.jit
def categorical_kl_backward_kernel(  # type: ignore[no-untyped-def]
    posterior_ptr,
    prior_ptr,
    dynamics_grad_ptr,
    representation_grad_ptr,
    posterior_grad_ptr,
    prior_grad_ptr,
    posterior_inner,
    posterior_outer_stride,
    posterior_inner_stride,
    prior_inner,
    prior_outer_stride,
    prior_inner_stride,
    UNIMIX: tl.constexpr,
    S: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
):
    """The gradient of `dynamics` goes to the prior, that of `representation` to the posterior. With s, t = softmax:

        d posterior = g_rep (1 - unimix) s (d - sum(s d)),   d = ln(p / q)
        d prior     = g_dyn (t sum(p w) - p w),              w = (1 - unimix) t / q
    """
    dtype: tl.constexpr = dynamics_grad_ptr.dtype.element_ty
    state = tl.program_id(0)
    c = tl.arange(0, BLOCK_C)
    is_class = c < C
    posterior_ptr += row_offset(state, posterior_inner, posterior_outer_stride, posterior_inner_stride)
    prior_ptr += row_offset(state, prior_inner, prior_outer_stride, prior_inner_stride)
    dynamics_grad = tl.load(dynamics_grad_ptr + state)
    representation_grad = tl.load(representation_grad_ptr + state) * (1.0 - UNIMIX)
    start = state.to(tl.int64) * (S * C)
    for first in range(0, S, BLOCK_GROUPS):
        group = first + tl.arange(0, BLOCK_GROUPS)
        is_group = group < S
        is_inside = is_group[:, None] & is_class[None, :]
        place = group[:, None] * C + c[None, :]
        z = load_logits(posterior_ptr + place, is_group, is_class, dtype)
        y = load_logits(prior_ptr + place, is_group, is_class, dtype)
        s, t, _, d, pw = _compare(z, y, is_class, UNIMIX, C)
        # The 1 of d(p ln p) = ln p + 1 is left out: constants drop out of d - sum(s d).
        posterior_grad = representation_grad * s * (d - tl.sum(s * d, axis=1)[:, None])
        prior_grad = dynamics_grad * (t * tl.sum(pw, axis=1)[:, None] - pw)
        tl.store(posterior_grad_ptr + start + place, posterior_grad.to(posterior_grad_ptr.dtype.element_ty), is_inside)
        tl.store(prior_grad_ptr + start + place, prior_grad.to(prior_grad_ptr.dtype.element_ty), is_inside)


def tile_of(num_groups: int, num_classes: int) -> tuple[int, int, int]:
    """BLOCK_C, BLOCK_GROUPS and the warps of a program, for states of `num_groups` times `num_classes`."""
    block_c = triton.next_power_of_2(num_classes)
    block_groups = min(triton.next_power_of_2(num_groups), max(1, _TILE // block_c))
    return block_c, block_groups, min(_MAX_WARPS, max(1, block_groups * block_c // _ELEMENTS_PER_WARP))


def categorical_kl_triton(posterior_logits: Tensor, prior_logits: Tensor, unimix: float) -> tuple[Tensor, Tensor]:
    """(dynamics, representation) of categorical_kl; arguments already checked."""
    dynamics, representation = torch.ops.mow.categorical_kl(posterior_logits, prior_logits, unimix)
    return dynamics, representation


def _launch(posterior: Tensor, prior: Tensor, unimix: float) -> tuple[Tensor, Tensor]:
    dynamics, representation = _fake(posterior, prior, unimix)
    _run(categorical_kl_kernel, posterior, prior, (dynamics, representation), unimix)
    return dynamics, representation


def _launch_backward(
    posterior: Tensor, prior: Tensor, dynamics_grad: Tensor, representation_grad: Tensor, unimix: float
) -> tuple[Tensor, Tensor]:
    posterior_grad, prior_grad = _fake_backward(posterior, prior, dynamics_grad, representation_grad, unimix)
    grads = (dynamics_grad.contiguous(), representation_grad.contiguous(), posterior_grad, prior_grad)
    _run(categorical_kl_backward_kernel, posterior, prior, grads, unimix)
    return posterior_grad, prior_grad


def _run(kernel: Any, posterior: Tensor, prior: Tensor, others: tuple[Tensor, ...], unimix: float) -> None:
    """One program per state; both kernels take the two grids, `others`, and the same sizes."""
    *leading, num_groups, num_classes = posterior.shape
    if posterior.numel() == 0:
        return
    posterior_layout, prior_layout = row_layout(posterior, 2), row_layout(prior, 2)
    block_c, block_groups, num_warps = tile_of(num_groups, num_classes)
    # Triton launches on the current device, which need not be the one of the tensors.
    with torch.cuda.device(posterior.device) if posterior.is_cuda else nullcontext():
        kernel[(torch.Size(leading).numel(),)](
            posterior_layout.tensor,
            prior_layout.tensor,
            *others,
            *posterior_layout.strides,
            *prior_layout.strides,
            UNIMIX=unimix,
            S=num_groups,
            C=num_classes,
            BLOCK_C=block_c,
            BLOCK_GROUPS=block_groups,
            num_warps=num_warps,
            enable_fp_fusion=True,
        )


def _fake(posterior: Tensor, prior: Tensor, unimix: float) -> tuple[Tensor, Tensor]:
    shape, dtype = posterior.shape[:-2], compute_dtype(posterior, prior)
    dynamics, representation = (torch.empty(shape, dtype=dtype, device=posterior.device) for _ in range(2))
    return dynamics, representation


def _fake_backward(
    posterior: Tensor, prior: Tensor, dynamics_grad: Tensor, representation_grad: Tensor, unimix: float
) -> tuple[Tensor, Tensor]:
    posterior_grad, prior_grad = (
        torch.empty(logits.shape, dtype=logits.dtype, device=logits.device) for logits in (posterior, prior)
    )
    return posterior_grad, prior_grad


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: tuple[Tensor, Tensor]) -> None:
    posterior, prior, ctx.unimix = inputs
    ctx.save_for_backward(posterior, prior)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, dynamics_grad: Tensor | None, representation_grad: Tensor | None
) -> tuple[Tensor | None, Tensor | None, None]:
    """A loss that uses one output alone has no gradient, not a gradient of zeros, for the other's side."""
    posterior, prior = ctx.saved_tensors
    given = dynamics_grad if dynamics_grad is not None else representation_grad
    if given is None:
        return None, None, None
    zeros = torch.zeros_like(given)
    posterior_grad, prior_grad = torch.ops.mow.categorical_kl_backward(
        posterior,
        prior,
        zeros if dynamics_grad is None else dynamics_grad,
        zeros if representation_grad is None else representation_grad,
        ctx.unimix,
    )
    return (
        None if representation_grad is None else posterior_grad,
        None if dynamics_grad is None else prior_grad,
        None,
    )


custom_op(
    "categorical_kl(Tensor posterior, Tensor prior, float unimix) -> (Tensor, Tensor)",
    _launch,
    _fake,
    setup_context=_setup_context,
    backward=_backward,
)
custom_op(
    "categorical_kl_backward(Tensor posterior, Tensor prior, Tensor dynamics_grad, Tensor representation_grad, "
    "float unimix) -> (Tensor, Tensor)",
    _launch_backward,
    _fake_backward,
)
