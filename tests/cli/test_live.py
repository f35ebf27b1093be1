"""A terminal shows a panel below the log lines, everything else gets lines; every end restores the terminal."""

import contextlib
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TextIO

import pytest

from mow.cli import live
from mow.cli.live import LivePanel, watched, why_no_panel
from mow.system.console import say
from mow.train import main
from tests.cli.test_panel import planted
from tests.terminal import Screen, terminal
from tests.test_train import DUMMY

SHORT = (*DUMMY, "--evaluation-episodes", "0", "--schedule.warmup-updates", "1")
COLOUR = re.compile(r"\x1b\[[\d;]*m")


@pytest.fixture(autouse=True)
def _capable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "COLORTERM", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


def trained(folder: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> tuple[int, Screen]:
    with terminal(100, 30) as (stream, screen), monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", stream)
        code = main(["quickstart", *SHORT, "--folder", str(folder), *flags])
        assert sys.stdout is stream, "the stream was not put back"
    return code, screen


def test_a_run_in_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, screen = trained(tmp_path / "run", monkeypatch)
    assert code == 0
    text = "\n".join(screen.lines)
    assert text.count("╭") == text.count("╰") == 1, "one picture stays, and no piece of another"
    at = screen.lines.index(next(line for line in screen.lines if line.startswith("╭─ mow · quickstart")))
    above, below = "\n".join(screen.lines[:at]), "\n".join(screen.lines[at:])
    for said in ("run folder: ", "prefill: 5 random", "warm-up: 1 world", "modules: ", "joint training: to 20 steps"):
        assert said in above
    assert "100%  20/20 steps" in below
    assert "done in " in below
    assert "| ETA" not in text, "no progress lines beside the panel"
    assert COLOUR.search(screen.written)
    assert screen.cursor_is_visible


def test_plain_is_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That a pipe gets the same without being told to is in tests/test_train.py."""
    _, screen = trained(tmp_path / "run", monkeypatch, "--plain")
    assert "\x1b" not in screen.written
    assert "step 20/20 | frames 20 | " in screen.written


@pytest.fixture
def planted_run() -> SimpleNamespace:
    """Stands for a run that is at a planted point."""
    progress = planted(("tiny:catch", "tiny:goal"))
    return SimpleNamespace(
        progress=lambda: progress, phase=progress.phase, config=SimpleNamespace(plain=False), show=None
    )  # fmt: skip


@contextlib.contextmanager
def shown(
    run: SimpleNamespace, width: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[TextIO, Screen]]:
    with terminal(width, height) as (stream, screen), monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", stream)
        with watched(run):  # type: ignore[arg-type]
            yield stream, screen
        assert sys.stdout is sys.stderr is stream


@pytest.mark.parametrize("no_color", ["", "1"])
def test_no_color_is_respected(no_color: str, planted_run: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    with shown(planted_run, 100, 30, monkeypatch) as (_, screen):
        planted_run.show(planted_run)
    assert screen.lines[0].startswith("╭─ mow · quickstart")
    codes = {code for found in COLOUR.findall(screen.written) for code in found[2:-1].split(";")}
    assert (codes <= {"", "0", "1", "2"}) == bool(no_color), "bold and dim are no colours"


def test_a_terminal_that_is_too_small_shows_none(
    planted_run: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for width, height in ((39, 30), (100, 11)):
        with shown(planted_run, width, height, monkeypatch) as (_, screen):
            planted_run.show(planted_run)
        assert {*screen.lines} == {""}


def test_an_error_leaves_the_picture_and_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise FloatingPointError("planted")

    monkeypatch.setattr("mow.methods.mow.learner.Learner.update_agent", fail)
    code, screen = trained(tmp_path / "run", monkeypatch)
    assert code == 1
    assert "\n".join(screen.lines).count("╭") == 1
    assert screen.lines[-2:] == ["mow.train: planted", ""]


def test_what_is_printed_goes_above_whole(planted_run: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    with shown(planted_run, 60, 20, monkeypatch) as (_, screen):
        planted_run.show(planted_run)
        say("one")
        planted_run.show(planted_run)
        print("two")
        print("beware", file=sys.stderr)
        say("a line that is longer than the terminal, " * 2)
        assert sys.stdout.isatty()
    assert "a line that is longer than the terminal, " * 2 in screen.written, "no line break is added"
    assert screen.lines[:3] == ["one", "two", "beware"]
    assert screen.lines[3].startswith("a line that is longer")
    assert "\n".join(screen.lines).count("╭") == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, FloatingPointError])
def test_every_end_leaves_the_last_drawing_and_the_cursor(
    error: type[BaseException], planted_run: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sys.stdout
    with contextlib.suppress(error), shown(planted_run, 60, 20, monkeypatch) as (_, screen):
        raise error
    assert screen.lines[0].startswith("╭─ mow")
    assert screen.cursor_is_visible
    assert sys.stdout is before


@pytest.mark.parametrize(
    ("plain", "tty", "term", "encoding", "why"),
    [
        (False, True, "xterm", "utf-8", None),
        (True, True, "xterm", "utf-8", ""),
        (False, False, "xterm", "utf-8", ""),
        (False, True, "dumb", "utf-8", ""),
        (False, True, "", "utf-8", ""),
        (False, True, "xterm", "ANSI_X3.4-1968", "progress in lines: a panel needs a UTF-8 terminal"),
    ],
)
def test_who_gets_a_panel(
    plain: bool, tty: bool, term: str, encoding: str, why: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if term:
        monkeypatch.setenv("TERM", term)
    else:
        monkeypatch.delenv("TERM")
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(stream, "isatty", lambda: tty, raising=False)
    found = why_no_panel(stream, plain=plain)
    assert found == why or (why and found is not None and found.startswith(why))


def test_drawing_takes_less_than_a_hundredth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow it is; a new phase is drawn at once."""
    now, cpu, draws = [0.0], [0.0], []
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: now[0], thread_time=lambda: cpu[0]))
    run = SimpleNamespace(phase=SimpleNamespace(name="prefill"))
    for cost, seconds in ((0.0, 0.25), (0.02, 2.5)):
        panel = LivePanel.__new__(LivePanel)
        panel._due, panel._phase = 0.0, ""

        def draw(run: SimpleNamespace, cost: float = cost, panel: LivePanel = panel) -> None:
            panel._phase = run.phase.name
            cpu[0] += cost
            draws.append(now[0])

        monkeypatch.setattr(panel, "draw", draw)
        draws.clear()
        for step in range(100_00):
            now[0] = step / 100
            panel.look(run)  # type: ignore[arg-type]
        assert len(draws) == pytest.approx(100 / seconds, abs=1.5)
        run.phase = SimpleNamespace(name=f"after {cost}")
        panel.look(run)  # type: ignore[arg-type]
        assert draws[-1] == now[0]
    assert (len(draws) - 1) * 0.02 < 1.0  # of 100 seconds
