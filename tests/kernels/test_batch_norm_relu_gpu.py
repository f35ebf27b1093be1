"""batch_norm_relu on a GPU against float64."""

import pytest
import torch

from tests.batch_norm_cases import SHAPES, check

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("shape", [*SHAPES, (2048, 32, 32, 32), (512, 256, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_against_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check(shape, dtype, "cuda")
