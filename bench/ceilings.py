"""Measured rates of the device, against which shares are given, in the same run as the ops.

    python -m bench.ceilings --json FILE      both, measured twice; the difference is noise
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.clock import Device, this_device
from bench.floors import Ceilings

_ROUNDS = 10


def measure_ceilings(device: Device) -> Ceilings:
    """A GPU: 8,192^3 bf16 matmul of random numbers (zeros run faster), copy of 4.3 GB (8.6 GB read and written), less
    where memory is short. A CPU: 512^3 float32 and 64 MB, on as many threads as torch has."""
    if device.kind == "cpu":
        return _measure(device, 512, torch.float32, 2**26)
    free, _ = torch.cuda.mem_get_info()
    return _measure(device, 8192, torch.bfloat16, min(4_300_000_000, free // 4))


def _measure(device: Device, size: int, dtype: torch.dtype, num_bytes: int) -> Ceilings:
    left, right = (torch.randn(size, size, device=device.kind, dtype=dtype) for _ in range(2))
    product = torch.empty_like(left)
    source = torch.randint(0, 255, (num_bytes,), dtype=torch.uint8, device=device.kind)
    target = torch.empty_like(source)
    for _ in range(3):
        torch.mm(left, right, out=product)
        target.copy_(source)
    matmul = device.median_seconds(lambda: torch.mm(left, right, out=product), _ROUNDS)
    copy = device.median_seconds(lambda: target.copy_(source), _ROUNDS)
    return Ceilings(2.0 * size**3 / matmul, 2.0 * num_bytes / copy)


def twice(device: Device) -> dict[str, Any]:
    """Rates of two measurements in a row, and the second over the first."""
    first, second = (measure_ceilings(device) for _ in range(2))
    return {
        "device": device.name,
        "tflop_per_s": [once.flops_per_second / 1e12 for once in (first, second)],
        "gb_per_s": [once.bytes_per_second / 1e9 for once in (first, second)],
        "again": {
            "matmul": second.flops_per_second / first.flops_per_second,
            "copy": second.bytes_per_second / first.bytes_per_second,
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.ceilings", description="Matmul and copy, each twice.")
    parser.add_argument("--json", type=Path, help="where to write it as well")
    options = parser.parse_args(arguments)
    content = json.dumps(twice(this_device()), indent=1)
    print(content)
    if options.json:
        options.json.write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
