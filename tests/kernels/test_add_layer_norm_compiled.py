"""The kernel of add_layer_norm as machine code at the width of the models: no spills, wide loads and stores."""

import re

import pytest

from tests.compiled import compile_cubin

pytest.importorskip("triton", reason="compiling kernels needs triton, which is not installed")

from mow.kernels import add_layer_norm_triton as norm


@pytest.mark.parametrize(("output", "cc"), [("fp32", 80), ("bf16", 90)])
def test_machine_code(output: str, cc: int) -> None:
    rows, width = norm.tile_of(512)
    constants = {"W": 512, "RELU": output == "bf16", "BLOCK_ROWS": rows, "BLOCK_W": width}
    pointers = {"x_ptr": "*bf16", "residual_ptr": "*fp32", "weight_ptr": "*fp32", "bias_ptr": "*fp32"}
    types = pointers | {"routes_ptr": "*i64", "y_ptr": f"*{output}", "num_rows": "i32:16", "rows_of_pair": "i32:16"}
    kernel = norm.add_layer_norm_kernel
    cubin = compile_cubin(kernel, types | {"eps": "fp32"}, constants, cc, norm._NUM_WARPS, 3)
    cubin.check_resources(cc)
    loads, stores = (len(re.findall(rf"\b{name}\.[\w.]*128", cubin.sass)) for name in ("LDG", "STG"))
    numbers = rows * width // (32 * norm._NUM_WARPS)  # per thread: input, residual, weight and bias
    assert loads >= numbers * (2 + 4 + 4 + 4) // 16
    assert stores == numbers * (4 if output == "fp32" else 2) // 16
    assert cubin.registers <= 128

    types = pointers | {"routes_ptr": "*i64", "grad_ptr": f"*{output}", "dx_ptr": "*bf16", "dresidual_ptr": "*fp32"}
    types |= {"sums_ptr": "*fp32", "rows_of_pair": "i32:16", "chunks": "i32:16", "rows_of_chunk": "i32:16"}
    kernel = norm.add_layer_norm_backward_kernel
    cubin = compile_cubin(kernel, types | {"eps": "fp32"}, constants, cc, norm._NUM_WARPS, 3)
    cubin.check_resources(cc)
    stores = len(re.findall(r"\bSTG\.[\w.]*128", cubin.sass))
    assert stores >= numbers * (2 + 4) // 16
