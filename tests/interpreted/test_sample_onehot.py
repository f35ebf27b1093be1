"""The kernel draws what the reference draws, row by row; its gradient is that of the probabilities."""

import importlib
import inspect

import pytest
import torch
import triton
import triton.language as tl
from scipy import stats
from torch import Tensor

from mow.kernels import PhiloxState, sample_onehot, unimix_prob
from mow.kernels.sample_onehot_triton import draw, sample_onehot_kernel, sample_onehot_triton
from tests.latent_cases import DTYPES, LATENT_SHAPES, TOLERANCE, check_draw, random_logits, relative_error


def stream(seed: int = 0) -> PhiloxState:
    return PhiloxState.from_seed(seed, "cpu")


def sample(logits: Tensor, rng: PhiloxState | None = None, unimix: float = 0.01) -> tuple[Tensor, Tensor]:
    return sample_onehot(logits, rng or stream(), unimix=unimix, backend="triton")


@triton.jit
def draw_kernel(prob_ptr, u_ptr, index_ptr, ROWS: tl.constexpr, C: tl.constexpr):  # type: ignore[no-untyped-def]
    row, c = tl.arange(0, ROWS), tl.arange(0, C)
    prob = tl.load(prob_ptr + row[:, None] * C + c[None, :])
    tl.store(index_ptr + row, draw(prob, tl.load(u_ptr + row)))


def test_sample_by_hand() -> None:
    # cdf = 1/4, 3/4, 1 and, for seed 0 and offset 0, u = 0.399, 0.881, 0.736, 0.606 (Random123's known answer).
    logits = torch.tensor([0.25, 0.5, 0.25]).log().expand(1, 4, 3)
    onehot, index = sample(logits, unimix=0.0)
    assert index.tolist() == [[1, 2, 1, 1]]
    assert onehot.tolist() == [[[0, 1, 0], [0, 0, 1], [0, 1, 0], [0, 1, 0]]]


@pytest.mark.parametrize(
    ("shape", "dtype", "unimix"),
    [*((shape, torch.float32, 0.1) for shape in LATENT_SHAPES),
     *((LATENT_SHAPES[1], dtype, 0.1) for dtype in DTYPES if dtype != torch.float32),
     *((shape, torch.float32, 0.0) for shape in LATENT_SHAPES[1:3])],
)  # fmt: skip
def test_draws_and_gradients_match_the_reference(shape: tuple[int, ...], dtype: torch.dtype, unimix: float) -> None:
    logits = random_logits(shape, dtype, "cpu").requires_grad_()
    onehot, index = sample(logits, stream(5), unimix)
    assert index.shape == shape[:-1]
    assert index.dtype == torch.uint8
    check_draw(index, logits, stream(5), unimix)
    assert onehot.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(onehot, torch.nn.functional.one_hot(index.long(), shape[-1]).to(onehot))
    cotangent = torch.randn(shape).to(onehot)
    (got,) = torch.autograd.grad(onehot, logits, cotangent)
    exact = logits.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(unimix_prob(exact, unimix), exact, cotangent.double())
    assert got.dtype == dtype
    assert relative_error(got, expected) <= TOLERANCE[dtype]


def test_advances_once_per_call_and_replays_from_seed_and_offset() -> None:
    logits, rng = random_logits((3, 4, 5, 6), torch.float32, "cpu"), stream(9)
    first, second = sample(logits, rng)[1], sample(logits, rng)[1]
    assert rng.seed_offset.tolist() == [9, 2]
    assert not torch.equal(first, second)
    assert torch.equal(sample(logits, PhiloxState(torch.tensor([9, 1])))[1], second)
    sample_onehot(logits, rng, backend="reference")  # the stream passes from one backend to the other
    assert torch.equal(
        sample(logits, rng)[1], sample_onehot(logits, PhiloxState(torch.tensor([9, 3])), backend="reference")[1]
    )


