"""Checkpoints: written whole or not at all, checked before they are read, read without pickle.

A checkpoint is a file of torch.save with a line after it that holds its length and CRC-32: torch reads a file with a
flipped bit without an error.
"""

import os
import pickle
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from mow.runs.paths import best_path, checkpoints, folder_of, step_of
from mow.system.whole_file import flush_file, flush_folder, link_or_copy, read_object, replacing, write_json

# 1: before the heads read moments, with one optimiser; 2: before the local prior had a width of its own; 3: one layer;
# 4: only what learns, without a checksum; 5: before the local prior read an action times e_k; 6: before final frames
FORMAT = 9
_SEAL_BYTES = 31


def _seal(file: BinaryIO, num_bytes: int) -> bytes:
    """The last line of a checkpoint: length and CRC-32 of its first `num_bytes`."""
    file.seek(0)
    crc32, left = 0, num_bytes
    while left > 0 and (part := file.read(min(left, 2**24))):
        crc32, left = zlib.crc32(part, crc32), left - len(part)
    return b"\nmow %016x %08x\n" % (num_bytes, crc32)


def save_checkpoint(
    path: Path, content: Mapping[str, object], *, once_written: Callable[[], object] = lambda: None
) -> None:
    """Write to a temporary file beside `path`, flush it to the disk, then rename it over `path`.

    A crash at any moment leaves the previous checkpoint or the new one, never half of one.

    Args: once_written: called before the rename, for what must be on the disk when the checkpoint is, and must not be
        touched when there is no room for one.
    Raises: OSError if the disk does not take it, or what `once_written` raises; the temporary file is deleted then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        with open(partial, "w+b") as file:
            try:
                torch.save({**content, "format": FORMAT}, file)
            except (RuntimeError, SystemError) as error:
                # torch closes its archive after a failed write too, and fails again: the first failure is the cause.
                cause: BaseException | None = error
                while cause is not None and not isinstance(cause, OSError):
                    cause = cause.__cause__ or cause.__context__
                raise cause or error from None
            num_bytes = file.seek(0, os.SEEK_END)
            seal = _seal(file, num_bytes)
            file.seek(0, os.SEEK_END)
            file.write(seal)
            flush_file(file)
        once_written()
    flush_folder(path.parent)  # only then the rename is durable


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint; only tensors and plain values are accepted, code in it is never run.

    Raises: FileNotFoundError if there is none; ValueError, naming the file, if it is cut, has a flipped bit, holds code
        or is not a checkpoint of this format.
    """
    with open(path, "rb") as file:
        num_bytes = max(file.seek(0, os.SEEK_END) - _SEAL_BYTES, 0)
        file.seek(num_bytes)
        if file.read() != _seal(file, num_bytes):
            raise ValueError(f"{path} is damaged or cut short, or not a checkpoint of this version (format {FORMAT}): "
                             "go on from another one, or use the mow that wrote it")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds more than tensors and plain values, of which nothing was run: do not trust it, "
                         "go on from another one") from error
    except (EOFError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{path} is no file of torch.save ({type(error).__name__}): go on from another one") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path} has format {found}, this version reads {FORMAT}: use the mow that wrote it"
                         f"{_writer(path)}")
    return content


def _writer(path: Path) -> str:
    """Version and commit that wrote a run, for a message; empty where its versions.json does not have them."""
    try:
        versions = read_object(folder_of(path) / "versions.json")
        return f" (mow {versions['mow']}, commit {versions.get('git_commit') or 'unknown'})"
    except (OSError, ValueError, KeyError):
        return ""


def keep_as_best(path: Path, score: float) -> None:
    """Give a checkpoint its second name, best.pt, under which it outlives `prune`; best.json keeps its score.

    Raises: OSError if the disk does not take it; the best one before stays then.
    """
    best = best_path(folder_of(path))
    with replacing(best) as partial:
        partial.unlink(missing_ok=True)
        link_or_copy(path, partial)
    write_json(best.with_suffix(".json"), {"step": step_of(path), "score": score})


def read_best(folder: Path) -> tuple[int, float] | None:
    """Step and score of the best checkpoint of the run in `folder`, from best.json; None if there is none."""
    path = best_path(folder)
    if not path.exists():
        return None
    try:
        kept = read_object(path.with_suffix(".json"))
        return int(kept["step"]), float(kept["score"])
    except (ValueError, KeyError, TypeError):
        return None


def prune(folder: Path, keep: int) -> None:
    """Delete all checkpoints of the run in `folder` but the newest `keep`."""
    for path in checkpoints(folder)[:-keep]:
        path.unlink()
