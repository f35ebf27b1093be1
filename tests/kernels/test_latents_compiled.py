"""The kernels of the latents and the returns as machine code: no spills, wide loads and stores where rows allow them.

At the sizes of the models (32 groups of 32 classes, 255 bins), as their launches would specialise them.
"""

import re
from typing import Any

import pytest

from tests.compiled import Cubin, compile_cubin

pytest.importorskip("triton", reason="compiling kernels needs triton, which is not installed")

from mow.kernels import (
    categorical_kl_triton,
    lambda_return_triton,
    sample_onehot_triton,
    two_hot_decode_triton,
    two_hot_triton,
)

# A second or two each; the other two combinations run with -m slow.
CASES = [
    ("fp32", 80),
    ("bf16", 90),
    pytest.param("bf16", 80, marks=pytest.mark.slow),
    pytest.param("fp32", 90, marks=pytest.mark.slow),
]
ITEMSIZE = {"fp32": 4, "bf16": 2}
NUM = 32  # groups, and classes of each
NUM_BINS = 255


def compiled(kernel: Any, pointers: dict[str, str], integers: list[str], constants: dict[str, Any], cc: int) -> Cubin:
    """Contiguous inputs: one level of rows. `integers` are multiples of 16; num_warps stands among the constants."""
    num_warps = constants.pop("num_warps")
    names = list(kernel.arg_names)
    ones = {name: 1 for name in names if name.endswith(("inner", "inner_stride"))}
    types = pointers | dict.fromkeys(integers, "i32:16")
    plain = [name for name in names if name not in types | ones | constants]
    cubin = compile_cubin(kernel, types | dict.fromkeys(plain, "i32"), ones | constants, cc, num_warps, 3)
    cubin.check_resources(cc)
    return cubin


def wide(cubin: Cubin, instruction: str) -> int:
    """How many of the loads (LDG) or stores (STG) move 16 bytes per thread."""
    return len(re.findall(rf"\b{instruction}\.[\w.]*128", cubin.sass))


def accesses(num_elements: int, dtype: str, num_warps: int) -> int:
    """16-byte instructions per thread for `num_elements` of a tile."""
    return num_elements * ITEMSIZE[dtype] // (num_warps * 32 * 16)


@pytest.mark.parametrize(("dtype", "cc"), CASES)
def test_sample_onehot(dtype: str, cc: int) -> None:
    block_c, block_rows = sample_onehot_triton.tile_of(NUM)
    num_warps = sample_onehot_triton._NUM_WARPS
    tile = block_c * block_rows
    constants = {"UNIMIX": 0.01, "C": NUM, "BLOCK_C": block_c, "BLOCK_ROWS": block_rows, "num_warps": num_warps}
    pointers = {"logits_ptr": f"*{dtype}", "seed_offset_ptr": "*i64", "onehot_ptr": "*fp32", "index_ptr": "*u8"}
    integers = ["num_rows", "outer_stride"]
    cubin = compiled(sample_onehot_triton.sample_onehot_kernel, pointers, integers, constants.copy(), cc)
    assert wide(cubin, "LDG") == accesses(tile, dtype, num_warps)
    assert wide(cubin, "STG") == accesses(tile, "fp32", num_warps)
    assert cubin.registers <= 64  # eight programs of four warps on a multiprocessor: half of what it can hold

    pointers = {"logits_ptr": f"*{dtype}", "grad_ptr": "*fp32", "logits_grad_ptr": f"*{dtype}"}
    integers.append("grad_outer_stride")
    cubin = compiled(sample_onehot_triton.sample_onehot_backward_kernel, pointers, integers, constants, cc)
    assert wide(cubin, "LDG") == accesses(tile, dtype, num_warps) + accesses(tile, "fp32", num_warps)
    assert wide(cubin, "STG") == accesses(tile, dtype, num_warps)
    assert cubin.registers <= 64


