"""Table of a grid of runs: table.md, table.json and scores.png, made from the scores.json of its runs.

Mean and IQM of normalised scores [S seeds, K tasks] and their intervals: mow.evaluate.aggregates. The intervals treat
the tasks of one run as independent, so the means of the seeds are shown beside them.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mow.evaluate.aggregates import BOOTSTRAP, RESAMPLES, Aggregate, summarise
from mow.evaluate.tables import between, markdown, number
from mow.system.whole_file import read_object, write_json, write_whole

# Key of scores.json -> heading of its column.
_COSTS = {
    "parameters": "parameters",
    "env_steps_per_task": "env steps per task",
    "world_model_updates": "world-model updates",
    "wall_seconds": "wall s",
    "cpu_seconds": "CPU s",
}
_REQUIRED = {"mean_normalised", *_COSTS} - {"parameters"}


@dataclass(frozen=True)
class Result:
    """One seed of a method, which may be a run per task."""

    method: str
    seed: int
    normalised: dict[str, float | None]  # task -> score; None where the task has no reference returns
    costs: dict[str, float | None]  # summed over the runs of a seed, but for env_steps_per_task


@dataclass(frozen=True)
class Row:
    """All seeds of a method."""

    method: str
    seeds: tuple[int, ...]
    scores: dict[str, Aggregate]  # see aggregates.summarise; empty where no task has reference returns
    seed_means: tuple[float, ...]
    tasks: dict[str, float | None]  # task -> mean normalised score over seeds
    costs: dict[str, float | None]  # means over seeds; None where a seed lacks it


def read_results(root: Path, tasks: Sequence[str]) -> tuple[list[Result], list[str]]:
    """Read the finished seeds under `root`. Returns: them, and one line for each that lacks the score of a task."""
    results, left_out = [], []
    for folder in sorted(root.glob("*/seed-*"), key=lambda path: (path.parent.name, _seed_of(path))):
        if not folder.is_dir():
            continue
        own = folder / "scores.json"  # of a run of all tasks; else there is a run per task
        paths = [own] if own.exists() else sorted(folder.glob("*/scores.json"))
        runs = [run for path in paths if (run := read_scores(path)) is not None]
        entries = {task: entry for run in runs for task, entry in run["tasks"].items()}
        # A score without a return is one in which no episode ended; a task without references has a return.
        missing = [task for task in tasks if task not in entries or entries[task]["agent"] is None]
        if missing:
            left_out.append(f"{folder.parent.name} {folder.name} is left out: no score of {', '.join(missing)}")
            continue
        costs: dict[str, list[Any]] = {name: [run.get(name) for run in runs] for name in _COSTS}
        summed = {name: None if None in column else sum(column) for name, column in costs.items()}
        summed["env_steps_per_task"] = max(costs["env_steps_per_task"])
        normalised = {task: entries[task]["normalised"] for task in tasks}
        results.append(Result(folder.parent.name, _seed_of(folder), normalised, summed))
    return results, left_out


def read_scores(path: Path) -> dict[str, Any] | None:
    """The scores.json of a finished run; None where it is missing, torn or of another format."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        content = read_object(path)
        entries = [dict(entry) for entry in dict(content["tasks"]).values()]
        if content.keys() >= _REQUIRED and all(entry.keys() >= {"normalised", "agent"} for entry in entries):
            return content
    return None


def _seed_of(folder: Path) -> int:
    return int(folder.name.removeprefix("seed-").split(".")[0])


def rows_of(results: Sequence[Result]) -> list[Row]:
    """One row per method, the best mean first, methods without a score last."""
    methods = dict.fromkeys(result.method for result in results)
    rows = [_row(method, [r for r in results if r.method == method]) for method in methods]
    return sorted(rows, key=lambda row: -row.scores["mean"].value if row.scores else math.inf)


