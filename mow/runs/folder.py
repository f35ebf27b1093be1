"""A folder for a run: whether a new one can begin in it, and that no other process writes to it.

Two processes that train in one folder would mix their checkpoints, so each holds a lock while it runs. It is an flock,
which the system releases however the process ends. Where the file system has none (some mounts of NFS, Lustre, FUSE),
a file that only one process can create takes its place. It is removed at the end; one that a killed process has left
is recognised by its process id, start time and boot of the same machine. From another machine that cannot be seen:
then the run is refused, with the file to delete.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from mow.errors import UsageError

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM)
_LOCKS = ("lock", "lock.owner", "lock.takeover")
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
    busy = f"another process trains in {folder}: wait for it, or give another --folder"
    try:
        file = open(folder / "lock", "a", encoding="utf-8")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UsageError(f"cannot write to {folder} ({error.strerror}): make it writable") from error
    with file, contextlib.ExitStack() as stack:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise UsageError(busy) from error
            if error.errno not in _NO_LOCKS:
                raise
            stack.enter_context(_owned(folder, busy, error.strerror))
        yield


@contextlib.contextmanager
def _owned(folder: Path, busy: str, why: str | None) -> Iterator[None]:
    """Inside, lock.owner names this process. Raises: UsageError if it names another one that may still run."""
    path, mine = folder / "lock.owner", json.dumps(_this_process())
    if not _created(path, mine) and not (_removed_stale(path) and _created(path, mine)):
        raise UsageError(f"{busy}{_named(path)}; if it has ended, delete {path}")
    logging.getLogger("mow").info(
        "this file system has no locks (%s): %s keeps other processes out of the folder", why, path
    )
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if path.read_text(encoding="utf-8") == mine:
                path.unlink()


def _created(path: Path, text: str) -> bool:
    """Make a file; True in only one of several processes that try at once."""
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


def _removed_stale(path: Path) -> bool:
    """Remove a lock whose process has ended. One process at a time: another might remove the lock that follows it."""
    turn = path.with_name("lock.takeover")
    if not _is_stale(path) or not _created(turn, ""):
        return False
    try:
        if not _is_stale(path):
            return False
        path.unlink()
    finally:
        turn.unlink()
    return True


def _is_stale(path: Path) -> bool:
    owner, here = _read(path), _this_process()
    if owner is None or not here["boot"] or not here["namespace"]:
        return False
    if (owner.get("boot"), owner.get("namespace")) != (here["boot"], here["namespace"]):
        return False  # of another machine, or of a container whose processes cannot be seen from here
    return _start_time(owner.get("pid")) != owner.get("started")


def _named(path: Path) -> str:
    owner = _read(path)
    return f" (process {owner.get('pid')} on {owner.get('host')})" if owner else ""


def _read(path: Path) -> dict[str, object] | None:
    """Content of a lock; None for one that is gone, or not written yet."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _this_process() -> dict[str, object]:
    """Enough to find out later, on the same machine, whether it still runs."""
    boot, namespace = "", ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = os.readlink("/proc/self/ns/pid")
    pid = os.getpid()
    return {
        "host": socket.gethostname(), "boot": boot, "namespace": namespace, "pid": pid, "started": _start_time(pid)
    }  # fmt: skip


def _start_time(pid: object) -> str:
    """Start of a process, in clock ticks since the boot; empty where there is none, or it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]
