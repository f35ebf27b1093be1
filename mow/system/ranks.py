"""The ranks of a run, as torchrun or a scheduler that starts one process each sets them in the environment."""

import contextlib
import os
from pathlib import Path


def rank() -> int:
    """Number of this process in the run; 0 where it is alone."""
    return int(os.environ.get("RANK", "0")) if size() > 1 else 0


def size() -> int:
    """Processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Number of this process among those on this machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) if size() > 1 else 0


def local_size() -> int:
    """Processes of the run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if size() > 1 else 1


def threads_are_torchruns() -> bool:
    """True if OMP_NUM_THREADS is the 1 that torchrun sets where the user has not set it."""
    return size() > 1 and "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1"


def elastic_nodes() -> str | None:
    """MIN:MAX, if torchrun was started with a number of machines that may change."""
    words = [f"--nnodes={os.environ.get('PET_NNODES', '')}"]
    with contextlib.suppress(OSError):  # no /proc
        words += Path(f"/proc/{os.getppid()}/cmdline").read_text(errors="replace").split("\0")
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, _, value = word.partition("=")
        nodes = value or following
        if name == "--nnodes" and ":" in nodes and len(set(nodes.split(":"))) > 1:
            return nodes
    return None
