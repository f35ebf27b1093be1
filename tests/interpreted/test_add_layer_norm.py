"""The kernel of add_layer_norm under the interpreter against float64."""

import inspect

import pytest
import torch

from mow.kernels import add_layer_norm, route_plan
from mow.kernels.add_layer_norm_triton import add_layer_norm_triton
from tests.norm_cases import SHAPES, check

PLAN = route_plan(torch.tensor([[1, 0]]), 2)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("residual", [False, True])
def test_against_float64(shape: tuple[int, ...], residual: bool) -> None:
    check(shape, torch.float32, "cpu", experts=3, residual=residual, relu=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("experts", [1, 3])
def test_rectified_in_the_dtype_of_a_matmul(dtype: torch.dtype, experts: int) -> None:
    check(SHAPES[0], dtype, "cpu", experts=experts, residual=False, relu=True)


def test_nan_is_not_hidden_and_stays_in_its_row() -> None:
    x, affine = torch.randn(1, 2, 3, 4), torch.ones(2, 4)
    x[0, 1, 1, 2] = torch.nan
    got = add_layer_norm(x, affine, affine, PLAN, relu=True, backend="triton")
    assert got.isnan().all(dim=-1).tolist() == [[[False] * 3, [False, True, False]]]
    assert got.isnan().sum() == 4


def test_strided_and_empty() -> None:
    x, affine = torch.randn(1, 3, 2, 4).transpose(1, 2), torch.ones(2, 4)
    got, want = (add_layer_norm(y, affine, affine, PLAN, backend="triton") for y in (x, x.contiguous()))
    assert torch.equal(got, want)
    empty = add_layer_norm(x[:, :, :0], affine.requires_grad_(), affine, PLAN, backend="triton")
    assert empty.shape == (1, 2, 0, 4)
    assert torch.autograd.grad(empty.sum(), affine)[0].tolist() == [[0.0] * 4] * 2


def test_rows_of_several_programs() -> None:
    check((1, 2, 19, 20), torch.float32, "cpu", experts=2, residual=True, relu=True)


def test_opcheck() -> None:
    x, affine = torch.randn(1, 2, 3, 4, requires_grad=True), torch.ones(2, 4, requires_grad=True)
    torch.library.opcheck(
        torch.ops.mow.add_layer_norm.default, (x, affine, affine, PLAN.routes, x, 1e-5, True, torch.bfloat16)
    )


def test_signatures_agree() -> None:
    door, kernel = (list(inspect.signature(f).parameters) for f in (add_layer_norm, add_layer_norm_triton))
    assert door == [*kernel, "backend"]
