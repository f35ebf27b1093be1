"""Draw of latents beside plain PyTorch.  python -m bench -k sample_onehot

Imagination: the draw alone. Training: the draw and its straight-through backward. Peers:
- distributions: torch.distributions as it comes, with its checks, which wait for the device.
- lean: one exponential number per class and an argmax; the same under torch.compile on a GPU.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.distributions import OneHotCategoricalStraightThrough
from torch.nn import functional as F

from bench import floors
from bench.floors import LatentShape, Work
from bench.race import (
    TOLERANCE,
    Check,
    Contestant,
    Eager,
    Race,
    close_to,
    dtype_of,
    forward_alone,
    peers_of,
    with_backward,
)
from mow.kernels import PhiloxState, sample_onehot

_UNIMIX = 0.01
SHAPES = (
    [LatentShape(26 * 1024, 32, 32), LatentShape(1024, 32, 32)]
    if torch.cuda.is_available()
    else [LatentShape(256, 8, 16)]
)
# The largest of some thousand standard normal numbers exceeds this once in a hundred thousand runs.
_MAX_SIGMA = 6.0

Batch = tuple[Tensor, PhiloxState, Tensor]


def make_batch(shape: LatentShape, device: str) -> Batch:
    """Logits [N, S, C], stream of random numbers, gradient of the one-hot."""
    logits = (2 * torch.randn(shape.N, shape.S, shape.C, device=device)).to(dtype_of(device)).requires_grad_()
    return logits, PhiloxState.from_seed(0, device), torch.randn(logits.shape, device=device)


def mixed_prob(logits: Tensor) -> Tensor:
    """Probabilities of logits, mixed with 1 % of the uniform ones; float32, or float64 for float64 logits."""
    number = logits if logits.dtype == torch.float64 else logits.float()
    return (1 - _UNIMIX) * number.softmax(dim=-1) + _UNIMIX / logits.shape[-1]


def distributions(logits: Tensor) -> Tensor:
    sample: Tensor = OneHotCategoricalStraightThrough(probs=mixed_prob(logits)).rsample()
    return sample


def lean(logits: Tensor) -> Tensor:
    prob = mixed_prob(logits)
    index = (prob / torch.empty_like(prob).exponential_()).argmax(dim=-1)
    return F.one_hot(index, prob.shape[-1]) + (prob - prob.detach())


def check_draw(onehot: Tensor, inputs: Batch) -> None:
    """One class per group; classes as often, and drawn ones as probable, as chance has it over all states."""
    prob = mixed_prob(inputs[0].detach().double())
    drawn = onehot.double().round()
    assert ((onehot - drawn).abs() < 1e-5).all(), "not one-hot"  # eager straight-through rounds
    assert (drawn.sum(dim=-1) == 1).all(), "not one class per group"
    spread = (prob * (1 - prob)).sum(dim=0).sqrt()
    _likely((drawn - prob).sum(dim=0) / spread, "how often a class is drawn")  # [S, C]
    # p of the drawn class has mean sum p^2 and second moment sum p^3. Always taking the likeliest fails here only.
    mean, second = (prob**2).sum(dim=-1), (prob**3).sum(dim=-1)  # [N, S]
    surplus = ((drawn * prob).sum(dim=-1) - mean).sum() / (second - mean**2).sum().sqrt()
    _likely(surplus, "the probability of what is drawn")


def _likely(sigma: Tensor, what: str) -> None:
    worst = float(sigma.abs().max())
    assert worst < _MAX_SIGMA, f"{what} is {worst:.1f} standard deviations off"


def check_training(output: tuple[Tensor, Tensor], inputs: Batch) -> None:
    logits, _, upstream = inputs
    check_draw(output[0], inputs)
    exact = logits.detach().double().requires_grad_()
    (want,) = torch.autograd.grad(mixed_prob(exact), exact, upstream.double())
    close_to(want, output[1], TOLERANCE[logits.dtype])


def _race(race: Race, shape: LatentShape, wrap: Callable[[Contestant], Contestant], check: Check, work: Work) -> None:
    kind = race.device.kind

    def drawing(draw: Contestant) -> Contestant:
        return wrap(lambda logits, rng: draw(logits))

    race.run(
        wrap(lambda logits, rng: sample_onehot(logits, rng, backend=race.backend)[0]),
        {"distributions": Eager(drawing(distributions)), **peers_of("lean", lean, drawing, kind, "lean, compiled")},
        make=partial(make_batch, shape, kind),
        check=check,
        work=work,
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_imagination(race: Race, shape: LatentShape) -> None:
    _race(race, shape, forward_alone, check_draw, floors.sample_onehot(shape, race.itemsize))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_training(race: Race, shape: LatentShape) -> None:
    _race(race, shape, with_backward, check_training, floors.sample_onehot_training(shape, race.itemsize))
