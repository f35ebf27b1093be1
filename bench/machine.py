"""Which machine, driver and versions numbers belong to."""

import importlib.util
import platform
import re
import shutil
import subprocess
from typing import Any

import torch

from bench.clock import Device


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
    return f"{re.sub('[^a-z0-9]+', '-', device.name.lower()).strip('-')}-{date}"


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
