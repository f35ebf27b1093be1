"""The decode attention kernel as machine code: no spills, wide loads, no shared memory to speak of."""

import math
import re

import pytest

from tests.compiled import compile_cubin

pytest.importorskip("triton", reason="compiling kernels needs triton, which is not installed")

from mow.kernels.decode_attention_triton import _BLOCK_T, _NUM_WARPS, decode_attention_kernel, tile_of


def signature(dtype: str) -> dict[str, str]:
    """26 tasks, 2 slots, 1,024 sequences, 8 heads; masks of 24 x 24, of which a row is given."""
    pointers = ("query_ptr", "key_ptr", "value_ptr", "keys_ptr", "values_ptr", "output_ptr")
    aligned = ("num_rows", "num_sequences", "pairs", "cache_stride")
    plain = ("position", "num_heads", "mask_stride_task", "mask_stride_sequence")
    return (
        dict.fromkeys(pointers, f"*{dtype}")
        | {"mask_ptr": "*u8"}
        | dict.fromkeys(aligned, "i32:16")
        | dict.fromkeys(plain, "i32")
    )


@pytest.mark.parametrize("cc", [80, 90])
@pytest.mark.parametrize(
    ("dtype", "itemsize", "size"), [("bf16", 2, 64), ("fp16", 2, 32), ("fp32", 4, 64), ("bf16", 2, 128)]
)
def test_machine_code(dtype: str, itemsize: int, size: int, cc: int) -> None:
    block_rows, block_size = tile_of(size, itemsize)
    constants = {
        "mask_stride_token": 1,
        "SCALE": math.log2(math.e) / math.sqrt(size),
        "SIZE": size,
        "BLOCK_ROWS": block_rows,
        "BLOCK_T": _BLOCK_T,
        "BLOCK_SIZE": block_size,
    }
    cubin = compile_cubin(decode_attention_kernel, signature(dtype), constants, cc, _NUM_WARPS, 3)
    cubin.check_resources(cc)
    # Five blocks of four warps fit on a multiprocessor (65,536 registers): 160 KB of keys and values on their way.
    assert cubin.registers <= 65536 // (5 * 32 * _NUM_WARPS)
    # Sums over tokens stay in registers, shared memory only reorders scores. With sums across warps there would be
    # twenty barriers and more.
    assert cubin.shared_bytes <= 2048
    assert cubin.count("BAR") <= 12
    # Keys and values come 16 bytes at a time: eight of each in the loop, query, key and value before it.
    loads = re.findall(r"\bLDG\.[\w.]+", cubin.sass)
    wide = [load for load in loads if ".128" in load]
    assert len(wide) == 2 * _BLOCK_T + 3, loads
    assert all(".U8" in load for load in loads if load not in wide)  # the mask
    assert len(re.findall(r"\bSTG\.[\w.]*128", cubin.sass)) == 3  # new key, new value, output
