"""Hand-worked codes, the round trip of a number through the bins, exactness at bins and at zero, both means."""

import math

import pytest
import torch
from torch import Tensor

from mow.kernels import symexp, symlog, two_hot_decode, two_hot_loss
from tests.latent_cases import check_nearly_symmetric

FORMS = ("mean_of_symexp", "symexp_of_mean")


def two_hot_code(target: Tensor, num_bins: int, **bins: float) -> Tensor:
    """The code read off the loss: with zero logits its gradient is 1 / V - code."""
    logits = torch.zeros(*target.shape, num_bins, dtype=target.dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(two_hot_loss(logits, target, **bins).sum(), logits)
    return 1 / num_bins - gradient


def test_symlog_by_hand() -> None:
    x = torch.tensor([0.0, math.e - 1, 1 - math.e, math.e**3 - 1], dtype=torch.float64)
    torch.testing.assert_close(symlog(x), torch.tensor([0.0, 1, -1, 3], dtype=torch.float64), rtol=1e-15, atol=0)
    torch.testing.assert_close(symexp(symlog(x)), x, rtol=1e-14, atol=0)  # float64


def test_loss_by_hand() -> None:
    # Bins -2, -1, 0, 1, 2 and y = 1/2: half of the mass each on bins 0 and 1, that is 3/15 and 4/15.
    logits = torch.tensor([1.0, 2, 3, 4, 5]).log()
    got = two_hot_loss(logits, torch.tensor(math.exp(0.5) - 1), low=-2, high=2)
    assert got.item() == pytest.approx(-(math.log(3 / 15) + math.log(4 / 15)) / 2, rel=1e-6)  # float32


def test_decode_by_hand() -> None:
    # Bins -1 and 1 with 1/4 and 3/4: mean 1/2.
    got = two_hot_decode(torch.tensor([1.0, 3.0]).log(), low=-1, high=1)
    assert got.item() == pytest.approx(math.exp(0.5) - 1, rel=1e-6)  # float32
    # Bins 0, 1, 2 with 1/4, 1/4, 1/2: mean 5/4. These are not balanced around zero.
    got = two_hot_decode(torch.tensor([1.0, 1.0, 2.0]).log(), low=0, high=2)
    assert got.item() == pytest.approx(math.exp(1.25) - 1, rel=1e-6)  # float32


def test_mean_of_symexp_by_hand() -> None:
    # Bins -ln 3 and ln 3 stand for -2 and 2, with 1/4 and 3/4: 1. Bins 0, ln 2, ln 4 stand for 0, 1, 3: 7/4.
    got = two_hot_decode(torch.tensor([1.0, 3.0]).log(), low=-math.log(3), high=math.log(3), form="mean_of_symexp")
    assert got.item() == pytest.approx(1.0, rel=1e-6)  # float32
    got = two_hot_decode(torch.tensor([1.0, 1.0, 2.0]).log(), low=0, high=math.log(4), form="mean_of_symexp")
    assert got.item() == pytest.approx(1.75, rel=1e-6)  # float32


# Shares of a number against 0, and what each form makes of them. Not exactly the mean: a code between two bins is
# linear in symlog, which is up to an eighth of a bin squared, 0.3 %, above the number itself.
UNCERTAIN = [(0.1, 100.0, 10.03, 0.59), (0.5, 100.0, 50.1, 9.1), (0.2, 1000.0, 200.3, 3.0), (0.1, 1.0, 0.1006, 0.07)]


@pytest.mark.parametrize(("share", "number", "mean", "shrunk"), UNCERTAIN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_uncertain(share: float, number: float, mean: float, shrunk: float, dtype: torch.dtype) -> None:
    code = two_hot_code(torch.tensor([0.0, number], dtype=torch.float64), 255).clamp_min(0)
    logits = (torch.tensor([1 - share, share], dtype=torch.float64) @ code).log().to(dtype)
    assert two_hot_decode(logits, form="mean_of_symexp").item() == pytest.approx(mean, rel=1e-3)  # digits as written
    assert two_hot_decode(logits, form="symexp_of_mean").item() == pytest.approx(shrunk, rel=0.04)


@pytest.mark.parametrize(("form", "choice"), [("mean_of_symexp", 1), ("symexp_of_mean", 0)])
def test_two_armed_bandit(form: str, choice: int) -> None:
    """10 for sure, or 100 with p = 1/2: learnt from draws, the better arm is the better one only by its mean."""
    torch.manual_seed(0)
    logits = torch.zeros(2, 255, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.1)
    for _ in range(200):
        paid = torch.stack([torch.full((32,), 10.0), 100.0 * torch.randint(0, 2, (32,))], dim=1)
        optimiser.zero_grad()
        two_hot_loss(logits.expand(32, 2, 255), paid).mean().backward()
        optimiser.step()
    arms = two_hot_decode(logits.detach(), form=form)  # type: ignore[arg-type]
    assert arms.argmax().item() == choice
    if form == "mean_of_symexp":
        assert arms.tolist() == pytest.approx([10.0, 50.0], rel=0.2)  # 32 coins a step


def test_code_is_two_neighbours() -> None:
    target = torch.tensor([0.3, -4.0, 1000.0, -1e5], dtype=torch.float64)
    code = two_hot_code(target, 255)
    assert ((code > 1e-12).sum(-1) == 2).all()  # above the rounding of 1 / 255 - (1 / 255)
    assert (code > -1e-12).all()
    torch.testing.assert_close(code.sum(-1), torch.ones(4, dtype=torch.float64), rtol=1e-12, atol=0)  # float64
    bins = torch.linspace(-20, 20, 255, dtype=torch.float64)
    torch.testing.assert_close(code @ bins, symlog(target), rtol=1e-12, atol=0)  # float64


@pytest.mark.parametrize("num_bins", [2, 3, 41, 63, 255])
@pytest.mark.parametrize(
    ("dtype", "rtol"),
    # An error d of y in symlog units is a relative error d of large values; y itself carries 20 ulp or so.
    [(torch.float64, 1e-12), (torch.float32, 2e-5)],
)
def test_round_trip(num_bins: int, dtype: torch.dtype, rtol: float) -> None:
    size = torch.logspace(-3, 8, 100, dtype=dtype)
    target = torch.cat([-size, torch.zeros(1, dtype=dtype), size])
    code = two_hot_code(target, num_bins).clamp_min(0)
    got = two_hot_decode(code.log())
    torch.testing.assert_close(got, target, rtol=rtol, atol=rtol)


@pytest.mark.parametrize(("target", "index"), [(-3.0, 1), (0.0, 2), (3.0, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_target_on_a_bin_is_exact(target: float, index: int, dtype: torch.dtype) -> None:
    unit = symlog(torch.tensor(3.0, dtype=dtype)).item()
    logits = torch.randn(5, dtype=dtype)
    # Bins at -2, -1, 0, 1, 2 units; the code is one-hot, not one-hot up to rounding.
    loss = two_hot_loss(logits, torch.tensor(target, dtype=dtype), low=-2 * unit, high=2 * unit)
    assert loss == -logits.log_softmax(-1)[index]


@pytest.mark.parametrize(("target", "index"), [(-3.0, 0), (3.0, 2)])
def test_target_on_an_end_is_exact(target: float, index: int) -> None:
    unit = symlog(torch.tensor(3.0)).item()
    logits = torch.randn(3)
    assert two_hot_loss(logits, torch.tensor(target), low=-unit, high=unit) == -logits.log_softmax(-1)[index]


@pytest.mark.parametrize(("target", "index"), [(math.inf, -1), (1e30, -1), (-1e30, 0), (-math.inf, 0), (0.0, 127)])
def test_ends_and_centre_are_exact(target: float, index: int) -> None:
    logits = torch.randn(255)
    assert two_hot_loss(logits, torch.tensor(target)) == -logits.log_softmax(-1)[index]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_bins", [2, 3, 63, 254, 255])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_symmetric_distributions_decode_to_exactly_zero(form: str, num_bins: int, dtype: torch.dtype) -> None:
    zero = torch.zeros(7, num_bins, dtype=dtype)
    assert two_hot_decode(zero, form=form).tolist() == [0.0] * 7  # type: ignore[arg-type]
    half = torch.randn(7, num_bins).to(dtype)
    assert two_hot_decode(half + half.flip(-1), form=form).tolist() == [0.0] * 7  # type: ignore[arg-type]


@pytest.mark.parametrize("num_bins", [254, 255])
@pytest.mark.parametrize(("low", "high"), [(-20.0, 20.0), (-1.0, 3.0), (0.0, 2.0)])
def test_decode_is_the_plain_mean(num_bins: int, low: float, high: float) -> None:
    logits = 3 * torch.randn(5, 13, num_bins, dtype=torch.float64)
    prob, bins = logits.softmax(-1), torch.linspace(low, high, num_bins, dtype=torch.float64)
    got = two_hot_decode(logits, low=low, high=high, form="symexp_of_mean")
    # Float64 with mean up to 20 in the exponent.
    torch.testing.assert_close(got, symexp((prob * bins).sum(-1)), rtol=1e-10, atol=1e-10)
    got = two_hot_decode(logits, low=low, high=high, form="mean_of_symexp")
    worth = prob * symexp(bins)
    assert ((got - worth.sum(-1)).abs() <= 1e-12 * worth.abs().sum(-1)).all()  # large terms of both signs cancel


def test_far_bins_cancel_to_their_last_digits() -> None:
    check_nearly_symmetric("cpu")


def test_loss_is_smallest_at_the_code() -> None:
    target = torch.tensor([0.3, -4.0, 1000.0], dtype=torch.float64)
    code = two_hot_code(target, 255).clamp_min(1e-30)
    entropy = -(code * code.log()).sum(-1)
    torch.testing.assert_close(two_hot_loss(code.log(), target), entropy, rtol=1e-9, atol=1e-9)  # float64
    assert (two_hot_loss(code.log() + 0.1 * torch.randn(3, 255), target) > entropy).all()


def test_gradcheck() -> None:
    logits = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([-300.0, 0.5, 1e12], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: two_hot_loss(x, target), logits)
    for form in FORMS:
        assert torch.autograd.gradcheck(lambda x, f=form: two_hot_decode(x, low=-3.0, high=4.0, form=f), logits)


def test_target_receives_no_gradient() -> None:
    logits, target = torch.randn(3, 7, requires_grad=True), torch.randn(3, requires_grad=True)
    two_hot_loss(logits, target).sum().backward()
    assert target.grad is None
    assert logits.grad is not None


@pytest.mark.parametrize("scale", [80.0, 1e4])
def test_extreme_logits(scale: float) -> None:
    logits = torch.zeros(2, 255)
    logits[0, 0] = logits[1, -1] = scale
    logits.requires_grad_()
    loss = two_hot_loss(logits, torch.tensor([math.inf, -math.inf]))  # all belief on the wrong end
    assert loss.tolist() == [scale, scale]
    values = [two_hot_decode(logits, form=form) for form in FORMS]
    for value in values:
        expected = symexp(torch.tensor([-20.0, 20.0]))
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)  # 20 ulp in the exponent
    (loss.sum() + sum(value.sum() for value in values)).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_nan_target_is_not_hidden() -> None:
    loss = two_hot_loss(torch.zeros(2, 5), torch.tensor([math.nan, 0.0]))
    assert loss.isnan().tolist() == [True, False]


def test_half_precision_strides_empty_autocast() -> None:
    logits, target = torch.randn(4, 6, 13).bfloat16(), torch.randn(4, 6).half()
    loss, value = two_hot_loss(logits.float(), target.float()), two_hot_decode(logits.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):  # half inputs, float32 arithmetic
        assert torch.equal(two_hot_loss(logits, target), loss)
        assert torch.equal(two_hot_decode(logits), value)
    flipped = logits.transpose(0, 1), target.T
    torch.testing.assert_close(two_hot_loss(*flipped), loss.T, rtol=1e-6, atol=0)  # sums may run in another order
    torch.testing.assert_close(two_hot_decode(flipped[0]), value.T, rtol=1e-5, atol=1e-5)
    assert two_hot_loss(logits[:0], target[:0]).shape == (0, 6)
    assert two_hot_decode(logits[:0]).shape == (0, 6)
    assert two_hot_loss(logits[0, 0], target[0, 0]).shape == ()


@pytest.mark.parametrize(
    ("logits", "target", "bins", "message"),
    [
        (torch.zeros(2, 1), torch.zeros(2), {}, r"at least 2 bins, got \[2, 1\]: widen the head"),
        (torch.tensor(0.0), torch.zeros(2), {}, r"at least 2 bins, got \[\]"),
        (torch.zeros(2, 5), torch.zeros(2), {"low": 3.0, "high": 3.0}, "low must be below high, got 3.0 and 3.0"),
        (torch.zeros(2, 5), torch.zeros(2, 1), {}, r"without the bins, \[2\], got \[2, 1\]: squeeze or index it"),
        (torch.zeros(2, 5), torch.zeros(2).int(), {}, "expected floating-point tensors, got torch.int32"),
        (torch.zeros(2, 5), torch.zeros(2, device="meta"), {}, "must share a device, got meta and cpu: move one"),
    ],
)
def test_errors(logits: Tensor, target: Tensor, bins: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        two_hot_loss(logits, target, **bins)


def test_decode_errors() -> None:
    with pytest.raises(ValueError, match="at least 2 bins"):
        two_hot_decode(torch.zeros(2, 1))
    with pytest.raises(ValueError, match="low must be below high"):
        two_hot_decode(torch.zeros(2, 5), low=1.0, high=-1.0)
    with pytest.raises(ValueError, match="expected floating-point tensors"):
        two_hot_decode(torch.zeros(2, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="form must be mean_of_symexp or symexp_of_mean, got 'mean'"):
        two_hot_decode(torch.zeros(2, 5), form="mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"needs bins within \+-88, got -100.0 and 20.0: move them"):
        two_hot_decode(torch.zeros(2, 5), low=-100.0, form="mean_of_symexp")
