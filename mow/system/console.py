"""Output of the commands: closed, restricted, full or unread streams end in one line, or do not matter.

    closed at the start (`>&-`)     the null device takes its place, before a file of the run gets its descriptor
    a restricted encoding           what it lacks is written as \\xNN or \\uNNNN
    a terminal that was closed, a   further output is dropped, and SIGHUP is raised as when a terminal is closed: a run
    reader that has ended           saves what it has and ends, other commands end at once
    a full disk                     a run loses these lines, reports it once, goes on; other commands end in one line
"""

import contextlib
import errno
import functools
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Protocol, TextIO

_GONE = (errno.EPIPE, errno.EIO)


class Main(Protocol):
    """Main function of a command: arguments (None: those of the process) to exit code."""

    def __call__(self, arguments: Sequence[str] | None = None) -> int: ...


def program(name: str, *, lossy: bool = False) -> Callable[[Main], Main]:
    """Decorator of the main of every command: usable streams, one line and exit code 1 for an error of the system.

    Args: lossy: output that finds no room is dropped, and the command goes on.
    """

    def decorated(main: Main) -> Main:
        @functools.wraps(main)
        def run(arguments: Sequence[str] | None = None) -> int:
            open_streams()
            try:
                with _lossy_output(name) if lossy else contextlib.nullcontext():
                    return main(arguments)
            except (OSError, MemoryError) as error:
                complain(f"{name}: {str(error) or type(error).__name__}")
                return 1
            except RuntimeError as error:
                if "can't start new thread" not in str(error):
                    raise
                complain(f"{name}: {error}: raise the limit of processes (ulimit -u)")
                return 1
            except KeyboardInterrupt:
                return 130
            finally:
                _flush(name)

        return run

    return decorated


def open_streams() -> None:
    """Give this process the standard streams that it lacks, and let those it has take any text."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
            os.set_inheritable(number, True)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            nowhere = open(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            setattr(sys, name, nowhere)
        else:
            with contextlib.suppress(AttributeError, ValueError, OSError):  # of a stand-in, as notebooks have
                stream.reconfigure(errors="backslashreplace")


def tell(stream: TextIO | None, text: str) -> None:
    """Write, at once even when it goes to a file; what the stream's encoding lacks is written as its escape.

    Raises: OSError, in words of ours, if it cannot be written for another reason than a missing reader.
    """
    if stream is None or getattr(stream, "closed", False):
        return
    try:
        try:
            stream.write(text)
        except UnicodeEncodeError:
            encoding = stream.encoding or "ascii"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except OSError as error:
        _discard(stream, for_good=error.errno in _GONE)
        if error.errno in _GONE:
            signal.raise_signal(signal.SIGHUP)
        elif _lossy:
            _say_lost(_lossy, error.strerror)
        else:
            raise OSError(f"the output takes no more ({error.strerror}): send it to another place") from error


def say(line: str) -> None:
    """One line to the console, at once even when it goes to a file."""
    tell(sys.stdout, line + "\n")


class _Console(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
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
        if sys.stderr is not None:
            print(line, file=sys.stderr, flush=True)


_lossy = ""  # the command whose output may be lost; empty: that is an error


@contextlib.contextmanager
def _lossy_output(name: str) -> Iterator[None]:
    global _lossy
    _lossy = name
    try:
        yield
    finally:
        _lossy = ""


@functools.cache
def _say_lost(name: str, why: str | None) -> None:
    complain(f"{name}: the output takes no more ({why}): lines are lost, all else goes on")


def _discard(stream: IO[str], *, for_good: bool) -> None:
    """Drop what a stream could not write, which it would try again to write, and all that follows if `for_good`."""
    with contextlib.suppress(OSError):
        number = stream.fileno()
        before = os.dup(number)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)
        with contextlib.suppress(OSError):
            stream.flush()
        if not for_good:
            os.dup2(before, number)
        os.close(before)


def _flush(name: str) -> None:
    """Flush the streams; at the exit of the interpreter a failure would be a traceback."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None and not getattr(stream, "closed", False):
                stream.flush()
        except OSError as error:
            _discard(stream, for_good=True)
            if error.errno not in _GONE:
                _say_lost(name, error.strerror)
