"""The sections of a report in order, and those made from the log alone. Missing records are named in a sentence."""

from collections.abc import Callable
from html import escape

import numpy as np

from mow.envs.suites import reference_returns
from mow.report.charts import Series, chart, legend
from mow.report.data import Curve, Report, text_of
from mow.report.html import absent, digits, figure, folded, grid, note, table
from mow.report.insides import experts, films, similarity

# Metrics time/environments and so on: seconds since the record before.
_TIMES = {
    "environments": "environments",
    "acting": "acting",
    "gather": "waiting for replay",
    "world_model": "world model",
    "imagination": "imagination",
    "actor_critic": "actor and critic",
}
_LOSSES = {
    "loss/world_model": "all, weighted",
    "loss/reconstruction": "reconstruction",
    "latent/kl": "KL, nats",
    "loss/reward": "reward",
    "loss/termination": "termination",
}


def scores(report: Report) -> str:
    """The table of scores.json."""
    found = report.run.scores
    if found is None:
        scored = report.run.config.evaluation_episodes > 0
        why = "it is scored when it ends" if scored else "it was started with evaluation_episodes 0"
        return absent(f"There are no scores of the run: {why}.")
    rows = [[escape(task), *map(digits, numbers)] for task, numbers in found.tasks.items()]
    if found.mean_normalised is not None:
        rows.append(["<b>mean</b>", "", "", "", "", f"<b>{digits(found.mean_normalised)}</b>", ""])
    text = (
        "Mean return of whole episodes in fresh environments, without exploration; ± sd: standard deviation between "
        "episodes; normalised: 0 is random, 1 is the expert or human."
    )
    return note(text) + table(["task", "random", "agent", "± sd", "expert or human", "normalised", "episodes"], rows)


def learning_curves(report: Report) -> str:
    """Returns of the episodes that training collected, one panel per task."""
    if not report.run.metrics.episodes:
        return absent("No episode has ended.")
    figures = []
    for task in report.run.config.tasks:
        curve = report.run.metrics.episodes.get(task)
        if curve is None:
            figures.append(figure(task, absent("No episode has ended.")))
            continue
        means, window = smoothed(curve)
        random, expert = reference_returns(task) or (None, None)
        levels = [] if random is None or expert is None else [expert, random]
        detail = f"last {window}: {digits(means.y[-1])}"
        if levels:
            name = "human" if task.startswith("atari:") else "expert"
            detail += f" · {name} {digits(expert)} · random {digits(random)}"
        series = [Series(curve.step, curve.value, "dots"), means]
        figures.append(chart(task, _steps(report), "return", series, detail, levels=levels))
    marks = [("dots", "an episode"), ("s1", "mean of the last episodes")]
    marks += [("level1", "expert or human, if near the curve"), ("level2", "random policy, if near the curve")]
    text = "Returns while the agent collects, in units of the task, exploration and random prefill included."
    return note(text) + legend(marks) + grid(figures)


