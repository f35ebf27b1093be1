"""KL of latents in both directions, forward and backward, beside plain PyTorch.  python -m bench -k categorical_kl

Peers:
- distributions: kl_divergence of two torch.distributions, twice, with stop-gradients; its checks wait for the device.
- lean: logarithms of the mixed probabilities; the same under torch.compile on a GPU.
"""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, OneHotCategorical, kl_divergence

from bench import floors
from bench.bench_sample_onehot import SHAPES, mixed_prob
from bench.floors import LatentShape
from bench.race import TOLERANCE, Race, close_to, dtype_of, peers_of, with_backward
from mow.kernels import categorical_kl

Batch = tuple[Tensor, Tensor, tuple[Tensor, ...]]


def make_batch(shape: LatentShape, device: str) -> Batch:
    """Logits of posterior and prior [N, S, C], gradients of the two divergences [N]."""
    grids = (2 * torch.randn(2, shape.N, shape.S, shape.C, device=device)).to(dtype_of(device))
    posterior, prior = (grid.contiguous().requires_grad_() for grid in grids.unbind())
    return posterior, prior, torch.rand(2, shape.N, device=device).unbind()


def distributions(posterior: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    def divergence(p: Tensor, q: Tensor) -> Tensor:
        left, right = (Independent(OneHotCategorical(probs=mixed_prob(logits)), 1) for logits in (p, q))
        return kl_divergence(left, right)

    return divergence(posterior.detach(), prior), divergence(posterior, prior.detach())


def lean(posterior: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    p, q = mixed_prob(posterior), mixed_prob(prior)
    log_p, log_q = p.log(), q.log()
    dynamics = (p.detach() * (log_p.detach() - log_q)).sum(dim=(-1, -2))
    representation = (p * (log_p - log_q.detach())).sum(dim=(-1, -2))
    return dynamics, representation


def check(output: tuple[Tensor, ...], inputs: Batch) -> None:
    posterior, prior = (x.detach().double().requires_grad_() for x in inputs[:2])
    wanted = with_backward(lean)(posterior, prior, [x.double() for x in inputs[2]])
    for got, want in zip(output, wanted, strict=True):
        close_to(want, got, TOLERANCE[got.dtype])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_training(race: Race, shape: LatentShape) -> None:
    kind = race.device.kind
    peers = {"distributions": with_backward(distributions)}
    race.run(
        with_backward(lambda posterior, prior: categorical_kl(posterior, prior, backend=race.backend)),
        peers | peers_of("lean", lean, with_backward, kind, "lean, compiled"),
        make=partial(make_batch, shape, kind),
        check=check,
        work=floors.categorical_kl_training(shape, race.itemsize),
    )
