"""The page of a report: one HTML file that needs no network, in the reader's light or dark mode."""

from datetime import timedelta
from html import escape

from mow.report.charts import digits
from mow.report.data import Report
from mow.report.html import note
from mow.report.sections import SECTIONS

# Colours of Okabe and Ito, which differ under every colour vision, lighter ones of the same hues on dark.
_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1b1f24; --soft: #57606a; --rule: #d6dbe1; --box: #f5f7f9;
  --s1: #0072b2; --s2: #d55e00; --s3: #007a5a; --s4: #a8457f; --s5: #8a6d00; --s6: #6fa8cf;
  --above: #56b4e9; --below: #f0a060; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e6e9ed; --soft: #a3acb7; --rule: #343b44;
  --box: #1d2127; --s1: #56b4e9; --s2: #f08a4b; --s3: #2fc99c; --s4: #e092c0; --s5: #e6c229; --s6: #6b93b0;
  --above: #1f6fa5; --below: #a84a00; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1360px; padding: 20px 24px 60px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", "Liberation Sans", "DejaVu Sans", sans-serif; overflow-wrap: break-word; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 20px; margin: 44px 0 6px; padding-top: 10px; border-top: 1px solid var(--rule); }
h3 { font-size: 14px; margin: 18px 0 2px; }
p { margin: 4px 0 10px; }
a { color: var(--s1); }
.note, .absent, figcaption p { color: var(--soft); max-width: 90ch; }
.absent { font-style: italic; }
.remarks { border-left: 4px solid var(--s2); padding: 4px 12px; background: var(--box); }
nav ul, .legend { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 18px; padding: 0; margin: 10px 0; }
.legend { font-size: 13px; color: var(--soft); }
.legend svg { margin-right: 7px; vertical-align: -1px; }
.legend path { fill: none; stroke-width: 1.8; }
.legend .dots { stroke-width: 6; stroke-linecap: round; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px; margin: 16px 0; }
.facts div { background: var(--box); border-radius: 6px; padding: 8px 12px; }
.facts dt { font-size: 12px; color: var(--soft); }
.facts dd { margin: 0; font-weight: 600; }
.grid-of-panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 290px), 1fr));
  gap: 16px 22px; }
.thirds { grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); }
figure { margin: 0 0 6px; min-width: 0; }
figcaption h3 { margin: 6px 0 0; }
figcaption p { font-size: 12.5px; margin: 0 0 4px; }
.scroll { overflow-x: auto; max-width: 100%; padding-bottom: 6px; }
table { border-collapse: collapse; font-size: 14px; margin: 6px 0 12px; }
th, td { padding: 5px 14px 5px 0; text-align: left; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.bar { display: inline-block; width: 120px; height: 10px; background: var(--box); margin-right: 6px; }
.bar span { display: block; height: 100%; background: var(--s1); }
details { margin: 8px 0; }
summary { cursor: pointer; }
pre { background: var(--box); padding: 12px; overflow-x: auto; font-size: 12.5px; border-radius: 6px; }
.panel, .matrix, .film { display: block; }
.panel { width: 100%; height: auto; }
.panel *, .matrix * { stroke-linejoin: round; stroke-linecap: butt; white-space: pre; }
.film { height: 187px; max-width: none; }
@media (max-width: 600px) { body { padding: 14px 14px 40px; } h1 { font-size: 22px; }
  table { font-size: 12.5px; } th, td { padding-right: 8px; } th { white-space: normal; vertical-align: bottom; }
  .bar { width: 70px; } }
@media print { body { max-width: none; } }
"""

# The browser refuses scripts and all addresses, should a name ever get past the escaping.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(report: Report) -> str:
    """The whole HTML document."""
    title = escape(f"{report.run.config.preset}: {report.run.folder.name}")
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<header>\n<h1>{title}</h1>",
            _head(report),
            "</header>",
            *(
                f'<section id="{anchor}">\n<h2>{escape(name)}</h2>\n{make(report)}\n</section>'
                for anchor, (name, make) in SECTIONS.items()
            ),
            "</body>\n</html>\n",
        ]
    )


def status(report: Report) -> str:
    """Progress of the run, judged by its files."""
    total = report.run.config.total_steps
    step = max(report.run.metrics.step, report.model.step if report.model else 0)
    if step >= total:
        return f"finished: {total:,} steps"
    return f"stopped at step {step:,} of {total:,}, or still running"


def _head(report: Report) -> str:
    run, skip, seconds = report.run, report.run.metrics.frame_skip, report.run.metrics.seconds
    facts = {
        "status": status(report),
        "tasks": str(len(run.config.tasks)),
        "steps per task": f"{run.config.total_steps:,}" + (f" of {skip} frames" if skip not in (None, 1) else ""),
        "seed": str(run.config.seed),
        "time logged": "-" if seconds is None else str(timedelta(seconds=round(seconds))),
    }
    if run.scores is not None and run.scores.mean_normalised is not None:
        facts["mean normalised score"] = digits(run.scores.mean_normalised)
    if run.scores is not None and "parameters" in run.scores.cost:
        facts["parameters learned"] = f"{run.scores.cost['parameters'] / 1e6:.2f} M"
    cells = [f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items()]
    links = "".join(f'<li><a href="#{anchor}">{escape(name)}</a></li>' for anchor, (name, _) in SECTIONS.items())
    remarks = "".join(f"<p>{escape(remark)}</p>" for remark in run.remarks)
    return "\n".join(
        [
            note(str(run.folder)),
            f'<dl class="facts">{"".join(cells)}</dl>',
            f"<p>Tasks: {escape(', '.join(run.config.tasks))}</p>",
            f'<div class="remarks">{remarks}</div>' if remarks else "",
            f"<nav><ul>{links}</ul></nav>",
        ]
    )
