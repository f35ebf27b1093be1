"""The sections of a report for runs of mow, from its log and from a checkpoint: films, experts, similarity."""

import base64
from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from mow.methods.mow.config import of_mow
from mow.report.charts import Floats, Series, chart, image, legend, matrix, similarity_matrix
from mow.report.data import Film, ModelView, Report
from mow.report.html import absent, digits, figure, folded, grid, note, scroll, table
from mow.report.sections import smoothed, steps_axis, updates_axis, updates_of

_ERRORS = {
    "imagined": ("s2", "imagined"),
    "reconstructed": ("s3", "reconstructed from the frame itself"),
    "repeated": ("s4", "last seen frame repeated"),
}
_LOSSES = {
    "loss/world_model": "all, weighted",
    "loss/reconstruction": "reconstruction",
    "latent/kl": "KL, nats",
    "loss/reward": "reward",
    "loss/termination": "termination",
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


def losses(report: Report) -> str:
    """Losses and KL of the world model, one panel per task."""
    config, styles = of_mow(report.run.config), {label: f"s{i}" for i, label in enumerate(_LOSSES, start=1)}
    figures = []
    for task in report.run.config.tasks:
        series = [one for label in _LOSSES for one in updates_of(report, task, label, styles[label])]
        if any(value > 0 for one in series for value in one.y):
            figures.append(chart(task, updates_axis(report), "loss, log scale", series, log=True))
    if not figures:
        return absent("No update of the world model has been logged.")
    text = (
        "Means between two records. The dynamics and representation losses are the KL with its floor of "
        f"{digits(config.loss.free_bits)} nats. Values below a hundred-thousandth of a panel's largest are "
        "drawn at that value."
    )
    return note(text) + legend([(styles[label], name) for label, name in _LOSSES.items()]) + grid(figures)


def agent(report: Report) -> str:
    """Entropy of the policy; imagined beside real returns."""
    entropies, returns = [], []
    for task in report.run.config.tasks:
        if (entropy := report.run.curve("agent/entropy", task)) is not None:
            entropies.append(chart(task, steps_axis(report), "nats", [Series(entropy.step, entropy.value)]))
        if (imagined := report.run.curve("agent/imagined_return", task)) is not None:
            real = report.run.metrics.episodes.get(task)
            series = [*([smoothed(real)[0]] if real else []), Series(imagined.step, imagined.value, "s2")]
            returns.append(chart(task, steps_axis(report), "return", series))
    if not entropies and not returns:
        return absent("No update of the agent has been logged.")
    config = of_mow(report.run.config).actor_critic
    text = (
        f"The two are not the same quantity: imagined is the mean lambda-return (discount {config.discount:g}, lambda "
        f"{config.lam:g}) of imagined states anywhere in an episode, real is the undiscounted return of whole "
        "episodes, which a time limit may cut. Where the imagined one rises and the real one does not, the policy may "
        "exploit errors of the world model."
    )
    zero = note("0 nats: the agent always takes the same action; a continuous policy may fall below 0.")
    marks = legend([("s1", "real, mean of the last episodes"), ("s2", "imagined")])
    return (
        f"<h3>Entropy of the policy</h3>{zero}{grid(entropies)}"
        f"<h3>Imagined against real return</h3>{note(text)}{marks}{grid(returns)}"
    )


def harmony(report: Report) -> str:
    """1 / sigma of every task over time."""
    weighting = of_mow(report.run.config).loss.weighting
    if weighting not in ("harmony", "shared_terms", "per_term"):
        return absent(f"The run has no harmony weights: loss.weighting is {weighting}.")
    figures = []
    for task in report.run.config.tasks:
        if series := updates_of(report, task, "harmony/weight"):
            last = f"last: {digits(series[0].y[-1])}"
            figures.append(chart(task, updates_axis(report), "1 / sigma, log scale", series, last, log=True))
    if not figures:
        return absent("The weights over time are not logged (harmony/weight/TASK).")
    return note("A task's world-model loss is divided by its sigma.") + grid(figures)