@pytest.mark.parametrize(("dtype", "cc"), CASES)
def test_categorical_kl(dtype: str, cc: int) -> None:
    block_c, block_groups, num_warps = categorical_kl_triton.tile_of(NUM, NUM)
    assert block_groups == NUM  # a state is one tile: both grids are on their way at once
    constants = {"UNIMIX": 0.01, "S": NUM, "C": NUM, "BLOCK_C": block_c, "BLOCK_GROUPS": block_groups}
    constants["num_warps"] = num_warps
    grids = {"posterior_ptr": f"*{dtype}", "prior_ptr": f"*{dtype}"}
    integers = ["posterior_outer_stride", "prior_outer_stride"]
    reads = 2 * accesses(NUM * NUM, dtype, num_warps)
    pointers = grids | {"dynamics_ptr": "*fp32", "representation_ptr": "*fp32"}
    cubin = compiled(categorical_kl_triton.categorical_kl_kernel, pointers, integers, constants.copy(), cc)
    assert wide(cubin, "LDG") == reads
    assert cubin.registers <= 64

    pointers = grids | {"dynamics_grad_ptr": "*fp32", "representation_grad_ptr": "*fp32"}
    pointers |= {"posterior_grad_ptr": f"*{dtype}", "prior_grad_ptr": f"*{dtype}"}
    cubin = compiled(categorical_kl_triton.categorical_kl_backward_kernel, pointers, integers, constants, cc)
    assert wide(cubin, "LDG") == reads
    assert wide(cubin, "STG") == reads
    assert cubin.registers <= 96  # two grids of input, two of output


@pytest.mark.parametrize(("dtype", "cc"), CASES)
def test_two_hot(dtype: str, cc: int) -> None:
    bins = {"LOW": -20.0, "HIGH": 20.0, "V": NUM_BINS}
    logits, grads = {"logits_ptr": f"*{dtype}"}, {"grad_ptr": "*fp32", "logits_grad_ptr": f"*{dtype}"}
    target = {"target_ptr": "*fp32"}
    decode, decode_backward = (
        (two_hot_decode_triton.two_hot_decode_kernel, logits | {"value_ptr": "*fp32"}, NUM_BINS // 2),
        (two_hot_decode_triton.two_hot_decode_backward_kernel, logits | grads, NUM_BINS // 2),
    )
    for kernel, pointers, width, form in (
        (two_hot_triton.two_hot_loss_kernel, logits | target | {"loss_ptr": "*fp32"}, NUM_BINS, {}),
        (two_hot_triton.two_hot_loss_backward_kernel, logits | target | grads, NUM_BINS, {}),
        (*decode, {"MEAN_OF_SYMEXP": False}),
        (*decode, {"MEAN_OF_SYMEXP": True}),
        (*decode_backward, {"MEAN_OF_SYMEXP": False}),
        (*decode_backward, {"MEAN_OF_SYMEXP": True}),
    ):
        block, block_rows, num_warps = two_hot_triton.tile_of(NUM_BINS, width)
        constants = bins | form | {"BLOCK": block, "BLOCK_ROWS": block_rows, "num_warps": num_warps}
        cubin = compiled(kernel, pointers, ["num_rows"], constants, cc)
        # Rows of 255 are not aligned, so no access is wide. One warp per program: no sum waits at a barrier; triton 3.6
        # has one where a layout changes.
        assert cubin.count("BAR") <= 1
        assert cubin.registers <= 96


@pytest.mark.parametrize(("dtype", "cc"), CASES)
def test_lambda_return(dtype: str, cc: int) -> None:
    pointers = dict.fromkeys(("reward_ptr", "continuation_ptr", "value_ptr"), f"*{dtype}") | {"return_ptr": "*fp32"}
    block_rows, num_warps = lambda_return_triton._BLOCK_ROWS, lambda_return_triton._NUM_WARPS
    constants = {"LAM": 0.95, "BLOCK_ROWS": block_rows, "num_warps": num_warps}
    integers = ["num_rows", "num_steps", "reward_outer_stride", "continuation_outer_stride"]
    cubin = compiled(lambda_return_triton.lambda_return_kernel, pointers, integers, constants, cc)
    assert cubin.shared_bytes == 0  # a row per thread: nothing to share
    assert cubin.registers <= 64
