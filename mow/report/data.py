"""Records of what a run folder holds, and readers of its text files; no torch.

A file that is missing is None in the record; what cannot be read is left out and named in a remark. Records of the
checkpoint are filled by mow.report.model.
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

from mow.config import RunConfig
from mow.errors import UsageError
from mow.methods.registry import read_config
from mow.offline.files import StoredTask, read_episodes, read_manifest
from mow.report.charts import Floats
from mow.system.whole_file import read_object


@dataclass(frozen=True)
class Curve:
    """One metric: its values and the progress of the run at each of them."""

    step: tuple[float, ...]  # environment steps per task
    updates: tuple[float, ...]  # of the first kind of the method; of all kinds in a run that never acts
    value: tuple[float, ...]


@dataclass(frozen=True)
class Scores:
    """scores.json."""

    tasks: Mapping[str, tuple[float | None, ...]]  # random, agent's mean and deviation, expert, normalised, episodes
    mean_normalised: float | None
    parameters: float | None


@dataclass(frozen=True)
class Metrics:
    """metrics.jsonl."""

    episodes: Mapping[str, Curve] = field(default_factory=dict)  # task -> returns; `updates` are 0
    curves: Mapping[str, Curve] = field(default_factory=dict)  # label as logged, name/task or name -> means
    speed: tuple[tuple[float, float], ...] = ()  # (minutes since the start, updates per second)
    step: int = 0  # the last one that has a line
    updates: int = 0
    frame_skip: int | None = None  # frames per environment step; None before the first record of metrics
    seconds: float | None = None


@dataclass(frozen=True)
class RunData:
    """Text files of a run folder, and the recorded episodes that the run learned from."""

    folder: Path
    config: RunConfig
    scores: Scores | None
    metrics: Metrics
    remarks: tuple[str, ...]  # what could not be read, in sentences
    episodes: Mapping[str, tuple[StoredTask, float]] = field(default_factory=dict)
    """By task: recorded episodes, and the mean return of the tenth of them (one at least) with the highest returns."""

    def curve(self, name: str, task: str) -> Curve | None:
        """A metric that is logged per task; None where it is missing."""
        return self.metrics.curves.get(f"{name}/{task}")

    @property
    def per_task(self) -> tuple[str, ...]:
        """Names of the metrics that are logged per task, in the order of the log."""
        ends = [f"/{task}" for task in self.config.tasks]
        found = (label.removesuffix(end) for end in ends for label in self.metrics.curves if label.endswith(end))
        return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class Similarity:
    """Cosines between tasks, in the order of ModelView.tasks."""

    of: str  # what was compared
    cosine: Floats  # [K, K]


@dataclass(frozen=True)
class Film:
    """One window of one task: real and imagined frames, and the errors of all windows."""

    png: bytes
    errors: Mapping[str, tuple[float, ...]]  # kind -> squared error per imagined step, mean over windows; nan for none


@dataclass(frozen=True)
class ModelView:
    """Data of the page on a checkpoint."""

    checkpoint: str
    step: int
    tasks: tuple[str, ...]  # in the learner's order, sorted by module
    module_of_task: tuple[int, ...]
    expert_share: Floats  # [K, E], rows sum to 1; 0 where the task does not use the expert
    similarity: Similarity | None  # None where there is nothing to compare
    films: Mapping[str, Film]
    no_films: str  # why `films` is empty; "" if it is not


@dataclass(frozen=True)
class Report:
    """All that the page shows."""

    run: RunData
    model: ModelView | None
    no_model: str  # why `model` is None, a sentence; "" if it is not
    beside: tuple[RunData, ...] = ()  # runs to compare with


def read_run(folder: Path) -> RunData:
    """Read the text files of a run folder. Raises: ValueError in one line if its config.json cannot be read."""
    config, remarks = read_config(folder / "config.json"), list[str]()
    metrics = read_metrics(folder / "metrics.jsonl", remarks)
    scores = _scores(folder / "scores.json", remarks)
    episodes = _episodes(folder, config, remarks)
    return RunData(folder, config, scores, metrics, tuple(remarks), episodes)


def _episodes(folder: Path, config: RunConfig, remarks: list[str]) -> dict[str, tuple[StoredTask, float]]:
    """Recorded episodes of the run's tasks; empty for a run that acts, or if they cannot be read."""
    if config.recorded is None:
        return {}
    path, found = config.recorded.path(folder), {}
    try:
        stored = read_manifest(path)
        for name in filter(stored.__contains__, config.tasks):
            returns = np.sort(read_episodes(path, stored[name])["episode_return"])
            found[name] = stored[name], float(returns[-max(1, len(returns) // 10) :].mean())
    except (UsageError, OSError) as error:
        remarks.append(f"The recorded episodes cannot be read: {error}.")
    return found


def text_of(path: Path) -> str | None:
    """The text of a file; None if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def read_metrics(path: Path, remarks: list[str]) -> Metrics:
    """Read every whole line without the values that are not finite; the number of other lines goes to `remarks`."""
    text = text_of(path)
    if text is None:
        remarks.append("There is no metrics.jsonl: the run has logged nothing.")
        return Metrics()
    # Of tasks and of labels: (step, updates, value).
    episodes: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    points: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    clock = [(0.0, 0.0)]  # (seconds, updates)
    step, last, frame_skip, spoilt = 0.0, 0.0, None, 0
    for line in filter(str.strip, text.split("\n")):
        record: Any = None
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(line)
        numbers = {k: _finite(v) for k, v in record.items()} if isinstance(record, dict) else {}
        known = {label: number for label, number in numbers.items() if number is not None}
        if "step" not in known:  # the last line of a run that was killed, or damage
            spoilt += 1
            continue
        here, updates = known.pop("step"), known.pop("updates", 0.0)
        seconds, frames = known.pop("seconds", None), known.pop("frames", None)
        step, last = max(step, here), max(last, updates)
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
    if spoilt:
        remarks.append(f"Lines of metrics.jsonl that cannot be read and are left out: {spoilt}.")
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
        updates=int(last),
        frame_skip=frame_skip,
        seconds=clock[-1][0] if len(clock) > 1 else None,
    )


def _finite(value: object) -> float | None:
    """The value as a float; None for what is no number, is not finite or exceeds a float."""
    with contextlib.suppress(OverflowError):
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    return None


def _scores(path: Path, remarks: list[str]) -> Scores | None:
    if not path.is_file():
        return None
    try:
        content = read_object(path)
        tasks = {task: _score(entry) for task, entry in content["tasks"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        remarks.append(f"scores.json cannot be read ({type(error).__name__}): the score table is left out.")
        return None
    return Scores(tasks, _finite(content.get("mean_normalised")), _finite(content.get("parameters")))


def _score(entry: Mapping[str, Any]) -> tuple[float | None, ...]:
    returns = [float(value) for value in entry["returns"]]
    random, agent, expert, normalised = (_finite(entry[name]) for name in ("random", "agent", "expert", "normalised"))
    return random, agent, float(np.std(returns)) if returns else None, expert, normalised, len(returns)
