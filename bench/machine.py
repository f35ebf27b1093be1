"""Which machine, driver and versions numbers belong to. python -m bench.machine says it of this one, as JSON."""

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
from typing import Any

import torch

from bench.clock import Device, this_device


def describe(device: Device) -> dict[str, Any]:
    """For the JSON of a run: kind, name, driver, versions."""
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


def file_stem(device: Device, date: str) -> str:
    """<gpu>-<date>, in small letters without spaces: nvidia-h200-2027-01-31."""
    return stem(device.name, date)


def stem(name: str, date: str) -> str:
    return f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}-{date}"


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "unknown: no nvidia-smi"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = run.stdout.split()
    return lines[0] if run.returncode == 0 and lines else "unknown: nvidia-smi failed"


def _triton_version() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return None
    import triton

    version: str = triton.__version__
    return version


def _commit() -> str:
    """Of the checkout, with a word where it differs; a copy without its .git is told by MOW_COMMIT."""
    if os.environ.get("MOW_COMMIT"):
        return os.environ["MOW_COMMIT"]
    if shutil.which("git") is None:
        return "unknown: no git"
    run = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return run.stdout.strip() if run.returncode == 0 else "unknown: no checkout"


if __name__ == "__main__":
    print(json.dumps({**describe(this_device()), "commit": _commit()}))
