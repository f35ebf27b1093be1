"""Find the fastest tilings on the GPU at hand.  python -m bench.tune_expert_linear

Times every legal tiling of expert_linear for each bucket of rows per task, checks its numbers against the reference,
and writes kernels/tuned/<class>.json; other rows stay as they are.

    --op forward dx dw       which ops; default: all
    --rows 32 64 128 512 0   which buckets; 0 is more than 512 rows per task; default: all
    --precision 16bit        which operands; default: 16bit
    --class sm_90            whose tilings to list; default: that of the GPU at hand
    --missing                leave out what the table lists as timed on a GPU of this name
    --jobs 12                processes that compile ahead what is then timed, some 2,700 kernels in all
    --dry-run                only list the tilings; needs no GPU
"""

import argparse
import contextlib
import itertools
import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from bench.clock import Call, CudaDevice
from mow.kernels import RoutePlan, expert_linear, tuned
from mow.kernels.tuned import BUCKETS, CLASSES, OPS, PRECISIONS, Op, Precision, Tiling

# 26 tasks with two of twelve experts each, and the widths (N, K) of the model's layers.
NUM_TASKS, NUM_SLOTS, NUM_EXPERTS = 26, 2, 12
WIDTHS = ((512, 512), (1024, 512), (512, 1024))
# Rows per task that stand for a bucket: those of imagination and training where they fall into it.
ROWS_OF_BUCKET = {32: 20, 64: 39, 128: 128, 512: 256, 0: 1024}

SHARED_KB = {"sm_80": 163, "sm_86": 99, "sm_90": 227, "generic": 99}
ACCUMULATORS = 128  # float32 sums per thread: more leave no registers for anything else
OWN_ROW_GAIN = 1.05  # a width gets a row of its own if that is so many times faster than the row for all

Row = dict[str, object]
Key = tuple[Op, Precision, int]  # op, precision, bucket of rows
Times = dict[tuple[int, int], dict[Tiling, float]]  # (N, K) -> tiling -> microseconds


def tilings(op: Op, bucket: int, precision: Precision, name: str) -> list[Tiling]:
    """Tilings that fit GPUs of class `name`: shared memory, accumulators, blocks that so many rows can fill."""
    rows, limit = ROWS_OF_BUCKET[bucket], SHARED_KB[name] * 1024
    blocks_m = (64, 128) if rows >= 64 or op == "dw" else (16, 32, 64, 128)
    shallow = op == "dw" or precision != "16bit" or SHARED_KB[name] < 100
    blocks_k = (32, 64) if shallow else (64, 128)
    copy_engine = name == "sm_90" and precision == "16bit" and op != "dw" and rows > 64
    found = []
    for m, n, k, warps, stages in itertools.product(blocks_m, (64, 128, 256), blocks_k, (4, 8), (3, 4, 5)):
        suits = {
            "packed": n < 256 or m <= 64,  # else addresses take the registers that the sums leave
            "tma": copy_engine and m >= 64 and n >= 128 and k == 64 and stages < 5,
        }
        cuts = [Tiling(one, m, n, k, warps, stages) for one in suits if suits[one]]  # type: ignore[arg-type]
        if m * n <= ACCUMULATORS * 32 * warps:
            found += [cut for cut in cuts if shared_bytes(cut, op, bucket, precision) <= limit]
    return found


def shared_bytes(cut: Tiling, op: Op, bucket: int, precision: Precision) -> int:
    """An estimate from above: all tiles in flight, and what the copy engine writes from."""
    size = 2 if precision == "16bit" else 4
    # Few rows: the weight may be read in float32 and rounded within the kernel.
    weight_size = 4 if op != "dw" and 0 < bucket <= 128 else size
    tiles = cut.num_stages * cut.block_k * (cut.block_m * size + cut.block_n * weight_size)
    return tiles + (cut.block_m * cut.block_n * size if cut.implementation == "tma" else 0)


def best_rows(
    op: Op, precision: Precision, bucket: int, times: Times, cublas: dict[tuple[int, int], float]
) -> list[Row]:
    """The row for all widths (least product of times), and one for each width that gains enough from its own.

    Args:
        times: of each tiling at each width, microseconds.
        cublas: of the reference at each width; empty where the door has no such choice.
    """
    everywhere = set.intersection(*(set(of) for of in times.values()))
    common = min(everywhere, key=lambda cut: sum(math.log(of[cut]) for of in times.values()))
    beaten = bool(cublas) and sum(math.log(cublas[width] / of[common]) for width, of in times.items()) < 0
    rows = [_row(op, precision, bucket, (0, 0), common, beaten)]
    for width, of in times.items():
        own = min(of, key=lambda cut: of[cut])
        to_cublas = bool(cublas) and cublas[width] < of[own]
        default = cublas[width] if beaten else of[common]
        if default > OWN_ROW_GAIN * (cublas[width] if to_cublas else of[own]):
            rows.append(_row(op, precision, bucket, width, own, to_cublas))
    return rows