def smoothed(curve: Curve) -> tuple[Series, int]:
    """Running mean over a twentieth of the episodes, at least 5, or all if there are fewer.

    Returns: the means, from the first full window on; episodes in a window.
    """
    window = min(len(curve.value), max(5, len(curve.value) // 20))
    means = np.convolve(curve.value, np.full(window, 1.0 / window), "valid")
    return Series(curve.step[window - 1 :], means.tolist()), window


def _steps(report: Report) -> str:
    skip = report.run.metrics.frame_skip
    return "environment steps" if skip in (None, 1) else f"environment steps of {skip} frames"


def _updates_of(report: Report, task: str, name: str, style: str = "s1") -> list[Series]:
    """The curve of a metric over world-model updates; empty where it is not logged."""
    curve = report.run.curve(name, task)
    return [] if curve is None else [Series(curve.updates, curve.value, style)]


def losses(report: Report) -> str:
    """Losses and KL of the world model, one panel per task."""
    styles = {label: f"s{i}" for i, label in enumerate(_LOSSES, start=1)}
    figures = []
    for task in report.run.config.tasks:
        series = [one for label in _LOSSES for one in _updates_of(report, task, label, styles[label])]
        if any(value > 0 for one in series for value in one.y):
            figures.append(chart(task, "world-model updates", "loss, log scale", series, log=True))
    if not figures:
        return absent("No update of the world model has been logged.")
    text = (
        "Means between two records. The dynamics and representation losses are the KL with its floor of "
        f"{digits(report.run.config.loss.free_bits)} nats. Values below a hundred-thousandth of a panel's largest are "
        "drawn at that value."
    )
    return note(text) + legend([(styles[label], name) for label, name in _LOSSES.items()]) + grid(figures)


def agent(report: Report) -> str:
    """Entropy of the policy; imagined beside real returns."""
    entropies, returns = [], []
    for task in report.run.config.tasks:
        if (entropy := report.run.curve("agent/entropy", task)) is not None:
            entropies.append(chart(task, _steps(report), "nats", [Series(entropy.step, entropy.value)]))
        if (imagined := report.run.curve("agent/imagined_return", task)) is not None:
            real = report.run.metrics.episodes.get(task)
            series = [*([smoothed(real)[0]] if real else []), Series(imagined.step, imagined.value, "s2")]
            returns.append(chart(task, _steps(report), "return", series))
    if not entropies and not returns:
        return absent("No update of the agent has been logged.")
    config = report.run.config.actor_critic
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


def time_spent(report: Report) -> str:
    """Speed over time, and the time of each part of training where the run logs it."""
    speed = absent("No speed: the run has logged no record of metrics.")
    if report.run.metrics.speed:
        minutes, rates = zip(*report.run.metrics.speed, strict=True)
        text = "World-model updates per second of the whole run, with the environment steps and agent updates between."
        drawn = chart("Speed", "minutes since the start", "updates/s", [Series(minutes, rates)], from_zero=True)
        speed = note(text) + grid([drawn])
    found = {name: report.run.metrics.curves.get(f"time/{name}") for name in _TIMES}
    totals = {name: sum(curve.value) for name, curve in found.items() if curve is not None}
    if not totals:
        return speed + absent("The time of each part is not logged (time/PART).")
    everything = sum(totals.values()) or 1.0
    rows = [[_TIMES[name], f"{100 * total / everything:.0f} %", digits(total)] for name, total in totals.items()]
    return f"{speed}<h3>Where the time went</h3>{table(['part', 'share of these', 'seconds'], rows)}"


def harmony(report: Report) -> str:
    """1 / sigma of every task over time."""
    weighting = report.run.config.loss.weighting
    if weighting not in ("harmony", "shared_terms", "per_term"):
        return absent(f"The run has no harmony weights: loss.weighting is {weighting}.")
    figures = []
    for task in report.run.config.tasks:
        if series := _updates_of(report, task, "harmony/weight"):
            last = f"last: {digits(series[0].y[-1])}"
            figures.append(chart(task, "world-model updates", "1 / sigma, log scale", series, last, log=True))
    if not figures:
        return absent("The weights over time are not logged (harmony/weight/TASK).")
    return note("A task's world-model loss is divided by its sigma.") + grid(figures)


def files(report: Report) -> str:
    """config.json and versions.json, folded."""
    found = ""
    for name in ("config.json", "versions.json"):
        text = text_of(report.run.folder / name) or "The run has none."
        found += folded(name, f"<pre>{escape(text)}</pre>")
    return found


# Anchor -> (title, HTML of the section), in the order of the page.
SECTIONS: dict[str, tuple[str, Callable[[Report], str]]] = {
    "scores": ("Scores", scores),
    "returns": ("Learning curves", learning_curves),
    "losses": ("World-model losses", losses),
    "agent": ("Agent", agent),
    "films": ("Real and imagined", films),
    "experts": ("Experts and modules", experts),
    "similarity": ("Similarity of the tasks", similarity),
    "time": ("Speed and time", time_spent),
    "harmony": ("Harmony weights", harmony),
    "config": ("Config and versions", files),
}
