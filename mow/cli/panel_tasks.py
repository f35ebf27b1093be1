"""The tasks of the live panel: a row each, folded into columns where they are many, the worst where they are too many.

Rows hold as much as their width allows, added in one order (`_UPGRADES`): name, return and a bar from random play to
the reference first, then loss, module, a curve over the run so far, both references as numbers, and longer bars.
Names lose the suite and an ending that all tasks share; one that is still too long keeps its beginning and its end.
"""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING

from rich.text import Text

if TYPE_CHECKING:
    from mow.engine.progress import Progress, TaskProgress

BINS = 24  # of a curve: parts of the run's steps
_GAP = 3  # between two columns of tasks
_NARROWEST = 24  # a column of tasks
_LEVELS = "▁▂▃▄▅▆▇█"
_EIGHTHS = " ▏▎▍▌▋▊▉"
MODULE_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "bright_red", "bright_cyan", "bright_magenta")

# Field -> characters, tried from the top as long as they fit; a width of 0 stands for the longest name.
_LEAST = {"name": 9, "return": 7, "bar": 6}
_UPGRADES = (
    ("name", 14), ("loss", 7), ("module", 3), ("trend", 8), ("name", 0), ("bar", 10), ("low", 7), ("high", 7),
    ("trend", 12), ("bar", 20), ("trend", 24), ("bar", 40),
)  # fmt: skip
_ORDER = ("name", "module", "loss", "return", "low", "bar", "high", "trend")
_TITLES = {"name": "task", "module": "mod", "loss": "loss", "return": "return", "bar": "score", "trend": "so far"}
_LONGEST_NAME = 28

Trend = Sequence[float | None]  # [BINS] mean recent return in each part of the run; None where there is none yet


