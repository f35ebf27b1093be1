"""python -m bench: time every op and keep the numbers.

    python -m bench                          all ops; writes bench/results/<gpu>-<date>.json
    python -m bench -k decode_attention      words after it go to pytest
    python -m bench.render bench/results/<gpu>-<date>.json --write      the table in README.md

It is `python -m pytest bench --benchmark-only --benchmark-json bench/results/<gpu>-<date>.json`. On a machine without a
GPU it runs small shapes with the reference, names the file cpu-<date>.json, and the numbers say that they are a CPU's.
"""

import datetime
import sys
from pathlib import Path

import pytest

from bench.clock import this_device
from bench.machine import file_stem

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: list[str]) -> int:
    """Exit status of pytest."""
    stem = file_stem(this_device(), datetime.date.today().isoformat())
    path = ROOT / "bench" / "results" / f"{stem}.json"
    status = int(pytest.main([str(ROOT / "bench"), "--benchmark-only", f"--benchmark-json={path}", *arguments]))
    if status == 0:
        print(f"wrote {path}; python -m bench.render {path.relative_to(ROOT)} shows the table")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
