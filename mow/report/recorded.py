"""The sections of a report on recorded episodes, and on the scores of runs side by side."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from mow.config.run import SEED_FIELDS
from mow.envs.suites import normalised_return
from mow.methods.mow.ablations import flat
from mow.report.charts import bars, image
from mow.report.data import Report, RunData
from mow.report.html import absent, digits, figure, grid, note, table

_NAMES = {"bc": "cloning"}  # of methods that serve as baselines; others go by their preset


@dataclass(frozen=True)
class Returns:
    """Mean returns that are compared: of the data, or of runs of one config that differ in their seed."""

    name: str
    tasks: Mapping[str, tuple[float, ...]]  # one number per run


def recorded(report: Report) -> str:
    """The episodes that the run learned from, as the manifest counts them."""
    config = report.run.config.recorded
    assert config is not None, "the section of runs from recorded episodes"
    path = config.path(report.run.folder)
    if not report.run.episodes:
        return absent(f"The episodes in {path} cannot be read, or are not collected yet.")
    rows = []
    for name, task in report.run.episodes.items():
        stored = task.stored
        success = ["-" if share is None else f"{100 * share:.0f} %" for share in (stored.success, stored.final_success)]
        numbers = [digits(value) for value in (*stored.returns, task.best_tenth)]
        counts = [f"{count:,}" for count in (stored.episodes, stored.rows)]
        rows.append([escape(name), *counts, escape(stored.behaviour), *numbers, *success])
    share = "" if config.best == 1 else f" The run draws from the best {100 * config.best:g} % of each task's episodes."
    head = ["task", "episodes", "rows", "behaviours", "lowest return", "mean", "highest", "mean of the best 10 %",
            "success at any step", "at the last"]  # fmt: skip
    return note(f"{path}: the run learns from these episodes and never acts.{share}") + table(head, rows)


def side_by_side(report: Report) -> str:
    """Returns of the data, of the runs beside and of this one: a table, and bars per task."""
    columns = [*_of_the_data(report), *_of_the_runs(report)]
    if not columns:
        return absent("There is nothing to compare yet: the run has no scores.")
    tasks = report.run.config.tasks
    rows = [[escape(task), *(_cell(task, column.tasks.get(task, ())) for column in columns)] for task in tasks]
    means = [_mean_normalised(tasks, column) for column in columns]
    figures = [_bars(task, columns, [_normalised(task, column.tasks.get(task, ())) for column in columns])
               for task in tasks]  # fmt: skip
    if len(tasks) > 1 and any(means):
        rows.append(["<b>mean</b>", *(f"<b>{digits(float(np.mean(m)))}</b>" if m else "" for m in means)])
        figures.insert(0, _bars("mean of the tasks", columns, [("normalised return", m) for m in means]))
    text = (
        "Mean return of whole episodes; in brackets and as bars: normalised, 0 is random, 1 is the expert or human. "
        "Several seeds of one config are averaged; ±, and whiskers: standard deviation between them."
    )
    path = report.run.config.recorded and report.run.config.recorded.path(report.run.folder)
    for run in report.beside:
        if run.config.recorded and run.config.recorded.path(run.folder) != path:
            text += f" {run.folder.name} learned from other episodes, {run.config.recorded.path(run.folder)}."
    return note(text) + table(["task", *(column.name for column in columns)], rows) + grid(figures)


def _of_the_data(report: Report) -> Iterator[Returns]:
    if found := report.run.episodes:
        yield Returns("data, all episodes", {name: (task.stored.returns[1],) for name, task in found.items()})
        yield Returns("data, best 10 %", {name: (task.best_tenth,) for name, task in found.items()})


def _of_the_runs(report: Report) -> Iterator[Returns]:
    """A column per config, that of this run last."""
    groups: dict[str, list[RunData]] = {}
    for run in (report.run, *report.beside):
        fields = {name: value for name, value in flat(run.config).items() if name not in SEED_FIELDS}
        groups.setdefault(repr(fields), []).append(run)
    own, *others = groups.values()
    names = [_name(runs[0]) for runs in groups.values()]
    for runs in (*others, own):
        name = _name(runs[0])
        if names.count(name) > 1:
            name += f", {runs[0].folder.name}"
        name += f", {len(runs)} seeds" if len(runs) > 1 else ""
        scores = [run.scores.tasks for run in runs if run.scores is not None]
        returns = {task: tuple(mean for one in scores if (mean := one[task][1] if task in one else None) is not None)
                   for task in report.run.config.tasks}  # fmt: skip
        if scores:
            yield Returns(f"this run: {name}" if runs is own else name, returns)


def _name(run: RunData) -> str:
    name, recorded = _NAMES.get(run.config.method, run.config.preset), run.config.recorded
    return name if recorded is None or recorded.best == 1 else f"{name} of the best {100 * recorded.best:g} %"


def _normalised(task: str, returns: Sequence[float]) -> tuple[str, tuple[float, ...]]:
    """Numbers for bars, and their name: normalised where references are known."""
    found = tuple(value for one in returns if (value := normalised_return(task, one)) is not None)
    return ("normalised return", found) if found or not returns else ("return", tuple(returns))


def _mean_normalised(tasks: Sequence[str], column: Returns) -> tuple[float, ...]:
    """Mean over tasks for each run; empty where a task has no reference, or no run has played it."""
    values = [[normalised_return(task, one) for one in column.tasks.get(task, ())] for task in tasks]
    runs = [[value for value in row if value is not None] for row in zip(*values, strict=False)]
    return tuple(float(np.mean(row)) for row in runs if len(row) == len(tasks))


def _cell(task: str, returns: Sequence[float]) -> str:
    if not returns:
        return "-"
    mean = float(np.mean(returns))
    spread = f" ± {digits(float(np.std(returns)))}" if len(returns) > 1 else ""
    known = normalised_return(task, mean)
    return digits(mean) + spread + ("" if known is None else f" ({digits(known)})")


def _bars(title: str, columns: Sequence[Returns], found: Sequence[tuple[str, tuple[float, ...]]]) -> str:
    """Bars of the columns that have numbers."""
    drawn = [(column.name, label, values) for column, (label, values) in zip(columns, found, strict=True) if values]
    if not drawn:
        return figure(title, absent("No returns."))
    names, labels, values = zip(*drawn, strict=True)
    picture = bars(names, [float(np.mean(one)) for one in values], [float(np.std(one)) for one in values], labels[0])
    return figure(title, image(picture, f"{title}: {labels[0]} of the data and of runs"))
