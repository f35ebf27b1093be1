"""A console that has gone away: its terminal was closed, or the program at the other end of the pipe has ended."""

import errno
import os
import signal
from typing import TextIO

_GONE = (errno.EPIPE, errno.EIO)


def tell(stream: TextIO, text: str) -> None:
    """Write, at once even when it goes to a file.

    Where nobody reads any more, all further words go nowhere, and SIGHUP is raised as when a terminal is closed: a run
    saves what it has and ends, other commands end at once.

    Raises: OSError if it cannot be written for another reason, such as a full disk.
    """
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        if error.errno not in _GONE:
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        signal.raise_signal(signal.SIGHUP)
