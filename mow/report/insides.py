"""The sections of a report made from a checkpoint: films, experts, similarity, usage, harmony weights."""

import base64
from collections.abc import Callable, Mapping, Sequence
from html import escape

import numpy as np

from mow.report.charts import Floats, Panel, Series, digits, heat_map, similarity_map
from mow.report.data import Film, ModelView, Report
from mow.report.html import absent, bar, chart, figure, folded, grid, legend, note, scroll, table

_ERRORS = {
    "imagined": ("s2", "imagined"),
    "reconstructed": ("s3", "reconstructed from the frame itself"),
    "repeated": ("s4", "last seen frame repeated"),
}


def _of_model(make: Callable[[ModelView], str]) -> Callable[[Report], str]:
    """A section that needs the checkpoint; without one, the sentence that gives the reason."""

    def section(report: Report) -> str:
        return absent(report.no_model) if report.model is None else make(report.model)

    return section


@_of_model
def films(model: ModelView) -> str:
    """Real and imagined frames of every task, and the errors of the imagined ones."""
    if not model.films:
        return absent(model.no_films)
    film = next(iter(model.films.values()))
    text = (
        f"{model.checkpoint}, in episodes that training has never seen, played by the agent: {film.num_context} real "
        f"frames are seen, then {len(film.errors['imagined'])} steps imagined along the actions that were taken. "
        "Above: real. Below: left of the line reconstructed, right of it imagined. Numbers: steps ahead. Blank: the "
        "episode is over. Red bar: the task ends in this step, really or as imagined. Errors: of pixel channels in "
        f"[0, 1], means over up to {film.num_windows} windows."
    )
    strips = [figure(task, _film(task, film)) for task, film in model.films.items()]
    charts = [_errors(task, film) for task, film in model.films.items()]
    return note(text) + "".join(strips) + f"<h3>Errors</h3>{legend(list(_ERRORS.values()))}" + grid(charts)


def _film(task: str, film: Film) -> str:
    data = f"data:image/png;base64,{base64.b64encode(film.png).decode()}"
    alt = escape(f"{task}: a row of real frames above a row of imagined frames")
    return scroll(f'<img class="film" src="{data}" alt="{alt}">')


def _errors(task: str, film: Film) -> str:
    series = []
    for kind, (style, _) in _ERRORS.items():
        steps = [step for step, error in enumerate(film.errors[kind], start=1) if np.isfinite(error)]
        if steps:
            series.append(Series(steps, [film.errors[kind][step - 1] for step in steps], style))
    if not series:
        return figure(task, absent("Every episode ended before the first imagined step."))
    return chart(Panel(task, "steps ahead", "squared error", tuple(series), from_zero=True))


@_of_model
def experts(model: ModelView) -> str:
    """Share of every expert in every task."""
    how = "a fixed routing: the experts of a task share alike"
    if model.learned_routing:
        how = "the router's scores of the experts it chose, scaled to 1"
    text = f"Shares at step {model.step:,}, {how}. Blank: not chosen. m0, m1, ...: the module of the task."
    columns = [str(e) for e in range(model.expert_share.shape[1])]
    rows = [f"{task}  m{module}" for task, module in zip(model.tasks, model.module_of_task, strict=True)]
    picture = heat_map(rows, columns, model.expert_share, x_label="expert", title="share of each expert in each task")
    return note(text) + scroll(picture) + _numbers(rows, columns, model.expert_share)


def _numbers(rows: Sequence[str], columns: Sequence[str], value: Floats) -> str:
    """A matrix as a table, folded."""
    lines = [[escape(row), *map(digits, numbers)] for row, numbers in zip(rows, value.tolist(), strict=True)]
    return folded("the numbers", table(["task", *columns], lines))


