"""A panel at the foot of a terminal while a run trains; what is said meanwhile appears above it.

It is drawn by the training itself between two steps, at most four times a second and for less than a hundredth of the
time: no thread, no alternate screen, no hidden cursor. Between two drawings the cursor waits at the start of the line
below the panel, so that a process that is killed leaves the terminal as it found it.
"""

import contextlib
import importlib.util
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any, TextIO

from mow.system.console import tell

if TYPE_CHECKING:
    from rich.text import Text

    from mow.engine.trainer import Trainer

_PERIOD_S = 0.25  # between two drawings, at least
_SHARE = 0.008  # of the time, that drawing may take
_RATE_OVER_S = 30.0
_SPARE_LINES = 3  # of the terminal, for what is said and the cursor


@contextlib.contextmanager
def watched(run: "Trainer") -> Iterator[None]:
    """Inside, a terminal shows a panel of `run`; a pipe, a file and `--plain` get its progress lines."""
    why = why_no_panel(sys.stdout, plain=run.config.plain)
    if why is not None:
        if why:
            run.say(why)
        yield
        return
    with Foot(sys.stdout) as foot:
        panel = LivePanel(foot)
        run.show = panel.look
        try:
            yield
        finally:
            run.show = None
            panel.draw(run)


def why_no_panel(stream: TextIO | None, *, plain: bool) -> str | None:
    """None where `stream` can show a panel; else why not, in words where somebody may wonder."""
    if plain or stream is None or getattr(stream, "closed", False) or not stream.isatty():
        return ""
    if os.environ.get("TERM", "dumb") in ("", "dumb", "unknown"):
        return ""
    if not (stream.encoding or "").lower().startswith("utf"):
        return f"progress in lines: a panel needs a UTF-8 terminal, this one is {stream.encoding} (export LANG=C.UTF-8)"
    if importlib.util.find_spec("rich") is None:
        return "progress in lines: a panel needs rich (pip install rich)"
    return None


class LivePanel:
    """When the panel is drawn, and what it remembers from one drawing to the next."""

    def __init__(self, foot: "Foot") -> None:
        from mow.cli.panel import Trends

        self._foot, self._trends = foot, Trends()
        self._due, self._phase = 0.0, ""
        self._passed: deque[tuple[float, int]] = deque()  # (seconds, updates) of the last drawings

    def look(self, run: "Trainer") -> None:
        """Draw, if it is time to, or if a phase begins."""
        if time.monotonic() >= self._due or run.phase.name != self._phase:
            self._phase = run.phase.name
            began = time.thread_time()
            self.draw(run)
            self._due = time.monotonic() + max(_PERIOD_S, (time.thread_time() - began) / _SHARE)

    def draw(self, run: "Trainer") -> None:
        from mow.cli.panel import SMALLEST, panel

        progress = run.progress()
        self._trends.note(progress)
        self._passed.append((progress.seconds, progress.updates))
        while progress.seconds - self._passed[0][0] > _RATE_OVER_S and len(self._passed) > 2:
            self._passed.popleft()
        then, before = self._passed[0]
        passed = progress.seconds - then
        rate = (progress.updates - before) / passed if passed > 1.0 else None
        width, height = self._foot.size
        if width < SMALLEST[0] or height < SMALLEST[1]:
            self._foot.draw([])
        else:
            self._foot.draw(panel(progress, self._trends.of, rate, width, height - _SPARE_LINES))


class Foot:
    """Lines at the foot of a terminal, drawn over and over; what is printed inside `with` scrolls above them."""

    def __init__(self, terminal: TextIO) -> None:
        from rich.console import Console

        # A file of its own: whoever listens to sys.stdout (--wandb does) hears what is said, and no drawings.
        self._out = open(os.dup(terminal.fileno()), "w", encoding="utf-8")  # noqa: SIM115 - closed by __exit__
        self._console = Console(file=self._out, force_terminal=True, legacy_windows=False)
        self._lengths: list[int] = []  # of the lines that are there
        self._drawn = ""
        self._before: tuple[TextIO, TextIO] = (sys.stdout, sys.stderr)
        self._one_at_a_time = threading.RLock()  # other threads may have something to say

    @property
    def size(self) -> tuple[int, int]:
        """Characters and lines of the terminal; (0, 0) if it does not say."""
        try:
            return tuple(os.get_terminal_size(self._out.fileno()))  # type: ignore[return-value]  # two of them
        except OSError:
            return 0, 0

    def __enter__(self) -> "Foot":
        self._before = (sys.stdout, sys.stderr)
        sys.stdout = _Above(self, sys.stdout)
        if sys.stderr is not None and sys.stderr.isatty():
            sys.stderr = _Above(self, sys.stderr)
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, _Above):
                stream.finish()
        sys.stdout, sys.stderr = self._before
        self._out.close()

    def draw(self, lines: Sequence["Text"]) -> None:
        """Put `lines`, one terminal line each, in the place of those that are there."""
        from rich.text import Text

        with self._console.capture() as captured:
            self._console.print(Text("\n").join(lines), soft_wrap=True, highlight=False)
        drawn = "".join(f"\x1b[2K{line}\n" for line in captured.get().splitlines()[: len(lines)])
        with self._one_at_a_time:
            up = self._up()
            self._lengths, self._drawn = [len(line) for line in lines], drawn
            tell(self._out, f"{up}{drawn}\x1b[J")

    def above(self, stream: TextIO, text: str) -> None:
        """Print whole lines above the panel."""
        with self._one_at_a_time:
            tell(self._out, f"{self._up()}\x1b[J")
            tell(stream, text)
            tell(self._out, self._drawn)

    def _up(self) -> str:
        """To the start of the first line; a terminal that has become narrower has folded those that are too long."""
        width = max(1, self.size[0])
        rows = sum(max(1, ceil(length / width)) for length in self._lengths)
        return f"\r\x1b[{rows}A" if rows else "\r"


class _Above:
    """A text stream whose lines go above the panel, whole."""

    def __init__(self, foot: Foot, stream: TextIO) -> None:
        self._foot, self._stream, self._rest = foot, stream, ""

    def write(self, text: str) -> int:
        whole, newline, self._rest = (self._rest + text).rpartition("\n")
        if newline:
            self._foot.above(self._stream, whole + newline)
        return len(text)

    def writelines(self, lines: Sequence[str]) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        """Half a line waits for its other half."""

    def finish(self) -> None:
        if self._rest:
            self._foot.above(self._stream, self._rest + "\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
