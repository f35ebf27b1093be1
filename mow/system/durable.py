"""Files that outlast a crash, on file systems that lack a part of what that takes.

Network and user-space file systems (CIFS, FUSE, object stores) may refuse to flush a folder, or to cut a file in place.
What was written is whole there all the same; that it outlasts a loss of power is then up to the file system, and
reported once.
"""

import errno
import functools
import logging
import os
import shutil
from pathlib import Path
from typing import BinaryIO

_UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
_OF_FOLDERS = _UNSUPPORTED | {errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR}
_OF_CUTS = _UNSUPPORTED | {errno.EACCES, errno.EPERM}


def flush_file(file: BinaryIO) -> None:
    """Put on the disk what was written. Raises: OSError if the disk does not take it."""
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        _say_once("files", error.strerror)


def flush_folder(folder: Path) -> None:
    """Put the names in a folder on the disk: new and renamed files survive a crash only after this.

    Raises: OSError if the disk does not take them.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _OF_FOLDERS:
            raise
        _say_once("folders", error.strerror)


def cut(path: Path, num_bytes: int) -> None:
    """Shorten a file to its first bytes; where the file system cannot, put a copy of these in its place.

    No handle of this process may be open for it: it would write to the file that was replaced.
    Raises: OSError if neither is possible.
    """
    try:
        os.truncate(path, num_bytes)
    except OSError as error:
        if error.errno not in _OF_CUTS:
            raise
        partial = path.with_name(f"{path.name}.partial")
        with open(path, "rb") as whole, open(partial, "wb") as part:
            part.write(whole.read(num_bytes))
            flush_file(part)
        partial.replace(path)


def copy(path: Path, to: Path) -> None:
    """A second name for a file, which takes no room; a copy where the file system has no links."""
    try:
        os.link(path, to)
    except OSError:
        shutil.copyfile(path, to)
        with open(to, "rb+") as file:
            flush_file(file)


@functools.cache
def _say_once(what: str, why: str | None) -> None:
    logging.getLogger("mow").warning(
        "this file system does not flush %s (%s): saves are complete, but the newest may be lost if the machine loses "
        "power; keep run folders on a local disk to avoid that", what, why
    )  # fmt: skip