def test_same_draw_for_all_tiles() -> None:
    logits = random_logits((67, 18), torch.float32, "cpu")
    draws = []
    for block_rows in (4, 16, 128):
        onehot, index = torch.empty(67, 18), torch.empty(67, dtype=torch.uint8)
        seed_offset = torch.tensor([3, 4])
        arguments = (logits, seed_offset, onehot, index, 67, 1, 18, 1)
        sample_onehot_kernel[(triton.cdiv(67, block_rows),)](
            *arguments, UNIMIX=0.01, C=18, BLOCK_C=32, BLOCK_ROWS=block_rows
        )
        assert torch.equal(onehot.argmax(dim=-1), index.long())
        draws.append(index)
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], draws[2])


def test_frequencies_chi_square() -> None:
    num_draws, num_rows, num_classes = 8192, 5, 8
    prob = unimix_prob(random_logits((num_rows, num_classes), torch.float32, "cpu"), 0.01)
    expected = num_draws * prob.double()
    assert expected.min() > 5  # else the chi-square approximation fails; the unimix floor alone gives 10
    rng = stream(11)
    for row in range(num_rows):
        logits = random_logits((num_rows, num_classes), torch.float32, "cpu")[row]
        _, index = run_in_one_tile(logits.expand(num_draws, num_classes).contiguous(), rng)
        observed = torch.bincount(index.long(), minlength=num_classes)
        p = stats.chisquare(observed.double(), expected[row] / expected[row].sum() * num_draws).pvalue
        assert p > 1e-4 / num_rows, f"row {row}: {p}"  # Bonferroni: a right sampler fails once in 10^4 seeds


def run_in_one_tile(logits: Tensor, rng: PhiloxState) -> tuple[Tensor, Tensor]:
    """One program for all rows: the interpreter's time goes by programs."""
    num_rows, num_classes = logits.shape
    onehot, index = torch.empty_like(logits), torch.empty(num_rows, dtype=torch.uint8)
    arguments = (logits, rng.seed_offset, onehot, index, num_rows, 1, num_classes, 1)
    sample_onehot_kernel[(1,)](*arguments, UNIMIX=0.01, C=num_classes, BLOCK_C=num_classes, BLOCK_ROWS=num_rows)
    rng.advance()
    return onehot, index


