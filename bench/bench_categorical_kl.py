"""KL of latents beside plain PyTorch.  python -m bench -k categorical_kl

Both directions, forward and backward. Peers:
- distributions: kl_divergence of two torch.distributions, twice, with stop-gradients; its checks wait for the device.
- lean: logarithms of the mixed probabilities; the same under torch.compile on a GPU.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, OneHotCategorical, kl_divergence

from bench import floors
from bench.floors import LatentShape
from bench.race import TOLERANCE, Contestant, Eager, Race, close_to, dtype_of, peers_of
from mow.kernels import categorical_kl

_UNIMIX = 0.01
SHAPES = (
    [LatentShape(26 * 1024, 32, 32), LatentShape(1024, 32, 32)]
    if torch.cuda.is_available()
    else [LatentShape(256, 8, 16)]
)

Batch = tuple[Tensor, Tensor, Tensor, Tensor]
Both = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def make_batch(shape: LatentShape, device: str) -> Batch:
    """Logits of posterior and prior [N, S, C], gradients of the two divergences [N]."""
    grids = (2 * torch.randn(2, shape.N, shape.S, shape.C, device=device)).to(dtype_of(device))
    posterior, prior = (grid.contiguous().requires_grad_() for grid in grids.unbind())
    upstream = torch.rand(2, shape.N, device=device)
    return posterior, prior, upstream[0], upstream[1]


def _prob(logits: Tensor) -> Tensor:
    number = logits if logits.dtype == torch.float64 else logits.float()
    return (1 - _UNIMIX) * number.softmax(dim=-1) + _UNIMIX / logits.shape[-1]


def distributions(posterior: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    def divergence(p: Tensor, q: Tensor) -> Tensor:
        left, right = (Independent(OneHotCategorical(probs=_prob(logits)), 1) for logits in (p, q))
        return kl_divergence(left, right)

    return divergence(posterior.detach(), prior), divergence(posterior, prior.detach())


def lean(posterior: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    p, q = _prob(posterior), _prob(prior)
    log_p, log_q = p.log(), q.log()
    dynamics = (p.detach() * (log_p.detach() - log_q)).sum(dim=(-1, -2))
    representation = (p * (log_p - log_q.detach())).sum(dim=(-1, -2))
    return dynamics, representation


def with_backward(both: Both) -> Contestant:
    """-> both divergences [N], gradients of both logits."""

    def call(posterior: Tensor, prior: Tensor, *upstream: Tensor) -> tuple[Tensor, ...]:
        values = both(posterior, prior)
        gradients = torch.autograd.grad(values, (posterior, prior), upstream)
        return *(value.detach() for value in values), *gradients

    return Eager(call)


def check(output: tuple[Tensor, ...], inputs: Batch) -> None:
    exact = tuple(x.detach().double().requires_grad_(x.requires_grad) for x in inputs)
    wanted = with_backward(lean)(*exact)
    for got, want in zip(output, wanted, strict=True):
        close_to(want, got, TOLERANCE[got.dtype])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_training(race: Race, shape: LatentShape) -> None:
    kind = race.device.kind
    lean_peers = peers_of("lean", lean, with_backward, kind, "lean, compiled")
    race.run(
        with_backward(lambda posterior, prior: categorical_kl(posterior, prior, backend=race.backend)),
        {"distributions": with_backward(distributions), **lean_peers},
        make=partial(make_batch, shape, kind),
        check=check,
        work=floors.categorical_kl_training(shape, race.itemsize),
    )
