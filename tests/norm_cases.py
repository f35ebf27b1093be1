"""What the kernel of add_layer_norm owes its reference in float64, on any device that can run it."""

import torch

from mow.kernels import add_layer_norm, route_plan
from tests.latent_cases import TOLERANCE, relative_error

# K, J, ..., W: widths that fill a tile, that do not, of one number; rows that do not fill the last program.
SHAPES = [(3, 2, 5, 32), (2, 1, 3, 7, 20), (1, 1, 130, 1), (2, 2, 1, 700)]


def check(shape: tuple[int, ...], dtype: torch.dtype, device: str, *, experts: int, residual: bool, relu: bool) -> None:
    """A float32 residual and affine, an input of `dtype`; the result is of `dtype` too where it is rectified."""
    generator = torch.Generator().manual_seed(0)
    x, rest, weight, bias = (
        torch.randn(size, generator=generator) for size in (shape, shape, (experts, shape[-1]), (experts, shape[-1]))
    )
    routes = torch.randint(0, experts, shape[:2], generator=generator)
    x, rest, weight, bias = x.to(device, dtype), 3 + rest.to(device), weight.to(device), bias.to(device)
    plan = route_plan(routes.to(device), experts)
    results, cotangent = [], torch.randn(shape, generator=generator).to(device, dtype if relu else torch.float32)
    for backend, kind in (("triton", None), ("reference", torch.float64)):
        given = (x, weight, bias, rest) if residual else (x, weight, bias)
        tensors = [tensor.to(kind or tensor.dtype).requires_grad_() for tensor in given]
        more = {"residual": tensors[3] if residual else None, "relu": relu, "dtype": kind or cotangent.dtype}
        y = add_layer_norm(*tensors[:3], plan, **more, backend=backend)
        results.append([y, *torch.autograd.grad(y, tensors, cotangent.to(y.dtype))])
    for got, want, like in zip(*results, (cotangent, *given), strict=True):
        assert (got.dtype, got.shape) == (like.dtype, like.shape)
        assert relative_error(got, want) <= TOLERANCE[got.dtype]
