"""Stopping a run from outside, in order: at the next moment when everything can be saved."""

import signal
from types import FrameType, TracebackType
from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(Exception):
    """Somebody asked for the end, and the run is where it can be saved."""


class StopSwitch:
    """Within `with`, the first SIGINT, SIGTERM or SIGHUP only sets `asked`; a second one ends the process at once.

    A SIGHUP never is the second one: that a terminal was closed may be noticed twice. A signal that was ignored before,
    as SIGINT is in a shell's background jobs, stays so. Belongs to the main thread, as signals do.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, object] = {}

    def check(self) -> None:
        """Raises: Stopped if somebody asked."""
        if self.asked:
            raise Stopped

    def __enter__(self) -> Self:
        heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal gave

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number != signal.SIGHUP:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.asked = True
