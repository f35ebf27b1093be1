"""The sections of a run's report, each from the records it needs; one that lacks them says so in a sentence."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from mow.envs.references import reference_returns
from mow.report_charts import Level, Panel, Series, digits, draw, is_shown, running_mean
from mow.report_data import Curve, ModelView, RunData
from mow.report_film import STYLES, draw_film
from mow.report_matrix import heat_map, similarity_map

TIMES = ("env", "gather", "world_model", "imagination", "actor_critic")

_LOSSES = (
    ("loss/world_model", "all, weighted"),
    ("loss/reconstruction", "reconstruction"),
    ("latent/kl", "KL, nats"),
    ("loss/reward", "reward"),
    ("loss/termination", "termination"),
)


@dataclass(frozen=True)
class Section:
    anchor: str
    title: str
    body: str  # HTML


@dataclass(frozen=True)
class Report:
    """All that the page shows."""

    run: RunData
    model: ModelView | None
    no_model: str  # why `model` is None, a sentence; "" if it is not


def sections(report: Report) -> list[Section]:
    """In the order of the page."""
    made: tuple[tuple[str, str, Callable[[Report], str]], ...] = (
        ("scores", "Scores", scores),
        ("returns", "Learning curves", learning_curves),
        ("losses", "World-model losses", losses),
        ("agent", "Agent", agent),
        ("films", "Real and imagined", films),
        ("experts", "Expert choice", experts),
        ("similarity", "Similarity of the tasks", similarity),
        ("modules", "Module and expert usage", usage),
        ("time", "Speed and time", time_spent),
        ("harmony", "Harmony weights", harmony),
        ("config", "Config and versions", files),
    )
    return [Section(anchor, title, make(report)) for anchor, title, make in made]


# Pieces of HTML --------------------------------------------------------------------------------------------------------


def absent(why: str) -> str:
    return f'<p class="absent">{escape(why)}</p>'


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 1) -> str:
    """Cells are HTML already; the first `words` columns are words, the others numbers."""

    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = ("" if i < words else ' class="number"' for i in range(len(cells)))
        return f"<tr>{''.join(f'<{tag}{kind}>{cell}</{tag}>' for kind, cell in zip(kinds, cells, strict=True))}</tr>"

    body = "".join(line("td", row) for row in rows)
    return f'<div class="scroll"><table><thead>{line("th", head)}</thead><tbody>{body}</tbody></table></div>'


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Args: entries: (class of a mark, text)."""
    samples = []
    for mark, text in entries:
        path = "M11 6h0" if mark.startswith("dot") else "M0 6H22"
        sample = f'<svg width="22" height="12" aria-hidden="true"><path class="{mark}" d="{path}"/></svg>'
        samples.append(f"<li>{sample}{escape(text)}</li>")
    return f'<ul class="legend">{"".join(samples)}</ul>'


def figure(title: str, picture: str, detail: str = "") -> str:
    below = f"<p>{escape(detail)}</p>" if detail else ""
    return f"<figure><figcaption><h3>{escape(title)}</h3>{below}</figcaption>{picture}</figure>"


def grid(figures: Sequence[str]) -> str:
    return f'<div class="grid-of-panels">{"".join(figures)}</div>'


def bar(share: float, text: str) -> str:
    width = f"{100 * min(1.0, max(0.0, share)):.1f}%"
    return f'<span class="bar"><span style="width:{width}"></span></span> {escape(text)}'


# Scores and curves -----------------------------------------------------------------------------------------------------


def scores(report: Report) -> str:
    found = report.run.scores
    if found is None:
        asked = report.run.config.evaluation_episodes
        return absent(
            "The run has no scores.json: it is scored when it ends." if asked else
            "The run has no scores.json: it was started with evaluation_episodes 0."
        )  # fmt: skip
    rows = [
        [
            escape(score.task),
            *(digits(value) for value in (score.random, score.agent, score.deviation, score.expert, score.normalised)),
            str(score.episodes),
        ]
        for score in found.tasks
    ]
    if found.mean_normalised is not None:
        rows.append(["<b>mean</b>", "", "", "", "", f"<b>{digits(found.mean_normalised)}</b>", ""])
    head = ["task", "random", "agent", "± sd", "expert or human", "normalised", "episodes"]
    text = (
        "Mean return of whole episodes in fresh environments, without exploration; ± sd: standard deviation between "
        "episodes; normalised: 0 is random, 1 is the expert or human."
    )
    return note(text) + table(head, rows)


