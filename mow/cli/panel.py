"""Draw a run from its progress record: phase, progress, time split, and a row for every task."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING

from rich import box
from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mow.runs.logger import duration

if TYPE_CHECKING:
    from mow.engine.progress import Progress, TaskProgress

SMALLEST = (40, 12)  # columns and lines of a terminal that shows a panel
BINS = 24  # of a curve: equal parts of the run's steps
_TIMES = {  # name in the panel -> (keys of Progress.split, colour)
    "world model": (("world_model",), "cyan"),
    "agent": (("imagination", "actor_critic"), "magenta"),
    "env": (("environments",), "blue"),
    "acting": (("acting",), "green"),
    "gather": (("gather",), "yellow"),
}
_MODULE_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "bright_red", "bright_cyan", "bright_magenta")
_GAP = 2  # spaces between two columns of tasks, beside the one that follows every field
_NARROWEST = 27  # a column of tasks
# Fields of a row beside name, return and bar: name -> characters, in the order in which they get room.
_MORE_FIELDS = {"loss": 7, "module": 3, "trend": 8, "low": 7, "high": 7}
_TITLES = {"name": "task", "module": "mod", "loss": "loss", "return": "return", "low": "random", "bar": "score",
           "high": "best", "trend": "so far"}  # fmt: skip

_UNITS = ((1.0, ""), (1e3, "k"), (1e6, "M"), (1e9, "G"))

Trend = Sequence[float | None]  # [BINS] recent return in each part of the run; None where there is none


class Trends:
    """The recent return of every task in each part of the run, as of the last drawing in that part."""

    def __init__(self) -> None:
        self.of: dict[str, list[float | None]] = {}

    def note(self, progress: "Progress") -> None:
        part = min(BINS - 1, BINS * progress.step // max(1, progress.total_steps))
        for task in progress.tasks:
            self.of.setdefault(task.name, [None] * BINS)[part] = task.recent


def panel(
    progress: "Progress", trends: Mapping[str, Trend], updates_per_s: float | None, width: int, height: int
) -> Panel:
    """Draw at most `height` lines of exactly `width` characters.

    Args:
        trends: task -> curve.
        updates_per_s: of the world model; None where it is not known.
        width, height: at least SMALLEST, less the lines that the caller keeps free.
    """
    lines = [_phases(progress), _progress_bar(progress), _facts(progress, updates_per_s, width - 4)]
    if progress.split:
        lines.append(_times(progress.split))
    warnings = [f"{_counted(progress.left_out, 'update')} left out, not finite"] if progress.left_out else []
    warnings += [f"{_counted(progress.restarts, 'simulator')} restarted"] if progress.restarts else []
    if warnings:
        lines.append(Text(f"! {'; '.join(warnings)}", "bold yellow", no_wrap=True, overflow="ellipsis"))
    room = height - 2 - len(lines)
    if room >= 2:
        lines.append(task_table(progress, trends, width - 4, room))
    modules = {task.module for task in progress.tasks} - {None}
    title = f"mow · {progress.preset} · {_counted(len(progress.tasks), 'task')}"
    if modules:
        title += f", {_counted(len(modules), 'module')}"
    return Panel(
        Group(*lines), box=box.ROUNDED, width=width, border_style="bright_black", title_align="left",
        title=Text(title, "bold"), subtitle=Text(progress.folder, "dim"), subtitle_align="right",
    )  # fmt: skip


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _row(*cells: RenderableType) -> Table:
    """A line whose first cell takes the room that the others leave."""
    row = Table.grid(expand=True, padding=(0, 1))
    row.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    for _ in cells[1:]:
        row.add_column(no_wrap=True)
    row.add_row(*cells)
    return row


def _phases(progress: "Progress") -> RenderableType:
    now, line = progress.phases.index(progress.phase.name), Text()
    for k, name in enumerate(progress.phases):
        mark, style = ("✓", "green") if k < now else ("▸", "bold") if k == now else ("·", "dim")
        line.append(f"{mark} {name}  ", style)
    return _row(line, Text(duration(progress.seconds), "dim"))


def _progress_bar(progress: "Progress") -> RenderableType:
    phase = progress.phase
    share = min(1.0, progress.done / max(1, phase.end))
    eta = "-" if progress.eta is None else duration(progress.eta)
    done = f"{share:.0%}  {progress.done:,}/{phase.end:,} {phase.unit}  ETA {eta}"
    return _row(ProgressBar(total=1.0, completed=share, complete_style="green", finished_style="green"), Text(done))


def _facts(progress: "Progress", updates_per_s: float | None, width: int) -> Text:
    """As many facts as fit in a line, the most useful ones first."""
    facts = ["- updates/s" if updates_per_s is None else f"{updates_per_s:.2f} updates/s"]
    facts.append(f"{progress.updates:,} updates")
    if progress.score is not None:
        best = "" if progress.best is None else f" (best saved {number(progress.best)})"
        facts.append(f"mean score {number(progress.score)}{best}")
    facts.append(f"{progress.memory / 1e9:.1f} GB peak")
    if progress.frames is not None:
        facts.append(f"{progress.frames:,} frames")
    line = facts[0]
    for fact in facts[1:]:
        line += f"  {fact}" if len(line) + 2 + len(fact) <= width else ""
    return Text(line, no_wrap=True, overflow="ellipsis")


def _times(seconds: Mapping[str, float]) -> Text:
    """Share of the time by activity."""
    shares = {name: sum(seconds.get(key, 0.0) for key in keys) for name, (keys, _) in _TIMES.items()}
    total, line = sum(shares.values()) or 1.0, Text("time", no_wrap=True, overflow="ellipsis")
    for name, value in shares.items():
        line.append(f"  {name} ", _TIMES[name][1]).append(f"{value / total:.0%}")
    return line


def task_table(progress: "Progress", trends: Mapping[str, Trend], width: int, height: int) -> Table:
    """A row per task below a line of titles, folded into columns; if they do not fit, only the worst tasks.

    Args: width: at least _NARROWEST. height: at least 2.
    """
    tasks, room = progress.tasks, height - 1
    folds = min(max(1, (width + _GAP) // (_NARROWEST + _GAP)), ceil(len(tasks) / room))
    shown = list(tasks) if len(tasks) <= folds * room else worst(tasks, folds * room - 1)
    names = dict(zip((task.name for task in tasks), short_names([task.name for task in tasks]), strict=True))
    widths = _widths(progress, max([8, *map(len, names.values())]), (width - _GAP * (folds - 1)) // folds)
    table = Table(box=None, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for fold in range(folds):
        if fold:
            table.add_column(width=_GAP - 1)
        for field, size in widths.items():
            right = field in ("module", "loss", "return", "low")
            table.add_column(_TITLES[field], width=size, no_wrap=True, justify="right" if right else "left")
    cells = [_cells(task, names[task.name], trends.get(task.name, ()), widths) for task in shown]
    if len(shown) < len(tasks):
        cells.append([Text(f"{len(tasks) - len(shown)} more", "dim"), *([""] * (len(widths) - 1))])
    rows = ceil(len(cells) / folds)
    for row in range(rows):
        first, *others = cells[row::rows]
        table.add_row(*first, *(cell for other in others for cell in ("", *other)))
    return table


def worst(tasks: Sequence["TaskProgress"], count: int) -> list["TaskProgress"]:
    """The `count` lowest scores, then the lowest returns of tasks without a score; in the given order."""

    def rank(task: "TaskProgress") -> tuple[bool, bool, float]:
        value = task.recent if task.score is None else task.score
        return task.score is None, value is None, value or 0.0

    chosen = {task.name for task in sorted(tasks, key=rank)[:count]}
    return [task for task in tasks if task.name in chosen]


def short_names(names: Sequence[str]) -> list[str]:
    """Names without the suite, and without Meta-World's -v3, if they stay different."""
    short = [name.partition(":")[2].removesuffix("-v3") for name in names]
    return short if len(set(short)) == len(names) else list(names)


