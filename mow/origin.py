"""Where a run comes from: config.json and versions.json, enough to know later what ran."""

import dataclasses
import json
import logging
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from mow import __version__
from mow.config import Config

if TYPE_CHECKING:
    import torch

_GIT_SECONDS = 20.0  # a large checkout on a network disk takes some


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
    """Commit of the checkout that this package runs from, with -dirty where files differ from it.

    None for an installed wheel, and where git cannot tell: then why is logged.
    """
    here = Path(__file__).resolve().parent
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
    said = found.stdout.decode(errors="replace").strip()
    if found.returncode == 0 and re.fullmatch(r"[0-9a-f]{40,64}(-dirty)?", said):
        return said
    why = found.stderr.decode(errors="replace").strip().partition("\n")[0]
    _log_no_commit(why or f"exit code {found.returncode}, output {said[:80]!r}")
    return None


def _log_no_commit(why: str) -> None:
    logging.getLogger("mow").warning("versions.json names no commit, git cannot tell it: %s", why)
