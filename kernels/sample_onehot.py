"""Draw one-hot latents whose gradient is that of the probabilities."""

import torch
from torch import Tensor

from mow.kernels.dispatch import Backend, backends, choose, compute_dtype
from mow.kernels.philox import PhiloxState, uniform
from mow.kernels.softmax import softmax

_MAX_CLASSES = 256  # the index of a class is one byte


def sample_onehot(
    logits: Tensor, rng: PhiloxState, *, unimix: float = 0.01, backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """One class per group by inverting the distribution function: one uniform number each.

        p = (1 - unimix) softmax(logits) + unimix / C,   index = #{c : cdf_c <= u * sum(p)},   d onehot := d p

    Args:
        logits: [..., S, C], C at most 256; the groups in memory order are the rows of `uniform`.
        rng: the stream, on the device of the logits; advances once per call.
        unimix: share of the uniform distribution, in [0, 1].
        backend: "auto", or the name of an implementation.
    Returns:
        onehot: [..., S, C], float64 for float64 logits, else float32; exactly 0 and 1; straight-through gradient.
        index: [..., S] uint8. A class of probability 0 is never drawn. A group with not-a-number logits has
        index 0 and a one-hot of not-a-numbers.
    Raises: ValueError if the logits have the wrong shape or dtype, the stream another device, or unimix is outside
        [0, 1].
    Source: MoW section 3 (categorical latents); straight-through and unimix as DreamerV3.
    """
    if logits.dim() < 2 or not 1 <= logits.shape[-1] <= _MAX_CLASSES:
        raise ValueError(
            f"logits must be [..., S, C] with C from 1 to {_MAX_CLASSES}, got {list(logits.shape)}: use fewer classes "
            "or add the group axis"
        )
    if rng.seed_offset.device != logits.device:
        raise ValueError(
            f"the stream is on {rng.seed_offset.device} and the logits on {logits.device}: "
            "make it with PhiloxState.from_seed(seed, logits.device)"
        )
    check_unimix(unimix)
    compute_dtype(logits)
    if choose("sample_onehot", backend, backends(logits)) == "triton":
        # Loaded when first chosen: triton takes longer to import than all of this package.
        from mow.kernels.sample_onehot_triton import sample_onehot_triton

        onehot, index = sample_onehot_triton(logits, rng, unimix)
    else:
        onehot, index = _reference(logits, rng, unimix)
    rng.advance()
    return onehot, index


def check_unimix(unimix: float) -> None:
    if not 0.0 <= unimix <= 1.0:
        raise ValueError(f"unimix is a share in [0, 1], got {unimix}: 0.01 is the usual value")


def unimix_prob(logits: Tensor, unimix: float) -> Tensor:
    """Probabilities with a floor, so that no class dies out.

        p = (1 - unimix) softmax(logits) + unimix / C

    Args:
        logits: [..., C].
        unimix: share of the uniform distribution, in [0, 1].
    Returns: [..., C], float64 for float64 logits, else float32.
    Raises: ValueError if unimix is outside [0, 1] or the logits are not floating.
    Source: DreamerV3 (1 % uniform mixture).
    """
    check_unimix(unimix)
    prob = softmax(logits.to(compute_dtype(logits)))
    return (1.0 - unimix) * prob + unimix / logits.shape[-1]


def _reference(logits: Tensor, rng: PhiloxState, unimix: float) -> tuple[Tensor, Tensor]:
    prob = unimix_prob(logits, unimix)
    u = uniform(rng, prob[..., 0].numel()).view(prob.shape[:-1])  # [..., S]
    cdf = prob.cumsum(dim=-1)
    # The sum is read off the cdf. Then u * sum < sum also after rounding (u <= 1 - 2^-24), so the last class never
    # counts and the index needs no clamp.
    threshold = u.unsqueeze(-1) * cdf[..., -1:]
    index = (cdf <= threshold).sum(dim=-1, dtype=torch.uint8)  # [..., S] at most 255; counting in int64 is far slower
    onehot = (index.unsqueeze(-1) == torch.arange(prob.shape[-1], device=prob.device)).to(prob.dtype)
    # p - p is exactly 0, so the value stays one-hot; without the parentheses it would be rounded.
    return onehot + (prob - prob.detach()), index
