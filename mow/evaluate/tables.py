"""Tables of evaluated runs: one row per task, aggregates over tasks and seeds, published scores beside them.

    normalised = (return - random) / (reference - random)                          [S runs, K tasks]

Aggregates and their intervals: mow.evaluate.aggregates. A Grid is a list of lines of cells, the heading first.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mow.envs.suites import PUBLISHED_STEPS, normalised_return, published_returns, reference_returns
from mow.evaluate.aggregates import AGGREGATES, BOOTSTRAP, Aggregate, Interval, aggregates

# A run in evaluation.json: folder, checkpoint, step, preset, seed, protocols, and by task the episodes in order:
# returns (units of the task), lengths (agent steps), successes at any step and final_successes at the last one (None
# where undefined).
Run = Mapping[str, Any]


@dataclass(frozen=True)
class TaskRow:
    """One task over all runs; every run has the same weight, whatever its number of episodes."""

    task: str
    random: float | None
    reference: float | None  # of an expert or a human
    run_returns: tuple[float | None, ...]  # mean of each run, units of the task; None where no episode ended
    value: float | None  # mean of these
    deviation: float | None  # standard deviation of all episodes of all runs
    normalised: float | None
    success: float | None  # share of all episodes; None where the task defines no success
    episodes: int
    published: dict[str, float] | None  # method -> return


def task_rows(runs: Sequence[Run], tasks: Sequence[str]) -> list[TaskRow]:
    """One row per task, in the order of `tasks`."""
    return [_row(task, [run["tasks"][task] for run in runs]) for task in tasks]


def _row(task: str, played: Sequence[Mapping[str, Any]]) -> TaskRow:
    means = tuple(float(np.mean(one["returns"])) if one["returns"] else None for one in played)
    known = [mean for mean in means if mean is not None]
    value = float(np.mean(known)) if known else None
    every = [x for one in played for x in one["returns"]]
    successes = [x for one in played for x in one["successes"] if x is not None]
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
    """[S runs, K tasks] without the tasks that lack references, or in which no episode of some run ended."""
    columns = [[None if x is None else normalised_return(row.task, x) for x in row.run_returns] for row in rows]
    return np.array([column for column in columns if None not in column], np.float64).T


def compare(rows: Sequence[TaskRow]) -> dict[str, dict[str, float]]:
    """Method -> aggregates over the published games that all runs finished; "this" is ours. Empty without such games.

    The published numbers are means over seeds. The mean and the median follow from them exactly; IQM and optimality gap
    are those of the means, not of single seeds, for "this" too.
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


def as_json(runs: Sequence[Run], rows: Sequence[TaskRow], found: dict[str, Aggregate]) -> dict[str, Any]:
    """Content of evaluation.json, but for the options. Args: found: the result of summarise."""
    return {
        "runs": runs,
        "tasks": {row.task: {k: v for k, v in asdict(row).items() if k != "task"} for row in rows},
        "aggregates": {name: asdict(one) for name, one in found.items()},
        "bootstrap": BOOTSTRAP,
        "published": {"steps_per_game": PUBLISHED_STEPS, "aggregates": compare(rows)},
    }


# Printed tables ------------------------------------------------------------------------------------------------------

Grid = list[tuple[str, ...]]  # cells; the first column holds words, the others numbers


def grids(rows: Sequence[TaskRow], found: dict[str, Aggregate]) -> list[Grid]:
    """Tables of tasks, of runs if there are several, of aggregates and of published returns if they are known."""
    shown = [task_grid(rows)]
    if len(rows[0].run_returns) > 1:
        returns = [(row.task, *map(number, row.run_returns)) for row in rows]
        shown.append([("return of run", *(str(i) for i in range(1, len(returns[0])))), *returns])
    if found:
        lines = [(name, number(one.value, 3), between(one.interval, 3)) for name, one in found.items()]
        num_tasks = normalised_scores(rows).shape[1]
        shown.append([(f"normalised, {num_tasks} tasks", "value", "95 % interval"), *lines])
    if compared := compare(rows):
        shown.append(published_grid(rows, compared))
    return shown


def task_grid(rows: Sequence[TaskRow]) -> Grid:
    """One line per task; success is - where the task does not define it."""
    lines = []
    for row in rows:
        numbers = (row.random, row.value, row.deviation, row.reference, row.normalised, row.success)
        lines.append((row.task, *map(number, numbers), str(row.episodes)))
    return [("task", "random", "return", "std", "reference", "normalised", "success", "episodes"), *lines]


def published_grid(rows: Sequence[TaskRow], compared: dict[str, dict[str, float]]) -> Grid:
    """Returns of the published games, those of this run first, then the aggregates of the normalised scores."""
    lines = [("published returns", *compared)]
    for row in rows:
        if row.published is not None:
            returns = {**row.published, "this": row.value}
            lines.append((row.task, *(number(returns[method], 1) for method in compared)))
    lines += [(f"normalised {name}", *(f"{compared[m][name]:.3f}" for m in compared)) for name in AGGREGATES]
    return lines


def number(value: float | None, digits: int = 2) -> str:
    """A number with a fixed number of decimals, - for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def between(interval: Interval | None, digits: int = 2) -> str:
    """An interval, - for None."""
    return "-" if interval is None else f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}"


def plain(grid: Grid) -> Iterator[str]:
    """Lines for a console, columns aligned."""
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    for first, *others in grid:
        rest = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        yield "  ".join([first.ljust(widths[0]), *rest])


def markdown(grid: Grid) -> Iterator[str]:
    """Lines of a Markdown table."""
    heading, *lines = grid
    yield f"| {' | '.join(heading)} |"
    yield "| --- " + "| ---: " * (len(heading) - 1) + "|"
    yield from (f"| {' | '.join(line)} |" for line in lines)
