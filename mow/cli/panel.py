"""The live panel: a picture of a run in a terminal's characters. Pure: a record in, lines out."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.text import Text

from mow.cli.panel_tasks import BINS, Trend, number, task_rows

if TYPE_CHECKING:
    from mow.engine.progress import Progress

SMALLEST = (40, 10)  # columns and lines of a terminal that a panel needs
_PHASES = ("prefill", "warm-up", "grouping", "joint")
_PARTS = {  # in words -> of the stopwatch
    "world model": ("world_model",),
    "agent": ("imagination", "actor_critic"),
    "env": ("environments",),
    "acting": ("acting",),
    "gather": ("gather",),
}
_PART_COLOURS = ("cyan", "magenta", "blue", "green", "yellow")
_FRAME = "bright_black"


class Trends:
    """Recent returns of every task in each part of the run, as they were when somebody looked last."""

    def __init__(self) -> None:
        self.of: dict[str, list[float | None]] = {}

    def note(self, progress: "Progress") -> None:
        part = min(BINS - 1, BINS * progress.step // progress.total_steps)
        for task in progress.tasks:
            self.of.setdefault(task.name, [None] * BINS)[part] = task.recent


def panel(
    progress: "Progress", trends: Mapping[str, Trend], updates_per_s: float | None, width: int, height: int
) -> list[Text]:
    """The panel as lines.

    Args:
        trends: task -> curve.
        updates_per_s: of the world model, of late; None where it is not known.
        width, height: characters and lines that there are; at least SMALLEST.
    Returns: at most `height` lines of exactly `width` characters each.
    """
    inner = width - 4
    head = [_phases(progress, inner), _bar(progress, inner), _facts(progress, updates_per_s, inner)]
    if progress.split:
        head.append(_split(progress.split, inner))
    room = height - len(head) - 3  # the frame, and a line that keeps tasks apart
    body = task_rows(progress, trends, inner, room) if room >= 2 else []
    lines = [_edge("╭", "╮", f"mow · {progress.preset}", _counts(progress), width)]
    lines += [_framed(line, inner) for line in head]
    lines.append(_edge("├", "┤", _warning(progress), "", width, "bold yellow"))
    lines += [_framed(line, inner) for line in body]
    return [*lines, _edge("╰", "╯", "", progress.folder, width)]


def duration(seconds: float | None) -> str:
    """4:05, 1:02:03, or in days from a hundred hours on."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d}"
    hours = minutes // 60
    return f"{hours}:{minutes % 60:02d}:{rest:02d}" if hours < 100 else f"{hours / 24:,.1f} days"


def _counts(progress: "Progress") -> str:
    modules = {task.module for task in progress.tasks} - {None}
    found = f", {len(modules)} module{'s' * (len(modules) != 1)}" if modules else ""
    return f"{len(progress.tasks)} task{'s' * (len(progress.tasks) != 1)}{found}"


def _phases(progress: "Progress", width: int) -> Text:
    """Which are over, which is on, and what time it is."""
    at, line = _PHASES.index(progress.phase.name), Text()
    for k, name in enumerate(_PHASES):
        mark, style = ("✓", "green") if k < at else ("▸", "bold") if k == at else ("·", "dim")
        line.append(f"{mark} {name}", style).append("  ")
    return _apart(line, Text(f"{duration(progress.seconds)} so far", "dim"), width)


def _bar(progress: "Progress", width: int) -> Text:
    phase = progress.phase
    if phase.end <= phase.begun and phase.name == "grouping":
        return Text("gradients of every task, and which of them agree", "dim")
    share = min(1.0, progress.done / max(1, phase.end))
    says = f" {share:4.0%}  {progress.done:,}/{phase.end:,} {phase.unit}"
    ends = f"  ETA {duration(progress.eta)}"
    long = max(0, width - len(says) - len(ends))
    whole = round(share * long)
    line = Text("━" * whole, "green").append("━" * (long - whole), "bright_black")
    return line.append(says, "bold").append(ends)


def _facts(progress: "Progress", updates_per_s: float | None, width: int) -> Text:
    """As many as there is room for, the first are worth most."""
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
    return Text(line)


def _split(seconds: Mapping[str, float], width: int) -> Text:
    """Where the time goes, as one bar and in words."""
    known = [(words, sum(seconds.get(part, 0.0) for part in parts)) for words, parts in _PARTS.items()]
    total = sum(value for _, value in known) or 1.0
    words = Text()
    for (part, value), colour in zip(known, _PART_COLOURS, strict=True):
        words.append(f"  {part} ", colour).append(f"{value / total:.0%}")
    long = width - 4 - len(words) - 1
    if long < 8:
        return Text("time").append_text(words)
    line, drawn, until = Text("time "), 0, 0.0
    for (_, value), colour in zip(known, _PART_COLOURS, strict=True):
        until += value
        upto = round(until / total * long)
        line.append("■" * (upto - drawn), colour)
        drawn = upto
    return line.append_text(words)


def _warning(progress: "Progress") -> str:
    said = []
    if progress.left_out:
        said.append(f"{progress.left_out} update{'s' * (progress.left_out != 1)} left out, not finite")
    if progress.restarts:
        said.append(f"{progress.restarts} simulator{'s' * (progress.restarts != 1)} made anew")
    return f"! {'; '.join(said)}" if said else ""


def _apart(left: Text, right: Text, width: int) -> Text:
    """One at each end; the right one goes first where there is no room for both."""
    space = width - len(left) - len(right)
    return left if space < 1 else left.append(" " * space).append_text(right)


def _framed(line: Text, inner: int) -> Text:
    line.truncate(inner, overflow="ellipsis", pad=True)
    return Text("│ ", _FRAME).append_text(line).append(" │", _FRAME)


def _edge(start: str, end: str, left: str, right: str, width: int, style: str = "bold") -> Text:
    """A line of the frame with words in it; a long left one keeps its beginning, a long right one its end."""
    left = left if len(left) <= width - 6 else f"{left[: width - 7]}…"
    room = width - 6 - (len(left) + 3 if left else 0)
    if len(right) > room:
        right = f"…{right[-(room - 1):]}" if room > 1 else ""
    line = Text(f"{start}─", _FRAME)
    if left:
        line.append(f" {left} ", style)
    shown = f" {right} " if right else ""
    line.append("─" * (width - 2 - len(line) - len(shown)), _FRAME).append(shown, "dim")
    return line.append(f"─{end}", _FRAME)
