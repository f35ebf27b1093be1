"""The recursion against hand-worked numbers and against the mixture of n-step returns that it abbreviates."""

import pytest
import torch
from torch import Tensor

from mow.kernels import lambda_return


def random_inputs(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    *leading, num_steps = shape
    reward = torch.randn(shape, generator=generator)
    continuation = 0.9 * torch.rand(shape, generator=generator)
    value = torch.randn(*leading, num_steps + 1, generator=generator)
    return reward.to(dtype), continuation.to(dtype), value.to(dtype)


def mixture_of_n_step_returns(reward: Tensor, continuation: Tensor, value: Tensor, lam: float) -> Tensor:
    """(1 - lam) sum_n lam^(n-1) G^(n), the rest of the weight on the longest; G^(n) sums n rewards, then bootstraps."""
    num_steps = reward.shape[-1]
    returns = torch.zeros_like(reward)
    for t in range(num_steps):
        longest = num_steps - t
        for n in range(1, longest + 1):
            weight = lam ** (n - 1) * (1 - lam if n < longest else 1)
            discount = torch.ones_like(reward[..., 0])
            for s in range(t, t + n):
                returns[..., t] += weight * discount * reward[..., s]
                discount = discount * continuation[..., s]
            returns[..., t] += weight * discount * value[..., t + n]
    return returns


def test_lambda_return_by_hand() -> None:
    reward, value = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[9.0, 4.0, 8.0]]])
    got = lambda_return(reward, torch.full_like(reward, 0.5), value, lam=0.5)
    # G_1 = 2 + 8/2 = 6, G_0 = 1 + (4/2 + 6/2)/2. The 9 belongs to the start state and must not matter.
    assert got.tolist() == [[[3.5, 6.0]]]


def test_termination_cuts_the_return() -> None:
    reward, continuation = torch.ones(1, 3), torch.tensor([[1.0, 0.0, 1.0]])
    assert lambda_return(reward, continuation, torch.full((1, 4), 100.0), lam=1.0).tolist() == [[2.0, 1.0, 101.0]]


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("shape", [(1,), (13,), (3, 5, 16), (2, 1, 2, 6)])
def test_is_the_mixture_of_n_step_returns(lam: float, shape: tuple[int, ...]) -> None:
    double = random_inputs(*shape, dtype=torch.float64)
    expected = mixture_of_n_step_returns(*double, lam)
    got = lambda_return(*double, lam=lam)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)  # float64, sums of at most 16 terms
    single = lambda_return(*random_inputs(*shape), lam=lam)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=1e-5, atol=1e-5)  # float32 inputs and sums


def test_long_horizon_converges() -> None:
    # Constant reward 1, discount 1/2, own value 2: every return is 2 exactly.
    ones = torch.ones(3, 1000)
    got = lambda_return(ones, 0.5 * ones, torch.full((3, 1001), 2.0), lam=0.5)
    assert torch.equal(got, 2 * ones)


def test_carries_no_gradient() -> None:
    inputs = [x.requires_grad_() for x in random_inputs(3, 5)]
    got = lambda_return(*inputs, lam=0.9)
    assert not got.requires_grad


def test_leaves_its_inputs_alone() -> None:
    inputs = random_inputs(3, 5)
    copies = [x.clone() for x in inputs]
    lambda_return(*inputs, lam=0.9)
    assert all(torch.equal(x, copy) for x, copy in zip(inputs, copies, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_float32_arithmetic(dtype: torch.dtype) -> None:
    half = random_inputs(3, 63, dtype=dtype)
    expected = lambda_return(*(x.float() for x in half), lam=0.95)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = lambda_return(*half, lam=0.95)
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


def test_strided_and_empty() -> None:
    reward, continuation, value = random_inputs(4, 6, 7)
    got = lambda_return(reward.transpose(0, 1), continuation.transpose(0, 1), value.transpose(0, 1), lam=0.9)
    assert torch.equal(got, lambda_return(reward, continuation, value, lam=0.9).transpose(0, 1))
    expanded = lambda_return(reward[:1].expand(4, -1, -1), continuation, value, lam=0.9)
    assert torch.equal(expanded[0], lambda_return(reward[0], continuation[0], value[0], lam=0.9))
    assert lambda_return(reward[:0], continuation[:0], value[:0], lam=0.9).shape == (0, 6, 7)
    assert lambda_return(reward[..., :0], continuation[..., :0], value[..., :1], lam=0.9).shape == (4, 6, 0)


@pytest.mark.parametrize(
    ("shapes", "lam", "message"),
    [
        (((2, 3), (2, 3), (2, 3)), 0.9, "value needs one step more than reward, got 3 and 3: append the value"),
        (((2, 3), (2, 2), (2, 4)), 0.9, r"got \[2, 3\], \[2, 2\] and \[2, 4\]: align their axes"),
        (((2, 3), (2, 3), (1, 4)), 0.9, r"got \[2, 3\], \[2, 3\] and \[1, 4\]: align their axes"),
        (((), (), (1,)), 0.9, r"got \[\], \[\] and \[1\]: align their axes"),
        (((2, 3), (2, 3), (2, 4)), 1.1, r"lam must be in \[0, 1\], got 1.1"),
        (((2, 3), (2, 3), (2, 4)), -0.1, r"lam must be in \[0, 1\], got -0.1"),
    ],
)
def test_errors(shapes: tuple[tuple[int, ...], ...], lam: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lambda_return(*(torch.zeros(shape) for shape in shapes), lam=lam)


def test_two_devices_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"must share a device, got cpu, cpu and meta: move them with \.to\(\)"):
        lambda_return(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 4, device="meta"), lam=0.9)


def test_bool_continuation_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"expected floating-point tensors, got torch\.bool"):
        lambda_return(torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 4), lam=0.9)
