"""Files that are written whole or not at all and outlast a crash; JSON that is read back or refused in one line."""

import contextlib
import errno
import functools
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

# Network and user-space file systems may refuse to flush a file or a folder.
_NO_FLUSH = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM}


def flush_file(file: BinaryIO) -> None:
    """Put on the disk what was written. Raises: OSError if the disk does not take it."""
    file.flush()
    _fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Put the names in a folder on the disk: new and renamed files survive a crash only after this.

    Raises: OSError if the disk does not take them.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        _fsync(handle)
    finally:
        os.close(handle)


def _fsync(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FLUSH:
            raise
        _warn_unflushed()


@functools.cache
def _warn_unflushed() -> None:
    """Cached, so that a process logs it once."""
    logging.getLogger("mow").warning(
        "this file system does not flush: saves are complete, but the newest may be lost if the machine loses power; "
        "keep run folders on a local disk to avoid that"
    )


def link_or_copy(path: Path, to: Path) -> None:
    """A second name for a file, which takes no room; a copy where the file system has no links."""
    try:
        os.link(path, to)
    except OSError:
        shutil.copyfile(path, to)
        with open(to, "rb+") as file:
            flush_file(file)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` to write to: at the end it is renamed to `path`, after any error it is deleted.

    A process that is killed leaves `path` as it was before, and perhaps the file beside it.
    """
    partial = path.with_suffix(".partial")
    try:
        yield partial
        partial.replace(path)
    except (Exception, KeyboardInterrupt, SystemExit):
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file, flushed to the disk before it takes its name. Raises: OSError; `path` is as before then."""
    with replacing(path) as partial, open(partial, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        flush_file(file)


def write_json(path: Path, content: object) -> None:
    """Write JSON with line breaks, as write_whole does."""
    write_whole(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Content of a JSON file. Raises: ValueError in one line, naming the file, if it cannot be read or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error})") from error


def read_object(path: Path) -> dict[str, Any]:
    """As read_json. Raises: ValueError as well if the file holds something else than an object with named fields."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object")
    return content
