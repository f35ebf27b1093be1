"""The panel overflows at no size and shows the numbers it was given."""

import dataclasses
import io
import re
from collections.abc import Sequence

import pytest
from rich.cells import cell_len
from rich.console import Console, RenderableType

from mow import envs
from mow.cli.panel import (
    BINS,
    SMALLEST,
    Trends,
    curve,
    fitted,
    number,
    panel,
    score_bar,
    short_names,
    task_table,
    worst,
)
from mow.engine.progress import Phase, Progress, TaskProgress
from mow.envs.suites import reference_returns


def planted(tasks: Sequence[str], **changes: object) -> Progress:
    """In the middle of joint training; task k is at k per cent of what is between random and reference."""
    rows = []
    for k, name in enumerate(tasks):
        known = reference_returns(name)
        recent = float(k) if known is None else known[0] + k / 100 * (known[1] - known[0])
        rows.append(TaskProgress(name, k // 5, 10.0 + k, recent, known))
    made = Progress(
        preset="quickstart", folder="runs/quickstart-20270101-120000-seed0", phase=Phase("joint", 400, 8000, 0.0),
        phases=("prefill", "warm-up", "joint"),
        done=4960, eta=312.0, seconds=501.0, step=4960, total_steps=8000, frames=19_840, updates=4560,
        split={"world_model": 5.0, "imagination": 2.0, "actor_critic": 1.0, "environments": 1.0,
               "acting": 0.5, "gather": 0.5},
        memory=1_234_000_000, score=0.63, best=0.66, left_out=0, restarts=0, tasks=tuple(rows),
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def printed(renderable: RenderableType, width: int) -> list[str]:
    """The lines of a console of `width` characters, without colours."""
    console = Console(record=True, width=width, file=io.StringIO(), color_system="truecolor")
    console.print(renderable)
    return console.export_text().splitlines()


def drawn(progress: Progress, width: int, height: int) -> list[str]:
    trends = Trends()
    trends.note(progress)
    return printed(panel(progress, trends.of, 2.184, width, height), width)


SETS = {5: "tiny5", 26: "atari26", 50: "mt50"}


@pytest.mark.parametrize("count", SETS)
@pytest.mark.parametrize(("width", "height"), [(80, 21), (120, 37), (40, SMALLEST[1] - 3), (61, 14), (200, 60)])
def test_nothing_overflows_and_names_are_whole_or_cut_by_rule(count: int, width: int, height: int) -> None:
    tasks = envs.expand((SETS[count],))
    assert len(tasks) == count
    for changes in ({}, {"left_out": 3, "restarts": 1}, {"split": {}, "score": None, "eta": None}):
        lines = drawn(planted(tasks, **changes), width, height)
        assert len(lines) <= height
        assert {cell_len(line) for line in lines} == {width}
        assert (lines[0][0], lines[0][-1], lines[-1][0], lines[-1][-1]) == ("╭", "╮", "╰", "╯")
        body = " ".join(lines[4:])
        names = short_names(tasks)
        cut = [name for name in names if not any(fitted(name, w).strip() in body for w in range(4, 29))]
        hidden = sum(map(int, re.findall(r"(\d+) more", body)))
        assert len(cut) <= hidden
        if "left_out" not in changes and (width >= 120 or (count <= 26 and width == 80)):
            assert not hidden
            assert all(name in body for name in names)


def test_contents() -> None:
    lines = drawn(planted(envs.expand(("tiny5",))), 120, 37)
    assert lines[0].startswith("╭─ mow · quickstart · 5 tasks, 1 module ──")
    assert "✓ prefill  ✓ warm-up  ▸ joint" in lines[1]
    assert "8:21 │" in lines[1]
    assert "62%  4,960/8,000 steps  ETA 5:12" in lines[2]
    facts = "2.18 updates/s  4,560 updates  mean score 0.63 (best saved 0.66)  1.2 GB peak  19,840 frames"
    assert facts in lines[3]
    assert "world model 50%  agent 30%  env 10%  acting 5%  gather 5%" in lines[4]
    assert " ".join(lines[5].split()) == "│ task mod loss return random score best so far │"
    goal = next(line for line in lines if "goal" in line)
    assert goal.split()[2:6] == ["0", "11.00", "-0.09", "-0.10"]  # module, loss, return, random
    assert lines[-1].endswith(" runs/quickstart-20270101-120000-seed0 ─╯")


def test_warnings() -> None:
    lines = drawn(planted(envs.expand(("tiny5",)), left_out=1, restarts=2), 80, 21)
    assert lines[5].startswith("│ ! 1 update left out, not finite; 2 simulators restarted ")


@pytest.mark.parametrize(
    ("phase", "done", "line"),
    [
        (Phase("prefill", 0, 240, 0.0), 60, "25%  60/240 steps"),
        (Phase("warm-up", 0, 80, 0.0, "updates"), 24, "30%  24/80 updates"),
        (Phase("warm-up", 0, 80, 0.0, "updates"), 81, "100%  81/80 updates"),
    ],
)
def test_every_phase_has_its_bar(phase: Phase, done: int, line: str) -> None:
    lines = drawn(planted(("tiny:catch",), phase=phase, done=done), 80, 21)
    assert f"▸ {phase.name}" in lines[1]
    assert line in lines[2]


def test_where_there_are_too_many_the_worst_are_shown() -> None:
    tasks = envs.expand(("atari26",))
    progress = planted(tasks[::-1])  # the worst, which is planted first, is the last by name
    rows = printed(task_table(progress, {}, 27, 7), 27)
    assert len(rows) == 7
    assert [row.split()[0] for row in rows[1:6]] == ["UpNDown", "Seaquest", "Road…nner", "Qbert", "Priv…eEye"]
    assert rows[6].startswith("21 more")


def test_tasks_without_a_score_are_shown_last() -> None:
    def task(name: str, recent: float | None, known: tuple[float, float] | None) -> TaskProgress:
        return TaskProgress(name, None, None, recent, known)

    rows = (task("a:a", 5.0, None), task("b:b", None, (0.0, 1.0)), task("b:c", 0.5, (0.0, 1.0)), task("a:d", 2.0, None))
    assert [one.name for one in worst(rows, 1)] == ["b:c"]
    assert [one.name for one in worst(rows, 3)] == ["a:a", "b:c", "a:d"]
    lines = printed(task_table(dataclasses.replace(planted(()), tasks=rows), {}, 27, 3), 27)
    assert lines[-1].startswith("3 more")


def test_names() -> None:
    assert short_names(["tiny:catch", "tiny:goal"]) == ["catch", "goal"]
    assert short_names(["a:reach-v3", "a:pick-place-v3"]) == ["reach", "pick-place"]
    assert short_names(["a:run", "b:run"]) == ["a:run", "b:run"]
    assert fitted("goal", 6) == "goal"
    assert fitted("button-press-wall", 12) == "button…-wall"
    assert fitted("button-press-wall", 2) == "b…"


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "-"), (0.0, "0.00"), (-0.776, "-0.78"), (99.99, "99.99"), (99.996, "100.0"), (-999.9, "-999.9"),
     (999.97, "1.00k"), (-9999.0, "-10.00k"), (-123456.0, "-123.5k"), (999_960.0, "1.00M"), (-3e9, "-3.00G")],
)  # fmt: skip
def test_numbers_take_seven_characters(value: float | None, words: str) -> None:
    assert number(value) == words
    assert len(words) <= 7