def task_rows(progress: "Progress", trends: Mapping[str, Trend], width: int, height: int) -> list[Text]:
    """At most `height` lines (2 or more) of at most `width` characters (24 or more), a line of titles first."""
    tasks, room = progress.tasks, max(1, height - 1)
    folds = min(max(1, (width + _GAP) // (_NARROWEST + _GAP)), ceil(len(tasks) / room))
    shown = list(tasks)
    if len(tasks) > folds * room:
        shown = worst(tasks, folds * room - 1)
    names = dict(zip((task.name for task in tasks), short_names([task.name for task in tasks]), strict=True))
    each = (width - _GAP * (folds - 1)) // folds
    widths = _widths(progress, max(map(len, names.values())), each)
    cells = [_row(task, names[task.name], trends.get(task.name, ()), widths) for task in shown]
    if len(shown) < len(tasks):
        cells.append(Text(_and_others(tasks, shown)[:each].ljust(each), "dim"))
    used = ceil(len(cells) / folds)
    lines = [_joined([_titles(widths, progress)] * ceil(len(cells) / used))]
    return lines + [_joined(cells[row::used]) for row in range(used)]


def worst(tasks: Sequence["TaskProgress"], count: int) -> list["TaskProgress"]:
    """Those with the lowest scores, then those with the lowest returns, then those without; in the order given."""

    def rank(k: int) -> tuple[bool, bool, float]:
        task = tasks[k]
        return task.score is None, task.recent is None, (task.recent or 0.0) if task.score is None else task.score

    return [tasks[k] for k in sorted(sorted(range(len(tasks)), key=rank)[:count])]


def _and_others(tasks: Sequence["TaskProgress"], shown: Sequence["TaskProgress"]) -> str:
    comparable = {task.references is None for task in tasks} != {True, False}
    better = comparable and all(task.recent is not None for task in tasks)
    return f"and {len(tasks) - len(shown)} {'that do better' if better else 'more'}"


def short_names(names: Sequence[str]) -> list[str]:
    """Without the suite where no two become the same, and without an ending like -v3 that all of them share."""
    bare = [name.partition(":")[2] or name for name in names]
    if len(set(bare)) < len(names):
        return list(names)
    endings = {name.rpartition("-")[2] if "-" in name[1:] else "" for name in bare}
    if len(bare) < 2 or len(endings) > 1 or endings == {""}:
        return bare
    return [name.rpartition("-")[0] for name in bare]


def fitted(name: str, width: int) -> str:
    """`name` in exactly `width` characters: padded, or its beginning and its end around an ellipsis."""
    if len(name) <= width:
        return name.ljust(width)
    tail = (width - 1) // 2
    return f"{name[: width - 1 - tail]}…{name[-tail:] if tail else ''}"


def number(value: float | None) -> str:
    """At most seven characters."""
    if value is None:
        return "-"
    size = abs(value)
    if size < 99.995:
        return f"{value:.2f}"
    if size < 9999.5:
        return f"{value:.1f}" if size < 999.95 else f"{value:,.0f}"
    thousands = value / 1e3
    if abs(thousands) < 999.95:
        return f"{thousands:.1f}k"
    return f"{value / 1e6:.1f}M" if size < 1e9 else f"{value:.0e}"


def bar(share: float | None, width: int) -> Text:
    """A share of 1, drawn in eighths of a character: below 0 as 0, above 1 as full and bold."""
    if share is None:
        return Text("┄" * width, "dim")
    style = "red" if share < 0.25 else "yellow" if share < 0.75 else "green" if share < 1 else "bold green"
    whole, eighths = divmod(round(min(1.0, max(0.0, share)) * width * 8), 8)
    filled = "█" * whole + (_EIGHTHS[eighths] if eighths else "")
    return Text(filled, style).append("┄" * (width - len(filled)), "dim")


def curve(trend: Trend, width: int, references: tuple[float, float] | None) -> Text:
    """A curve of `width` characters, which divides BINS: from random to reference, or over its own range without."""
    size = max(1, BINS // width)
    parts = [[value for value in trend[at : at + size] if value is not None] for at in range(0, len(trend), size)]
    known = [value for part in parts for value in part]
    low, high = references or ((min(known), max(known)) if known else (0.0, 1.0))
    span = high - low
    drawn = ""
    for part in parts:
        share = (part[-1] - low) / span if part and span else 0.0
        drawn += _LEVELS[min(7, max(0, int(share * 8)))] if part else " "
    return Text(drawn.ljust(width), "bright_blue")


def _widths(progress: "Progress", longest: int, room: int) -> dict[str, int]:
    """Field -> characters of a row that takes `room` at most, a space between two fields."""
    scored = any(task.references is not None for task in progress.tasks)
    widths = dict(_LEAST)
    if not scored:
        widths["trend"] = widths.pop("bar") + 2
    left = room - sum(widths.values()) - len(widths) + 1
    for field, asked in _UPGRADES:
        if (field in ("bar", "low", "high") and not scored) or (field == "module" and _is_flat(progress)):
            continue
        wanted = min(asked or _LONGEST_NAME, longest) if field == "name" else asked
        more = wanted - widths.get(field, -1)
        if 0 < more <= left:
            widths[field], left = wanted, left - more
    return {field: widths[field] for field in _ORDER if field in widths}


def _is_flat(progress: "Progress") -> bool:
    return all(task.module is None for task in progress.tasks)


def _titles(widths: Mapping[str, int], progress: "Progress") -> Text:
    scored = [task.name for task in progress.tasks if task.references is not None]
    best = "human" if all(name.startswith("atari:") for name in scored) else "expert"
    titles = _TITLES | {"low": "random", "high": best}
    left = ("name", "bar", "high", "trend")
    words = (titles[f].ljust(w) if f in left else titles[f].rjust(w) for f, w in widths.items())
    return Text(" ".join(words), "dim")


def _row(task: "TaskProgress", name: str, trend: Trend, widths: Mapping[str, int]) -> Text:
    colour = "" if task.module is None else MODULE_COLOURS[task.module % len(MODULE_COLOURS)]
    row = Text()
    for field, width in widths.items():
        if len(row):
            row.append(" ")
        if field == "name":
            row.append(fitted(name, width), colour)
        elif field == "module":
            row.append(f"{'-' if task.module is None else task.module:>{width}}", colour)
        elif field == "loss":
            row.append(number(task.loss).rjust(width))
        elif field == "return":
            row.append(number(task.recent).rjust(width), "bold")
        elif field == "low":
            row.append(number(task.references and task.references[0]).rjust(width), "dim")
        elif field == "high":
            row.append(number(task.references and task.references[1]).ljust(width), "dim")
        elif field == "bar":
            row.append_text(bar(task.score, width))
        else:
            row.append_text(curve(trend, width, task.references))
    return row


def _joined(cells: Sequence[Text]) -> Text:
    return Text(" " * _GAP).join(cells)
