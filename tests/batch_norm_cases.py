"""What the kernel of batch_norm_relu owes its reference in float64, on any device that can run it."""

import torch

from mow.kernels import batch_norm_relu
from tests.latent_cases import TOLERANCE, relative_error

# Channels that fill a tile, that do not, one; places that do not fill the last program.
SHAPES = [(3, 32, 8, 8), (2, 5, 3, 7), (1, 1, 2, 2), (0, 4, 2, 2)]


def check(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = 2 + torch.randn(shape, generator=generator)
    mean, var, weight, bias = (torch.randn(shape[1], generator=generator).to(device) for _ in range(4))
    x, vectors = x.to(device, dtype, memory_format=torch.channels_last), (mean, var.abs(), weight, bias)
    got = batch_norm_relu(x, *vectors, backend="triton")
    want = batch_norm_relu(x.double(), *(vector.double() for vector in vectors))
    assert (got.dtype, got.shape, got.stride()) == (dtype, x.shape, x.stride())
    assert relative_error(got, want) <= TOLERANCE[dtype]
