"""Machine, driver, versions and commit that measured numbers belong to."""

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from bench.clock import Device, this_device

_ROOT = Path(__file__).resolve().parents[1]


def describe(device: Device) -> dict[str, Any]:
    """Kind, name, driver and versions, for the JSON of a run."""
    return {
        "kind": device.kind,
        "device": device.name,
        "threads": torch.get_num_threads(),
        "driver": _driver() if device.kind == "cuda" else None,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": _triton_version(),
        "python": platform.python_version(),
    }


def file_stem(name: str, date: str) -> str:
    """<device>-<date> in lower case without spaces, such as nvidia-h200-2027-01-31."""
    return f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}-{date}"


def _output(unknown: str, *command: str) -> str:
    """First line of the output of a program, or "unknown" and a reason."""
    if shutil.which(command[0]) is None:
        return f"unknown: no {command[0]}"
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = run.stdout.split()
    return lines[0] if run.returncode == 0 and lines else f"unknown: {unknown}"


def _driver() -> str:
    return _output("nvidia-smi failed", "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def _triton_version() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return None
    return str(importlib.import_module("triton").__version__)


def _commit() -> str:
    """Commit of the checkout, "-dirty" behind it where files differ; MOW_COMMIT where there is no .git."""
    return os.environ.get("MOW_COMMIT") or _output("no checkout", "git", "describe", "--always", "--dirty")


def describe_here() -> dict[str, Any]:
    """This machine and the commit of the checkout, from a process of its own: this one then holds no GPU memory.

    Raises: ValueError where torch cannot be loaded.
    """
    command = [sys.executable, "-m", "bench.machine"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=_ROOT)
    if run.returncode != 0:
        raise ValueError(f"this machine cannot be described: {run.stderr.strip()[-200:]}")
    described: dict[str, Any] = json.loads(run.stdout)
    return described


if __name__ == "__main__":
    print(json.dumps({**describe(this_device()), "commit": _commit()}))
