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
from mow.errors import RankFailure, UsageError
from mow.runs.provenance import library_versions
from mow.system.console import complain
from mow.system.ranks import rank

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
        if rank() == 0 or not error.is_everywhere:
            complain(f"{program}: {error}")
        return 2
    except RankFailure as error:
        if str(error):
            complain(f"{program}: {error}")
    except KeyboardInterrupt:
        return 130
    except EnvFailure as error:
        complain(f"{error.traceback}{program}: {error.line}")
    except Exception as error:  # noqa: BLE001 - nothing is lost: its traceback is kept
        path, text = keep_failure(error, None), " ".join(str(error).split())
        if not isinstance(error, OSError | MemoryError | FloatingPointError):  # these carry their remedy
            text = f"{type(error).__name__}: {text}: a mistake of mow, please report it (traceback: {path})"
        elif os.path.basename(path) != NAME:
            text += f" (traceback: {path})"
        complain(f"{program}: {text}")
    return 1


@contextlib.contextmanager
def failure_kept(folder: Path) -> Iterator[None]:
    """Inside, an error that the user cannot mend is written to failure.txt in `folder`, if there is one by then."""
    try:
        yield
    except (UsageError, RankFailure):
        raise
    except Exception as error:
        keep_failure(error, folder)
        raise


def keep_failure(error: Exception, folder: Path | None) -> str:
    """Write failure.txt, or a temporary file where there is no folder that takes it, once for each error.

    Returns: its path, or that it could not be written.
    """
    if kept := [note for note in getattr(error, "__notes__", ()) if note.startswith("failure: ")]:
        return str(kept[0].removeprefix("failure: "))
    text, path = _text(error, folder), "could not be written"
    temporary = Path(tempfile.gettempdir()) / f"mow-failure-{os.getpid()}.txt"
    for place in (temporary,) if folder is None or not folder.is_dir() else (folder / NAME, temporary):
        with contextlib.suppress(OSError):
            place.write_text(text, encoding="utf-8", errors="replace")
            path = str(place)
            break
    error.add_note(f"failure: {path}")
    return path


def _text(error: Exception, folder: Path | None) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in library_versions().items() if version is not None)
    parts = [f"command: {shlex.join(sys.orig_argv)}", f"versions: {versions}", _REPORT]
    for path in (folder / "config.json", folder / "versions.json") if folder is not None else ():
        with contextlib.suppress(OSError):
            parts.append(f"{path.name}:\n{path.read_text(encoding='utf-8', errors='replace')}")
    parts.append("".join(traceback.format_exception(error)))
    return "\n\n".join(parts)
