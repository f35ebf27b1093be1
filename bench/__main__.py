"""python -m bench: time every op and keep the numbers.

    python -m bench                          all ops; writes bench/results/<gpu>-<date>.json when all went well
    python -m bench -k decode_attention      words after it go to pytest, and the numbers are only printed
    python -m bench.render bench/results/<gpu>-<date>.json --write      the table in kernels/README.md

It is `python -m pytest bench --benchmark-only` with a name for the file. On a machine without a GPU it runs small
shapes with the reference, names the file cpu-<date>.json, and the numbers say that they are a CPU's.
"""

import datetime
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from bench.clock import this_device
from bench.machine import file_stem

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: list[str], results: Path = ROOT / "bench" / "results") -> int:
    """Exit status of pytest."""
    command = [str(ROOT / "bench"), "--benchmark-only", *arguments]
    if arguments:
        return int(pytest.main(command))
    with tempfile.TemporaryDirectory() as folder:
        # pytest-benchmark opens the file before it starts: what fails must not leave half a file among the results.
        written = Path(folder) / "run.json"
        status = int(pytest.main([*command, f"--benchmark-json={written}"]))
        if status == 0:
            path = results / f"{file_stem(this_device().name, datetime.date.today().isoformat())}.json"
            shutil.copy(written, path)
            print(f"wrote {path}: python -m bench.render {path} shows the table")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