def _row(op: Op, precision: Precision, bucket: int, width: tuple[int, int], cut: Tiling, to_cublas: bool) -> Row:
    # A row of cuBLAS keeps the blocks for calls with backend="triton", which then run through pointers.
    row: Row = {"op": op, "precision": precision, "rows": bucket, "N": width[0], "K": width[1], **asdict(cut)}
    return row | ({"implementation": "bmm"} if to_cublas else {})


def write_table(path: Path, evidence: dict[str, object], rows: Sequence[Row]) -> None:
    """One row per line, so that a change of one is one line of a diff."""
    head = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in evidence.items())
    lines = ",\n".join(f"    {json.dumps(row)}" for row in rows)
    path.write_text(f'{{\n{head},\n  "rows": [\n{lines}\n  ]\n}}\n', encoding="utf-8")


def calls(
    op: Op, rows: int, width: tuple[int, int], precision: Precision
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """The op, and the reference, on random tensors; the forward with a bias and an activation, as layers have them."""
    from mow.kernels import expert_linear_triton  # registers the ops

    assert expert_linear_triton is not None
    num_outputs, num_inputs = width
    dtype = torch.bfloat16 if precision == "16bit" else torch.float32
    routes = torch.stack([torch.randperm(NUM_EXPERTS)[:NUM_SLOTS].sort().values for _ in range(NUM_TASKS)]).cuda()
    plan = RoutePlan(routes, NUM_EXPERTS)
    member_P, offset_E = plan.by_expert()
    x = torch.randn(NUM_TASKS, 1, rows, num_inputs, device="cuda", dtype=dtype)
    dy = torch.randn(NUM_TASKS, NUM_SLOTS, rows, num_outputs, device="cuda", dtype=dtype)
    weight = torch.randn(NUM_EXPERTS, num_outputs, num_inputs, device="cuda", dtype=dtype) / num_inputs**0.5
    bias = torch.randn(NUM_EXPERTS, num_outputs, device="cuda", dtype=dtype)
    of_pairs = weight[routes]  # [K, J, N, I]
    if op == "forward":

        def layer(backend: str) -> Tensor:
            return expert_linear(x, weight, plan, bias=bias, activation="silu", backend=backend)  # type: ignore[arg-type]

        return lambda: layer("triton"), lambda: layer("reference")
    if op == "dx":
        return (
            lambda: torch.ops.mow.expert_linear_dx(dy, weight, routes, member_P, offset_E, True),
            lambda: (dy @ of_pairs).sum(dim=1, keepdim=True),
        )
    zeros = torch.zeros_like(weight, dtype=torch.float32)
    return (
        lambda: torch.ops.mow.expert_linear_dw(dy, x, member_P, offset_E, torch.float32),
        lambda: zeros.index_add(0, routes.flatten(), (dy.mT @ x).flatten(0, 1).float()),
    )


def microseconds(device: CudaDevice, call: Call) -> float:
    """Median time on the device with a cold cache."""
    for _ in range(3):
        call()
    return 1e6 * device.median_seconds(call, 20)


def every_launch_with(cut: Tiling) -> AbstractContextManager[object]:
    return patch("mow.kernels.expert_linear_launch.tiling", lambda *_: cut)


def launch_errors() -> tuple[type[Exception], ...]:
    """Errors of a tiling that the compiler or the GPU rejects."""
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError

    return CompilationError, OutOfResources, PTXASError


def compile_ahead(pool: Executor, jobs: int, op: Op, bucket: int, precision: Precision, name: str) -> None:
    """Fill Triton's cache on disk: every tiling at every width runs once in some process, before any is timed."""
    cuts = tilings(op, bucket, precision, name)
    shares = [(width, cuts[first::jobs]) for width in WIDTHS for first in range(jobs)]
    waiting = [pool.submit(run_once, op, bucket, precision, width, share) for width, share in shares if share]
    for future in waiting:
        problem = future.exception()
        if problem is not None:
            print(f"  ahead: {type(problem).__name__}: {problem}")


def run_once(op: Op, bucket: int, precision: Precision, width: tuple[int, int], cuts: Sequence[Tiling]) -> None:
    """In a process of the pool. A tiling that cannot run is reported by the process that times."""
    ours, _ = calls(op, ROWS_OF_BUCKET[bucket], width, precision)
    for cut in cuts:
        with every_launch_with(cut), contextlib.suppress(*launch_errors()):
            ours()
    torch.cuda.synchronize()


def time_all(device: CudaDevice, op: Op, bucket: int, precision: Precision, name: str) -> list[Row]:
    """Time, print and choose. A tiling that cannot be launched, or whose numbers are wrong, is printed and left out."""
    times: Times = {}
    cublas: dict[tuple[int, int], float] = {}
    for width in WIDTHS:
        ours, reference = calls(op, ROWS_OF_BUCKET[bucket], width, precision)
        expected = reference().double()
        peer = microseconds(device, reference)
        if op == "forward":
            cublas[width] = peer
        times[width] = {}
        for cut in tilings(op, bucket, precision, name):
            with every_launch_with(cut):
                try:
                    got = ours().double()
                except launch_errors() as problem:
                    print(f"  out: {cut}: {type(problem).__name__}")
                    continue
                error = float((got - expected).norm() / expected.norm())
                if not error < 2e-2:  # several roundings to 16 bits on both sides
                    print(f"  out: {cut}: error {error:.1e}")
                    continue
                times[width][cut] = microseconds(device, ours)
        best = min(times[width], key=lambda cut: times[width][cut])
        print(f"{op} {precision} rows {ROWS_OF_BUCKET[bucket]} N {width[0]} K {width[1]}: ", end="")
        print(f"{times[width][best]:.1f} us with {best}, cuBLAS chain {peer:.1f} us", flush=True)
    return best_rows(op, precision, bucket, times, cublas)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", nargs="+", choices=OPS, default=OPS)
    parser.add_argument("--rows", nargs="+", type=int, choices=BUCKETS, default=BUCKETS)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=("16bit",))
    parser.add_argument("--class", dest="name", choices=CLASSES)
    parser.add_argument("--missing", action="store_true")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"--jobs must be 1 or more, got {options.jobs}")
    wanted = list(itertools.product(options.op, options.precision, options.rows))
    if options.dry_run:
        for op, precision, bucket in wanted:
            legal = tilings(op, bucket, precision, options.name or "sm_90")
            print(f"{op} {precision} rows {bucket}: {len(legal)} tilings")
            print("\n".join(f"  {cut}" for cut in legal))
        return
    if not torch.cuda.is_available():
        parser.error("no GPU is visible: add --dry-run to list what would be timed")
    name = tuned._class_of_device(0)
    if options.name not in (None, name):
        parser.error(f"the GPU at hand is of class {name}, not {options.name}: leave --class out")
    path = Path(tuned.__file__).parent / "tuned" / f"{name}.json"
    if options.missing:
        wanted = untimed(wanted, json.loads(path.read_text(encoding="utf-8")), torch.cuda.get_device_name(0))
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        for op, precision, bucket in wanted:
            if options.jobs > 1:
                compile_ahead(pool, options.jobs, op, bucket, precision, name)
            tune(op, precision, bucket, name, path)


