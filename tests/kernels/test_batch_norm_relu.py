"""batch_norm_relu by hand, its errors, and its kernel as machine code."""

import re

import pytest
import torch

from mow.kernels import batch_norm_relu


def test_by_hand() -> None:
    x = torch.tensor([1.0, 5.0, -2.0, 8.0]).view(1, 2, 1, 2)
    mean, var, weight, bias = (torch.tensor(numbers) for numbers in ([3.0, 0.0], [4.0, 1.0], [2.0, 1.0], [1.0, 1.0]))
    # (1 - 3) / 2 * 2 + 1 = -1, (5 - 3) / 2 * 2 + 1 = 3; -2 + 1 = -1, 8 + 1 = 9.
    assert batch_norm_relu(x, mean, var, weight, bias, eps=0.0).flatten().tolist() == [0.0, 3.0, 0.0, 9.0]


def test_a_shape_that_does_not_fit() -> None:
    two, three = torch.ones(2), torch.ones(3)
    with pytest.raises(ValueError, match=r"must be \[C\] of input \[1, 3, 2, 2\], got \[3\], \[3\], \[2\], \[3\]"):
        batch_norm_relu(torch.zeros(1, 3, 2, 2), three, three, two, three)


@pytest.mark.parametrize(("channels", "cc"), [(32, 80), (256, 90)])
def test_machine_code(channels: int, cc: int) -> None:
    """No spills; 16 bytes per load and store."""
    compiled = pytest.importorskip("tests.compiled")
    from mow.kernels import batch_norm_relu_triton as norm

    rows, width = norm.tile_of(channels)
    types = {"x_ptr": "*bf16", "y_ptr": "*bf16", "num_rows": "i32:16", "eps": "fp32"}
    types |= dict.fromkeys(("mean_ptr", "var_ptr", "weight_ptr", "bias_ptr"), "*fp32")
    constants = {"C": channels, "BLOCK_ROWS": rows, "BLOCK_C": width}
    cubin = compiled.compile_cubin(norm.batch_norm_relu_kernel, types, constants, cc, norm._NUM_WARPS, 3)
    cubin.check_resources(cc)
    numbers = rows * width // (32 * norm._NUM_WARPS)
    assert len(re.findall(r"\bSTG\.[\w.]*128", cubin.sass)) == numbers * 2 // 16
    assert cubin.registers <= 128
