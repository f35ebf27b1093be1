"""The divergence against hand-worked numbers and torch.distributions; which gradient goes where."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, OneHotCategorical, kl_divergence

from mow.kernels import categorical_kl, unimix_prob


def random_pair(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    posterior, prior = 3 * torch.randn(2, *shape, generator=generator)
    return posterior.to(dtype), prior.to(dtype)


def test_kl_by_hand() -> None:
    # 1/2 ln(1/2 : 1/4) + 1/2 ln(1/2 : 3/4) = ln(4/3) / 2 per group, two groups.
    posterior, prior = torch.zeros(1, 2, 2), torch.tensor([0.25, 0.75]).log().expand(1, 2, 2)
    dynamics, representation = categorical_kl(posterior, prior, unimix=0.0)
    assert dynamics.tolist() == representation.tolist()
    assert dynamics.item() == pytest.approx(math.log(4 / 3), rel=1e-6)  # float32


def test_unimix_by_hand() -> None:
    # Half mixed, (1, 0) becomes (3/4, 1/4) and (0, 1) becomes (1/4, 3/4): 3/4 ln 3 + 1/4 ln 1/3 = ln(3) / 2.
    far = torch.tensor([[500.0, -500.0]])
    dynamics, _ = categorical_kl(far, -far, unimix=0.5)
    assert dynamics.item() == pytest.approx(math.log(3) / 2, rel=1e-6)  # float32


@pytest.mark.parametrize("unimix", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("shape", [(1, 1, 1), (13, 3, 63), (2, 3, 4, 32, 32)])
def test_matches_torch_distributions(unimix: float, shape: tuple[int, ...]) -> None:
    posterior, prior = random_pair(*shape, dtype=torch.float64)
    p, q = (Independent(OneHotCategorical(probs=unimix_prob(x, unimix)), 1) for x in (posterior, prior))
    expected = kl_divergence(p, q)
    for got in categorical_kl(posterior, prior, unimix=unimix):
        assert got.shape == shape[:-2]
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)  # float64; torch clamps p at 2e-16
    for got in categorical_kl(posterior.float(), prior.float(), unimix=unimix):
        assert got.dtype == torch.float32
        # 32 groups of up to 63 terms, each off by some 1e-7 of its size.
        torch.testing.assert_close(got.double(), expected, rtol=5e-6, atol=5e-6)


def test_gradients_go_one_way() -> None:
    posterior, prior = (x.requires_grad_() for x in random_pair(5, 3, 4))
    dynamics, representation = categorical_kl(posterior, prior)
    to_posterior, to_prior = torch.autograd.grad(dynamics.sum(), (posterior, prior), allow_unused=True)
    assert to_posterior is None
    assert to_prior.abs().max() > 0.1
    to_posterior, to_prior = torch.autograd.grad(representation.sum(), (posterior, prior), allow_unused=True)
    assert to_prior is None
    assert to_posterior.abs().max() > 0.1


@pytest.mark.parametrize("unimix", [0.0, 0.01])
def test_gradcheck(unimix: float) -> None:
    posterior, prior = random_pair(2, 3, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: categorical_kl(posterior, x, unimix=unimix)[0], prior.clone().requires_grad_()
    )
    assert torch.autograd.gradcheck(
        lambda x: categorical_kl(x, prior, unimix=unimix)[1], posterior.clone().requires_grad_()
    )


def test_float32_gradients_match_float64() -> None:
    single = [x.requires_grad_() for x in random_pair(7, 32, 32)]
    double = [x.detach().double().requires_grad_() for x in single]
    for got, expected in zip(
        torch.autograd.grad(sum(categorical_kl(*single)).sum(), single),
        torch.autograd.grad(sum(categorical_kl(*double)).sum(), double),
        strict=True,
    ):
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=2e-6)  # entries up to 6, float32 logarithms


@pytest.mark.parametrize("unimix", [0.0, 0.01])
def test_extreme_logits(unimix: float) -> None:
    posterior = (80 * (2 * torch.eye(4) - 1)).repeat(3, 1, 1).requires_grad_()
    prior = posterior.detach().flip(-1).clone().requires_grad_()
    dynamics, representation = categorical_kl(posterior, prior, unimix=unimix)
    floor = unimix / 4
    top = 1 - 3 * floor
    # Unmixed, ln p - ln q = 160 at the one class that counts; mixed, it is bounded by the floor.
    per_group = 160.0 if unimix == 0.0 else (top - floor) * math.log(top / floor)
    torch.testing.assert_close(dynamics, torch.full((3,), 4 * per_group), rtol=1e-6, atol=0)  # float32
    (dynamics + representation).sum().backward()
    assert posterior.grad is not None
    assert prior.grad is not None
    assert posterior.grad.isfinite().all()
    assert prior.grad.isfinite().all()


def test_minus_infinity_with_unimix() -> None:
    posterior, prior = random_pair(2, 3, 4)
    posterior[..., 0] = prior[..., 1] = -torch.inf
    posterior, prior = posterior.requires_grad_(), prior.requires_grad_()
    dynamics, representation = categorical_kl(posterior, prior)
    (dynamics + representation).sum().backward()
    assert dynamics.isfinite().all()
    assert posterior.grad is not None
    assert prior.grad is not None
    assert posterior.grad.isfinite().all()
    assert prior.grad.isfinite().all()


def test_equal_distributions_have_none() -> None:
    posterior, _ = random_pair(5, 32, 32)
    dynamics, _ = categorical_kl(posterior, posterior + 7.0)  # a shift of logits changes no probability
    torch.testing.assert_close(dynamics, torch.zeros(5), rtol=0, atol=2e-5)  # 32 groups, each some 5e-7 off ln p


def test_half_precision_strides_empty_autocast() -> None:
    posterior, prior = random_pair(4, 6, 3, 8, dtype=torch.bfloat16)
    expected = categorical_kl(posterior.float(), prior.float())[0]
    assert torch.equal(categorical_kl(posterior, prior)[0], expected)  # half inputs, float32 arithmetic
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(categorical_kl(posterior, prior)[0], expected)
    strided = categorical_kl(posterior.transpose(0, 1), prior.transpose(0, 1))[0]
    torch.testing.assert_close(strided, expected.T, rtol=1e-6, atol=1e-6)  # sums may run in another order
    assert categorical_kl(posterior[:0], prior[:0])[0].shape == (0, 6)
    posterior.requires_grad_()
    categorical_kl(posterior, prior)[1].sum().backward()
    assert posterior.grad is not None
    assert posterior.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("posterior", "prior", "unimix", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 3), 0.01, r"got \[2, 3\] and \[3, 3\]: align their time steps first"),
        (torch.zeros(3), torch.zeros(3), 0.01, r"must share one shape \[..., S, C\], got \[3\]"),
        (torch.zeros(2, 3), torch.zeros(2, 3), 2.0, r"unimix is a share in \[0, 1\], got 2.0"),
        (torch.zeros(2, 3), torch.zeros(2, 3).int(), 0.01, "expected floating-point tensors, got torch.int32"),
        (torch.zeros(2, 3), torch.zeros(2, 3, device="meta"), 0.01, "must share a device, got cpu and meta: move one"),
    ],
)
def test_errors(posterior: Tensor, prior: Tensor, unimix: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        categorical_kl(posterior, prior, unimix=unimix)
