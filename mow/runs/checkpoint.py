"""Checkpoints: written whole or not at all, checked before they are read, read without pickle.

A checkpoint is a file of torch.save with a line after it that holds its length and CRC-32: torch reads a file with a
flipped bit without a word.
"""

import contextlib
import os
import pickle
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from mow.runs.paths import best_path, best_score_path, checkpoints, folder_of, step_of
from mow.system.whole_file import flush_file, flush_folder, link_or_copy, read_object, replacing, write_json

# 1: before the heads read moments, with one optimiser; 2: before the local prior had a width of its own; 3: one layer;
# 4: only what learns, without a checksum; 5: before the local prior read an action times e_k; 6: before final frames
FORMAT = 8
_SEAL_BYTES = 31


def _seal(num_bytes: int, crc32: int) -> bytes:
    return b"\nmow %016x %08x\n" % (num_bytes, crc32)


def _crc32(file: BinaryIO, num_bytes: int) -> int:
    """CRC-32 of the first `num_bytes` of a file."""
    file.seek(0)
    crc32, left = 0, num_bytes
    while left > 0 and (part := file.read(min(left, 2**24))):
        crc32, left = zlib.crc32(part, crc32), left - len(part)
    return crc32


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
        _write(partial, content)
        once_written()
    flush_folder(path.parent)  # only then the rename is durable


def _write(path: Path, content: Mapping[str, object]) -> None:
    """Content and seal, flushed to the disk."""
    with open(path, "w+b") as file:
        try:
            torch.save({**content, "format": FORMAT}, file)
        except (RuntimeError, SystemError) as error:
            # torch closes its archive after a write has failed too, and fails again: the first failure holds the cause.
            first: BaseException | None = error
            while first is not None and not isinstance(first, OSError):
                first = first.__cause__ or first.__context__
            if first is not None:
                raise first from None
            raise
        num_bytes = file.seek(0, os.SEEK_END)
        seal = _seal(num_bytes, _crc32(file, num_bytes))
        file.seek(0, os.SEEK_END)
        file.write(seal)
        flush_file(file)


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint; only tensors and plain values are accepted, code in it is never run.

    Raises: FileNotFoundError if there is none; ValueError, naming the file, if it is cut, has a flipped bit, holds code
        or is not a checkpoint of this format.
    """
    _check_seal(path)
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds more than tensors and plain values, of which nothing was run: do not trust it, "
                         "go on from another one") from error
    except (EOFError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{path} is no file of torch.save ({type(error).__name__}): go on from another one") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise ValueError(
            f"{path} has format {found}, this version reads {FORMAT}: use the mow that wrote it{_writer(path)}"
        )
    return content


def _writer(path: Path) -> str:
    """Version and commit that wrote a run, for a message; empty where its versions.json does not have them."""
    try:
        versions = read_object(folder_of(path) / "versions.json")
    except (ValueError, TypeError):
        return ""
    commit = versions.get("git_commit")
    return f" (mow {versions['mow']}{f', commit {commit}' if commit else ''})" if "mow" in versions else ""


def _check_seal(path: Path) -> None:
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        num_bytes = max(size - _SEAL_BYTES, 0)
        file.seek(num_bytes)
        seal = file.read()
        if not seal.startswith(b"\nmow ") or len(seal) != _SEAL_BYTES:
            raise ValueError(f"{path} is cut short, or not a checkpoint of this version (format {FORMAT}): go on from "
                             "another one, or use the mow that wrote it")
        if seal != _seal(num_bytes, _crc32(file, num_bytes)):
            raise ValueError(f"{path} is damaged: its bytes are not those that were written: go on from another one")


def keep_as_best(path: Path, score: float) -> None:
    """Give a checkpoint its second name, best.pt, under which it outlives `prune`; best.json keeps its score.

    Raises: OSError if the disk does not take it; the best one before stays then.
    """
    folder = folder_of(path)
    with replacing(best_path(folder)) as partial:
        partial.unlink(missing_ok=True)
        link_or_copy(path, partial)
    best_path(folder).with_suffix(".partial").unlink(missing_ok=True)  # two names of one file survive a rename
    write_json(best_score_path(folder), {"step": step_of(path), "score": score, "seal": _seal_of(path)})


def read_best(folder: Path) -> tuple[int, float | None] | None:
    """Step and score of the best checkpoint of the run in `folder`; None where there is none.

    They stand in best.json. Where it is missing or is not of best.pt, the checkpoint itself is read.

    Raises: ValueError as load_checkpoint; OSError if best.pt cannot be read.
    """
    path = best_path(folder)
    if not path.exists():
        return None
    with contextlib.suppress(ValueError, KeyError, TypeError):
        kept = read_object(best_score_path(folder))
        if kept["seal"] == _seal_of(path):
            return int(kept["step"]), float(kept["score"])
    content = load_checkpoint(path, torch.device("cpu"))
    step, score = content.get("step"), content.get("score")
    if not isinstance(step, int) or not isinstance(score, float | None):
        raise ValueError(f"{path} is no checkpoint of a run: it has no step")
    return step, score


def _seal_of(path: Path) -> str:
    """The line at the end of a checkpoint, which differs from that of any other."""
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _SEAL_BYTES))
        return file.read().decode("ascii", errors="replace").strip()


def prune(folder: Path, keep: int) -> None:
    """Delete all checkpoints of the run in `folder` but the newest `keep`."""
    for path in checkpoints(folder)[:-keep]:
        path.unlink()
