"""Checkpoints: written whole or not at all, read without pickle."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch

# 1: before the heads read moments, with one optimiser; 2: before the local prior had a width of its own; 3: one layer
FORMAT = 4


def save_checkpoint(path: Path, content: Mapping[str, object]) -> None:
    """Write to a temporary file beside `path`, flush it to the disk, then rename it over `path`.

    A crash at any moment leaves the previous checkpoint or the new one, never half of one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        torch.save({**content, "format": FORMAT}, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    # The rename itself is durable only once the folder has been flushed.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load_checkpoint(path: Path, device: torch.device) -> dict:
    """Read a checkpoint; only tensors and plain values are accepted, code in it is never run.

    Raises: FileNotFoundError if there is none; pickle.UnpicklingError if it holds code; ValueError if it is not a
        checkpoint of this format.
    """
    content = torch.load(path, map_location=device, weights_only=True)
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path} has format {found}, this version reads {FORMAT}: use the mow that wrote it")
    return content
