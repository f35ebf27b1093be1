"""The decode attention kernel as machine code: no spills, wide asynchronous copies, no exchange between warps."""

import math
import re

import pytest

from tests.compiled import compile_cubin

pytest.importorskip("triton", reason="compiling kernels needs triton, which is not installed")

from mow.kernels.decode_attention_triton import _NUM_WARPS, _STAGES, decode_attention_kernel, tile_of


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
        "BLOCK_SIZE": block_size,
        "STAGES": _STAGES,
    }
    cubin = compile_cubin(decode_attention_kernel, signature(dtype), constants, cc, _NUM_WARPS, 3)
    cubin.check_resources(cc)
    # Eight programs and more fit on a multiprocessor (65,536 registers of 32 bits, on sm_86 only 99 KB of memory).
    assert cubin.registers <= 65536 // (8 * 32 * _NUM_WARPS)
    assert cubin.shared_bytes == (_STAGES - 1) * 2 * 32 * _NUM_WARPS * 16
    # Cached keys and values come asynchronously, 16 bytes per thread: before the loop three tokens, in it one.
    copies = re.findall(r"\bLDGSTS\.[\w.]+", cubin.sass)
    assert len(copies) == 2 * _STAGES
    assert all(".128" in copy for copy in copies), copies
    # Besides: query, key and value of the new token as wide, and bytes of the mask.
    loads = re.findall(r"\bLDG\.[\w.]+", cubin.sass)
    assert sum(".128" in load for load in loads) == 3, loads
    assert all(".128" in load or ".U8" in load for load in loads), loads
    assert len(re.findall(r"\bSTG\.[\w.]*128", cubin.sass)) == 3  # new key, new value, output
    # A sum over a head is a few shuffles; between warps there is none, so the barriers are those of the copies.
    assert cubin.count("BAR") <= _STAGES + 1
