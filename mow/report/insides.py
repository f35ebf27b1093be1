"""The sections of a report that a checkpoint tells: films, experts, likeness of the tasks, usage, harmony weights."""

from collections.abc import Callable, Mapping
from html import escape

import numpy as np

from mow.report.charts import Panel, Series, digits, draw
from mow.report.data import ModelView, Report
from mow.report.film import STYLES, draw_film
from mow.report.html import absent, bar, figure, grid, legend, note, scroll, table
from mow.report.matrix import heat_map, similarity_map


def _of_model(make: Callable[[ModelView], str]) -> Callable[[Report], str]:
    """A section that needs the checkpoint, or the sentence that says why it is not to be had."""

    def section(report: Report) -> str:
        return absent(report.no_model) if report.model is None else make(report.model)

    return section


@_of_model
def films(model: ModelView) -> str:
    """What came and what was imagined, task by task."""
    if not model.films:
        return absent(model.no_films)
    film = next(iter(model.films.values()))
    text = (
        f"{model.checkpoint}, in episodes that training has never seen, played by the agent: {film.num_context} real "
        f"frames are seen, then {film.num_columns - film.num_context} steps imagined along the actions that were "
        "taken. Above: what came. Below: left of the line reconstructed, right of it imagined. Blank: the episode is "
        "over. Bar: the task ends in this step, really or as imagined. Errors: of pixel channels in [0, 1], means "
        f"over up to {film.num_windows} windows."
    )
    names = {
        "imagined": "imagined",
        "reconstructed": "reconstructed from the frame itself",
        "repeated": "last seen frame repeated",
    }
    strips = [figure(task, scroll(draw_film(task, film))) for task, film in model.films.items()]
    return note(text) + legend([(f"line s{STYLES[kind]}", name) for kind, name in names.items()]) + "".join(strips)


@_of_model
def experts(model: ModelView) -> str:
    """Which task uses which expert, and how much."""
    how = "a fixed routing: the experts of a task share alike"
    if model.learned_routing:
        how = "the router's scores of those it chose, scaled to 1"
    text = f"Shares at step {model.step:,}, {how}. Blank: not chosen. m0, m1, ...: the module of the task."
    columns = [str(e) for e in range(model.expert_share.shape[1])]
    picture = heat_map(model.tasks, columns, model.expert_share, column_name="expert", marks=model.module_of_task)
    return note(text) + scroll(picture)


@_of_model
def similarity(model: ModelView) -> str:
    """Who is like whom, and who was grouped with whom."""
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
    return note(text) + picture + _shares(found.shares)


def _shares(shares: Mapping[str, float], most: int = 8) -> str:
    """What the compared gradients are made of: the tensors with the largest shares."""
    if not shares:
        return ""
    rows = [[escape(name), bar(share, f"{100 * share:.1f} %")] for name, share in list(shares.items())[:most]]
    said = f"The {len(rows)} of {len(shares)} tensors with the largest share of the features' squared length."
    return note(said) + table(["tensor", "share"], rows, words=1)


def usage(report: Report) -> str:
    """How many tasks each module has, and what each expert carries."""
    model = report.model
    if model is None:
        return absent(report.no_model) + _use_over_time(report)
    groups: dict[int, list[str]] = {}
    for task, module in zip(model.tasks, model.module_of_task, strict=True):
        groups.setdefault(module, []).append(task)
    modules = [
        [f"m{module}", bar(len(tasks) / len(model.tasks), str(len(tasks))), escape(", ".join(tasks))]
        for module, tasks in groups.items()
    ]
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
    """Expert by expert, if the run looked inside its model."""
    figures = []
    for label, curve in report.run.metrics.curves.items():
        if label.startswith("insight/expert_use/"):
            title = f"expert {label.rpartition('/')[2]}"
            series = (Series("use", curve.updates, [100 * value for value in curve.value], 1),)
            panel = Panel(f"{title}: share of the load", "world-model updates", "load, %", series, from_zero=True)
            figures.append(figure(title, draw(panel)))
    if not figures:
        return absent("Use of the experts over time is not logged: a run with --insight-every N has it.")
    return f"<h3>Load over time</h3>{grid(figures)}"


def harmony(report: Report) -> str:
    """What the tasks' losses are divided by."""
    weighting, model = report.run.config.loss.weighting, report.model
    if weighting not in ("harmony", "shared_terms", "per_term"):
        return absent(f"The run has no harmony weights: loss.weighting is {weighting}.")
    figures = []
    for task in report.run.config.tasks:
        curve = report.run.curve("harmony/weight", task)
        if curve is not None:
            series = (Series("weight", curve.updates, curve.value, 1),)
            panel = Panel(f"{task}: weight", "world-model updates", "weight, 1 / sigma, log scale", series, log=True)
            figures.append(figure(task, draw(panel)))
    over_time = grid(figures) if figures else absent("The weights over time are not logged (harmony/weight/TASK).")
    if model is None or model.weights is None:
        return over_time + (absent(report.no_model) if model is None else "")
    largest = max(model.weights.values())
    rows = [[escape(task), bar(weight / largest, digits(weight))] for task, weight in model.weights.items()]
    terms = "; mean over the terms, which have a sigma each" if weighting == "per_term" else ""
    text = f"At step {model.step:,}: a task's world-model loss is divided by its sigma{terms}."
    return over_time + note(text) + table(["task", "weight, 1 / sigma"], rows, words=2)
