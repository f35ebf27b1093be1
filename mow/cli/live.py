"""Show a panel at the bottom of a terminal while a run trains; log lines appear above it.

The training loop draws it between two steps, at most four times a second and for less than a hundredth of the time.
There is no thread, and the cursor stays visible, so that a terminal needs no repair however the process ends.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from mow.system.console import lose

if TYPE_CHECKING:
    from rich.live import Live

    from mow.engine.trainer import Trainer

_PERIOD_S = 0.25  # least time between two drawings
_SHARE = 0.008  # largest share of the CPU time for drawing
_SPARE_LINES = 3  # of the terminal, for log lines and the cursor


@contextlib.contextmanager
def watched(trainer: "Trainer") -> Iterator[None]:
    """Inside, show a panel of a run on a capable terminal; elsewhere, and with --plain, it prints progress lines."""
    why = why_no_panel(sys.stdout, plain=trainer.config.plain)
    if why is not None:
        if why:
            trainer.say(why)
        yield
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(file=sys.stdout, force_terminal=True, legacy_windows=False, soft_wrap=True)
    with Live(
        console=console, auto_refresh=False, vertical_overflow="crop",
        redirect_stderr=sys.stderr is not None and sys.stderr.isatty(),
    ) as live:  # fmt: skip
        console.show_cursor()
        panel = LivePanel(live)
        panel.draw(trainer)
        trainer.show = panel.look
        try:
            yield
        finally:
            trainer.show = None
            panel.draw(trainer)


def why_no_panel(stream: TextIO | None, *, plain: bool) -> str | None:
    """None if `stream` can show a panel; else the line to print about it, empty where no line is needed."""
    is_dumb = os.environ.get("TERM", "dumb") in ("", "dumb")
    if plain or is_dumb or stream is None or stream.closed or not stream.isatty():
        return ""
    if not (stream.encoding or "").lower().startswith("utf"):
        return f"progress in lines: a panel needs a UTF-8 terminal, this one is {stream.encoding} (export LANG=C.UTF-8)"
    return None


class LivePanel:
    """Decides when to draw, and keeps what one drawing needs of the earlier ones."""

    def __init__(self, live: "Live") -> None:
        from mow.cli.panel import Trends

        self._live, self._trends = live, Trends()
        self._due, self._phase = 0.0, ""
        self._begun = (0.0, 0)  # (seconds, updates) when the phase was first drawn

    def look(self, trainer: "Trainer") -> None:
        """Draw if it is time to, or if a phase begins."""
        if time.monotonic() >= self._due or trainer.phase.name != self._phase:
            began = time.thread_time()
            self.draw(trainer)
            self._due = time.monotonic() + max(_PERIOD_S, (time.thread_time() - began) / _SHARE)

    def draw(self, trainer: "Trainer") -> None:
        """Draw now; a terminal that is too small shows nothing."""
        from mow.cli.panel import SMALLEST, panel

        progress, console = trainer.progress(), self._live.console
        self._trends.note(progress)
        if progress.phase.name != self._phase:
            self._phase, self._begun = progress.phase.name, (progress.seconds, progress.updates)
        elapsed = progress.seconds - self._begun[0]
        rate = (progress.updates - self._begun[1]) / elapsed if elapsed > 1.0 else None
        try:
            size = os.get_terminal_size(console.file.fileno())
            console.size = max(size.columns, 1), max(size.lines, 1)  # type: ignore[assignment]  # 0 would print nothing
            if size.columns < SMALLEST[0] or size.lines < SMALLEST[1]:
                self._live.update("", refresh=True)
            else:
                drawing = panel(progress, self._trends.of, rate, size.columns, size.lines - _SPARE_LINES)
                self._live.update(drawing, refresh=True)
        except OSError as error:  # a terminal that was closed
            lose(console.file, error)
