"""The sections of a report for runs of every method. Missing records are named in a sentence."""

from html import escape

import numpy as np

from mow.envs.suites import reference_returns
from mow.report.charts import STYLES, Series, chart, legend
from mow.report.data import Curve, Report, text_of
from mow.report.html import absent, digits, figure, folded, grid, note, table

# Metrics time/environments and so on: seconds since the record before.
_TIMES = {
    "environments": "environments",
    "acting": "acting",
    "gather": "waiting for replay",
    "world_model": "world model",
    "imagination": "imagination",
    "actor_critic": "actor and critic",
}
ROLLOUT_ERROR = "insight/rollout_error_"  # of a world model of states, and the number of steps
_MOST_LINES = 6  # tasks that have a line each in a panel of a metric, in the styles s1, s2, ...
_SPREAD = {"s1": "mean of the tasks", "s2": "highest", "s3": "lowest"}


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
        figures.append(chart(task, steps_axis(report), "return", series, detail, levels=levels))
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


def steps_axis(report: Report) -> str:
    """Name of the axis of environment steps."""
    skip = report.run.metrics.frame_skip
    return "environment steps" if skip in (None, 1) else f"environment steps of {skip} frames"


def updates_axis(report: Report) -> str:
    """Name of the axis of updates."""
    return "updates" if report.run.config.recorded else "world-model updates"


def updates_of(report: Report, task: str, name: str, style: str = "s1") -> list[Series]:
    """The curve of a metric over updates; empty where it is not logged."""
    curve = report.run.curve(name, task)
    return [] if curve is None else [Series(curve.updates, curve.value, style)]


def panel(report: Report, name: str) -> str:
    """A metric over updates: a line per task, or mean, highest and lowest where there are many tasks."""
    tasks = report.run.config.tasks
    series = [one for i, task in enumerate(tasks, start=1) for one in updates_of(report, task, name, f"s{i}")]
    if len(tasks) > _MOST_LINES:
        at: dict[float, list[float]] = {}
        for x, y in (point for one in series for point in zip(one.x, one.y, strict=True)):
            at.setdefault(x, []).append(y)
        three = zip(_SPREAD, (np.mean, max, min), strict=True)
        series = [Series([*at], [float(of(y)) for y in at.values()], style) for style, of in three]  # type: ignore[operator]
    low, high = min(min(one.y) for one in series), max(max(one.y) for one in series)
    log = name.startswith("loss/") and high > 10 * low > 0
    return chart(name, updates_axis(report), "log scale" if log else "value", series, log=log)


def metrics(report: Report) -> str:
    """All metrics that are logged per task, except the errors of rollouts, which have a section."""
    figures = [panel(report, name) for name in report.run.per_task if not name.startswith(ROLLOUT_ERROR)]
    if not figures:
        return absent("No update has been logged.")
    tasks = report.run.config.tasks
    lines = dict(zip(STYLES, tasks, strict=False)) if len(tasks) <= _MOST_LINES else _SPREAD
    return note("Means between two records.") + legend(list(lines.items())) + grid(figures)


def time_spent(report: Report) -> str:
    """Speed over time, and the time of each part of training where the run logs it."""
    speed = absent("No speed: the run has logged no record of metrics.")
    if report.run.metrics.speed:
        minutes, rates = zip(*report.run.metrics.speed, strict=True)
        text = "World-model updates per second of the whole run, with the environment steps and agent updates between."
        if report.run.config.recorded:
            text = "Updates per second of the whole run."
        drawn = chart("Speed", "minutes since the start", "updates/s", [Series(minutes, rates)], from_zero=True)
        speed = note(text) + grid([drawn])
    parts = (label[5:] for label in report.run.metrics.curves if label.startswith("time/"))
    found = {name: report.run.metrics.curves.get(f"time/{name}") for name in (*_TIMES, *parts)}
    totals = {name: sum(curve.value) for name, curve in found.items() if curve is not None}
    if not totals:
        return speed + absent("The time of each part is not logged (time/PART).")
    everything = sum(totals.values()) or 1.0
    rows = [[_TIMES.get(name, escape(name)), f"{100 * total / everything:.0f} %", digits(total)]
            for name, total in totals.items()]  # fmt: skip
    return f"{speed}<h3>Where the time went</h3>{table(['part', 'share of these', 'seconds'], rows)}"


def files(report: Report) -> str:
    """config.json and versions.json, folded."""
    found = ""
    for name in ("config.json", "versions.json"):
        text = text_of(report.run.folder / name) or "The run has none."
        found += folded(name, f"<pre>{escape(text)}</pre>")
    return found
