"""Effective numbers: of directions in which states differ, and of shares."""

import torch
from torch import Tensor


def effective_count(share: Tensor) -> Tensor:
    """exp(H(share)): n for n equal shares, 1 where one has all. [..., n], sums to 1 -> [...]."""
    return torch.special.entr(share).sum(dim=-1).exp()


def effective_rank(states: Tensor) -> Tensor:
    """Number of directions in which states differ.

        exp(H(p)),   p_i = s_i / sum s,   s = singular values of the states less their mean

    Args: states: [..., N, D].
    Returns: [...] float64: r for r directions of equal strength, 0 where all states are the same, nan where one is not
        finite.
    Source: Roy and Vetterli, The effective rank (2007). Differs: the mean is taken off first: it separates no states.
    """
    finite = states.isfinite().all(dim=(-2, -1))  # [...]
    # The eigenvalues of a nan are an error, which would hide from the logger where the nan came from.
    states = torch.where(finite[..., None, None], states.double(), 0.0)
    centred = states - states.mean(dim=-2, keepdim=True)
    # Eigenvalues of the [D, D] products: on a GPU far cheaper than singular values of [N, D].
    variance = torch.linalg.eigvalsh(centred.mT @ centred)  # [..., D]
    # What rounding leaves of a direction that is not there; relative to the states with their mean, so that states
    # all alike have rank 0 and not that of their rounding.
    floor = states.square().sum(dim=(-2, -1)) * states.shape[-1] * torch.finfo(states.dtype).eps  # [...]
    singular = torch.where(variance > floor.unsqueeze(-1), variance, 0.0).sqrt()
    total = singular.sum(dim=-1, keepdim=True)
    rank = effective_count(singular / total.clamp_min(torch.finfo(states.dtype).tiny))
    return torch.where(total.squeeze(-1) > 0, rank, 0.0).masked_fill(~finite, torch.nan)
