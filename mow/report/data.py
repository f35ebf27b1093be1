"""Records of what a run folder holds, and readers of its text files; no torch.

A file that is missing is None in the record; a line that cannot be read is left out and named in a remark. Records of
the checkpoint are filled by mow.report.model.
"""

import contextlib
import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mow.methods.mow.config import MowConfig, of_mow
from mow.methods.registry import read_config

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """One metric: its values and the progress of the run at each of them."""

    step: tuple[float, ...]  # environment steps per task
    updates: tuple[float, ...]  # of the world model
    value: tuple[float, ...]


@dataclass(frozen=True)
class Score:
    """One task of scores.json."""

    task: str
    random: float | None
    agent: float | None  # mean return
    deviation: float | None  # standard deviation of the returns
    expert: float | None  # or human
    normalised: float | None
    episodes: int


@dataclass(frozen=True)
class Scores:
    """scores.json."""

    tasks: tuple[Score, ...]
    mean_normalised: float | None
    cost: Mapping[str, float]  # the other numbers of the file


@dataclass(frozen=True)
class Metrics:
    """metrics.jsonl."""

    episodes: Mapping[str, Curve] = field(default_factory=dict)  # task -> returns; `updates` are 0
    curves: Mapping[str, Curve] = field(default_factory=dict)  # label as logged, name/task or name -> means
    speed: tuple[tuple[float, float], ...] = ()  # (minutes since the start, world-model updates per second)
    step: int = 0  # the last one that has a line
    frame_skip: int | None = None  # frames per environment step; None before the first record of metrics
    seconds: float | None = None


@dataclass(frozen=True)
class RunData:
    """All text files of a run folder."""

    folder: Path
    config: MowConfig
    config_text: str
    versions_text: str | None
    scores: Scores | None
    metrics: Metrics
    remarks: tuple[str, ...]  # what could not be read, in sentences

    def curve(self, name: str, task: str) -> Curve | None:
        """A metric that is logged per task; None where it is missing."""
        return self.metrics.curves.get(f"{name}/{task}")


@dataclass(frozen=True)
class Similarity:
    """Cosines between tasks, in the order of ModelView.tasks."""

    of: str  # what was compared
    cosine: Floats  # [K, K]
    silhouette: float  # nan where it is undefined or was not measured
    stability: float
    shares: Mapping[str, float]  # tensor -> its share of what was compared, largest first; empty without gradients


@dataclass(frozen=True)
class Film:
    """One window of one task: real and imagined frames, and the errors of all windows."""

    png: bytes
    num_context: int  # frames that the world model sees
    errors: Mapping[str, tuple[float, ...]]  # kind -> squared error per imagined step, mean over windows; nan for none
    num_windows: int


@dataclass(frozen=True)
class ModelView:
    """Data of the page on a checkpoint."""

    checkpoint: str
    step: int
    tasks: tuple[str, ...]  # in the learner's order, sorted by module
    module_of_task: tuple[int, ...]
    expert_share: Floats  # [K, E], rows sum to 1; 0 where the task does not use the expert
    learned_routing: bool
    similarity: Similarity | None  # None where there is nothing to compare
    weights: Mapping[str, float] | None  # 1 / sigma_k of harmony; None with another weighting
    films: Mapping[str, Film]
    no_films: str  # why `films` is empty; "" if it is not


@dataclass(frozen=True)
class Report:
    """All that the page shows."""

    run: RunData
    model: ModelView | None
    no_model: str  # why `model` is None, a sentence; "" if it is not


def read_run(folder: Path) -> RunData:
    """Read the text files of a run folder. Raises: ValueError in one line if its config.json cannot be read."""
    path = folder / "config.json"
    config = of_mow(read_config(path))
    remarks: list[str] = []
    metrics = read_metrics(folder / "metrics.jsonl", remarks)
    return RunData(
        folder=folder,
        config=config,
        config_text=path.read_text(encoding="utf-8", errors="replace"),
        versions_text=_text(folder / "versions.json"),
        scores=_scores(folder / "scores.json", remarks),
        metrics=metrics,
        remarks=tuple(remarks),
    )


