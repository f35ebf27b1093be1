"""Provenance of a run: config.json and versions.json, enough to find out later what ran."""

import dataclasses
import logging
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mow import __version__
from mow.config import RunConfig
from mow.system.whole_file import read_object, write_json

if TYPE_CHECKING:
    import torch

_GIT_SECONDS = 20.0  # a large checkout on a network disk takes some
# What can change a result. Of OpenCV's distributions one is installed.
_LIBRARIES = (
    "torch", "triton", "numpy", "scipy", "gymnasium", "ale-py", "opencv-python-headless", "opencv-python", "mujoco",
    "metaworld", "dm-control",
)  # fmt: skip


def write_origin(folder: Path, config: RunConfig, device: "torch.device", protocols: list[str]) -> None:
    """Write both files of a new run. Args: protocols: of the tasks, in their order."""
    write_json(folder / "config.json", dataclasses.asdict(config))
    protocol = dict(zip(config.tasks, protocols, strict=True))
    write_json(folder / "versions.json", {**versions(device), "protocol": protocol})


def resumed_versions(folder: Path, device: "torch.device", step: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Content of versions.json once this process resumes the run: the versions of every process stay.

    Args: step: environment steps per task at which it goes on.
    Returns: the content, this process being the last entry of `resumed`; and "torch: 2.11.0 -> 2.13.0" for everything
        that differs from the process before, or a line if the file cannot be read and begins anew.
    """
    now = versions(device)
    try:
        kept = read_object(folder / "versions.json")
        resumed = list(kept.get("resumed", []))
        before = {**kept, **(resumed[-1] if resumed else {})}
    except (ValueError, TypeError) as error:
        return {**now, "resumed": [{"step": step, **now}]}, (f"the versions before are not known ({error})",)
    lines = (f"{name}: {before[name]} -> {value}" for name, value in now.items() if before.get(name, value) != value)
    return {**kept, "resumed": [*resumed, {"step": step, **now}]}, tuple(lines)


def versions(device: "torch.device") -> dict[str, Any]:
    """Versions of this process that can change a result; None for packages that are not installed."""
    import torch

    from mow.replay import build_info

    return {
        **library_versions(),
        "git_commit": _git_commit(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "cpu": _cpu_model(),
        "cpu_threads": torch.get_num_threads(),
        "extension": dict(build_info()),
    }


def code_versions() -> dict[str, str | None]:
    """Versions of the code that runs: mow and torch, commit, extension."""
    from mow.replay import build_info

    found, built = library_versions(), build_info()
    names = {name: found[name] for name in ("mow", "python", "torch", "numpy")}
    extension = f"compiled {built['compiled']}, CUDA {built['cuda']}"
    return {**names, "git commit": _git_commit(), "extension": extension}


def library_versions() -> dict[str, str | None]:
    """Version of mow, Python and every library that can change a result; None for what is not installed."""
    return {
        "mow": __version__, "python": platform.python_version(), **{name: _version(name) for name in _LIBRARIES}
    }  # fmt: skip


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str | None:
    """As the kernel names it: sums in reduced precision differ between models."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def _git_commit() -> str | None:
    """Commit of the checkout that this package runs from, with -dirty where files differ from it.

    None for an installed wheel, and where git fails: then the reason is logged.
    """
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return None
    # Tags are left out.
    words = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(words, capture_output=True, stdin=subprocess.DEVNULL, check=True, timeout=_GIT_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        logging.getLogger("mow").warning("versions.json names no commit, git fails: %s", error)
        return None
    return found.stdout.decode(errors="replace").strip()
