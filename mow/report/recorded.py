"""The sections of a report on recorded episodes, and on the scores of runs side by side."""

from collections.abc import Sequence
from html import escape

import numpy as np

from mow.config.run import SEED_FIELDS
from mow.envs.suites import normalised_return
from mow.methods.mow.ablations import flat
from mow.report.charts import bars, image
from mow.report.data import Report, RunData
from mow.report.html import absent, digits, figure, grid, note, table

_NAMES = {"bc": "cloning"}  # of methods that serve as baselines; others go by their preset


def recorded(report: Report) -> str:
    """The episodes that the run learned from, as the manifest counts them."""
    config, rows = report.run.config.recorded, []
    assert config is not None, "the section of runs from recorded episodes"
    for name, (task, best_tenth) in report.run.episodes.items():
        success = ["-" if share is None else f"{100 * share:.0f} %" for share in (task.success, task.final_success)]
        numbers = map(digits, (task.episodes, task.rows, *task.returns, best_tenth))
        rows.append([escape(name), *numbers, *success, escape(task.behaviour)])
    share = "" if config.best == 1 else f" The run draws from the best {100 * config.best:g} % of each task's episodes."
    head = ["task", "episodes", "rows", "lowest return", "mean", "highest", "mean of the best 10 %",
            "success at any step", "at the last", "behaviours"]  # fmt: skip
    shown = table(head, rows) if rows else absent("They cannot be read, or are not collected yet.")
    return note(f"{config.path(report.run.folder)}: the run learns from these and never acts.{share}") + shown


def side_by_side(report: Report) -> str:
    """Returns of the data, of the runs beside and of this one: a table, and bars per task."""
    tasks, found = report.run.config.tasks, columns(report)
    if not found:
        return absent("There is nothing to compare yet: the run has no scores.")
    rows = [[escape(task), *(_cell(task, returns[task]) for returns in found.values())] for task in tasks]
    known = [task for task in tasks if normalised_return(task, 0.0) is not None]
    drawn = {task: {name: [_shown(task, one) for one in returns[task]] for name, returns in found.items()}
             for task in tasks}  # fmt: skip
    if len(known) > 1:
        mean = {name: [float(np.mean(run)) for run in zip(*(drawn[task][name] for task in known), strict=False)]
                for name in found}  # fmt: skip
        bold = (f"<b>{digits(float(np.mean(one)) if one else None)}</b>" for one in mean.values())
        rows.append(["<b>mean</b>", *bold])
        drawn = {"mean of the tasks": mean, **drawn}
    figures = []
    for title, values in drawn.items():
        if values := {name: one for name, one in values.items() if one}:
            label = "return" if title in tasks and title not in known else "normalised return"
            figures.append(figure(title, image(bars(values, label), f"{title}: {label} of the data and of runs")))
    text = (
        "Mean return of whole episodes; in brackets and as bars: normalised, 0 is random, 1 is the expert or human. "
        "Several seeds of one config are averaged; ±, and whiskers: standard deviation between them."
    )
    if others := [run.folder.name for run in report.beside if run.episodes != report.run.episodes]:
        text += f" Not from the same episodes as this run: {', '.join(others)}."
    return note(text) + table(["task", *found], rows) + grid(figures)


def columns(report: Report) -> dict[str, dict[str, list[float]]]:
    """Name -> task -> mean return: of the data, and of each run of a config; the config of this run is the last."""
    run, found = report.run, {}
    if run.episodes:
        found["data, all episodes"] = {name: [task.returns[1]] for name, (task, _) in run.episodes.items()}
        found["data, best 10 %"] = {name: [best_tenth] for name, (_, best_tenth) in run.episodes.items()}
    groups: dict[str, list[RunData]] = {}
    for one in (run, *report.beside):
        fields = {name: value for name, value in flat(one.config).items() if name not in SEED_FIELDS}
        groups.setdefault(repr(fields), []).append(one)
    own, *others = groups.values()
    names = [_name(runs[0]) for runs in groups.values()]
    for runs in (*others, own):
        name = ("this run: " if runs is own else "") + _name(runs[0])
        name += f", {runs[0].folder.name}" if names.count(_name(runs[0])) > 1 else ""
        name += f", {len(runs)} seeds" if len(runs) > 1 else ""
        scored = [one.scores.tasks for one in runs if one.scores]
        returns = {task: [one[task][1] for one in scored if task in one] for task in run.config.tasks}
        found[name] = {task: [mean for mean in means if mean is not None] for task, means in returns.items()}
    tasks = run.config.tasks
    return {name: {task: one.get(task, []) for task in tasks} for name, one in found.items() if any(one.values())}


def _name(run: RunData) -> str:
    name, recorded = _NAMES.get(run.config.method, run.config.preset), run.config.recorded
    return name if recorded is None or recorded.best == 1 else f"{name} of the best {100 * recorded.best:g} %"


def _shown(task: str, value: float) -> float:
    """The normalised return, or the return itself where the task has no references."""
    found = normalised_return(task, value)
    return value if found is None else found


def _cell(task: str, returns: Sequence[float]) -> str:
    if not returns:
        return "-"
    mean, spread = float(np.mean(returns)), f" ± {digits(float(np.std(returns)))}" if len(returns) > 1 else ""
    known = normalised_return(task, mean)
    return digits(mean) + spread + ("" if known is None else f" ({digits(known)})")
