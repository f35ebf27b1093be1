"""Reconstruction loss: squared error between the decoded frame and the observed one."""

from typing import Any

import torch
from torch import Tensor


def reconstruction_loss(decoded: Tensor, frame: Tensor) -> Tensor:
    """Squared error on the [0, 1] pixel scale, summed over the image, averaged over B and L.

        L_rec = mean_{b,l} sum_{h,w,c} (o_hat - o / 255)^2

    Args:
        decoded: [K, B, L, 64, 64, 3] float.
        frame: [K, B, L, 64, 64, 3] uint8.
    Returns: [K].
    Source: MoW section 3 (written there as a norm), STORM (the squared sum).
    """
    error = decoded - frame / 255.0  # float32, each of the two in one pass
    return sum_of_squares(error.flatten(3)).mean(dim=(1, 2))


def sum_of_squares(x: Tensor) -> Tensor:
    """Over the last axis: [..., n] -> [...]."""
    if torch.compiler.is_compiling():  # a compiler joins the passes by itself
        return x.square().sum(dim=-1)
    total: Tensor = _SumOfSquares.apply(x)  # type: ignore[no-untyped-call]
    return total


class _SumOfSquares(torch.autograd.Function):
    """The same numbers; the backward pass of square and sum goes over all entries three times, this once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square().sum(dim=-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,), (grad,) = ctx.saved_tensors, grads
        return (2.0 * grad).unsqueeze(-1) * x
