"""The kernels of the latents and the returns on a GPU: what the interpreter checks, and what only a device can show."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from scipy import stats
from torch import Tensor

from mow.kernels import (
    PhiloxState,
    TwoHotForm,
    categorical_kl,
    dispatch,
    lambda_return,
    sample_onehot,
    two_hot_decode,
    two_hot_loss,
    unimix_prob,
)
from tests.latent_cases import (
    BINS,
    DTYPES,
    LATENT_SHAPES,
    LOGIT_SHAPES,
    TOLERANCE,
    check_draw,
    check_kl,
    check_lambda_return,
    check_nearly_symmetric,
    check_two_hot,
    random_logits,
    relative_error,
)

pytestmark = pytest.mark.gpu

GPU = "cuda"


def stream(seed: int = 0, offset: int = 0) -> PhiloxState:
    return PhiloxState(torch.tensor([seed, offset], device=GPU))


def sample(logits: Tensor, rng: PhiloxState | None = None, unimix: float = 0.01) -> tuple[Tensor, Tensor]:
    return sample_onehot(logits, rng or stream(), unimix=unimix, backend="triton")


@contextmanager
def no_wait_for_the_host() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_kernels_are_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_CHOSEN", {})
    sample_onehot(torch.zeros(2, 3, 4, device=GPU), stream())
    categorical_kl(torch.zeros(2, 3, 4, device=GPU), torch.zeros(2, 3, 4, device=GPU))
    two_hot_loss(torch.zeros(2, 5, device=GPU), torch.zeros(2, device=GPU))
    two_hot_decode(torch.zeros(2, 5, device=GPU))
    lambda_return(*(torch.zeros(2, n, device=GPU) for n in (3, 3, 4)), lam=0.9)
    assert len(dispatch._CHOSEN) == 5
    assert set(dispatch._CHOSEN.values()) == {"triton"}


@pytest.mark.parametrize("shape", [*LATENT_SHAPES, (999, 32, 32)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("unimix", [0.0, 0.01])
def test_sample_onehot_matches_the_reference(shape: tuple[int, ...], dtype: torch.dtype, unimix: float) -> None:
    logits = random_logits(shape, dtype, GPU).requires_grad_()
    onehot, index = sample(logits, stream(5), unimix)
    check_draw(index, logits, stream(5), unimix)
    check_draw(index.cpu(), logits.cpu(), PhiloxState.from_seed(5, "cpu"), unimix)  # the same stream on the CPU
    assert torch.equal(onehot, torch.nn.functional.one_hot(index.long(), shape[-1]).to(onehot))
    cotangent = torch.randn(shape).to(onehot)
    (got,) = torch.autograd.grad(onehot, logits, cotangent)
    exact = logits.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(unimix_prob(exact, unimix), exact, cotangent.double())
    assert relative_error(got, expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("shape", [*LATENT_SHAPES, (999, 32, 32)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("unimix", [0.0, 0.01])
def test_categorical_kl_matches_float64(shape: tuple[int, ...], unimix: float, dtype: torch.dtype) -> None:
    check_kl(shape, unimix, dtype, GPU)


@pytest.mark.parametrize("shape", [*LOGIT_SHAPES, (4099, 255)])
@pytest.mark.parametrize("bins", BINS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_two_hot_matches_float64(shape: tuple[int, ...], bins: tuple[float, float], dtype: torch.dtype) -> None:
    check_two_hot(shape, bins, dtype, GPU)


@pytest.mark.parametrize("shape", [(1,), (13,), (3, 5, 16), (26, 39, 16), (7, 300)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_lambda_return_matches_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check_lambda_return(shape, 0.95, dtype, GPU)


def test_frequencies_chi_square() -> None:
    num_draws, num_rows = 200_000, 20
    logits = random_logits((num_rows, 32), torch.float32, GPU)
    expected = num_draws * unimix_prob(logits, 0.01).double().cpu()
    assert expected.min() > 5  # else the chi-square approximation fails; the unimix floor alone gives 62
    rng = stream(11)
    for row in range(num_rows):
        _, index = sample(logits[row].expand(num_draws, 1, 32), rng)
        observed = torch.bincount(index.flatten().long().cpu(), minlength=32)
        p = stats.chisquare(observed.double(), expected[row] / expected[row].sum() * num_draws).pvalue
        assert p > 1e-4 / num_rows, f"row {row}: {p}"  # Bonferroni: a right sampler fails once in 10^4 seeds


def test_impossible_classes_are_never_drawn() -> None:
    # Sums in parallel round a cdf unevenly: among 2^24 draws a class of probability zero would come up.
    logits = random_logits((2**19, 32, 18), torch.float32, GPU)
    logits[..., 1::2] = -torch.inf
    assert sample(logits, unimix=0.0)[1].remainder(2).max() == 0


@pytest.mark.parametrize("scale", [80.0, 1e4])
def test_extreme_logits(scale: float) -> None:
    logits = (scale * torch.eye(256, device=GPU)).unsqueeze(0).requires_grad_()
    prior = logits.detach().flip(-1).clone().requires_grad_()
    onehot, index = sample(logits, unimix=0.0)
    assert torch.equal(index.long().cpu(), torch.arange(256).unsqueeze(0))
    dynamics, representation = categorical_kl(logits, prior, unimix=0.0, backend="triton")
    torch.testing.assert_close(dynamics.cpu(), torch.full((1,), 256 * scale), rtol=1e-6, atol=0)  # float32
    (onehot.square().sum() + dynamics.sum() + representation.sum()).backward()
    for grad in (logits.grad, prior.grad):
        assert grad is not None
        assert grad.isfinite().all()


def test_not_a_number_and_infinities() -> None:
    logits = torch.zeros(5, 3, device=GPU)
    logits[0, 1], logits[1, 2], logits[2] = torch.nan, torch.inf, -torch.inf
    onehot, index = sample(logits)
    assert index[:3].tolist() == [0, 0, 0]
    assert onehot.isnan().tolist() == [[True] * 3] * 3 + [[False] * 3] * 2
    target = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0], device=GPU)
    logits = torch.randn(4, 255, device=GPU, requires_grad=True)
    loss = two_hot_loss(logits, target, backend="triton")
    assert loss.isnan().tolist() == [True, False, False, False]
    expected = -logits.log_softmax(-1)[[1, 2, 3], [254, 0, 127]]
    torch.testing.assert_close(loss[1:], expected, rtol=1e-5, atol=0)  # the weights are exactly 0 and 1
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert grad.isnan().all(-1).tolist() == [True, False, False, False]


@pytest.mark.parametrize("form", ["mean_of_symexp", "symexp_of_mean"])
@pytest.mark.parametrize("num_bins", [2, 3, 254, 255])
def test_symmetric_distributions_decode_to_exactly_zero(num_bins: int, form: TwoHotForm) -> None:
    half = torch.randn(7, num_bins, device=GPU)
    assert two_hot_decode(half + half.flip(-1), form=form, backend="triton").tolist() == [0.0] * 7


def test_far_bins_cancel_to_their_last_digits() -> None:
    check_nearly_symmetric(GPU)


def test_strided_inputs_and_gradients() -> None:
    wide = random_logits((4, 5, 6, 3, 32), torch.bfloat16, GPU)
    # As behind a concatenation with actions: the gradient's rows lie further apart than they are long.
    cotangent = torch.randn(4, 5, 5, 3 * 32 + 7, device=GPU)[..., : 3 * 32].unflatten(-1, (3, 32))
    for logits in (wide[:, :, 1:], wide.transpose(0, 1)[:, :, 1:].transpose(0, 1)):
        leaf, plain = logits.detach().requires_grad_(), logits.contiguous().requires_grad_()
        for op, gradient in (
            (lambda x: sample(x)[0], cotangent),
            (lambda x: categorical_kl(x, wide[:, :, :-1], backend="triton")[1], cotangent[..., 0, 0]),
            (lambda x: two_hot_loss(x, cotangent[..., 0], backend="triton"), cotangent[..., 0]),
            (lambda x: two_hot_decode(x, backend="triton"), cotangent[..., 0]),
            (lambda x: two_hot_decode(x, form="mean_of_symexp", backend="triton"), cotangent[..., 0]),
        ):
            got, expected = op(leaf), op(plain)
            assert torch.equal(got, expected)
            (to_leaf,) = torch.autograd.grad(got, leaf, gradient)
            (to_plain,) = torch.autograd.grad(expected, plain, gradient.contiguous())
            assert torch.equal(to_leaf, to_plain)


def everything(logits: Tensor, prior: Tensor, target: Tensor, rng: PhiloxState) -> tuple[Tensor, ...]:
    """All four ops and their gradients, as a training step has them."""
    onehot, index = sample_onehot(logits, rng, backend="triton")
    dynamics, representation = categorical_kl(logits, prior, backend="triton")
    loss = two_hot_loss(logits, target, backend="triton")
    value = two_hot_decode(logits, low=-2.0, high=2.0, backend="triton")
    value = value + two_hot_decode(logits, low=-2.0, high=2.0, form="mean_of_symexp", backend="triton")
    returns = lambda_return(value[:, :-1], value[:, :-1].sigmoid(), value, lam=0.95, backend="triton")
    weight = torch.arange(onehot.shape[-1], device=onehot.device).float()
    total = (onehot * weight).sum() + (dynamics + 2 * representation).sum() + loss.sum() + value.sum()
    return onehot, index, dynamics, representation, loss, value, returns, total


def step(
    forward: Callable[..., tuple[Tensor, ...]], leaves: list[Tensor], target: Tensor, rng: PhiloxState
) -> list[Tensor]:
    outputs = forward(*leaves, target, rng)
    return [*outputs, *torch.autograd.grad(outputs[-1], leaves)]


def test_a_captured_step_replays_on_new_numbers() -> None:
    leaves = [random_logits((13, 32, 32), torch.float32, GPU, seed).requires_grad_() for seed in (0, 1)]
    target, rng = torch.randn(13, 32, device=GPU), stream(7)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compile outside the capture
        step(everything, leaves, target, rng)
    torch.cuda.current_stream().wait_stream(side)
    rng.load(torch.tensor([7, 0]))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(everything, leaves, target, rng)
    assert rng.seed_offset.tolist() == [7, 0]  # capturing draws nothing
    for offset in range(3):
        with torch.no_grad():
            for leaf in (*leaves, target):
                leaf.copy_(torch.randn_like(leaf))
        graph.replay()
        expected = step(everything, leaves, target, stream(7, offset))
        assert all(map(torch.equal, captured, expected))
        assert rng.seed_offset.tolist() == [7, offset + 1]


def test_one_graph_under_compile() -> None:
    leaves = [random_logits((13, 32, 32), torch.float32, GPU, seed).requires_grad_() for seed in (0, 1)]
    target, rng = torch.randn(13, 32, device=GPU), stream(7)
    torch.compiler.reset()
    compiled = torch.compile(everything, fullgraph=True)
    for offset in range(2):
        got, expected = step(compiled, leaves, target, rng), step(everything, leaves, target, stream(7, offset))
        for x, y in zip(got, expected, strict=True):
            # The kernels are the same; the sums around them are fused, in another order.
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)
        assert torch.equal(got[1], expected[1])


def test_no_op_waits_for_the_host() -> None:
    leaves = [random_logits((13, 32, 32), torch.float32, GPU, seed).requires_grad_() for seed in (0, 1)]
    target, rng = torch.randn(13, 32, device=GPU), stream(7)
    step(everything, leaves, target, rng)  # compile first
    with no_wait_for_the_host():
        step(everything, leaves, target, rng)


def test_more_than_two_to_the_31_numbers() -> None:
    """The last rows of 4.3 GB of logits: their addresses do not fit into 32 bits."""
    num_rows = 2**26 + 5
    free, _ = torch.cuda.mem_get_info()
    if free < 30e9:
        pytest.skip("needs 30 GB of free GPU memory")
    logits = torch.zeros(num_rows, 1, 32, dtype=torch.bfloat16, device=GPU)
    assert logits.numel() > 2**31
    logits[-5:, :, 7] = 80.0
    onehot, index = sample(logits, unimix=0.0)
    assert index[-5:].flatten().tolist() == [7] * 5
    assert onehot[-5:, 0, 7].tolist() == [1.0] * 5
    del onehot, index
    dynamics, _ = categorical_kl(logits, torch.zeros_like(logits), unimix=0.0, backend="triton")
    expected = torch.full((5,), 5 * torch.log(torch.tensor(2.0)).item())  # ln 32
    torch.testing.assert_close(dynamics[-5:].cpu(), expected, rtol=1e-6, atol=0)  # float32
    assert dynamics[:-5].abs().max() == 0


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_launches_where_the_tensors_are() -> None:
    logits = random_logits((13, 32), torch.float32, "cuda:1")
    _, index = sample(logits, PhiloxState.from_seed(3, "cuda:1"))
    assert index.device == logits.device
    check_draw(index.cpu(), logits.cpu(), PhiloxState.from_seed(3, "cpu"), 0.01)
