"""Show a panel at the bottom of a terminal while a run trains; log lines appear above it.

The training loop draws it between two steps, at most four times a second and for less than a hundredth of the time.
There is no thread, and the cursor stays visible, so that a terminal needs no repair however the process ends.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO, cast

from mow.system.console import tell

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mow.engine.trainer import Trainer

_PERIOD_S = 0.25  # least time between two drawings
_SHARE = 0.008  # largest share of the CPU time for drawing
_SPARE_LINES = 3  # of the terminal, for log lines and the cursor


@contextlib.contextmanager
def watched(run: "Trainer") -> Iterator[None]:
    """Inside, show a panel of `run` on a capable terminal; elsewhere, and with --plain, it prints progress lines."""
    why = why_no_panel(sys.stdout, plain=run.config.plain)
    if why is not None:
        if why:
            run.say(why)
        yield
        return
    with Footer(sys.stdout) as footer:
        panel = LivePanel(footer)
        run.show = panel.look
        try:
            yield
        finally:
            run.show = None
            panel.draw(run)


def why_no_panel(stream: TextIO | None, *, plain: bool) -> str | None:
    """None if `stream` can show a panel; else the line to print about it, empty where no line is needed."""
    if plain or stream is None or getattr(stream, "closed", False) or not stream.isatty():
        return ""
    if os.environ.get("TERM", "dumb") in ("", "dumb", "unknown"):
        return ""
    if not (stream.encoding or "").lower().startswith("utf"):
        return f"progress in lines: a panel needs a UTF-8 terminal, this one is {stream.encoding} (export LANG=C.UTF-8)"
    return None


class LivePanel:
    """Decides when to draw, and keeps what one drawing needs of the earlier ones."""

    def __init__(self, footer: "Footer") -> None:
        from mow.cli.panel import Trends

        self._footer, self._trends = footer, Trends()
        self._due, self._phase = 0.0, ""
        self._begun = (0.0, 0)  # (seconds, updates) when the phase was first drawn

    def look(self, run: "Trainer") -> None:
        """Draw if it is time to, or if a phase begins."""
        if time.monotonic() >= self._due or run.phase.name != self._phase:
            began = time.thread_time()
            self.draw(run)
            self._due = time.monotonic() + max(_PERIOD_S, (time.thread_time() - began) / _SHARE)

    def draw(self, run: "Trainer") -> None:
        """Draw now; a terminal that is too small shows nothing."""
        from mow.cli.panel import SMALLEST, panel

        progress = run.progress()
        self._trends.note(progress)
        if progress.phase.name != self._phase:
            self._phase, self._begun = progress.phase.name, (progress.seconds, progress.updates)
        elapsed = progress.seconds - self._begun[0]
        rate = (progress.updates - self._begun[1]) / elapsed if elapsed > 1.0 else None
        width, height = self._footer.size
        if width < SMALLEST[0] or height < SMALLEST[1]:
            self._footer.draw("")
        else:
            self._footer.draw(panel(progress, self._trends.of, rate, width, height - _SPARE_LINES))


class Footer:
    """A renderable at the bottom of a terminal, drawn again and again. Inside, text that is printed appears above it.

    Drawings are written to a descriptor of their own, so that a program that records sys.stdout (--wandb) gets the
    printed text alone.
    """

    def __init__(self, terminal: TextIO) -> None:
        from rich.console import Console

        self._out = open(os.dup(terminal.fileno()), "w", encoding="utf-8")  # noqa: SIM115 - closed by __exit__
        self._console = Console(file=cast(TextIO, _Told(self._out)), force_terminal=True, legacy_windows=False)
        self._streams = (sys.stdout, sys.stderr)
        self._lock = threading.RLock()  # other threads print too

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines of the terminal; (0, 0) if it has none."""
        try:
            columns, lines = os.get_terminal_size(self._out.fileno())
        except OSError:
            return 0, 0
        return columns, lines

    def __enter__(self) -> "Footer":
        self._streams = (sys.stdout, sys.stderr)
        sys.stdout = cast(TextIO, _Above(self, sys.stdout))
        if sys.stderr is not None and sys.stderr.isatty():
            sys.stderr = cast(TextIO, _Above(self, sys.stderr))
        self._start("")
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, _Above):
                stream.finish()
        sys.stdout, sys.stderr = self._streams
        self._live.transient = False
        self._live.stop()
        self._out.close()

    def draw(self, renderable: "RenderableType") -> None:
        """Replace the drawing; nothing of it may be wider than the terminal."""
        with self._lock:
            self._console.size = self.size  # type: ignore[assignment]  # rich takes any pair
            self._live.update(renderable, refresh=True)

    def above(self, stream: TextIO, text: str) -> None:
        """Print whole lines above the drawing."""
        with self._lock:
            self._live.stop()
            tell(stream, text)
            self._start(self._live.get_renderable())

    def _start(self, renderable: "RenderableType") -> None:
        from rich.live import Live

        self._live = Live(
            renderable, console=self._console, auto_refresh=False, transient=True, redirect_stdout=False,
            redirect_stderr=False, vertical_overflow="crop",
        )  # fmt: skip
        self._live.start(refresh=True)
        self._console.show_cursor()


class _Told:
    """The terminal as rich writes to it; a terminal that was closed raises SIGHUP and no OSError."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        tell(self._file, text)

    def flush(self) -> None:
        """Do nothing: every write is flushed."""


class _Above:
    """A text stream whose lines are printed above the footer, each when it is complete."""

    def __init__(self, footer: Footer, stream: TextIO) -> None:
        self._footer, self._stream, self._rest = footer, stream, ""

    def write(self, text: str) -> int:
        lines, newline, self._rest = (self._rest + text).rpartition("\n")
        if newline:
            self._footer.above(self._stream, lines + newline)
        return len(text)

    def flush(self) -> None:
        """Do nothing: a line that is not complete waits."""

    def finish(self) -> None:
        if self._rest:
            self._footer.above(self._stream, self._rest + "\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
