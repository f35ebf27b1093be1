"""The page of a report: one HTML file that needs no network, in the reader's light or dark mode."""

from collections.abc import Callable
from datetime import timedelta
from html import escape

from mow.methods.mow.config import MowConfig
from mow.report import method_mow, method_pwm, sections
from mow.report import recorded as episodes
from mow.report.data import Report
from mow.report.html import digits, note, table

_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1b1f24; --soft: #57606a; --rule: #d6dbe1; --box: #f5f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171b; --ink: #e6e9ed; --soft: #a3acb7; --rule: #343b44; --box: #1d2127; }
  .chart, .legend i { filter: invert(1) hue-rotate(180deg); } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1360px; padding: 20px 24px 60px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", "Liberation Sans", "DejaVu Sans", sans-serif; overflow-wrap: break-word; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 20px; margin: 44px 0 6px; padding-top: 10px; border-top: 1px solid var(--rule); }
h3 { font-size: 14px; margin: 6px 0 2px; }
p { margin: 4px 0 10px; }
.note, .absent { color: var(--soft); max-width: 90ch; }
.absent { font-style: italic; }
nav ul, .legend { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 18px; padding: 0; margin: 10px 0; }
.legend { font-size: 13px; color: var(--soft); }
.legend i { display: inline-block; width: 22px; margin-right: 7px; vertical-align: 4px; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); gap: 16px 22px; }
.grid .chart { width: 100%; max-width: 480px; height: auto; }
figure { margin: 0 0 6px; min-width: 0; }
.scroll { overflow-x: auto; max-width: 100%; padding-bottom: 6px; }
table { border-collapse: collapse; font-size: 14px; margin: 6px 0 12px; }
th, td { padding: 5px 0 5px 14px; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
pre { background: var(--box); padding: 12px; overflow-x: auto; font-size: 12.5px; border-radius: 6px; }
.film { height: 179px; max-width: none; }
"""

# The browser refuses scripts and all addresses, should a name ever get past the escaping.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def sections_of(report: Report) -> list[tuple[str, str, Callable[[Report], str]]]:
    """Anchor, title and maker of the sections that the run has something for, in the order of the page."""
    run = report.run
    mow, recorded = isinstance(run.config, MowConfig), run.config.recorded is not None
    found: list[tuple[bool, str, str, Callable[[Report], str]]] = [
        (True, "scores", "Scores", sections.scores),
        (recorded or bool(report.beside), "beside", "Side by side", episodes.side_by_side),
        (recorded, "data", "Recorded episodes", episodes.recorded),
        (not recorded, "returns", "Learning curves", sections.learning_curves),
        (mow, "losses", "World-model losses", method_mow.losses),
        (mow, "agent", "Agent", method_mow.agent),
        (mow, "films", "Real and imagined", method_mow.films),
        (mow, "experts", "Experts and modules", method_mow.experts),
        (mow, "similarity", "Similarity of the tasks", method_mow.similarity),
        (not mow, "metrics", "Losses and metrics", sections.metrics),
        (f"{sections.ROLLOUT_ERROR}1" in run.per_task, "rollouts", "World model of states", method_pwm.rollouts),
        (True, "time", "Speed and time", sections.time_spent),
        (mow, "harmony", "Harmony weights", method_mow.harmony),
        (True, "config", "Config and versions", sections.files),
    ]
    return [(anchor, title, make) for has, anchor, title, make in found if has]


def page(report: Report) -> str:
    """The whole HTML document."""
    title = escape(f"{report.run.config.preset}: {report.run.folder.name}")
    shown = sections_of(report)
    parts = (
        f'<section id="{anchor}">\n<h2>{escape(name)}</h2>\n{make(report)}\n</section>'
        for anchor, name, make in shown
    )
    links = "".join(f'<li><a href="#{anchor}">{escape(name)}</a></li>' for anchor, name, _ in shown)
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>",
            f"{_head(report)}\n<nav><ul>{links}</ul></nav>",
            *parts,
            "</body>\n</html>\n",
        ]
    )


def status(report: Report) -> str:
    """Progress of the run, judged by its files."""
    config, metrics = report.run.config, report.run.metrics
    unit, total, done = "step", config.total_steps, max(metrics.step, report.model.step if report.model else 0)
    if config.recorded:
        unit, total, done = "update", config.recorded.updates, metrics.updates
    if done >= total:
        return f"finished: {total:,} {unit}s"
    return f"stopped at {unit} {done:,} of {total:,}, or still running"


def _head(report: Report) -> str:
    run, skip, seconds = report.run, report.run.metrics.frame_skip, report.run.metrics.seconds
    length = {"steps per task": f"{run.config.total_steps:,}" + (f" of {skip} frames" if skip not in (None, 1) else "")}
    if run.config.recorded:
        number = sum(task.episodes for task, _ in run.episodes.values())
        length = {"updates": f"{run.config.recorded.updates:,}", "recorded episodes": f"{number:,}"}
    facts = {
        "status": status(report),
        "tasks": str(len(run.config.tasks)),
        **length,
        "seed": str(run.config.seed),
        "time logged": "-" if seconds is None else str(timedelta(seconds=round(seconds))),
    }
    if run.scores is not None:
        facts["mean normalised score"] = digits(run.scores.mean_normalised)
        facts["parameters learned"] = digits(run.scores.parameters)
    remarks = "".join(note(remark) for remark in run.remarks)
    tasks = escape(", ".join(run.config.tasks))
    shown = table(list(facts), [list(map(escape, facts.values()))])
    return f"{note(str(run.folder))}\n{shown}\n<p>Tasks: {tasks}</p>\n{remarks}"
