"""Both directions of the divergence and their gradients from the kernel, against the reference in float64."""

import importlib
import inspect
import math

import pytest
import torch
from torch import Tensor

from mow.kernels import categorical_kl
from mow.kernels.categorical_kl_triton import categorical_kl_triton
from tests.latent_cases import DTYPES, LATENT_SHAPES, check_kl, random_logits


def kl(posterior: Tensor, prior: Tensor, unimix: float = 0.01) -> tuple[Tensor, Tensor]:
    return categorical_kl(posterior, prior, unimix=unimix, backend="triton")


def random_pair(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return random_logits(shape, dtype, "cpu", 0), random_logits(shape, dtype, "cpu", 1)


def test_kl_by_hand() -> None:
    # 1/2 ln(1/2 : 1/4) + 1/2 ln(1/2 : 3/4) = ln(4/3) / 2 per group, two groups.
    posterior, prior = torch.zeros(1, 2, 2), torch.tensor([0.25, 0.75]).log().expand(1, 2, 2)
    dynamics, representation = kl(posterior, prior, unimix=0.0)
    assert dynamics.tolist() == representation.tolist()
    assert dynamics.item() == pytest.approx(math.log(4 / 3), rel=1e-6)  # float32


@pytest.mark.parametrize(
    ("shape", "unimix", "dtype"),
    [*((shape, 0.01, torch.float32) for shape in LATENT_SHAPES),
     *((LATENT_SHAPES[1], 0.01, dtype) for dtype in DTYPES if dtype != torch.float32),
     *((LATENT_SHAPES[2], unimix, torch.float32) for unimix in (0.0, 1.0))],
)  # fmt: skip
def test_matches_float64(shape: tuple[int, ...], unimix: float, dtype: torch.dtype) -> None:
    check_kl(shape, unimix, dtype, "cpu")


def test_mixed_dtypes() -> None:
    posterior, prior = random_pair(3, 4, 5, dtype=torch.bfloat16)
    assert torch.equal(kl(posterior, prior.float())[0], kl(posterior.float(), prior.float())[0])
    assert kl(posterior, prior.double())[0].dtype == torch.float64


def test_gradients_go_one_way() -> None:
    posterior, prior = (x.requires_grad_() for x in random_pair(5, 3, 4))
    dynamics, representation = kl(posterior, prior)
    # Both outputs are one node of the graph here; the reference would keep its second half by itself.
    to_posterior, to_prior = torch.autograd.grad(
        dynamics.sum(), (posterior, prior), allow_unused=True, retain_graph=True
    )
    assert to_posterior is None
    assert to_prior.abs().max() > 0.1
    to_posterior, to_prior = torch.autograd.grad(representation.sum(), (posterior, prior), allow_unused=True)
    assert to_prior is None
    assert to_posterior.abs().max() > 0.1


@pytest.mark.parametrize("unimix", [0.0, 0.01])
def test_extreme_logits(unimix: float) -> None:
    posterior = (80 * (2 * torch.eye(4) - 1)).repeat(3, 1, 1).requires_grad_()
    prior = posterior.detach().flip(-1).clone().requires_grad_()
    dynamics, representation = kl(posterior, prior, unimix)
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
    expected = [x.clone().double().requires_grad_() for x in (posterior, prior)]
    posterior, prior = posterior.requires_grad_(), prior.requires_grad_()
    got = kl(posterior, prior)
    for x in (got, categorical_kl(*expected, backend="reference")):
        (x[0] + 2 * x[1]).sum().backward()
    for x, double in zip((posterior, prior), expected, strict=True):
        assert x.grad is not None
        assert double.grad is not None
        torch.testing.assert_close(x.grad.double(), double.grad, rtol=0, atol=2e-6)  # entries up to 2, float32


def test_equal_distributions_have_none() -> None:
    posterior, _ = random_pair(5, 32, 32)
    dynamics, _ = kl(posterior, posterior + 7.0)  # a shift of logits changes no probability
    torch.testing.assert_close(dynamics, torch.zeros(5), rtol=0, atol=2e-5)  # 32 groups, each some 5e-7 off ln p


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's word for a NaN, which this test is about
def test_nan_is_not_hidden() -> None:
    posterior, prior = random_pair(3, 2, 3)
    posterior[1, 0, 1] = torch.nan
    prior[2, 1, 0] = torch.nan
    assert kl(posterior, prior)[0].isnan().tolist() == [False, True, True]


def test_slices_of_time_are_read_where_they_lie() -> None:
    # As in the losses: posterior of t + 1 against prior of t; and gradients that are slices themselves.
    posterior, prior = (x.requires_grad_() for x in random_pair(2, 2, 3, 2, 6))
    cotangent = torch.randn(2, 2, 3)[:, :, 1:]
    results = []
    for a, b in (
        (posterior[:, :, 1:], prior[:, :, :-1]),
        (posterior[:, :, 1:].contiguous(), prior[:, :, :-1].contiguous()),
        (posterior.transpose(0, 2)[1:].transpose(0, 2), prior[:, :, :-1]),
    ):
        outputs = kl(a, b)
        gradients = (cotangent, 2 * cotangent) if not results else (cotangent.contiguous(), 2 * cotangent.contiguous())
        results.append((*outputs, *torch.autograd.grad(outputs, (posterior, prior), gradients)))
    for result in results[1:]:
        assert all(map(torch.equal, results[0], result))


def test_empty_and_autocast() -> None:
    posterior, prior = (x.requires_grad_() for x in random_pair(4, 6, 3, 8))
    assert kl(posterior[:0], prior[:0])[0].shape == (0, 6)
    sum(kl(posterior[:0], prior[:0])).sum().backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = kl(posterior, prior)[0]
    assert torch.equal(cast, kl(posterior, prior)[0])


def test_opcheck() -> None:
    posterior, prior = (x.requires_grad_() for x in random_pair(1, 2, 3))
    torch.library.opcheck(torch.ops.mow.categorical_kl.default, (posterior, prior, 0.01))
    arguments = (posterior.detach(), prior.detach(), torch.randn(1), torch.randn(1), 0.01)
    checks = ("test_schema", "test_faketensor")  # it has no gradient; test_one_graph_under_compile traces it
    torch.library.opcheck(torch.ops.mow.categorical_kl_backward.default, arguments, test_utils=checks)


def test_one_graph_under_compile() -> None:
    pair = [x.requires_grad_() for x in random_pair(2, 3, 4)]
    torch.compiler.reset()
    compiled = torch.compile(kl, backend="aot_eager", fullgraph=True)
    results = []
    for f in (compiled, kl):
        outputs = f(*pair)
        results.append((*outputs, *torch.autograd.grad(outputs, pair, [torch.ones(2), torch.ones(2)])))
    assert all(map(torch.equal, *results))


def test_equal_signatures() -> None:
    reference = importlib.import_module("mow.kernels.categorical_kl")._reference
    door, *rooms = (list(inspect.signature(f).parameters) for f in (categorical_kl, reference, categorical_kl_triton))
    assert door == [*rooms[0], "backend"] == [*rooms[1], "backend"]