def _steps_label(report: Report) -> str:
    skip = report.run.metrics.frame_skip
    return "environment steps" if skip in (None, 1) else f"environment steps (× {skip} frames)"


def smoothed(curve: Curve) -> tuple[list[float], int]:
    """Mean of each return and those before it, over a twentieth of the task's episodes, 5 at least; and how many."""
    window = max(5, len(curve.value) // 20)
    return running_mean(curve.value, window), window


def learning_curves(report: Report) -> str:
    figures = []
    for task in report.run.config.tasks:
        curve = report.run.metrics.episodes.get(task)
        if curve is None:
            figures.append(figure(task, absent("No episode has ended.")))
            continue
        means, window = smoothed(curve)
        known = reference_returns(task)
        panel = Panel(
            title=f"{task}: episode return",
            x_label=_steps_label(report),
            y_label="return",
            series=(Series("episode", curve.step, curve.value, 6, "dots"), Series("mean", curve.step, means, 1)),
            levels=() if known is None else (Level("expert or human", known[1]), Level("random", known[0])),
        )
        figures.append(figure(task, draw(panel), _compared(panel, means[-1], window)))
    marks = [("dots s6", "an episode"), ("line s1", "mean of the last episodes")]
    marks += [("level level1", "expert or human"), ("level level2", "random policy")]
    text = "Returns while the agent collects, in units of the task, exploration and random prefill included."
    return note(text) + legend(marks) + grid(figures)


def _compared(panel: Panel, last: float, window: int) -> str:
    parts = [f"last {window}: {digits(last)}"]
    for level in panel.levels:
        hidden = "" if is_shown(panel, level) else " (outside the picture)"
        parts.append(f"{level.name} {digits(level.y)}{hidden}")
    return " · ".join(parts)


def losses(report: Report) -> str:
    figures = []
    for task in report.run.config.tasks:
        found = [(i, name, report.run.curve(label, task)) for i, (label, name) in enumerate(_LOSSES, start=1)]
        series = tuple(Series(name, c.updates, c.value, i) for i, name, c in found if c is not None)
        if not any(value > 0 for s in series for value in s.y):
            continue
        panel = Panel(f"{task}: losses", "world-model updates", "loss, logarithmic", series, log=True)
        figures.append(figure(task, draw(panel)))
    if not figures:
        return absent("No world-model update has been logged.")
    text = (
        "Means between two records. The dynamics and representation losses are the KL with its floor of "
        f"{digits(report.run.config.loss.free_bits)} nats. What lies below a hundred-thousandth of a panel's largest "
        "value is drawn at its lower edge."
    )
    marks = [(f"line s{i}", name) for i, (_, name) in enumerate(_LOSSES, start=1)]
    return note(text) + legend(marks) + grid(figures)


def agent(report: Report) -> str:
    entropies, returns = [], []
    for task in report.run.config.tasks:
        entropy = report.run.curve("agent/entropy", task)
        if entropy is not None:
            panel = Panel(
                f"{task}: entropy", _steps_label(report), "nats", (Series("entropy", entropy.step, entropy.value, 1),)
            )
            entropies.append(figure(task, draw(panel)))
        imagined = report.run.curve("agent/imagined_return", task)
        if imagined is not None:
            series = [Series("imagined", imagined.step, imagined.value, 2)]
            real = report.run.metrics.episodes.get(task)
            if real is not None:
                series.insert(0, Series("real", real.step, smoothed(real)[0], 1))
            panel = Panel(f"{task}: imagined and real return", _steps_label(report), "return", tuple(series))
            returns.append(figure(task, draw(panel)))
    if not entropies and not returns:
        return absent("No update of the agent has been logged.")
    config = report.run.config.actor_critic
    text = (
        f"The two are not the same quantity: imagined is the mean λ-return (discount {config.discount:g}, "
        f"λ {config.lam:g}) of imagined states anywhere in an episode, real is the undiscounted return of whole "
        "episodes. They should rise together; an imagined return that rises alone exploits the world model."
    )
    marks = legend([("line s1", "real, mean of the last episodes"), ("line s2", "imagined")])
    zero = note("0 nats: the agent always takes the same action; a continuous policy may fall below 0.")
    return (
        f"<h3>Entropy of the policy</h3>{zero}{grid(entropies)}"
        f"<h3>Imagined against real return</h3>{note(text)}{marks}{grid(returns)}"
    )


# The model -------------------------------------------------------------------------------------------------------------


def _of_model(make: Callable[[ModelView], str]) -> Callable[[Report], str]:
    """A section that needs the checkpoint, or the sentence that says why it is not to be had."""

    def section(report: Report) -> str:
        return absent(report.no_model) if report.model is None else make(report.model)

    return section


@_of_model
def films(model: ModelView) -> str:
    if not model.films:
        return absent(model.no_films)
    shown = [figure(task, f'<div class="scroll">{draw_film(task, film)}</div>') for task, film in model.films.items()]
    film = next(iter(model.films.values()))
    steps = film.num_columns - film.num_context
    text = (
        f"{model.checkpoint}, in episodes that training has never seen, played by the agent: {film.num_context} real "
        f"frames are seen, then {steps} steps imagined along the actions that were taken. Above: what came. Below: "
        "left of the line reconstructed, right of it imagined. Blank: the episode is over. Bar: the task ends in "
        f"this step, really or as imagined. Errors: of pixel channels in [0, 1], means over up to {film.num_windows} "
        "windows."
    )
    names = {"imagined": "imagined", "reconstructed": "reconstructed from the frame itself",
             "repeated": "last seen frame repeated"}  # fmt: skip
    return note(text) + legend([(f"line s{STYLES[kind]}", name) for kind, name in names.items()]) + "".join(shown)


@_of_model
def experts(model: ModelView) -> str:
    num_experts = model.expert_share.shape[1]
    how = (
        "renormalised scores of the router's choice" if model.learned_routing else
        "the routing is fixed: the experts of a task share alike"
    )  # fmt: skip
    text = f"Share of each expert in each task at step {model.step:,} ({how}); blank: not chosen. mN: module of the task."
    columns = [str(e) for e in range(num_experts)]
    picture = heat_map(
        model.tasks, columns, model.expert_share, column_name="expert", marks=model.module_of_task
    )
    return f'{note(text)}<div class="scroll">{picture}</div>'


@_of_model
def similarity(model: ModelView) -> str:
    found = model.similarity
    if found is None:
        return absent("There is nothing to compare: the run has one task, or no task embedding.")
    measures = [
        f"{name} {digits(value)}"
        for name, value in (("silhouette", found.silhouette), ("stability between two halves of the evidence", found.stability))
        if np.isfinite(value)
    ]  # fmt: skip
    text = (
        f"Cosines of {found.of}. Frames: tasks that share a module (mN). Dendrogram: average linkage, its leaves are "
        f"the columns; the modules come from k-means and need not follow it. {', '.join(measures).capitalize()}"
    )
    text = text.strip() + ("." if measures else "")
    picture = similarity_map(model.tasks, model.module_of_task, found.cosine)
    return f'{note(text)}<div class="scroll">{picture}</div>'


def usage(report: Report) -> str:
    model, parts = report.model, []
    if model is None:
        parts.append(absent(report.no_model))
    else:
        groups: dict[int, list[str]] = {}
        for task, module in zip(model.tasks, model.module_of_task, strict=True):
            groups.setdefault(module, []).append(task)
        rows = [
            [f"m{module}", bar(len(tasks) / len(model.tasks), str(len(tasks))), escape(", ".join(tasks))]
            for module, tasks in groups.items()
        ]
        parts.append(table(["module", "tasks", "names"], rows, words=3))
        load = model.expert_share.mean(axis=0)
        used = (model.expert_share > 0).sum(axis=0)
        rows = [[str(e), bar(float(share), f"{100 * share:.0f} %"), str(n)] for e, (share, n) in enumerate(zip(load, used, strict=True))]
        parts.append(table(["expert", "share of all tasks' load", "tasks that use it"], rows, words=2))
    parts.append(_use_over_time(report))
    return "".join(parts)


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
    return f"<h3>Use over time</h3>{grid(figures)}"


# Time, weights, files --------------------------------------------------------------------------------------------------


def time_spent(report: Report) -> str:
    rate, parts = report.run.metrics.rate, []
    if rate.minute:
        series = (Series("updates", rate.minute, rate.updates_per_second, 1),)
        panel = Panel("world-model updates per second", "minutes since the start", "updates/s", series, from_zero=True)
        parts.append(grid([figure("Speed", draw(panel), f"world-model updates per second, each with the steps and agent updates between; last {digits(rate.updates_per_second[-1])}")]))
    else:
        parts.append(absent("No speed: the run has not logged its clock."))
    parts.append(_time_split(report))
    return "".join(parts)


def _time_split(report: Report) -> str:
    found = {name: report.run.metrics.curves.get(f"time/{name}") for name in TIMES}
    totals = {name: sum(curve.value) for name, curve in found.items() if curve is not None}
    if not totals:
        return absent(f"The run does not log what its time went to ({', '.join(f'time/{name}' for name in TIMES)}).")
    everything = sum(totals.values()) or 1.0
    rows = [
        [escape(name.replace("_", " ")), bar(total / everything, f"{100 * total / everything:.0f} %"), digits(total)]
        for name, total in totals.items()
    ]
    lines = tuple(Series(name, c.updates, c.value, i) for i, (name, c) in enumerate(found.items(), start=1) if c)
    panel = Panel("time per stretch", "world-model updates", "seconds per record", lines, from_zero=True)
    marks = legend([(f"line s{i}", name.replace("_", " ")) for i, name in enumerate(TIMES, start=1) if name in totals])
    return f"<h3>Where the time went</h3>{table(['part', 'share of these', 'seconds'], rows, words=2)}{marks}{grid([figure('Over time', draw(panel))])}"


def harmony(report: Report) -> str:
    figures = []
    for task in report.run.config.tasks:
        curve = report.run.curve("harmony/weight", task)
        if curve is not None:
            series = (Series("weight", curve.updates, curve.value, 1),)
            panel = Panel(f"{task}: weight", "world-model updates", "weight, 1/σ", series, from_zero=True)
            figures.append(figure(task, draw(panel)))
    parts = [grid(figures) if figures else absent("The weights over time are not logged (harmony/weight/TASK).")]
    model = report.model
    if model is not None and model.weights is None:
        weighting = report.run.config.loss.weighting
        return absent(f"The run has no harmony weights: loss.weighting is {weighting}.")
    if model is not None and model.weights is not None:
        largest = max(model.weights.values()) or 1.0
        rows = [[escape(task), bar(weight / largest, digits(weight))] for task, weight in model.weights.items()]
        parts.append(note(f"As they stand at step {model.step:,}: a task's world-model loss is divided by its σ."))
        parts.append(table(["task", "weight, 1/σ"], rows, words=2))
    return "".join(parts)


def files(report: Report) -> str:
    return "".join(_folded(name, text) for name, text in _texts(report))


def _texts(report: Report) -> Iterator[tuple[str, str]]:
    yield "config.json", report.run.config_text
    yield "versions.json", report.run.versions_text or "The run has no versions.json."


def _folded(name: str, text: str) -> str:
    return f"<details><summary>{name}</summary><pre>{escape(text)}</pre></details>"
