"""The loss and the decoded number from the kernels, with gradients, against the reference in float64."""

import importlib
import inspect
import math

import pytest
import torch
from torch import Tensor

from mow.kernels import TwoHotForm, symexp, symlog, two_hot_decode, two_hot_loss
from mow.kernels.two_hot_decode_triton import two_hot_decode_triton
from mow.kernels.two_hot_triton import two_hot_loss_triton
from tests.latent_cases import BINS, DTYPES, LOGIT_SHAPES, check_nearly_symmetric, check_two_hot, random_logits


def loss(logits: Tensor, target: Tensor, low: float = -20.0, high: float = 20.0) -> Tensor:
    return two_hot_loss(logits, target, low=low, high=high, backend="triton")


FORMS: tuple[TwoHotForm, ...] = ("mean_of_symexp", "symexp_of_mean")


def decode(logits: Tensor, low: float = -20.0, high: float = 20.0, form: TwoHotForm = "symexp_of_mean") -> Tensor:
    return two_hot_decode(logits, low=low, high=high, form=form, backend="triton")


def test_loss_by_hand() -> None:
    # Bins -2, -1, 0, 1, 2 and y = 1/2: half of the mass each on bins 0 and 1, that is 3/15 and 4/15.
    logits = torch.tensor([1.0, 2, 3, 4, 5]).log()
    got = loss(logits, torch.tensor(math.exp(0.5) - 1), low=-2, high=2)
    assert got.item() == pytest.approx(-(math.log(3 / 15) + math.log(4 / 15)) / 2, rel=1e-6)  # float32


def test_decode_by_hand() -> None:
    # Bins -1 and 1 with 1/4 and 3/4: mean 1/2. Bins 0, 1, 2 with 1/4, 1/4, 1/2: mean 5/4.
    got = decode(torch.tensor([1.0, 3.0]).log(), low=-1, high=1)
    assert got.item() == pytest.approx(math.exp(0.5) - 1, rel=1e-6)  # float32
    got = decode(torch.tensor([1.0, 1.0, 2.0]).log(), low=0, high=2)
    assert got.item() == pytest.approx(math.exp(1.25) - 1, rel=1e-6)  # float32
    # Bins that stand for -2 and 2, then for 0, 1 and 3: the mean of those.
    got = decode(torch.tensor([1.0, 3.0]).log(), -math.log(3), math.log(3), "mean_of_symexp")
    assert got.item() == pytest.approx(1.0, rel=1e-6)  # float32
    got = decode(torch.tensor([1.0, 1.0, 2.0]).log(), 0, math.log(4), "mean_of_symexp")
    assert got.item() == pytest.approx(1.75, rel=1e-6)  # float32


@pytest.mark.parametrize(
    ("shape", "dtype", "bins"),
    [*((shape, torch.float32, BINS[0]) for shape in LOGIT_SHAPES),
     *((LOGIT_SHAPES[0], dtype, BINS[0]) for dtype in DTYPES if dtype != torch.float32),
     *((shape, torch.float32, bins) for shape in LOGIT_SHAPES[:2] for bins in BINS[1:])],
)  # fmt: skip
def test_matches_float64(shape: tuple[int, ...], dtype: torch.dtype, bins: tuple[float, float]) -> None:
    check_two_hot(shape, bins, dtype, "cpu")


def test_small_numbers_keep_their_digits() -> None:
    # Between bins at -0.001 and 0.001, logarithm and exponential of a number near 1 would drop half of the digits.
    target = torch.tensor([1e-5, -1e-5, 3e-4, -3e-4, 9e-4])
    code = two_hot_code(target, 2, low=-1e-3, high=1e-3)
    expected = (symlog(target.double()) + 1e-3) / 2e-3
    torch.testing.assert_close(code[:, 1].double(), expected, rtol=1e-6, atol=0)  # float32
    got = decode(torch.stack((1 - expected, expected), dim=-1).log().float(), low=-1e-3, high=1e-3)
    torch.testing.assert_close(got, target, rtol=0, atol=1e-9)  # a millionth of a bin: the logits are in float32


