"""The section of a report on a world model of states: errors of its rollouts, rank of its latents, fit of rewards."""

from html import escape

from mow.report.charts import chart, legend
from mow.report.data import Report
from mow.report.html import digits, grid, note, table
from mow.report.sections import ROLLOUT_ERROR, updates_axis, updates_of


def rollouts(report: Report) -> str:
    """The diagnostics over training, and their last values; for a run that logs errors of latent rollouts."""
    names, figures, rows = report.run.per_task, [], []
    horizons = {int(name.removeprefix(ROLLOUT_ERROR)): name for name in names if name.startswith(ROLLOUT_ERROR)}
    styles = {name: f"s{i}" for i, name in enumerate(horizons.values(), start=1)}
    others = [name for name in names if name.startswith("insight/") and name not in styles]
    last = {f"error at {n}": name for n, name in horizons.items()}
    last |= {name.partition("/")[2].replace("_", " "): name for name in others} | {"critic loss": "loss/critic"}
    for task in report.run.config.tasks:
        series = [one for name, style in styles.items() for one in updates_of(report, task, name, style)]
        if any(value > 0 for one in series for value in one.y):
            axes = updates_axis(report), "relative error, log scale"
            figures.append(chart(task, *axes, series, levels=[1.0], log=True))
        curves = [report.run.curve(name, task) for name in last.values()]
        rows.append([escape(task), *(digits(curve.value[-1] if curve else None) for curve in curves)])
    text = (
        "On batches of recorded windows. Error at n: squared distance between the latent rolled out n steps along the "
        "recorded actions and the encoding of the observation there, divided by that of the first latent; above 1, a "
        "latent that does not change predicts better. Rank: effective rank of the encoded observations. Reward r2: "
        "1 is a perfect prediction along the rollout, 0 that of the mean reward."
    )
    marks = [(styles[name], f"{n} step{'s' if n > 1 else ''}") for n, name in horizons.items()]
    return (
        f"{note(text)}{table(['last values', *last], rows)}<h3>Error of latent rollouts</h3>"
        f"{legend([*marks, ('level1', 'a latent that does not change')])}{grid(figures)}"
    )