def untimed(wanted: Sequence[Key], table: dict[str, object], gpu: str) -> list[Key]:
    """Those that the table does not list as timed on a GPU of that name."""
    timed = table.get("timed", [])
    assert isinstance(timed, list)
    return [key for key in wanted if table.get("gpu") != gpu or " ".join(map(str, key)) not in timed]


def tune(op: Op, precision: Precision, bucket: int, name: str, path: Path) -> None:
    """Time one op at one number of rows, and write its rows into the table."""
    torch.manual_seed(0)
    # Written after each, so that a run that is cut short keeps what it has.
    if precision != "16bit":
        torch.backends.cuda.matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    chosen = time_all(CudaDevice(), op, bucket, precision, name)
    content = json.loads(path.read_text(encoding="utf-8"))
    key = (op, precision, bucket)
    kept = [row for row in content.pop("rows") if (row["op"], row["precision"], row["rows"]) != key]
    timed = sorted({*content.get("timed", []), " ".join(map(str, key))})
    evidence: dict[str, object] = {
        "gpu": torch.cuda.get_device_name(0),
        "evidence": f"Rows listed under timed: bench/tune_expert_linear.py, torch {torch.__version__}; the others "
        "were chosen by arithmetic and by what the compiler reports.",
        "timed": timed,
    }
    write_table(path, evidence, [*kept, *chosen])


if __name__ == "__main__":
    main()
