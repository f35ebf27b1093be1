"""A folder for a run: whether a new one can begin in it, and that no other process writes to it.

Two processes that train in one folder would mix their checkpoints, so each holds an flock while it runs, which the
system releases however the process ends. Where the file system has none (some mounts of NFS, Lustre, FUSE), a file that
only one process can create takes its place; one that a killed process has left must be deleted by hand.
"""

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from mow.errors import UsageError

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM)
_LOCKS = ("lock", "lock.owner")
_WRITTEN_FIRST = {*_LOCKS, "config.json", "versions.json", "metrics.jsonl", "failure.txt"}


def is_unused(folder: Path) -> bool:
    """True if a run can begin in `folder`: it is missing or empty, or holds a run that ended before its first step."""
    if not folder.exists():
        return True
    return folder.is_dir() and all(map(_is_of_a_beginning, folder.iterdir()))


def _is_of_a_beginning(path: Path) -> bool:
    if path.name == "checkpoints":
        return path.is_dir() and not any(path.iterdir())
    if path.name == "metrics.jsonl":
        return path.stat().st_size == 0
    return path.is_file() and (path.name in _WRITTEN_FIRST or path.name.startswith("events.out.tfevents."))


def clear(folder: Path) -> bool:
    """Remove what a run that ended before its first step has left; the caller has claimed the folder.

    Returns: whether there was anything.
    Raises: UsageError if another run has been there since it was found unused.
    """
    if not is_unused(folder):
        raise UsageError(f"{folder} is not empty: give another --folder, so that no run is overwritten")
    left = [path for path in folder.iterdir() if path.name not in _LOCKS]
    for path in left:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return bool(left)


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Inside, no other process may train in `folder`. Raises: UsageError if one does, or if it cannot be written to."""
    try:
        file = open(folder / "lock", "a", encoding="utf-8")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UsageError(f"cannot write to {folder} ({error.strerror}): make it writable") from error
    with file, contextlib.ExitStack() as stack:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                said = f"another process trains in {folder}: wait for it, or give another --folder"
                raise UsageError(said) from error
            if error.errno not in _NO_LOCKS:
                raise
            stack.enter_context(_owned(folder))
        yield


@contextlib.contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Inside, lock.owner names this process. Raises: UsageError if there is one."""
    path = folder / "lock.owner"
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
    except FileExistsError as error:
        owner = path.read_text(encoding="utf-8", errors="replace")
        raise UsageError(f"another process trains in {folder} ({owner}): wait, or give another --folder; if it has "
                         f"ended, delete {path}") from error
    logging.getLogger("mow").info("this file system has no locks: %s keeps other processes out of the folder", path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
