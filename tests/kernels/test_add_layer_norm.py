"""add_layer_norm by hand, its gradients, its errors."""

import pytest
import torch

from mow.kernels import add_layer_norm, route_plan

PLAN = route_plan(torch.tensor([[1, 0]]), 2)
WEIGHT, BIAS = torch.tensor([[1.0, 1.0], [2.0, 2.0]]), torch.tensor([[0.0, 0.0], [10.0, -10.0]])


def test_by_hand() -> None:
    x, residual = torch.tensor([[[[1.0, 5.0]], [[4.0, 0.0]]]]), torch.tensor([[[[0.0, 2.0]], [[2.0, 0.0]]]])
    # Sums (1, 7) and (6, 0): normalised (-1, 1) and (1, -1); the first pair's expert is 1.
    got = add_layer_norm(x, WEIGHT, BIAS, PLAN, residual=residual, eps=0.0)
    assert got.tolist() == [[[[8.0, -8.0]], [[1.0, -1.0]]]]
    got = add_layer_norm(x, WEIGHT, BIAS, PLAN, residual=residual, eps=0.0, relu=True, dtype=torch.bfloat16)
    assert got.tolist() == [[[[8.0, 0.0]], [[1.0, 0.0]]]]
    assert got.dtype == torch.bfloat16
    assert add_layer_norm(x, WEIGHT[:1], BIAS[1:], PLAN, eps=0.0).tolist() == [[[[9.0, -9.0]], [[11.0, -11.0]]]]


@pytest.mark.parametrize("relu", [False, True])
def test_gradients(relu: bool) -> None:
    shapes = ((1, 2, 3, 2), (2, 2), (2, 2), (1, 2, 3, 2))
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return add_layer_norm(x, weight, bias, PLAN, residual=residual, eps=0.1, relu=relu)

    assert torch.autograd.gradcheck(norm, leaves)


@pytest.mark.parametrize("shape", [(1, 2, 3, 3), (2, 1, 3, 2)])
def test_a_shape_that_does_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"do not fit 2 experts and routes \[1, 2\]: give \[K, J, ..., W\]"):
        add_layer_norm(torch.zeros(shape), WEIGHT, BIAS, PLAN)