@pytest.mark.parametrize(
    ("score", "line"), [(0.5, "██  "), (5 / 32, "▋   "), (-1.0, "    "), (7.0, "████"), (None, "┄┄┄┄")]
)
def test_bars_by_hand(score: float | None, line: str) -> None:
    assert printed(score_bar(score, 4), 4)[0].ljust(4) == line


def test_curves_by_hand() -> None:
    trend: list[float | None] = [None] * BINS
    trend[2], trend[3], trend[7], trend[8] = 0.0, 4.0, 7.0, 8.0  # three parts for each character, the last one counts
    assert curve(trend, (0.0, 8.0)) == "▁▅█     "
    assert curve(trend, (0.0, 16.0)) == "▁▃▅     "
    assert curve(trend, None) == "▁▅█     "  # its own range
    assert curve([None] * BINS, None) == " " * 8
    assert curve([3.0] * BINS, None) == "▁" * 8


def test_a_curve_runs_over_the_whole_run() -> None:
    trends = Trends()
    for step, recent in ((0, 1.0), (100, 2.0), (3999, 3.0), (8000, 4.0)):
        row = TaskProgress("tiny:catch", None, None, recent, None)
        trends.note(dataclasses.replace(planted(()), step=step, tasks=(row,)))
    trend = trends.of["tiny:catch"]
    assert (trend[0], trend[BINS // 2 - 1], trend[BINS - 1]) == (2.0, 3.0, 4.0)
    assert sum(value is None for value in trend) == BINS - 3
