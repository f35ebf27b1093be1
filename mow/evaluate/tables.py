"""What evaluated runs amount to: a table per task, aggregates over tasks and seeds, the published scores beside them.

    normalised = (return - random) / (reference - random)                          [S runs, K tasks]

Aggregates and their intervals: mow.evaluate.aggregates.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mow.envs.published import PUBLISHED_STEPS, published_returns
from mow.envs.references import normalised_return, reference_returns
from mow.evaluate.aggregates import AGGREGATES, RESAMPLES, Interval, aggregates, intervals


@dataclass(frozen=True)
class TaskEpisodes:
    """Whole episodes of one task, in order; the three are equally long."""

    returns: tuple[float, ...]  # units of the task
    lengths: tuple[int, ...]  # agent steps
    successes: tuple[bool | None, ...]  # None where the task knows no success


@dataclass(frozen=True)
class EvaluatedRun:
    """One run, played."""

    folder: str
    checkpoint: str
    step: int  # environment steps per task that it had trained for
    preset: str
    seed: int
    protocols: dict[str, str]  # task -> a few words
    tasks: dict[str, TaskEpisodes]


@dataclass(frozen=True)
class TaskRow:
    """One task over all runs. A run counts as one, however many episodes it played."""

    task: str
    random: float | None
    reference: float | None  # of an expert or a human
    run_returns: tuple[float | None, ...]  # mean of each run, units of the task; None where no episode ended
    value: float | None  # mean of these
    deviation: float | None  # standard deviation of all episodes of all runs
    normalised: float | None
    success: float | None  # share of all episodes; None where the task knows no success
    episodes: int
    published: dict[str, float] | None  # method -> return


@dataclass(frozen=True)
class Aggregate:
    """One number over tasks and runs."""

    value: float
    interval: Interval | None  # None for a single run: nothing to draw from


def task_rows(runs: Sequence[EvaluatedRun], tasks: Sequence[str]) -> list[TaskRow]:
    """One row per task, in the order of `tasks`."""
    return [_row(task, [run.tasks[task] for run in runs]) for task in tasks]


def _row(task: str, played: Sequence[TaskEpisodes]) -> TaskRow:
    means = tuple(float(np.mean(one.returns)) if one.returns else None for one in played)
    known = [mean for mean in means if mean is not None]
    value = float(np.mean(known)) if known else None
    every = [x for one in played for x in one.returns]
    successes = [x for one in played for x in one.successes if x is not None]
    low, high = reference_returns(task) or (None, None)
    return TaskRow(
        task=task,
        random=low,
        reference=high,
        run_returns=means,
        value=value,
        deviation=float(np.std(every, ddof=1)) if len(every) > 1 else None,
        normalised=None if value is None else normalised_return(task, value),
        success=float(np.mean(successes)) if successes else None,
        episodes=len(every),
        published=published_returns(task),
    )


def normalised_scores(rows: Sequence[TaskRow]) -> NDArray[np.float64]:
    """[S runs, K tasks]; left out are tasks without references and those where no episode of some run ended."""
    columns = []
    for row in rows:
        known = [None if x is None else normalised_return(row.task, x) for x in row.run_returns]
        if None not in known:
            columns.append(known)
    return np.array(columns, np.float64).T


def summarise(scores: NDArray[np.float64], *, resamples: int = RESAMPLES) -> dict[str, Aggregate]:
    """Scores [S, K] -> name -> aggregate, the same at every call; empty where there are no scores."""
    if scores.size == 0:
        return {}
    drawn = intervals(scores, resamples=resamples)
    return {name: Aggregate(float(x), drawn.get(name)) for name, x in zip(AGGREGATES, aggregates(scores), strict=True)}


def compare(rows: Sequence[TaskRow]) -> dict[str, dict[str, float]]:
    """Method -> aggregates over the published games that all runs finished; "this" is ours. Empty without such games.

    The published numbers are means over seeds, so the medians are theirs, but IQM and optimality gap are those of the
    means of the games and not of single seeds; "this" is computed likewise.
    """
    games = [row for row in rows if row.published is not None and None not in row.run_returns]
    if not games:
        return {}
    found = {}
    for method in ("this", *(games[0].published or ())):
        returns = [(row, row.value if method == "this" else (row.published or {})[method]) for row in games]
        scores = np.array([[normalised_return(row.task, value) for row, value in returns if value is not None]])
        found[method] = dict(zip(AGGREGATES, aggregates(scores.astype(np.float64)).tolist(), strict=True))
    return found


def as_json(
    runs: Sequence[EvaluatedRun], rows: Sequence[TaskRow], found: dict[str, Aggregate], asked: dict[str, int]
) -> dict[str, Any]:
    """Everything, for scripts. Args: found: as `summarise` gave it; asked: what was asked for, as name -> number."""
    return {
        **asked,
        "runs": [asdict(run) for run in runs],
        "tasks": {row.task: {k: v for k, v in asdict(row).items() if k != "task"} for row in rows},
        "aggregates": {name: asdict(one) for name, one in found.items()},
        "bootstrap": {"resamples": RESAMPLES, "confidence": 0.95, "seed": 0},
        "published": {"steps_per_game": PUBLISHED_STEPS, "aggregates": compare(rows)},
    }


# For eyes ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """A table: the first column is words, the others numbers."""

    heading: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def task_grid(rows: Sequence[TaskRow]) -> Grid:
    """Task by task; a column for success where some task knows it."""
    shows_success = any(row.success is not None for row in rows)
    lines = []
    for row in rows:
        numbers = [row.random, row.value, row.deviation, row.reference, row.normalised]
        cells = [number(x) for x in (*numbers, *([row.success] if shows_success else []))]
        lines.append((row.task, *cells, str(row.episodes)))
    extra = ("success",) if shows_success else ()
    heading = ("task", "random", "return", "std", "reference", "normalised", *extra, "episodes")
    return Grid(heading, tuple(lines))


def run_grid(runs: Sequence[EvaluatedRun], rows: Sequence[TaskRow]) -> Grid:
    """Mean return of each run, task by task."""
    lines = [(row.task, *(number(x) for x in row.run_returns)) for row in rows]
    return Grid(("return of run", *(str(i + 1) for i in range(len(runs)))), tuple(lines))


def aggregate_grid(found: dict[str, Aggregate], num_tasks: int) -> Grid:
    """The four aggregates with their intervals."""
    lines = []
    for name, one in found.items():
        interval = "-" if one.interval is None else f"{one.interval[0]:.3f} to {one.interval[1]:.3f}"
        lines.append((name, f"{one.value:.3f}", interval))
    return Grid((f"normalised, {num_tasks} tasks", "value", "95 % interval"), tuple(lines))


def published_grid(rows: Sequence[TaskRow], compared: dict[str, dict[str, float]]) -> Grid:
    """Returns of the published games, ours first, then the aggregates of their normalised scores."""
    methods = tuple(compared)
    lines = []
    for row in rows:
        if row.published is not None:
            theirs = [row.published[method] for method in methods if method != "this"]
            lines.append((row.task, *(number(x, 1) for x in (row.value, *theirs))))
    lines += [(f"normalised {name}", *(f"{compared[m][name]:.3f}" for m in methods)) for name in AGGREGATES]
    return Grid(("published returns", *methods), tuple(lines))


def number(value: float | None, digits: int = 2) -> str:
    """A dash for nothing."""
    return "-" if value is None else f"{value:.{digits}f}"


def plain(grid: Grid) -> Iterator[str]:
    """Lines for a console, columns as wide as they need."""
    columns = list(zip(grid.heading, *grid.lines, strict=True))
    widths = [max(map(len, column)) for column in columns]
    for line in (grid.heading, *grid.lines):
        rest = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        yield "  ".join([line[0].ljust(widths[0]), *rest])


def markdown(grid: Grid) -> Iterator[str]:
    yield f"| {' | '.join(grid.heading)} |"
    yield "| --- " + "| ---: " * (len(grid.heading) - 1) + "|"
    for line in grid.lines:
        yield f"| {' | '.join(line)} |"
