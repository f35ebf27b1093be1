"""End of a command that raises: one line, an exit code, and a failure.txt for errors that the user cannot mend."""

import contextlib
import os
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from mow.envs.base import EnvFailure
from mow.errors import UsageError
from mow.runs.provenance import library_versions
from mow.system.console import complain

NAME = "failure.txt"
_REPORT = """\
If the disk, the memory or a simulator is not the cause, this is a mistake of mow: please report it to those from whom
you have mow, with this file, metrics.jsonl and what the command printed."""


def exit_code(program: str, command: Callable[[], int | None]) -> int:
    """Carry out a command; what it raises becomes one line on stderr.

    Returns: what `command` returns, None being 0; 2 if the user can mend it (UsageError), 130 after Ctrl-C, 1 for every
        other error: the traceback of a simulator is printed, any other is in failure.txt.
    """
    try:
        return command() or 0
    except UsageError as error:
        complain(f"{program}: {error}")
        return 2
    except KeyboardInterrupt:
        return 130
    except EnvFailure as error:
        complain(f"{error.traceback}{program}: {error.line}")
    except Exception as error:  # noqa: BLE001 - nothing is lost: its traceback is kept
        keep_failure(error, None)
        complain(f"{program}: {_line(error)}")
    return 1


@contextlib.contextmanager
def failure_kept(folder: Path) -> Iterator[None]:
    """Inside, an error that the user cannot mend is written to failure.txt in `folder`, if there is one by then."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        keep_failure(error, folder)
        raise


def keep_failure(error: Exception, folder: Path | None) -> None:
    """Write failure.txt, or a temporary file where there is no folder that takes it; the error gets a note of where.

    An error that has such a note is left as it is. The note also records that nothing could be written.
    """
    if _note(error):
        return
    text = _text(error, folder)
    if folder is not None and folder.is_dir():
        with contextlib.suppress(OSError):
            (folder / NAME).write_text(text, encoding="utf-8", errors="replace")
            error.add_note(f"failure: {folder / NAME}")
            return
    try:
        number, path = tempfile.mkstemp(prefix="mow-failure-", suffix=".txt")
        with open(number, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
    except OSError:
        error.add_note("failure: could not be written")
    else:
        error.add_note(f"failure: {path}")


def _note(error: BaseException) -> str:
    """Path of the traceback of an error; empty if it was not written."""
    notes = (note for note in getattr(error, "__notes__", ()) if note.startswith("failure: "))
    return next(notes, "").removeprefix("failure: ")


def _line(error: Exception) -> str:
    """Line to print. Errors of disk, memory and numbers carry their remedy; others are mistakes of this package."""
    said, path = " ".join(str(error).split()), _note(error)
    if isinstance(error, OSError | MemoryError | FloatingPointError):
        return said if os.path.basename(path) == NAME else f"{said} (traceback: {path})"
    return f"{type(error).__name__}: {said}: a mistake of mow, please report it (traceback: {path})"


def _text(error: Exception, folder: Path | None) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in library_versions().items() if version is not None)
    parts = [f"command: {shlex.join(sys.orig_argv)}", f"versions: {versions}", _REPORT]
    for name in ("config.json", "versions.json"):
        with contextlib.suppress(OSError, TypeError):
            content = (folder / name).read_text(encoding="utf-8", errors="replace")  # type: ignore[operator]
            parts.append(f"{name}:\n{content}")
    parts.append("".join(traceback.format_exception(error)))
    return "\n\n".join(parts)
