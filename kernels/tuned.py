"""How the kernels of expert_linear are cut for the GPU at hand: a table per class of GPU, read once.

The files tuned/<class>.json say themselves where their rows come from: from arithmetic and from what the compiler
reports (registers, spills, shared memory), or from a GPU that bench/tune_expert_linear.py has timed. Nothing is tuned
at run time: what runs does not depend on what ran before, and nothing is timed inside a CUDA graph.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch

Op = Literal["forward", "dx", "dw"]
Implementation = Literal["packed", "tma", "bmm"]
# 16-bit operands; float32 multiplied as such; float32 of which the tensor cores read 19 bits.
Precision = Literal["16bit", "fp32", "tf32"]

OPS: tuple[Op, ...] = ("forward", "dx", "dw")
PRECISIONS: tuple[Precision, ...] = ("16bit", "fp32", "tf32")
BUCKETS = (32, 64, 128, 512, 0)  # largest number of rows per task of each bucket; 0: more than that
CLASSES = ("sm_80", "sm_86", "sm_90", "generic")


@dataclass(frozen=True)
class Tiling:
    """How one kernel is cut. `implementation` is one of

        packed: rows of all tasks of an expert side by side in a tile, read through pointers; any GPU.
        tma: tiles of one task, fetched by the copy engine that compute capability 9.0 brought; persistent programs.
        bmm: no kernel of ours: gathered weights and the batched matmul of cuBLAS, which the door calls by itself.

    Block sizes count rows (m), outputs (n) and the axis that is summed over (k). In dw rows are what is summed over:
    there block_m counts outputs, block_n inputs and block_k rows. num_stages counts the tiles in flight.
    """

    implementation: Implementation
    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


# (op, precision, bucket, N, K) -> Tiling; N and K are 0 in the rows that serve every other size.
Table = dict[tuple[Op, Precision, int, int, int], Tiling]

# Where a row says tma but the copy engine cannot write the output, or a residual comes along, for which its kernel has
# no room.
POINTER_TILING = Tiling("packed", 128, 128, 32, 8, 4)

# Where outputs are not a multiple of 16, 16-bit numbers are stored one by one, whose addresses need registers: larger
# tiles would spill them.
ODD_TILING = Tiling("packed", 64, 64, 64, 8, 3)

# One program takes some 10 ms under the interpreter, more or less whatever its size: small, but not the smallest.
INTERPRETED_TILING = Tiling("packed", 32, 32, 32, 4, 1)


def class_of(major: int, minor: int) -> str:
    """The table for a compute capability. 8.6 and 8.9 share the 99 KB of shared memory that decide what fits."""
    known = {(8, 0): "sm_80", (8, 6): "sm_86", (8, 7): "sm_80", (8, 9): "sm_86", (9, 0): "sm_90"}
    return known.get((major, minor), "generic")


def bucket_of(num_rows: int) -> int:
    """The first of BUCKETS that holds `num_rows` rows per task."""
    for bucket in BUCKETS[:-1]:
        if num_rows <= bucket:
            return bucket
    return BUCKETS[-1]


def load_table(name: str) -> Table:
    """Read tuned/<name>.json. Raises: ValueError if a row is there twice or one for all sizes is missing."""
    rows = json.loads((Path(__file__).parent / "tuned" / f"{name}.json").read_text(encoding="utf-8"))["rows"]
    table: Table = {}
    for row in rows:
        key = (row["op"], row["precision"], row["rows"], row["N"], row["K"])
        if key in table:
            raise ValueError(f"tuned/{name}.json has two rows for {key}: keep one")
        fields = ("implementation", "block_m", "block_n", "block_k", "num_warps", "num_stages")
        table[key] = Tiling(*(row[field] for field in fields))
    for op in OPS:
        for precision in PRECISIONS:
            for bucket in BUCKETS:
                if (op, precision, bucket, 0, 0) not in table:
                    raise ValueError(f"tuned/{name}.json lacks a row for {op}, {precision}, {bucket} rows, N = K = 0")
    return table


_TABLES = {name: load_table(name) for name in CLASSES}


def tiling(
    op: Op, device: torch.device, dtype: torch.dtype, num_rows: int, num_outputs: int, num_inputs: int
) -> Tiling:
    """The row for one call: that of its very sizes, or else the one for all sizes of its bucket.

    Args:
        op: "forward", or which gradient.
        device: where it runs; not a GPU means Triton's interpreter.
        dtype: of the operands.
        num_rows: R, rows per task; their bucket counts.
        num_outputs: N of the layer.
        num_inputs: K of the layer, the width of its input.
    """
    if device.type != "cuda":
        return INTERPRETED_TILING
    table = _TABLES[_class_of_device(device.index or 0)]
    precision = precision_of(dtype)
    bucket = bucket_of(num_rows)
    found = table.get((op, precision, bucket, num_outputs, num_inputs))
    return table[op, precision, bucket, 0, 0] if found is None else found


def precision_of(dtype: torch.dtype) -> Precision:
    """How operands of `dtype` are multiplied; float32 as torch.backends.cuda.matmul says for cuBLAS."""
    if dtype.itemsize == 2:
        return "16bit"
    return "tf32" if _tf32_allowed() else "fp32"


def _tf32_allowed() -> bool:
    # The newer name: reading the older one, allow_tf32, is an error once somebody has set the newer.
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def _class_of_device(index: int) -> str:
    return _ask_device(index)


@cache
def _ask_device(index: int) -> str:
    # AMD's cards number their generations alike and have neither the copy engine nor these sizes of shared memory.
    if torch.version.cuda is None:
        return "generic"
    return class_of(*torch.cuda.get_device_capability(index))


# torch.compile then runs them while tracing and keeps the answer, which it cannot trace.
torch.compiler.assume_constant_result(_tf32_allowed)
torch.compiler.assume_constant_result(_class_of_device)
