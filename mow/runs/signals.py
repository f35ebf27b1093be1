"""Stopping a run from outside, in order: at the next moment when everything can be saved."""

import math
import signal
import time
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SAME_S = 1.0  # two SIGTERMs closer than this are one: launchers send it to a process and to its group


class Stopped(Exception):
    """Raised after a signal, at a point where the run can be saved."""


class StopSwitch:
    """Within `with`, the first SIGINT, SIGTERM or SIGHUP only sets `requested`; a second one ends the process at once.

    A SIGHUP never is the second one: the end of a terminal may raise two. Nor is a SIGTERM within a second of another:
    `timeout`, `torchrun` and Slurm send it to a process and to its group. A signal that was ignored before,
    as SIGINT is in a shell's background jobs, stays so. Belongs to the main thread, as signals do.
    """

    def __init__(self) -> None:
        self.requested = False
        self._terminated = -math.inf  # time of the first SIGTERM
        self._before: dict[int, Any] = {}

    def check(self) -> None:
        """Raises: Stopped after a signal."""
        if self.requested:
            raise Stopped

    def __enter__(self) -> Self:
        handled = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._note) for number in handled}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        doubled = number == signal.SIGTERM and time.monotonic() - self._terminated < _SAME_S
        if self.requested and number != signal.SIGHUP and not doubled:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.requested = True
        if number == signal.SIGTERM and not doubled:
            self._terminated = time.monotonic()
