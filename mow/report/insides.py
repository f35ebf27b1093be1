"""The sections of a report made from a checkpoint: films, experts, similarity."""

import base64
from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from mow.report.charts import Floats, Series, chart, image, legend, matrix, similarity_matrix
from mow.report.data import Film, ModelView, Report
from mow.report.html import absent, digits, figure, folded, grid, note, scroll, table

_ERRORS = {
    "imagined": ("s2", "imagined"),
    "reconstructed": ("s3", "reconstructed from the frame itself"),
    "repeated": ("s4", "last seen frame repeated"),
}


def _of_model(make: Callable[[ModelView], str]) -> Callable[[Report], str]:
    """A section that needs the checkpoint; without one, the sentence that gives the reason."""
    return lambda report: absent(report.no_model) if report.model is None else make(report.model)


@_of_model
def films(model: ModelView) -> str:
    """Real and imagined frames of every task, and the errors of the imagined ones."""
    if not model.films:
        return absent(model.no_films)
    text = (
        f"{model.checkpoint}, in episodes that training has never seen, played by the agent: two real frames are seen, "
        "then steps are imagined along the actions that were taken. Above: real. Below: left of the line "
        "reconstructed, right of it imagined. Numbers: steps ahead. Blank: the episode is over. Red bar: the task ends "
        "in this step, really or as imagined. Errors: of pixel channels in [0, 1], means over windows."
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
        steps = [n for n, error in enumerate(film.errors[kind], start=1) if np.isfinite(error)]
        if steps:
            series.append(Series(steps, [film.errors[kind][n - 1] for n in steps], style))
    if not series:
        return figure(task, absent("Every episode ended before the first imagined step."))
    return chart(task, "steps ahead", "squared error", series, from_zero=True)


@_of_model
def experts(model: ModelView) -> str:
    """Share of every expert in every task."""
    text = (
        f"Shares at step {model.step:,}, as the router weighs the experts that it chose. Blank: not chosen. m0, m1, "
        "...: the module of the task."
    )
    columns, rows = [str(e) for e in range(model.expert_share.shape[1])], _rows(model)
    picture = scroll(image(matrix(rows, columns, model.expert_share), "share of each expert in each task"))
    return note(text) + picture + _numbers(rows, columns, model.expert_share)


def _rows(model: ModelView) -> list[str]:
    return [f"{task}  m{module}" for task, module in zip(model.tasks, model.module_of_task, strict=True)]


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
        f"Cosines of {found.of}. m0, m1, ...: the module of the task. Dendrogram: average linkage, its leaves are the "
        "columns; the modules come from k-means and need not follow it."
    )
    picture = image(similarity_matrix(_rows(model), found.cosine), "similarity of the tasks, and its dendrogram")
    return note(text) + scroll(picture) + _numbers(_rows(model), model.tasks, found.cosine)
