"""Draws follow p, are exactly one-hot and replayable; the gradient is that of p."""

import importlib

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import OneHotCategorical

from mow.kernels import PhiloxState, sample_onehot, uniform, unimix_prob


def stream(seed: int = 0) -> PhiloxState:
    return PhiloxState.from_seed(seed, "cpu")


def random_logits(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (3 * torch.randn(*shape, generator=generator)).to(dtype)


def test_sample_by_hand() -> None:
    # cdf = 1/4, 3/4, 1 and, for seed 0 and offset 0, u = 0.399, 0.881, 0.736, 0.606 (Random123's known answer).
    logits = torch.tensor([0.25, 0.5, 0.25]).log().expand(1, 4, 3)
    onehot, index = sample_onehot(logits, stream(), unimix=0.0)
    assert index.tolist() == [[1, 2, 1, 1]]
    assert onehot.tolist() == [[[0, 1, 0], [0, 0, 1], [0, 1, 0], [0, 1, 0]]]


def test_unimix_by_hand() -> None:
    # Unmixed: (0, 1). Mixed by half: (1/4, 3/4), and u = 0.399, 0.881 then 0.736, 0.606 lie above 1/4.
    logits = torch.tensor([-500.0, 500.0]).expand(4, 2)
    assert unimix_prob(logits, 0.5)[0].tolist() == [0.25, 0.75]
    assert sample_onehot(logits, stream(), unimix=0.5)[1].tolist() == [1, 1, 1, 1]
    # Mixed fully: (1/2, 1/2), so the first u falls on the class of probability zero before.
    assert sample_onehot(logits, stream(), unimix=1.0)[1].tolist() == [0, 1, 1, 1]


def test_unimix_prob_matches_torch_distributions() -> None:
    logits = random_logits(5, 7, 13, dtype=torch.float64)
    expected = OneHotCategorical(logits=logits).probs
    torch.testing.assert_close(unimix_prob(logits, 0.0), expected, rtol=1e-13, atol=0)  # float64
    torch.testing.assert_close(unimix_prob(logits, 0.3), 0.7 * expected + 0.3 / 13, rtol=1e-13, atol=0)
    # Float32 rounds the logits' distance from the largest, here below 20: 20 * 6e-8.
    torch.testing.assert_close(unimix_prob(logits.float(), 0.0).double(), expected, rtol=2e-6, atol=0)


def test_frequencies_chi_square() -> None:
    num_draws, num_rows = 200_000, 20
    expected = num_draws * unimix_prob(random_logits(num_rows, 32), 0.01).double()
    assert expected.min() > 5  # else the chi-square approximation fails; the unimix floor alone gives 62
    rng = stream(11)
    for row in range(num_rows):
        _, index = sample_onehot(random_logits(num_rows, 32)[row].expand(num_draws, 1, 32), rng)
        observed = torch.bincount(index.flatten().long(), minlength=32)
        p = stats.chisquare(observed.double(), expected[row] / expected[row].sum() * num_draws).pvalue
        assert p > 1e-4 / num_rows, f"row {row}: {p}"  # Bonferroni: a right sampler fails once in 10^4 seeds


def test_groups_are_independent() -> None:
    num = 100_000
    _, index = sample_onehot(torch.zeros(num, 2, 2), stream(2))
    correlation = torch.corrcoef(index.T.double())[0, 1]
    assert abs(correlation) < 5 / num**0.5  # five standard errors


@pytest.mark.parametrize("shape", [(1, 1), (13, 63), (2, 3, 4, 5), (1, 1, 256), (3, 5, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_exactly_one_hot(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    logits = random_logits(*shape, dtype=dtype)
    onehot, index = sample_onehot(logits, stream())
    assert onehot.shape == shape
    assert onehot.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert index.shape == shape[:-1]
    assert index.dtype == torch.uint8
    assert torch.equal(onehot.argmax(-1), index.long())
    assert torch.equal(onehot, torch.nn.functional.one_hot(index.long(), shape[-1]).to(onehot.dtype))


def test_straight_through_gradient_is_that_of_p() -> None:
    logits = random_logits(5, 7, 13).requires_grad_()
    cotangent = torch.randn(5, 7, 13)
    onehot, _ = sample_onehot(logits, stream(), unimix=0.1)
    (got,) = torch.autograd.grad(onehot, logits, cotangent)
    exact = logits.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(0.9 * exact.softmax(-1) + 0.1 / 13, exact, cotangent.double())
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-6)  # entries up to 1, float32 softmax
    assert got.abs().max() > 0.1


def test_gradcheck_of_p() -> None:
    logits = random_logits(2, 3, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: unimix_prob(x, 0.1), logits)


def test_half_precision_gradient_keeps_its_dtype() -> None:
    logits = random_logits(3, 4, dtype=torch.bfloat16).requires_grad_()
    onehot, index = sample_onehot(logits, stream())
    (onehot * torch.arange(4.0)).sum().backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16
    assert not index.requires_grad


@pytest.mark.parametrize("scale", [80.0, 1e4])
@pytest.mark.parametrize("num", [32, 256])  # the last index of 256 classes is the largest byte
def test_extreme_logits(scale: float, num: int) -> None:
    logits = (scale * torch.eye(num).expand(16, num, num)).requires_grad_()
    onehot, index = sample_onehot(logits, stream(), unimix=0.0)
    assert torch.equal(index.long(), torch.arange(num).expand(16, num))  # the others: below num e^-80
    onehot.square().sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_impossible_classes_are_never_drawn() -> None:
    logits = torch.zeros(5000, 4, 9)
    impossible = torch.tensor([True, False, False, True, False, True, False, True, True])
    logits[..., impossible] = -torch.inf
    _, index = sample_onehot(logits, stream(), unimix=0.0)
    assert index.unique().tolist() == [1, 2, 4, 6]


@pytest.mark.parametrize("logit", [-80.0, 0.0, 3.3, 80.0])
def test_index_stays_in_range_at_the_ends_of_u(monkeypatch: pytest.MonkeyPatch, logit: float) -> None:
    smallest_and_largest = torch.tensor([0.0, 1 - 2.0**-24]).repeat(128)
    # By import_module: as an attribute of the package the name is that of the function.
    module = importlib.import_module("mow.kernels.sample_onehot")
    monkeypatch.setattr(module, "uniform", lambda rng, num_rows: smallest_and_largest[:num_rows])
    logits = torch.cat([random_logits(128, 2, 62), torch.full((128, 2, 1), logit)], dim=-1)
    _, index = sample_onehot(logits, stream())
    assert index[:, 0].eq(0).all()
    assert index[:, 1].eq(62).all()
    logits[..., [0, 62]] = -torch.inf  # then the ends are the first and the last possible class
    _, index = sample_onehot(logits, stream(), unimix=0.0)
    assert index[:, 0].eq(1).all()
    assert index[:, 1].eq(61).all()


def test_nan_is_not_hidden() -> None:
    logits = torch.zeros(2, 3)
    logits[0, 1] = torch.nan
    onehot, index = sample_onehot(logits, stream())
    assert index[0] == 0
    assert onehot.isnan().any(-1).tolist() == [True, False]


def test_replay_by_seed_and_offset() -> None:
    logits, rng = random_logits(3, 4, 5, 6), stream(9)
    first, second = sample_onehot(logits, rng)[1], sample_onehot(logits, rng)[1]
    assert rng.seed_offset.tolist() == [9, 2]  # one step per call
    assert not torch.equal(first, second)
    replay = PhiloxState(torch.tensor([9, 1]))
    assert torch.equal(sample_onehot(logits, replay)[1], second)


def test_rows_take_the_numbers_of_uniform() -> None:
    index = sample_onehot(torch.zeros(3, 5, 2), stream(4), unimix=0.0)[1]
    assert torch.equal(index.flatten().bool(), uniform(stream(4), 15) >= 0.5)


def test_strided_and_empty_logits() -> None:
    wide = random_logits(4, 5, 3, 14)
    strided = wide.transpose(0, 1)[..., ::2]
    assert torch.equal(sample_onehot(strided, stream())[0], sample_onehot(strided.contiguous(), stream())[0])
    onehot, index = sample_onehot(torch.zeros(0, 5, 3, 7), stream())
    assert onehot.shape == (0, 5, 3, 7)
    assert index.shape == (0, 5, 3)


def test_autocast_changes_nothing() -> None:
    logits = random_logits(5, 6, 7)
    plain = sample_onehot(logits, stream())[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = sample_onehot(logits, stream())[0]
    assert cast.dtype == torch.float32
    assert torch.equal(plain, cast)


@pytest.mark.parametrize(
    ("logits", "unimix", "message"),
    [
        (torch.zeros(2, 257), 0.01, r"C from 1 to 256, got \[2, 257\]: use fewer classes"),
        (torch.zeros(2, 0), 0.01, r"C from 1 to 256, got \[2, 0\]"),
        (torch.zeros(3), 0.01, r"got \[3\]: use fewer classes or add the group axis"),
        (torch.zeros(2, 3), 1.5, r"unimix is a share in \[0, 1\], got 1.5"),
        (torch.zeros(2, 3), -0.1, r"unimix is a share in \[0, 1\], got -0.1"),
        (torch.zeros(2, 3, dtype=torch.int64), 0.01, "expected floating-point tensors, got torch.int64"),
        (torch.zeros(2, 3, device="meta"), 0.01, "the stream is on cpu and the logits on meta: make it with"),
    ],
)
def test_errors_leave_the_stream_alone(logits: Tensor, unimix: float, message: str) -> None:
    rng = stream()
    with pytest.raises(ValueError, match=message):
        sample_onehot(logits, rng, unimix=unimix)
    assert rng.seed_offset.tolist() == [0, 0]
