"""The recursion of the kernel against the reference, on all layouts that an imagined rollout may have."""

import importlib
import inspect

import pytest
import torch
from torch import Tensor

from mow.kernels import lambda_return
from mow.kernels.lambda_return_triton import lambda_return_triton
from tests.latent_cases import DTYPES, check_lambda_return, random_logits


def returns(reward: Tensor, continuation: Tensor, value: Tensor, lam: float = 0.9) -> Tensor:
    return lambda_return(reward, continuation, value, lam=lam, backend="triton")


def random_inputs(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    *leading, num_steps = shape
    reward, continuation = (random_logits(shape, torch.float32, "cpu", seed) for seed in (0, 1))
    return reward, continuation.sigmoid(), random_logits((*leading, num_steps + 1), torch.float32, "cpu", 2)


def test_lambda_return_by_hand() -> None:
    reward, value = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[9.0, 4.0, 8.0]]])
    # G_1 = 2 + 8/2 = 6, G_0 = 1 + (4/2 + 6/2)/2. The 9 belongs to the start state and must not matter.
    assert returns(reward, torch.full_like(reward, 0.5), value, lam=0.5).tolist() == [[[3.5, 6.0]]]


def test_termination_cuts_the_return() -> None:
    reward, continuation = torch.ones(1, 3), torch.tensor([[1.0, 0.0, 1.0]])
    assert returns(reward, continuation, torch.full((1, 4), 100.0), lam=1.0).tolist() == [[2.0, 1.0, 101.0]]


@pytest.mark.parametrize(
    ("shape", "dtype", "lam"),
    [*((shape, torch.float32, 0.95) for shape in ((1,), (13,), (3, 5, 16), (2, 1, 2, 6), (37, 1))),
     *(((3, 5, 16), dtype, 0.95) for dtype in DTYPES if dtype != torch.float32),
     *(((3, 5, 16), torch.float32, lam) for lam in (0.0, 1.0))],
)  # fmt: skip
def test_matches_float64(shape: tuple[int, ...], dtype: torch.dtype, lam: float) -> None:
    check_lambda_return(shape, lam, dtype, "cpu")


def test_long_horizon_converges() -> None:
    # Constant reward 1, discount 1/2, own value 2: every return is 2 exactly.
    ones = torch.ones(3, 100)
    assert torch.equal(returns(ones, 0.5 * ones, torch.full((3, 101), 2.0), lam=0.5), 2 * ones)


def test_carries_no_gradient() -> None:
    assert not returns(*(x.requires_grad_() for x in random_inputs(3, 5))).requires_grad


def test_strided_and_empty() -> None:
    reward, continuation, value = random_inputs(4, 6, 7)
    expected = returns(reward, continuation, value)
    moved = returns(reward.transpose(0, 1), continuation.transpose(0, 1), value.transpose(0, 1))
    assert torch.equal(moved, expected.transpose(0, 1))
    time_first = [x.movedim(-1, 0).contiguous().movedim(0, -1) for x in (reward, continuation, value)]
    assert torch.equal(returns(*time_first), expected)
    assert torch.equal(returns(reward[:, 1:], continuation[:, 1:], value[:, 1:]), expected[:, 1:])
    assert torch.equal(returns(reward[:1].expand(4, -1, -1), continuation, value)[0], expected[0])
    # The values of a longer rollout: rows further apart than they are long.
    assert torch.equal(
        returns(reward[..., :5], continuation[..., :5], value[..., :6]),
        returns(reward[..., :5].contiguous(), continuation[..., :5].contiguous(), value[..., :6].contiguous()),
    )
    assert returns(reward[:0], continuation[:0], value[:0]).shape == (0, 6, 7)
    assert returns(reward[..., :0], continuation[..., :0], value[..., :1]).shape == (4, 6, 0)


def test_nan_is_not_hidden() -> None:
    reward, continuation, value = random_inputs(3, 4)
    reward[1, 2] = torch.nan
    assert returns(reward, continuation, value).isnan().tolist() == [[False] * 4, [True] * 3 + [False], [False] * 4]


def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.mow.lambda_return.default, (*random_inputs(2, 3), 0.9))


def test_one_graph_under_compile() -> None:
    inputs = random_inputs(3, 5)
    torch.compiler.reset()
    compiled = torch.compile(returns, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*inputs), returns(*inputs))


def test_equal_signatures() -> None:
    reference = importlib.import_module("mow.kernels.lambda_return")._reference
    door, *rooms = (list(inspect.signature(f).parameters) for f in (lambda_return, reference, lambda_return_triton))
    assert door == [*rooms[0], "backend"] == [*rooms[1], "backend"]
