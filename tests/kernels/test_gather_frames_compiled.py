"""The gather of frames as machine code: nothing spilled, and the result written in the widest stores there are."""

import re

import pytest

from tests.compiled import compile_cubin

pytest.importorskip("triton", reason="compiling kernels needs triton, which is not installed")

from mow.kernels import gather_frames_triton

ITEMSIZE = {"fp32": 4, "bf16": 2}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("dtype", "cc"), [("bf16", 90), ("fp32", 80)])
def test_gather_frames(dtype: str, cc: int, channels_last: bool) -> None:
    pointers = {"ring_ptr": "*u8", "rows_ptr": "*i64", "start_ptr": "*i64", "out_ptr": f"*{dtype}"}
    integers = {"num_windows": "i32", "length": "i32", "capacity": "i32"}
    block, num_warps = gather_frames_triton._BLOCK, gather_frames_triton._NUM_WARPS
    constants = {"PIXELS": 4096, "CHANNELS": 3, "CHANNELS_LAST": channels_last, "BLOCK": block}
    cubin = compile_cubin(gather_frames_triton.gather_frames_kernel, pointers | integers, constants, cc, num_warps, 3)
    cubin.check_resources(cc)
    bytes_per_thread = block * ITEMSIZE[dtype] // (num_warps * 32)
    assert len(re.findall(r"\bSTG\.[\w.]*128", cubin.sass)) == bytes_per_thread // 16
    if channels_last:  # bytes are read as they lie
        assert len(re.findall(r"\bLDG\.[\w.]*128", cubin.sass)) == block // (num_warps * 32) // 16
