"""Errors of the disk and of system limits: found before anything is computed where possible, else one line."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from mow.errors import UsageError
from mow.runs.paths import resume_hint

_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR), "make it writable"),
    errno.EIO: "mend the disk",
    errno.EMFILE: "raise the limit of open files (ulimit -n), or take fewer workers (--env.num-workers 0)",
    errno.EAGAIN: "raise the limit of processes (ulimit -u), or take fewer workers (--env.num-workers 0)",
}


def folder_to_write(folder: Path, flag: str) -> Path:
    """The folder, made where there is none. Raises: UsageError, naming `flag`, if nothing can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make {folder} ({error.strerror}): name another place with {flag}") from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"cannot write to {folder} (not writable): name another place with {flag}")
    return folder


@contextlib.contextmanager
def explain_disk_errors(folder: Path) -> Iterator[None]:
    """Inside, add the remedy to an error of the disk, unless it has one, and how to go on with the run in `folder`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        remedy = f": {_REMEDIES[error.errno]}" if error.strerror == os.strerror(error.errno) else ""
        raise OSError(f"{error}{remedy}; {resume_hint(folder)}") from error