@_of_model
def similarity(model: ModelView) -> str:
    """Cosines between tasks and their grouping into modules."""
    found = model.similarity
    if found is None:
        return absent("There is nothing to compare: the run has one task, or no task embedding.")
    text = (
        f"Cosines of {found.of}. Frames: tasks that share a module (m0, m1, ...). Dendrogram: average linkage, its "
        "leaves are the columns; the modules come from k-means and need not follow it."
    )
    measures = [("silhouette", found.silhouette), ("stability between two halves of the evidence", found.stability)]
    known = ", ".join(f"{name} {digits(value)}" for name, value in measures if np.isfinite(value))
    text += f" Of the grouping: {known}." if known else ""
    picture = scroll(similarity_map(model.tasks, model.module_of_task, found.cosine))
    return note(text) + picture + _numbers(model.tasks, model.tasks, found.cosine) + _shares(found.shares)


def _shares(shares: Mapping[str, float], most: int = 8) -> str:
    """The tensors with the largest shares of the compared gradients."""
    if not shares:
        return ""
    rows = [[escape(name), bar(share, f"{100 * share:.1f} %")] for name, share in list(shares.items())[:most]]
    text = f"The {len(rows)} of {len(shares)} tensors with the largest share of the features' squared length."
    return note(text) + table(["tensor", "share"], rows)


def usage(report: Report) -> str:
    """Tasks of each module, load of each expert, now and over time."""
    model = report.model
    if model is None:
        return absent(report.no_model) + _use_over_time(report)
    modules = []
    for module in dict.fromkeys(model.module_of_task):
        tasks = [task for task, m in zip(model.tasks, model.module_of_task, strict=True) if m == module]
        modules.append([f"m{module}", bar(len(tasks) / len(model.tasks), str(len(tasks))), escape(", ".join(tasks))])
    load, users = model.expert_share.mean(axis=0), (model.expert_share > 0).sum(axis=0)
    experts_used = [
        [str(e), bar(float(share), f"{100 * share:.0f} %"), str(number)]
        for e, (share, number) in enumerate(zip(load, users, strict=True))
    ]
    return (
        table(["module", "tasks", "names"], modules, words=3)
        + table(["expert", "share of the load", "tasks"], experts_used, words=2)
        + _use_over_time(report)
    )


def _use_over_time(report: Report) -> str:
    figures = []
    for label, curve in report.run.metrics.curves.items():
        if label.startswith("insight/expert_use/"):
            title = f"expert {label.rpartition('/')[2]}"
            series = (Series(curve.updates, [100 * value for value in curve.value]),)
            figures.append(chart(Panel(title, "world-model updates", "load, %", series, from_zero=True)))
    if not figures:
        return absent("Use of the experts over time is not logged: a run with --insight-every N has it.")
    return f"<h3>Load over time</h3>{grid(figures)}"


def harmony(report: Report) -> str:
    """1 / sigma of every task, over time and now."""
    weighting, model = report.run.config.loss.weighting, report.model
    if weighting not in ("harmony", "shared_terms", "per_term"):
        return absent(f"The run has no harmony weights: loss.weighting is {weighting}.")
    figures = []
    for task in report.run.config.tasks:
        if (curve := report.run.curve("harmony/weight", task)) is not None:
            series = (Series(curve.updates, curve.value),)
            figures.append(chart(Panel(task, "world-model updates", "weight, 1 / sigma, log scale", series, log=True)))
    over_time = grid(figures) if figures else absent("The weights over time are not logged (harmony/weight/TASK).")
    if model is None or model.weights is None:
        return over_time + (absent(report.no_model) if model is None else "")
    largest = max(model.weights.values())
    rows = [[escape(task), bar(weight / largest, digits(weight))] for task, weight in model.weights.items()]
    terms = "; mean over the terms, which have a sigma each" if weighting == "per_term" else ""
    text = f"At step {model.step:,}: a task's world-model loss is divided by its sigma{terms}."
    return over_time + note(text) + table(["task", "weight, 1 / sigma"], rows, words=2)