@pytest.mark.parametrize(("target", "index"), [(-3.0, 0), (0.0, 1), (3.0, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_target_on_the_ends_and_the_centre_is_exact(target: float, index: int, dtype: torch.dtype) -> None:
    unit = math.log(4.0)
    logits = torch.randn(3, dtype=dtype)
    code = two_hot_code(torch.tensor([target], dtype=dtype), 3, low=-unit, high=unit)
    got = loss(logits, torch.tensor(target, dtype=dtype), low=-unit, high=unit)
    rtol = 1e-6 if dtype == torch.float32 else 1e-14  # of the logarithm of p; the weights are 0 and 1 up to that
    torch.testing.assert_close(got, -logits.log_softmax(-1)[index], rtol=rtol, atol=0)
    torch.testing.assert_close(code, torch.eye(3, dtype=dtype)[index : index + 1], rtol=0, atol=rtol)


@pytest.mark.parametrize(("target", "index"), [(math.inf, 254), (1e30, 254), (-1e30, 0), (-math.inf, 0), (0.0, 127)])
def test_code_is_exactly_one_hot_beyond_the_ends_and_at_zero(target: float, index: int) -> None:
    # A logit of -inf has no part in a sum but through a weight that is not 0.
    logits = torch.zeros(255)
    logits[[i for i in (index - 1, index + 1) if 0 <= i < 255]] = -1e30
    expected = -logits.double().log_softmax(-1)[index]
    assert loss(logits, torch.tensor(target)).item() == pytest.approx(expected.item(), rel=1e-6)  # float32


def two_hot_code(target: Tensor, num_bins: int, low: float = -20.0, high: float = 20.0) -> Tensor:
    """The code read off the loss: with zero logits its gradient is 1 / V - code."""
    logits = torch.zeros(*target.shape, num_bins, dtype=target.dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(logits, target, low, high).sum(), logits)
    return 1 / num_bins - gradient


def test_targets_on_and_beside_the_bins() -> None:
    on_bins = symexp(torch.linspace(-20, 20, 41, dtype=torch.float64)).float()
    for target in (on_bins, on_bins.nextafter(torch.tensor(torch.inf)), on_bins.nextafter(torch.tensor(-torch.inf))):
        code = two_hot_code(target, 41)
        assert code.min() > -1e-8  # the rounding of 1 / 41 - 1 / 41
        # Bins are 1 apart, and an ulp of y near 20 is 2e-6; the bins themselves have one more.
        torch.testing.assert_close(code, torch.eye(41), rtol=0, atol=6e-6)


@pytest.mark.parametrize("num_bins", [2, 255])
@pytest.mark.parametrize(
    ("dtype", "rtol"),
    # An error d of y in symlog units is a relative error d of large values; y itself carries 20 ulp or so.
    [(torch.float64, 1e-12), (torch.float32, 2e-5)],
)
def test_round_trip(num_bins: int, dtype: torch.dtype, rtol: float) -> None:
    size = torch.logspace(-3, 8, 12, dtype=dtype)
    target = torch.cat([-size, torch.zeros(1, dtype=dtype), size])
    code = two_hot_code(target, num_bins)
    assert code.sum(-1) == pytest.approx(1, rel=1e-5)
    got = decode(code.clamp_min(1e-30).log())
    torch.testing.assert_close(got, target, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("num_bins", "dtype"),
    [*((num_bins, torch.float32) for num_bins in (2, 3, 63, 254, 255)), (63, torch.bfloat16), (254, torch.float64)],
)
def test_symmetric_distributions_decode_to_exactly_zero(form: TwoHotForm, num_bins: int, dtype: torch.dtype) -> None:
    assert decode(torch.zeros(7, num_bins, dtype=dtype), form=form).tolist() == [0.0] * 7
    half = torch.randn(7, num_bins).to(dtype)
    assert decode(half + half.flip(-1), form=form).tolist() == [0.0] * 7


def test_far_bins_cancel_to_their_last_digits() -> None:
    check_nearly_symmetric("cpu")


@pytest.mark.parametrize("scale", [80.0, 1e4])
def test_extreme_logits(scale: float) -> None:
    logits = torch.zeros(3, 255)
    logits[0, 0] = logits[1, -1] = logits[2, 127] = scale
    logits.requires_grad_()
    got = loss(logits, torch.tensor([math.inf, -math.inf, math.inf]))  # all belief on the wrong bin
    assert got.tolist() == [scale] * 3
    values = [decode(logits, form=form) for form in FORMS]
    expected = symexp(torch.tensor([-20.0, 20.0, 0.0]))
    for value in values:
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)  # 20 ulp in the exponent
    (got.sum() + sum(value.sum() for value in values)).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_impossible_bins() -> None:
    logits = torch.randn(2, 9)
    logits[:, [0, 8]] = -torch.inf
    logits.requires_grad_()
    target = torch.tensor([0.3, -4.0])
    for op in (loss, *(lambda x, _, form=form: decode(x, form=form) for form in FORMS)):
        outputs = op(logits, target)
        assert outputs.isfinite().all()
        (grad,) = torch.autograd.grad(outputs.sum(), logits)
        assert grad.isfinite().all()
        assert grad[:, [0, 8]].eq(0).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's word for a NaN, which this test is about
def test_nan_is_not_hidden() -> None:
    logits = torch.zeros(3, 5)
    logits[2, 0] = torch.nan
    logits.requires_grad_()
    got = loss(logits, torch.tensor([math.nan, 0.0, 0.0]))
    assert got.isnan().tolist() == [True, False, True]
    (grad,) = torch.autograd.grad(got.sum(), logits)
    assert grad.isnan().all(-1).tolist() == [True, False, True]
    for form in FORMS:
        assert decode(logits, form=form).isnan().tolist() == [False, False, True]


def test_target_receives_no_gradient() -> None:
    logits, target = torch.randn(3, 7, requires_grad=True), torch.randn(3, requires_grad=True)
    loss(logits, target).sum().backward()
    assert target.grad is None
    assert logits.grad is not None


def test_gradient_at_zero_is_that_of_the_reference() -> None:
    logits = torch.zeros(1, 7, requires_grad=True)
    for backend in ("triton", "reference"):
        (grad,) = torch.autograd.grad(two_hot_decode(logits, backend=backend).sum(), logits)  # type: ignore[arg-type]
        assert grad.eq(0).all()
    value = decode(logits, form="mean_of_symexp")
    (grad,) = torch.autograd.grad(value.sum(), logits)
    expected = symexp(20 * torch.arange(-3, 4) / 3) / 7  # p_i (symexp(bin_i) - 0)
    torch.testing.assert_close(grad[0], expected, rtol=1e-5, atol=0)  # 20 ulp in the exponent


def test_strides_empty_autocast() -> None:
    wide, target = random_logits((2, 2, 3, 14), torch.float32, "cpu"), torch.randn(2, 2, 3)
    for logits, goal in (
        (wide.transpose(0, 1), target.transpose(0, 1)),
        (wide[:, 1:], target[:, 1:]),
        (wide[..., ::2], target),
        (wide[:, :, :1].expand(-1, -1, 3, -1), target),
    ):
        strided, plain = logits.detach().requires_grad_(), logits.contiguous().requires_grad_()
        for op in (loss, *(lambda x, _, form=form: decode(x, form=form) for form in FORMS)):
            got, expected = op(strided, goal), op(plain, goal.contiguous())
            assert torch.equal(got, expected)
            cotangent = torch.randn(*got.shape, 2)[..., 0]
            (to_strided,) = torch.autograd.grad(got, strided, cotangent)
            (to_plain,) = torch.autograd.grad(expected, plain, cotangent.contiguous())
            assert torch.equal(to_strided, to_plain)
    half = wide.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):  # half inputs, float32 arithmetic
        assert torch.equal(loss(half, target.half()), loss(half.float(), target.half().float()))
        assert torch.equal(decode(half), decode(half.float()))
    assert loss(wide[:0], target[:0]).shape == (0, 2, 3)
    assert decode(wide[:0]).shape == (0, 2, 3)
    assert loss(wide[0, 0, 0], target[0, 0, 0]).shape == ()


def test_opcheck() -> None:
    logits, target, grad = torch.randn(3, 7, requires_grad=True), torch.randn(3), torch.randn(3)
    ops = torch.ops.mow
    torch.library.opcheck(ops.two_hot_loss.default, (logits, target, -20.0, 20.0))
    for form in FORMS:
        torch.library.opcheck(ops.two_hot_decode.default, (logits, -20.0, 20.0, form))
    logits = logits.detach()
    torch.library.opcheck(ops.two_hot_loss_backward.default, (grad, logits, target, -20.0, 20.0))
    for form in FORMS:
        torch.library.opcheck(ops.two_hot_decode_backward.default, (grad, logits, -20.0, 20.0, form))


def test_one_graph_under_compile() -> None:
    logits, target = torch.randn(3, 7, requires_grad=True), torch.randn(3)
    torch.compiler.reset()

    def both(logits: Tensor) -> Tensor:
        return loss(logits, target) + decode(logits) + decode(logits, -2.0, 2.0, "mean_of_symexp")

    compiled = torch.compile(both, backend="aot_eager", fullgraph=True)
    results = []
    for f in (compiled, both):
        output = f(logits)
        results.append((output, *torch.autograd.grad(output.sum(), logits)))
    assert all(map(torch.equal, *results))


def test_equal_signatures() -> None:
    module = importlib.import_module("mow.kernels.two_hot")
    for functions in (
        (two_hot_loss, module._loss_reference, two_hot_loss_triton),
        (two_hot_decode, module._decode_reference, two_hot_decode_triton),
    ):
        door, *rooms = (list(inspect.signature(f).parameters) for f in functions)
        assert door == [*rooms[0], "backend"] == [*rooms[1], "backend"]
