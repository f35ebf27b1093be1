"""Batch norm by statistics that are known, then ReLU: what follows each convolution in evaluation mode."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mow.kernels.dispatch import Backend, backends, choose


def batch_norm_relu(
    input: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5,
    backend: Backend = "auto",
) -> Tensor:  # fmt: skip
    """Normalise every channel by given statistics, and rectify it.

        y = max(0, (x - mean) / sqrt(var + eps) * weight + bias)

    Args:
        input: [n, C, H, W]. The kernel takes channels_last memory, as convolutions of stored frames leave it.
        mean, var, weight, bias: [C].
        eps: added to the variance.
        backend: "auto", or the name of an implementation. There is the reference alone while gradients are recorded,
            in float64 and for another layout.
    Returns: shape, dtype and layout of the input.
    Raises: ValueError if a shape does not fit the channels.
    Source: Ioffe and Szegedy 2015.
    """
    vectors = (mean, var, weight, bias)
    if input.dim() != 4 or any(vector.shape != input.shape[1:2] for vector in vectors):
        shapes = ", ".join(str(list(vector.shape)) for vector in vectors)
        raise ValueError(f"mean, var, weight and bias must be [C] of input {list(input.shape)}, got {shapes}")
    recorded = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (input, weight, bias))
    lies = input.is_contiguous(memory_format=torch.channels_last)
    plain = recorded or not lies or torch.float64 in (input.dtype, weight.dtype)
    if choose("batch_norm_relu", backend, ("reference",) if plain else backends(input)) == "triton":
        from mow.kernels.batch_norm_relu_triton import batch_norm_relu_triton

        return batch_norm_relu_triton(input, mean, var, weight, bias, eps)
    return _reference(input, mean, var, weight, bias, eps)


def _reference(input: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.batch_norm(input, mean, var, weight, bias, False, eps=eps).relu_()
