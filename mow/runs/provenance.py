"""Provenance of a run: config.json and versions.json, enough to find out later what ran."""

import dataclasses
import json
import logging
import os
import platform
import re
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
# What can change a result -> the distributions that bring it, of which one is installed or none.
_LIBRARIES = {
    "torch": ("torch",),
    "triton": ("triton",),
    "numpy": ("numpy",),
    "scipy": ("scipy",),
    "gymnasium": ("gymnasium",),
    "ale-py": ("ale-py",),
    "opencv": ("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python"),
    "mujoco": ("mujoco",),
    "metaworld": ("metaworld",),
    "dm-control": ("dm-control",),
}


def write_origin(folder: Path, config: RunConfig, device: "torch.device", protocols: list[str]) -> None:
    """Write both files of a new run. Args: protocols: of the tasks, in their order."""
    write_json(folder / "config.json", dataclasses.asdict(config))
    protocol = dict(zip(config.tasks, protocols, strict=True))
    write_json(folder / "versions.json", {**versions(device), "protocol": protocol})


def resumed_versions(folder: Path, device: "torch.device", step: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Content of versions.json once this process resumes the run: the versions of every process stay.

    Args: step: environment steps per task at which it goes on.
    Returns: the content, this process being the last entry of `resumed`; and "torch: 2.11.0 -> 2.13.0" for everything
        that differs from the process before, or a line if the file is torn and begins anew.
    Raises: ValueError in one line if there is a file that cannot be opened.
    """
    path, now = folder / "versions.json", versions(device)
    try:
        kept = read_object(path)
        resumed = list(kept.get("resumed", []))
        before = _flat({**kept, **(resumed[-1] if resumed else {})})
    except (ValueError, TypeError) as error:
        if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError):
            raise ValueError(f"{error}: move it away, or make it readable") from error
        return {**now, "resumed": [{"step": step, **now}]}, (f"what it ran with before is not known ({error})",)
    changes = ((name, before[name], value) for name, value in _flat(now).items() if before.get(name, value) != value)
    lines = tuple(f"{name}: {_shown(old)} -> {_shown(new)}" for name, old, new in changes)
    return {**kept, "resumed": [*resumed, {"step": step, **now}]}, lines


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


def library_versions() -> dict[str, str | None]:
    """Version of mow, Python and every library that can change a result; None for what is not installed."""
    return {
        "mow": __version__,
        "python": platform.python_version(),
        **{name: _version(distributions) for name, distributions in _LIBRARIES.items()},
    }


def _version(distributions: tuple[str, ...]) -> str | None:
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _cpu_model() -> str | None:
    """As the kernel names it: sums in reduced precision differ between models."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def _flat(record: dict[str, Any]) -> dict[str, object]:
    """One level of nested objects by dotted names."""
    nested = {name: value if isinstance(value, dict) else {"": value} for name, value in record.items()}
    return {f"{name}.{part}".rstrip("."): value for name, parts in nested.items() for part, value in parts.items()}


def _shown(value: object) -> str:
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


def _git_commit() -> str | None:
    """Commit of the checkout that this package runs from, with -dirty where files differ from it.

    None for an installed wheel, and where git fails: then the reason is logged.
    """
    here = Path(__file__).resolve().parents[1]
    if not (here.parent / ".git").exists():
        return None
    # Tags are left out. What a hook of git sets names another repository.
    words = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    env = {name: value for name, value in os.environ.items() if name not in ("GIT_DIR", "GIT_WORK_TREE")}
    try:
        found = subprocess.run(words, capture_output=True, stdin=subprocess.DEVNULL, env=env, timeout=_GIT_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        _log_no_commit(str(error))
        return None
    output = found.stdout.decode(errors="replace").strip()
    if found.returncode == 0 and re.fullmatch(r"[0-9a-f]{40,64}(-dirty)?", output):
        return output
    why = found.stderr.decode(errors="replace").strip().partition("\n")[0]
    _log_no_commit(why or f"exit code {found.returncode}, output {output[:80]!r}")
    return None


def _log_no_commit(why: str) -> None:
    logging.getLogger("mow").warning("versions.json names no commit, git fails: %s", why)
