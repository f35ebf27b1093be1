"""Output of the commands: a stream that takes no more costs its lines and nothing else.

    a restricted encoding           what it lacks is written as \\xNN or \\uNNNN
    a terminal that was closed, a   SIGHUP is raised, as when a terminal is closed: a run saves and ends, other commands
    reader that has ended           end at once
    a full disk                     reported once on standard error; further lines are lost
"""

import contextlib
import errno
import functools
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import IO

from mow.system.ranks import rank

_GONE = (errno.EPIPE, errno.EIO)
Main = Callable[..., int]  # of a command: arguments (None: those of the process) to exit code


def program(name: str) -> Callable[[Main], Main]:
    """Decorator of the main of every command: usable streams; an error of the system is one line and exit code 1."""

    def decorated(main: Main) -> Main:
        @functools.wraps(main)
        def run(arguments: Sequence[str] | None = None) -> int:
            _open_streams()
            try:
                return main(arguments)
            except (OSError, MemoryError) as error:
                complain(f"{name}: {str(error) or type(error).__name__}")
                return 1
            except KeyboardInterrupt:
                return 130
            finally:
                for stream in (sys.stdout, sys.stderr):
                    tell(stream, "")  # at the exit of the interpreter a failure would be a traceback

        return run

    return decorated


def _open_streams() -> None:
    """Reserve the numbers of closed standard streams, so that no file gets one; let the open ones take any text."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):  # None, or a replacement as in notebooks
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def tell(stream: IO[str] | None, text: str) -> None:
    """Write and flush; what the stream cannot take is lost as the top of this file describes."""
    if stream is None or stream.closed:
        return
    try:
        if text:
            stream.write(text)
        stream.flush()
    except OSError as error:
        lose(stream, error)


def lose(stream: IO[str], error: OSError) -> None:
    """Drop what a stream could not write and all that follows, and raise SIGHUP or report it."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    if error.errno in _GONE:
        signal.raise_signal(signal.SIGHUP)
    else:
        complain(f"the output takes no more ({error.strerror}): lines are lost, all else goes on")


def say(line: str) -> None:
    """One line to the console, at once even when it goes to a file; of several ranks, rank 0 prints."""
    if rank() == 0:
        tell(sys.stdout, line + "\n")


class _Console(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if rank() > 0 and record.levelno >= logging.WARNING:
            tell(sys.stdout, f"rank {rank()}: {record.getMessage()}\n")
        say(record.getMessage())


@contextlib.contextmanager
def log_to_console() -> Iterator[None]:
    """Inside, the log records of the package (chosen store, chosen kernels) are printed too."""
    logger, console = logging.getLogger("mow"), _Console()
    level = logger.level
    logger.addHandler(console)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(console)
        logger.setLevel(level)


def complain(line: str) -> None:
    """A line on standard error; where that takes nothing, there is no other place for it."""
    with contextlib.suppress(OSError, ValueError):
        print(f"rank {rank()}: {line}" if rank() > 0 else line, file=sys.stderr, flush=True)
