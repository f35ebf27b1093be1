"""A report's sections in order, and those that the log tells; one that lacks its records says so in a sentence."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from mow.envs.references import reference_returns
from mow.report.charts import Level, Panel, Series, digits, draw, is_shown, running_mean
from mow.report.data import Curve, Report
from mow.report.html import absent, bar, figure, grid, legend, note, table
from mow.report.insides import experts, films, harmony, similarity, usage

# What the time went to, in seconds since the record before: metrics time/environments and so on.
_TIMES = {
    "environments": "environments",
    "acting": "acting",
    "gather": "waiting for replay",
    "world_model": "world model",
    "imagination": "imagination",
    "actor_critic": "actor and critic",
}

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
        ("usage", "Module and expert usage", usage),
        ("time", "Speed and time", time_spent),
        ("harmony", "Harmony weights", harmony),
        ("config", "Config and versions", files),
    )
    return [Section(anchor, title, make(report)) for anchor, title, make in made]


# Scores and returns --------------------------------------------------------------------------------------------------


def scores(report: Report) -> str:
    """The table of scores.json."""
    found = report.run.scores
    if found is None:
        scored = report.run.config.evaluation_episodes > 0
        why = "it is scored when it ends" if scored else "it was started with evaluation_episodes 0"
        return absent(f"There are no scores of the run: {why}.")
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


def learning_curves(report: Report) -> str:
    """Returns of the episodes that were collected, task by task."""
    if not report.run.metrics.episodes:
        return absent("No episode has ended.")
    figures = []
    for task in report.run.config.tasks:
        curve = report.run.metrics.episodes.get(task)
        if curve is None:
            figures.append(figure(task, absent("No episode has ended.")))
            continue
        means, window = smoothed("mean", curve, 1)
        known, expert = reference_returns(task), "human" if task.startswith("atari:") else "expert"
        panel = Panel(
            title=f"{task}: episode return",
            x_label=_steps_label(report),
            y_label="return",
            series=(Series("episode", curve.step, curve.value, 6, "dots"), means),
            levels=() if known is None else (Level(expert, known[1]), Level("random", known[0])),
        )
        figures.append(figure(task, draw(panel), _compared(panel, means.y[-1], window)))
    marks = [("dot s6", "an episode"), ("line s1", "mean of the last episodes")]
    marks += [("level level1", "expert or human"), ("level level2", "random policy")]
    text = "Returns while the agent collects, in units of the task, exploration and random prefill included."
    return note(text) + legend(marks) + grid(figures)


def smoothed(name: str, curve: Curve, style: int) -> tuple[Series, int]:
    """Means of as many episodes as are returned too: a twentieth of the task's, 5 at least, all if there are fewer."""
    window = min(len(curve.value), max(5, len(curve.value) // 20))
    means = running_mean(curve.value, window)
    return Series(name, curve.step[window - 1 :], means[window - 1 :], style), window


def _compared(panel: Panel, last: float, window: int) -> str:
    parts = [f"last {window}: {digits(last)}"]
    for level in panel.levels:
        hidden = "" if is_shown(panel, level) else " (outside the picture)"
        parts.append(f"{level.name} {digits(level.y)}{hidden}")
    return " · ".join(parts)


def _steps_label(report: Report) -> str:
    skip = report.run.metrics.frame_skip
    return "environment steps" if skip in (None, 1) else f"environment steps of {skip} frames"


# Learning ------------------------------------------------------------------------------------------------------------


def losses(report: Report) -> str:
    """What the world model's losses and its KL came to, task by task."""
    figures = []
    for task in report.run.config.tasks:
        found = [(i, name, report.run.curve(label, task)) for i, (label, name) in enumerate(_LOSSES, start=1)]
        series = tuple(Series(name, c.updates, c.value, i) for i, name, c in found if c is not None)
        if any(value > 0 for one in series for value in one.y):
            panel = Panel(f"{task}: losses", "world-model updates", "loss, log scale", series, log=True)
            figures.append(figure(task, draw(panel)))
    if not figures:
        return absent("No update of the world model has been logged.")
    text = (
        "Means between two records. The dynamics and representation losses are the KL with its floor of "
        f"{digits(report.run.config.loss.free_bits)} nats. What lies below a hundred-thousandth of a panel's largest "
        "value is drawn at its lower edge."
    )
    marks = [(f"line s{i}", name) for i, (_, name) in enumerate(_LOSSES, start=1)]
    return note(text) + legend(marks) + grid(figures)


def agent(report: Report) -> str:
    """Entropy of the policy; what imagination promises beside what comes."""
    entropies, returns = [], []
    for task in report.run.config.tasks:
        entropy = report.run.curve("agent/entropy", task)
        if entropy is not None:
            series = (Series("entropy", entropy.step, entropy.value, 1),)
            entropies.append(figure(task, draw(Panel(f"{task}: entropy", _steps_label(report), "nats", series))))
        imagined = report.run.curve("agent/imagined_return", task)
        if imagined is not None:
            lines = [Series("imagined", imagined.step, imagined.value, 2)]
            real = report.run.metrics.episodes.get(task)
            if real is not None:
                lines.insert(0, smoothed("real", real, 1)[0])
            panel = Panel(f"{task}: imagined and real return", _steps_label(report), "return", tuple(lines))
            returns.append(figure(task, draw(panel)))
    if not entropies and not returns:
        return absent("No update of the agent has been logged.")
    config = report.run.config.actor_critic
    text = (
        f"The two are not the same quantity: imagined is the mean lambda-return (discount {config.discount:g}, lambda "
        f"{config.lam:g}) of imagined states anywhere in an episode, real is the undiscounted return of whole "
        "episodes, which a time limit may cut. Where the imagined one rises and the real one does not, the agent may "
        "have found what only the world model believes in."
    )
    zero = note("0 nats: the agent always takes the same action; a continuous policy may fall below 0.")
    marks = legend([("line s1", "real, mean of the last episodes"), ("line s2", "imagined")])
    return (
        f"<h3>Entropy of the policy</h3>{zero}{grid(entropies)}"
        f"<h3>Imagined against real return</h3>{note(text)}{marks}{grid(returns)}"
    )


# Time and files ------------------------------------------------------------------------------------------------------


def time_spent(report: Report) -> str:
    """Speed over time, and where the time went if the run logs it."""
    rate = report.run.metrics.rate
    if not rate.minute:
        return absent("No speed: the run has logged no record of metrics.") + _time_split(report)
    series = (Series("updates", rate.minute, rate.updates_per_second, 1),)
    panel = Panel("world-model updates per second", "minutes since the start", "updates/s", series, from_zero=True)
    text = "World-model updates per second of the whole run, environment steps and updates of the agent between them."
    return note(text) + grid([figure("Speed", draw(panel))]) + _time_split(report)


def _time_split(report: Report) -> str:
    found = {name: report.run.metrics.curves.get(f"time/{name}") for name in _TIMES}
    curves = {name: curve for name, curve in found.items() if curve is not None}
    if not curves:
        return absent(f"What the time went to is not logged ({', '.join(f'time/{name}' for name in _TIMES)}).")
    totals = {name: sum(curve.value) for name, curve in curves.items()}
    everything = sum(totals.values()) or 1.0
    rows = [
        [_TIMES[name], bar(total / everything, f"{100 * total / everything:.0f} %"), digits(total)]
        for name, total in totals.items()
    ]
    styles = {name: i for i, name in enumerate(_TIMES, start=1)}
    lines = tuple(Series(_TIMES[name], curve.updates, curve.value, styles[name]) for name, curve in curves.items())
    panel = Panel("time between two records", "world-model updates", "seconds", lines, from_zero=True)
    return (
        f"<h3>Where the time went</h3>{table(['part', 'share of these', 'seconds'], rows, words=2)}"
        f"{legend([(f'line s{styles[name]}', _TIMES[name]) for name in curves])}"
        f"{grid([figure('Time between two records', draw(panel))])}"
    )


def files(report: Report) -> str:
    """What ran, folded."""
    texts: Sequence[tuple[str, str]] = (
        ("config.json", report.run.config_text),
        ("versions.json", report.run.versions_text or "The run has no versions.json."),
    )
    return "".join(
        f"<details><summary>{name}</summary><pre>{escape(text)}</pre></details>" for name, text in texts
    )