@pytest.mark.parametrize("scale", [80.0, 1e4])
@pytest.mark.parametrize("num", [32, 256])  # the last index of 256 classes is the largest byte
def test_extreme_logits(scale: float, num: int) -> None:
    expected = torch.tensor([0, 1, num // 2, num - 2, num - 1])
    logits = (scale * torch.eye(num)[expected]).requires_grad_()
    onehot, index = sample(logits, unimix=0.0)
    assert torch.equal(index.long(), expected)  # the others: below num e^-80
    onehot.square().sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_impossible_classes_are_never_drawn() -> None:
    logits = torch.zeros(40, 4, 9)
    impossible = torch.tensor([True, False, False, True, False, True, False, True, True])
    logits[..., impossible] = -torch.inf
    logits.requires_grad_()
    onehot, index = sample(logits, unimix=0.0)
    assert index.unique().tolist() == [1, 2, 4, 6]
    (grad,) = torch.autograd.grad(onehot, logits, torch.randn_like(onehot))
    assert grad.isfinite().all()
    assert grad[..., impossible].eq(0).all()


def test_a_tie_goes_to_the_next_class() -> None:
    # u = 1/4, 1/2: the cdf of as many classes is not above it, as in the reference.
    index = torch.empty(2, dtype=torch.int32)
    draw_kernel[(1,)](torch.full((2, 4), 0.25), torch.tensor([0.25, 0.5]), index, ROWS=2, C=4)
    assert index.tolist() == [1, 2]


def test_index_stays_in_range_at_the_ends_of_u() -> None:
    prob = unimix_prob(random_logits((64, 32), torch.float32, "cpu"), 0.01)
    prob[32:, [0, 31]] = 0.0  # then the ends are the first and the last possible class
    for u, first, second in ((0.0, 0, 1), (1 - 2.0**-24, 31, 30)):
        index = torch.empty(64, dtype=torch.int32)
        draw_kernel[(1,)](prob, torch.full((64,), u), index, ROWS=64, C=32)
        assert index.tolist() == [first] * 32 + [second] * 32


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's word for a NaN, which this test is about
def test_nan_is_not_hidden() -> None:
    logits = torch.zeros(5, 3)
    logits[0, 1], logits[1, 2], logits[2] = torch.nan, torch.inf, -torch.inf
    onehot, index = sample(logits)
    assert index[:3].tolist() == [0, 0, 0]
    assert onehot.isnan().tolist() == [[True] * 3] * 3 + [[False] * 3] * 2
    assert torch.equal(index, sample_onehot(logits, stream(), backend="reference")[1])


def test_strided_logits_and_gradients() -> None:
    wide = random_logits((4, 5, 3, 14), torch.float32, "cpu")
    for strided in (wide.transpose(0, 1), wide[:, 1:], wide[..., ::2], wide[:, :, 1:2].expand(-1, -1, 3, -1)):
        plain, leaf = strided.contiguous().requires_grad_(), strided.detach().requires_grad_()
        onehot, expected = sample(leaf)[0], sample(plain)[0]
        assert torch.equal(onehot, expected)
        # As behind a concatenation with actions: the gradient's rows lie further apart than they are long.
        cotangent = torch.randn(*onehot.shape[:2], 3 * onehot.shape[-1] + 5)[..., : 3 * onehot.shape[-1]]
        cotangent = cotangent.unflatten(-1, (3, -1))
        (got,), (wanted,) = (
            torch.autograd.grad(onehot, leaf, cotangent),
            torch.autograd.grad(expected, plain, cotangent.contiguous()),
        )
        assert torch.equal(got, wanted)


def test_empty_and_autocast() -> None:
    rng = stream()
    onehot, index = sample(torch.zeros(0, 5, 3, 7, requires_grad=True), rng)
    assert onehot.shape == (0, 5, 3, 7)
    assert index.shape == (0, 5, 3)
    assert rng.seed_offset.tolist() == [0, 1]  # one step per call, as ever
    onehot.sum().backward()
    logits = random_logits((5, 6, 7), torch.float32, "cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = sample(logits)[0]
    assert torch.equal(cast, sample(logits)[0])


def test_opcheck() -> None:
    logits, seed_offset = random_logits((3, 4, 5), torch.float32, "cpu").requires_grad_(), stream().seed_offset
    torch.library.opcheck(torch.ops.mow.sample_onehot.default, (logits, seed_offset, 0.01))
    grad = torch.randn(3, 4, 5)
    torch.library.opcheck(torch.ops.mow.sample_onehot_backward.default, (grad, logits.detach(), 0.01))


def test_one_graph_under_compile() -> None:
    logits = random_logits((3, 4, 5), torch.float32, "cpu").requires_grad_()
    rng = stream()
    cotangent = torch.randn(3, 4, 5)
    torch.compiler.reset()
    compiled = torch.compile(lambda x: sample(x, rng)[0], backend="aot_eager", fullgraph=True)
    for offset in range(2):  # the advance is part of the graph
        onehot = compiled(logits)
        expected = sample(logits, PhiloxState(torch.tensor([0, offset])))[0]
        assert torch.equal(onehot, expected)
        assert torch.equal(*(torch.autograd.grad(x, logits, cotangent)[0] for x in (onehot, expected)))


def test_equal_signatures() -> None:
    reference = importlib.import_module("mow.kernels.sample_onehot")._reference
    door, *rooms = (list(inspect.signature(f).parameters) for f in (sample_onehot, reference, sample_onehot_triton))
    assert door == [*rooms[0], "backend"] == [*rooms[1], "backend"]
