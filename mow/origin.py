"""Where a run comes from: config.json and versions.json, enough to know later what ran."""

import dataclasses
import json
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from mow import __version__
from mow.config import Config

if TYPE_CHECKING:
    import torch


def write_origin(folder: Path, config: Config, device: "torch.device", protocols: list[str]) -> None:
    """Args: protocols: of the tasks, in their order."""
    import numpy
    import torch

    from mow.replay import build_info

    described = dataclasses.asdict(config)
    versions = {
        "mow": __version__,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "cpu_threads": torch.get_num_threads(),
        "extension": build_info(),
        "protocol": dict(zip(config.tasks, protocols, strict=True)),
    }
    for name, content in (("config", described), ("versions", versions)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _git_commit() -> str | None:
    """Commit of the checkout that this package runs from; None for an installed wheel."""
    here = Path(__file__).resolve().parent
    if not (here.parent / ".git").exists():
        return None
    words = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"]
    found = subprocess.run(words, capture_output=True, text=True)
    return found.stdout.strip() or None
