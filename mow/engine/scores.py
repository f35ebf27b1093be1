"""The score table at the end of a run, for eyes and for files."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mow.engine.evaluator import TaskEvaluation
from mow.envs.suites import normalised_return, reference_returns
from mow.system.whole_file import write_json


@dataclass(frozen=True)
class Cost:
    """Cost of the scores."""

    parameters: int  # learned ones of world model and agent, all modules
    env_steps_per_task: int
    world_model_updates: int
    wall_seconds: float
    cpu_seconds: float  # of this process, all threads


def recent_score(recent: Mapping[str, float | None]) -> float | None:
    """Mean over tasks of the normalised recent returns, by which checkpoints are compared while a run trains.

    Args: recent: task -> mean return of its last episodes, None before the first has ended.
    Returns: None before every task has ended one. Tasks without references count as they are where no task has one,
        else not at all.
    """
    known = [task for task in recent if reference_returns(task) is not None] or list(recent)
    values = []
    for task in known:
        value = recent[task]
        if value is None:
            return None
        normalised = normalised_return(task, value)
        values.append(value if normalised is None else normalised)
    return float(np.mean(values))


def write_scores(path: Path, results: Sequence[TaskEvaluation], cost: Cost) -> str:
    """Write scores.json and return the table: task, random, agent, expert (or human), normalised.

    normalised = (agent - random) / (expert - random); the mean is over the tasks that have references.
    """
    tasks: dict[str, dict[str, object]] = {}
    shares = []
    lines = [f"{'task':<20}{'random':>10}{'agent':>10}{'expert':>10}{'normalised':>12}{'episodes':>10}"]
    for result in results:
        known = reference_returns(result.task)
        agent = result.mean if result.returns else None
        share = normalised_return(result.task, agent) if agent is not None else None
        low, high = known if known else (None, None)
        tasks[result.task] = {"random": low, "agent": agent, "expert": high, "normalised": share, **asdict(result)}
        if share is not None:
            shares.append(share)
        row = "".join(_number(value, 10) for value in (low, agent, high)) + _number(share, 12)
        lines.append(f"{result.task:<20}{row}{len(result.returns):>10}")
    mean = float(np.mean(shares)) if shares else None
    lines.append(f"{'mean':<20}{'':>30}{_number(mean, 12)}")
    content = {"tasks": tasks, "mean_normalised": mean, **asdict(cost)}
    write_json(path, content)
    return "\n".join(lines)


def _number(value: float | None, width: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.2f}"