def fitted(name: str, width: int) -> str:
    """`name` in at most `width` characters: whole, or its beginning and its end around an ellipsis."""
    tail = (width - 1) // 2
    return name if len(name) <= width else f"{name[: width - 1 - tail]}…{name[-tail:] if tail else ''}"


def number(value: float | None) -> str:
    """A number below 1e12 in at most seven characters, "-" for None."""
    if value is None:
        return "-"
    scale, unit = next(one for one in _UNITS if abs(value) < 999.95 * one[0] or one[1] == "G")
    value /= scale
    return f"{value:.2f}{unit}" if abs(value) < 99.995 else f"{value:.1f}{unit}"


def curve(trend: Trend, references: tuple[float, float] | None) -> str:
    """A trend in 8 characters, from the first reference to the second; without references over its own range."""
    size = BINS // 8
    parts = [[value for value in trend[at : at + size] if value is not None] for at in range(0, len(trend), size)]
    known = [value for part in parts for value in part]
    low, high = references or ((min(known), max(known)) if known else (0.0, 1.0))
    span = (high - low) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[min(7, max(0, int((part[-1] - low) / span * 8)))] if part else " " for part in parts)


def _widths(progress: "Progress", longest: int, room: int) -> dict[str, int]:
    """Field -> characters, in the order of a row, for rows of at most `room` characters."""
    scored = any(task.references is not None for task in progress.tasks)
    grouped = any(task.module is not None for task in progress.tasks)
    widths = {"name": min(longest, 14, room - 18), "return": 7, "bar" if scored else "trend": 8}
    left = room - sum(widths.values()) - len(widths)
    for field, size in _MORE_FIELDS.items():
        needless = field in widths or (field in ("low", "high") and not scored) or (field == "module" and not grouped)
        if not needless and size < left:
            widths[field], left = size, left - size - 1
    more = min(left, min(longest, 28) - widths["name"])
    widths["name"] += more
    if scored:
        widths["bar"] += min(left - more, 33)
    return {field: widths[field] for field in _TITLES if field in widths}


def _cells(task: "TaskProgress", name: str, trend: Trend, widths: Mapping[str, int]) -> list[RenderableType]:
    colour = "" if task.module is None else _MODULE_COLOURS[task.module % len(_MODULE_COLOURS)]
    low, high = task.references or (None, None)
    cells: dict[str, RenderableType] = {
        "name": Text(fitted(name, widths["name"]), colour),
        "module": Text("-" if task.module is None else str(task.module), colour),
        "loss": Text(number(task.loss)),
        "return": Text(number(task.recent), "bold"),
        "low": Text(number(low), "dim"),
        "bar": score_bar(task.score, widths.get("bar", 0)),
        "high": Text(number(high), "dim"),
        "trend": Text(curve(trend, task.references), "bright_blue"),
    }
    return [cells[field] for field in widths]


def score_bar(score: float | None, width: int) -> RenderableType:
    """A bar from 0 to 1; red, yellow or green, and bright green from 1 on."""
    if score is None:
        return Text("┄" * width, "dim")
    colour = "red" if score < 0.25 else "yellow" if score < 0.75 else "green" if score < 1 else "bright_green"
    return Bar(1.0, 0.0, min(1.0, max(0.0, score)), width=width, color=colour)