def _row(method: str, results: Sequence[Result]) -> Row:
    scores = {task: [result.normalised[task] for result in results] for task in results[0].normalised}
    # A task has references in all seeds or in none.
    known: dict[str, list[Any]] = {task: column for task, column in scores.items() if None not in column}
    matrix = np.array(list(known.values()), np.float64).T  # [S, K]
    costs: dict[str, list[Any]] = {name: [result.costs[name] for result in results] for name in _COSTS}
    return Row(
        method=method,
        seeds=tuple(result.seed for result in results),
        scores=summarise(matrix),
        seed_means=tuple(matrix.mean(axis=1).tolist()) if known else (),
        tasks={task: float(np.mean(known[task])) if task in known else None for task in scores},
        costs={name: None if None in column else float(np.mean(column)) for name, column in costs.items()},
    )


def write_table(root: Path, rows: Sequence[Row], *, title: str, meanings: Mapping[str, str]) -> None:
    """Write table.md and table.json."""
    methods = [{**asdict(row), "meaning": meanings.get(row.method, "")} for row in rows]
    write_json(root / "table.json", {"title": title, "bootstrap": BOOTSTRAP, "methods": methods})
    write_whole(root / "table.md", "\n".join(_markdown(rows, title, meanings)) + "\n")


def _markdown(rows: Sequence[Row], title: str, meanings: Mapping[str, str]) -> Iterator[str]:
    yield f"# {title}\n"
    yield (
        "Normalised score: 0 for random play, 1 for the reference (an expert or a human). Intervals: 95 %, stratified "
        f"bootstrap over seeds within each task, {RESAMPLES} resamples; coarse with two or three seeds, none with one "
        '("-"). They treat the tasks of one run as independent: compare the means of the seeds too. Costs are means '
        "over seeds, of one seed; those of `storm` are summed over its single-task runs.\n"
    )
    lines = [("method", "mean", "95 %", "IQM", "95 %", "seeds: their means", *_COSTS.values())]
    for row in rows:
        scores = [row.scores[name] for name in ("mean", "IQM") if row.scores]
        cells = [text for score in scores for text in (number(score.value), between(score.interval))] or ["-"] * 4
        costs = ("-" if cost is None else f"{cost:,.0f}" for cost in row.costs.values())
        lines.append((row.method, *cells, f"{len(row.seeds)}: {' '.join(map(number, row.seed_means)) or '-'}", *costs))
    yield from markdown(lines)
    yield "\nMean normalised score of each task:\n"
    yield from markdown([("method", *rows[0].tasks), *((row.method, *map(number, row.tasks.values())) for row in rows)])
    yield "\nThe methods:\n"
    for row in rows:
        yield f"- `{row.method}`: {meanings.get(row.method, 'not a method of this version')}"


def draw_scores(path: Path, rows: Sequence[Row], *, title: str) -> None:
    """Draw score and interval of every method, best on top: mean with its seeds on the left, IQM on the right."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.scores][::-1]
    figure = Figure(figsize=(10.0, 1.5 + 0.34 * len(rows)), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    for height, row in enumerate(rows):
        colour = "#d1495b" if row.method == "mow" else "#3d5a80"
        for axes, score in ((left, row.scores["mean"]), (right, row.scores["IQM"])):
            axes.plot(score.value, height, "o", color=colour, markersize=6)
            if score.interval:
                axes.plot(score.interval, (height, height), color=colour, linewidth=2.5)
        left.plot(row.seed_means, [height - 0.28] * len(row.seed_means), "|", color=colour, alpha=0.6, markersize=6)
    for axes in (left, right):
        axes.set(ylim=(-0.6, len(rows) - 0.4), xlabel="normalised score: 0 random, 1 expert or human")
        for reference in (0.0, 1.0):
            axes.axvline(reference, color="#999999", linewidth=0.8, linestyle=":", zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_yticks(range(len(rows)), [row.method for row in rows])
    left.set_title("mean over tasks (ticks: single seeds)", fontsize=10)
    right.set_title("interquartile mean", fontsize=10)
    figure.suptitle(f"{title}, 95 % intervals", fontsize=11)
    figure.savefig(path)
