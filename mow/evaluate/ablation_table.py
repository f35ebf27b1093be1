"""What a grid of runs amounts to: table.md, table.json and scores.png from the scores.json of its runs.

Mean and IQM of normalised scores [S seeds, K tasks] and their intervals: aggregates.py. The intervals take the tasks of
one run for independent, so the means of the seeds are shown too.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mow.evaluate.aggregates import AGGREGATES, RESAMPLES, Interval, aggregates, intervals
from mow.system.whole_file import read_object, write_json, write_whole

_COLOURS = {"parent": "#d1495b", "baseline": "#3d5a80", "ablation": "#6b6b6b"}


@dataclass(frozen=True)
class Result:
    """One seed of a method; where it took a run per task, their costs and parameters are summed."""

    method: str
    seed: int
    normalised: dict[str, float | None]  # task -> score; None where the task has no reference returns
    parameters: int | None  # learned ones of world model and agent; None if the run did not say
    env_steps_per_task: int
    world_model_updates: int
    wall_seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Row:
    """All seeds of a method."""

    method: str
    seeds: tuple[int, ...]
    mean: float | None  # None where no task has reference returns
    mean_interval: Interval | None  # None with fewer than two seeds
    iqm: float | None
    iqm_interval: Interval | None
    seed_means: tuple[float, ...]
    tasks: dict[str, float | None]  # task -> mean normalised score over seeds
    parameters: float | None  # this and what follows: means over seeds
    env_steps_per_task: float
    world_model_updates: float
    wall_seconds: float
    cpu_seconds: float


def read_results(root: Path, tasks: Sequence[str]) -> tuple[list[Result], list[str]]:
    """Finished seeds under `root`, and one line for each that is left out because a task is missing."""
    results, left_out = [], []
    for folder in sorted(root.glob("*/seed-*"), key=lambda path: (path.parent.name, _seed_of(path))):
        if not folder.is_dir():
            continue
        runs = [run for path in _score_files(folder) if (run := read_scores(path)) is not None]
        scores = {task: entry["normalised"] for run in runs for task, entry in run["tasks"].items()}
        # No episode ended in the time that an evaluation has; a task without references has no score in any run.
        endless = {task for run in runs for task, entry in run["tasks"].items() if entry["agent"] is None}
        missing = [task for task in tasks if task not in scores or task in endless]
        if missing:
            left_out.append(f"{folder.parent.name} {folder.name} is left out: no score of {', '.join(missing)}")
            continue
        counts: list[Any] = [run.get("parameters") for run in runs]
        results.append(
            Result(
                method=folder.parent.name,
                seed=_seed_of(folder),
                normalised={task: scores[task] for task in tasks},
                parameters=None if None in counts else sum(counts),
                env_steps_per_task=max(run["env_steps_per_task"] for run in runs),
                world_model_updates=sum(run["world_model_updates"] for run in runs),
                wall_seconds=sum(run["wall_seconds"] for run in runs),
                cpu_seconds=sum(run["cpu_seconds"] for run in runs),
            )
        )
    return results, left_out


def summarise(results: Sequence[Result]) -> list[Row]:
    """One row per method, the best mean first, methods without a score last."""
    methods = dict.fromkeys(result.method for result in results)
    rows = [_row(method, [r for r in results if r.method == method]) for method in methods]
    return sorted(rows, key=lambda row: math.inf if row.mean is None else -row.mean)


def write_table(root: Path, rows: Sequence[Row], *, title: str, meanings: Mapping[str, str]) -> None:
    """table.md and table.json."""
    content = {
        "title": title,
        "bootstrap": {"resamples": RESAMPLES, "confidence": 0.95, "seed": 0},
        "methods": [{**asdict(row), "meaning": meanings.get(row.method, "")} for row in rows],
    }
    write_json(root / "table.json", content)
    write_whole(root / "table.md", "\n".join(_markdown(rows, title, meanings)) + "\n")


def draw_scores(path: Path, rows: Sequence[Row], *, title: str, kinds: Mapping[str, str]) -> None:
    """Point and interval of every method, best on top: mean with its seeds on the left, IQM on the right.

    Args: kinds: method -> parent, baseline or ablation, which decides the colour.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    rows = [row for row in rows if row.mean is not None]
    kind_of = {row.method: kinds.get(row.method, "ablation") for row in rows}
    figure = Figure(figsize=(10.0, 1.8 + 0.34 * len(rows)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    _panel(left, [(row.mean, row.mean_interval, row.seed_means, kind_of[row.method]) for row in rows])
    _panel(right, [(row.iqm, row.iqm_interval, (), kind_of[row.method]) for row in rows])
    left.set_yticks(range(len(rows), 0, -1), [row.method for row in rows])
    left.set_title("mean over tasks (ticks: single seeds)", fontsize=10)
    right.set_title("interquartile mean", fontsize=10)
    shown = [kind for kind in _COLOURS if kind in kind_of.values()]
    handles = [Line2D([], [], marker="o", color=_COLOURS[kind], label=kind) for kind in shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.suptitle(f"{title}, 95 % intervals", fontsize=11)
    figure.savefig(path)


def _panel(axes: Any, entries: Sequence[tuple[float | None, Interval | None, Sequence[float], str]]) -> None:
    """One line for each (score, interval, scores of the seeds, kind); 0 and 1 are always in view."""
    for height, (score, interval, seeds, kind) in zip(range(len(entries), 0, -1), entries, strict=True):
        colour = _COLOURS[kind]
        if interval is not None:
            axes.plot(interval, (height, height), color=colour, linewidth=2.5, solid_capstyle="butt")
        axes.plot(seeds, [height - 0.28] * len(seeds), "|", color=colour, alpha=0.6, markersize=6)
        axes.plot(score, height, "o", color=colour, markersize=6)
        if kind == "parent":
            axes.axvline(score, color=colour, linewidth=0.8, linestyle="--", zorder=0)
    for reference in (0.0, 1.0):
        axes.axvline(reference, color="#999999", linewidth=0.8, linestyle=":", zorder=0)
    axes.set_ylim(0.4, len(entries) + 0.6)
    axes.grid(axis="y", color="#eeeeee", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("normalised score: 0 random, 1 expert or human")


def _row(method: str, results: Sequence[Result]) -> Row:
    tasks = list(results[0].normalised)
    columns = [[result.normalised[task] for result in results] for task in tasks]
    # A task has references in all seeds or in none.
    known = [[score for score in column if score is not None] for column in columns]
    matrix = np.array([column for column in known if column]).T  # [S, K]
    values = dict(zip(AGGREGATES, aggregates(matrix).tolist(), strict=True)) if matrix.size else {}
    drawn = intervals(matrix) if matrix.size else {}
    counts = [result.parameters for result in results if result.parameters is not None]
    return Row(
        method=method,
        seeds=tuple(result.seed for result in results),
        mean=values.get("mean"),
        mean_interval=drawn.get("mean"),
        iqm=values.get("IQM"),
        iqm_interval=drawn.get("IQM"),
        seed_means=tuple(float(x) for x in matrix.mean(axis=1)) if matrix.size else (),
        tasks={task: float(np.mean(k)) if k else None for task, k in zip(tasks, known, strict=True)},
        parameters=float(np.mean(counts)) if len(counts) == len(results) else None,
        env_steps_per_task=float(np.mean([result.env_steps_per_task for result in results])),
        world_model_updates=float(np.mean([result.world_model_updates for result in results])),
        wall_seconds=float(np.mean([result.wall_seconds for result in results])),
        cpu_seconds=float(np.mean([result.cpu_seconds for result in results])),
    )


def _markdown(rows: Sequence[Row], title: str, meanings: Mapping[str, str]) -> Iterator[str]:
    yield f"# {title}\n"
    yield (
        "Normalised score: 0 for random play, 1 for the reference (an expert or a human). Intervals: 95 %, stratified "
        f"bootstrap over seeds within each task, {RESAMPLES} resamples; coarse with two or three seeds, none with one "
        '("-"). They take the tasks of one run for independent: compare the means of the seeds too. Costs are means '
        "over seeds, of one seed; those of `storm` are summed over its single-task runs.\n"
    )
    yield (
        "| method | mean | 95 % | seeds: their means | IQM | 95 % | parameters | env steps per task "
        "| world-model updates | wall s | CPU s |"
    )
    yield "| --- " + "| ---: " * 10 + "|"
    for row in rows:
        seeds = f"{len(row.seeds)}: {' '.join(_score(mean) for mean in row.seed_means) or '-'}"
        scores = (_score(row.mean), _range(row.mean_interval), seeds, _score(row.iqm), _range(row.iqm_interval))
        costs = (row.env_steps_per_task, row.world_model_updates, row.wall_seconds, row.cpu_seconds)
        cells = (row.method, *scores, _count(row.parameters), *(_count(cost) for cost in costs))
        yield f"| {' | '.join(cells)} |"
    tasks = list(rows[0].tasks)
    yield "\nMean normalised score of each task:\n"
    yield f"| method | {' | '.join(tasks)} |"
    yield "| --- " + "| ---: " * len(tasks) + "|"
    for row in rows:
        yield f"| {' | '.join([row.method, *(_score(row.tasks[task]) for task in tasks)])} |"
    yield "\nThe methods:\n"
    for row in rows:
        yield f"- `{row.method}`: {meanings.get(row.method, 'not known to this version')}"


def read_scores(path: Path) -> dict[str, Any] | None:
    """What the scores.json of a finished run holds; None where there is none, or one that is torn or of other make."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        content = read_object(path)
        wanted = ("mean_normalised", "env_steps_per_task", "world_model_updates", "wall_seconds", "cpu_seconds")
        entries = [dict(entry) for entry in dict(content["tasks"]).values()]
        if content.keys() >= {*wanted} and all(entry.keys() >= {"normalised", "agent"} for entry in entries):
            return content
    return None


def _score_files(folder: Path) -> list[Path]:
    """scores.json of a run for all tasks, or those of the runs of one task each."""
    own = folder / "scores.json"
    return [own] if own.exists() else sorted(folder.glob("*/scores.json"))


def _seed_of(folder: Path) -> int:
    return int(folder.name.removeprefix("seed-").split(".")[0])


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _range(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"
