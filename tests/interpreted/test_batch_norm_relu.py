"""The kernel of batch_norm_relu under the interpreter against float64."""

import inspect

import pytest
import torch

from mow.kernels import batch_norm_relu
from mow.kernels.batch_norm_relu_triton import batch_norm_relu_triton
from tests.batch_norm_cases import SHAPES, check


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_against_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check(shape, dtype, "cpu")


def test_nan_is_not_hidden() -> None:
    x, ones = torch.zeros(1, 2, 2, 2).to(memory_format=torch.channels_last), torch.ones(2)
    x[0, 1, 0, 1] = torch.nan
    assert batch_norm_relu(x, ones, ones, ones, ones, backend="triton").isnan().nonzero().tolist() == [[0, 1, 0, 1]]


def test_opcheck() -> None:
    x, ones = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last), torch.ones(3)
    torch.library.opcheck(torch.ops.mow.batch_norm_relu.default, (x, ones, ones, ones, ones, 1e-5))


def test_signatures_agree() -> None:
    door, kernel = (list(inspect.signature(f).parameters) for f in (batch_norm_relu, batch_norm_relu_triton))
    assert door == [*kernel, "backend"]
