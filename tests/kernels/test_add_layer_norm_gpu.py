"""add_layer_norm on a GPU against float64."""

import pytest
import torch

from tests.norm_cases import SHAPES, check

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("shape", [*SHAPES, (26, 2, 1024, 512)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("relu", [False, True])
def test_against_float64(shape: tuple[int, ...], dtype: torch.dtype, relu: bool) -> None:
    check(shape, dtype, "cuda", experts=12, residual=True, relu=relu)
    check(shape, dtype, "cuda", experts=1, residual=False, relu=relu)