def _text(path: Path) -> str | None:
    """The text of a file; None if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


# Metrics -------------------------------------------------------------------------------------------------------------


def read_metrics(path: Path, remarks: list[str]) -> Metrics:
    """Read every whole line without the values that are not finite; describe the other lines in `remarks`."""
    text = _text(path)
    if text is None:
        remarks.append("There is no metrics.jsonl: the run has logged nothing.")
        return Metrics()
    # Of tasks and of labels: (step, updates, value).
    episodes: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    points: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    clock = [(0.0, 0.0)]  # (seconds, updates)
    step, frame_skip = 0.0, None
    for record in _records(text, remarks):
        known = {name: float(value) for name, value in record.items() if _is_finite(value)}
        here, updates = known.pop("step"), known.pop("updates", 0.0)
        seconds, frames = known.pop("seconds", None), known.pop("frames", None)
        step = max(step, here)
        if "task" in record:
            if "episode_return" in known:
                episodes[str(record["task"])].append((here, 0.0, known["episode_return"]))
            continue
        for label, value in known.items():
            points[label].append((here, updates, value))
        if seconds is not None:
            clock.append((seconds, updates))
        if here and frames is not None:
            frame_skip = round(frames / here)
    return Metrics(
        episodes={task: Curve(*zip(*found, strict=True)) for task, found in episodes.items()},
        curves={label: Curve(*zip(*found, strict=True)) for label, found in points.items()},
        # A clock that runs backwards was started anew: the length of that stretch is not known.
        speed=tuple(
            (now / 60.0, (after - before) / (now - then))
            for (then, before), (now, after) in pairwise(clock)
            if now > then and after >= before
        ),
        step=int(step),
        frame_skip=frame_skip,
        seconds=clock[-1][0] if len(clock) > 1 else None,
    )


def _records(text: str, remarks: list[str]) -> list[dict[str, Any]]:
    found, spoilt = [], []
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        record = None
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(line) if line.strip() else None
        if isinstance(record, dict) and _is_finite(record.get("step")):
            found.append(record)
        elif line.strip():
            spoilt.append(number)
    # A whole last line ends in a line break, so that the text after it is empty.
    if spoilt[-1:] == [len(lines)]:
        spoilt.pop()
        remarks.append("The last line of metrics.jsonl is torn (the run was cut off while it wrote): it is left out.")
    if spoilt:
        shown = ", ".join(map(str, spoilt[:5])) + (", ..." if len(spoilt) > 5 else "")
        remarks.append(f"metrics.jsonl has lines that cannot be read and are left out: {shown}.")
    return found


def _is_finite(value: object) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


# Scores --------------------------------------------------------------------------------------------------------------


def _scores(path: Path, remarks: list[str]) -> Scores | None:
    text = _text(path)
    if text is None:
        return None
    try:
        content = json.loads(text)
        tasks = tuple(_score(task, entry) for task, entry in content["tasks"].items())
        cost = {name: float(value) for name, value in content.items() if _is_finite(value)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        remarks.append(f"scores.json cannot be read ({type(error).__name__}): the score table is left out.")
        return None
    return Scores(tasks, cost.pop("mean_normalised", None), cost)


def _score(task: str, entry: Mapping[str, Any]) -> Score:
    returns = [float(value) for value in entry["returns"]]
    deviation = float(np.std(returns)) if returns else None
    if deviation is not None and deviation < 1e-9 * max(map(abs, returns)):
        deviation = 0.0  # equal returns differ by rounding
    names = ("random", "agent", "expert", "normalised")
    random, agent, expert, normalised = (float(entry[n]) if _is_finite(entry[n]) else None for n in names)
    return Score(task, random, agent, deviation, expert, normalised, len(returns))
