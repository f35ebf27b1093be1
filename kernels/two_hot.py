"""Returns and rewards of any size as a distribution over bins: symlog, two-hot loss, decoding."""

from typing import Literal

import torch
from torch import Tensor

from mow.kernels.dispatch import Backend, backends, choose, compute_dtype

TwoHotForm = Literal["mean_of_symexp", "symexp_of_mean"]

_LARGEST_BIN = 88.0  # symexp of more is no float32


def symlog(x: Tensor) -> Tensor:
    """sign(x) ln(1 + |x|): squeezes large numbers of both signs. Any shape. Source: DreamerV3 (symlog predictions)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """sign(x) (exp|x| - 1): the inverse of symlog. Any shape. Source: DreamerV3 (symlog predictions)."""
    return x.sign() * x.abs().expm1()


def two_hot_loss(
    logits: Tensor, target: Tensor, *, low: float = -20.0, high: float = 20.0, backend: Backend = "auto"
) -> Tensor:
    """Cross-entropy against the two-hot code of symlog(target), nats.

        bin_i = low + i (high - low) / (V - 1),   y = clamp(symlog(target), low, high),   bin_b <= y <= bin_{b+1}
        w = (y - bin_b) / (bin_{b+1} - bin_b),    loss = -(1 - w) ln p_b - w ln p_{b+1},   p = softmax(logits)

    Args:
        logits: [..., V], V at least 2.
        target: [...], units of the task; receives no gradient. Beyond symexp(low), symexp(high) the end bin is meant.
        low: first bin, in units of symlog.
        high: last bin; a target on a bin has the one-hot code of that bin exactly.
        backend: "auto", or the name of an implementation.
    Returns: [...] nats, float64 if a tensor has it, else float32.
    Raises: ValueError if a shape, dtype or device is wrong, or low >= high.
    Source: MoW section 3 (reward head, critic); bins as STORM.
    """
    _check_bins(logits, low, high)
    if target.shape != logits.shape[:-1]:
        raise ValueError(
            f"target must have the shape of the logits without the bins, {list(logits.shape[:-1])}, "
            f"got {list(target.shape)}: squeeze or index it"
        )
    if target.device != logits.device:
        raise ValueError(
            f"target and logits must share a device, got {target.device} and {logits.device}: move one with .to()"
        )
    compute_dtype(logits, target)
    if choose("two_hot_loss", backend, backends(logits)) == "triton":
        # Loaded when first chosen: triton takes longer to import than all of this package.
        from mow.kernels.two_hot_triton import two_hot_loss_triton

        return two_hot_loss_triton(logits, target.detach(), low, high)
    return _loss_reference(logits, target.detach(), low, high)


def two_hot_decode(
    logits: Tensor,
    *,
    low: float = -20.0,
    high: float = 20.0,
    form: TwoHotForm = "symexp_of_mean",
    backend: Backend = "auto",
) -> Tensor:
    """The number a distribution over bins stands for.

        mean_of_symexp:  value = sum_i p_i symexp(bin_i)        p = softmax(logits)
        symexp_of_mean:  value = symexp(sum_i p_i bin_i)

    The first is the mean of what the bins stand for: a tenth of 100 and nine tenths of 0 give 10.03, not 10, because a
    code between two bins is linear in symlog. The second gives 0.59: it shrinks large numbers that are uncertain.

    Args:
        logits: [..., V], V at least 2.
        low: first bin, in units of symlog.
        high: last bin. With low = -high a symmetric distribution, such as that of zero logits, decodes to exactly 0.
        form: which of the two.
        backend: "auto", or the name of an implementation.
    Returns: [...], units of the task, float64 for float64 logits, else float32.
    Raises: ValueError if the logits have the wrong shape or dtype, if low >= high, if the form is unknown, or if
        mean_of_symexp has a bin beyond 88, whose symexp float32 does not hold.
    Source: STORM for symexp_of_mean; DreamerV3 (symexp_twohot) for mean_of_symexp.
    """
    _check_bins(logits, low, high)
    if form not in ("mean_of_symexp", "symexp_of_mean"):
        raise ValueError(f"form must be mean_of_symexp or symexp_of_mean, got {form!r}")
    if form == "mean_of_symexp" and max(-low, high) > _LARGEST_BIN:
        raise ValueError(f"mean_of_symexp needs bins within +-{_LARGEST_BIN:g}, got {low} and {high}: move them")
    compute_dtype(logits)
    if choose("two_hot_decode", backend, backends(logits)) == "triton":
        from mow.kernels.two_hot_decode_triton import two_hot_decode_triton

        return two_hot_decode_triton(logits, low, high, form)
    return _decode_reference(logits, low, high, form)


def _check_bins(logits: Tensor, low: float, high: float) -> None:
    if logits.dim() < 1 or logits.shape[-1] < 2:
        raise ValueError(f"logits must be [..., V] with at least 2 bins, got {list(logits.shape)}: widen the head")
    if not low < high:
        raise ValueError(f"low must be below high, got {low} and {high}: swap them")


def _distance_from_centre(num_bins: int, low: float, high: float, like: Tensor) -> Tensor:
    """bin_i - (low + high) / 2 for all bins [V]; rounding keeps it exactly antisymmetric and exact at both ends."""
    step = torch.arange(num_bins, device=like.device, dtype=like.dtype)
    return (2.0 * step - (num_bins - 1)) / (num_bins - 1) * ((high - low) / 2)


def _loss_reference(logits: Tensor, target: Tensor, low: float, high: float) -> Tensor:
    dtype = compute_dtype(logits, target)
    log_prob = logits.to(dtype).log_softmax(dim=-1)  # [..., V]
    num_bins = logits.shape[-1]
    bins = _distance_from_centre(num_bins, low, high, log_prob) + (low + high) / 2
    y = symlog(target.to(dtype)).clamp(bins[0], bins[-1])  # [...]
    # Found in the table of bins, not by dividing: the code of a target on a bin is then exactly one-hot.
    lower = (torch.bucketize(y.contiguous(), bins) - 1).clamp(0, num_bins - 2)
    weight = (y - bins[lower]) / (bins[lower + 1] - bins[lower])
    pair = log_prob.gather(-1, torch.stack((lower, lower + 1), dim=-1))  # [..., 2]
    return -(1.0 - weight) * pair[..., 0] - weight * pair[..., 1]


def _decode_reference(logits: Tensor, low: float, high: float, form: TwoHotForm) -> Tensor:
    logits = logits.to(compute_dtype(logits))
    prob = logits.softmax(dim=-1)
    num_bins = logits.shape[-1]
    half = num_bins // 2
    # Mirrored bins are as far from the centre as each other, so their probabilities can be subtracted first. This is
    # the same mean, and it cancels exactly where 255 rounded terms would leave a remainder.
    upper, lower = prob[..., num_bins - half :], prob[..., :half].flip(-1)  # [..., V // 2]
    distance, centre = _distance_from_centre(num_bins, low, high, prob)[num_bins - half :], (low + high) / 2
    if form == "symexp_of_mean":
        return symexp(((upper - lower) * distance).sum(dim=-1) + centre)
    above, below = symexp(centre + distance), symexp(centre - distance)
    # p_u - p_l of mirrored bins is (p_u + p_l) tanh((z_u - z_l) / 2), which keeps its digits where both are nearly as
    # likely: the bins at the ends stand for 5e8, and what is rounded off a p of 1e-5 would count as 0.5.
    finite = logits.clamp_min(torch.finfo(logits.dtype).min / 4)
    ahead = finite[..., num_bins - half :] - finite[..., :half].flip(-1)
    value = ((upper + lower) * (ahead / 2).tanh() * ((above - below) / 2)).sum(dim=-1)
    if centre == 0.0:  # below = -above, and a middle bin is 0
        return value
    value = value + ((upper + lower) * ((above + below) / 2)).sum(dim=-1)
    return value + prob[..., half] * symexp(prob.new_tensor(centre)) if num_bins % 2 else value
