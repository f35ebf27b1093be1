"""How far a run is: a record that is read off it between two steps, for whoever shows it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mow.engine.peak_memory import peak_bytes
from mow.envs.references import reference_returns

if TYPE_CHECKING:
    from mow.engine.trainer import Run


PhaseName = Literal["prefill", "warm-up", "grouping", "joint"]


@dataclass(frozen=True)
class Phase:
    """A part of a run, as it begins."""

    name: PhaseName
    begun: int  # units that were done before
    end: int  # units when it is over
    started: float  # time.monotonic()

    @property
    def unit(self) -> Literal["steps", "updates"]:
        """What it is counted in."""
        return "steps" if self.name in ("prefill", "joint") else "updates"


@dataclass(frozen=True)
class TaskProgress:
    """One task."""

    name: str
    module: int | None  # None before the tasks are grouped
    loss: float | None  # of the world model, mean as last logged
    recent: float | None  # mean return of the last episodes, units of the task
    references: tuple[float, float] | None  # returns of random play, and of an expert or a human

    @property
    def score(self) -> float | None:
        """0 for random play, 1 for the reference; None without references or before the first episode has ended."""
        if self.recent is None or self.references is None:
            return None
        low, high = self.references
        return (self.recent - low) / (high - low)


@dataclass(frozen=True)
class Progress:
    """All of a run that changes while one looks at it."""

    preset: str
    folder: str
    phase: Phase
    done: int  # of the phase's units, those before it began included
    eta: float | None  # seconds to the end of the phase; None before its first unit is done
    seconds: float  # that the run has taken
    step: int  # environment steps per task
    total_steps: int
    frames: int | None  # per task; None where tasks differ in their frame skip
    updates: int  # of the world model
    split: Mapping[str, float]  # part -> seconds, between the last two readings
    memory: int  # peak, bytes
    score: float | None  # mean over tasks, as checkpoints are compared
    best: float | None  # of the checkpoint that is kept
    left_out: int  # updates that would have broken the weights
    restarts: int  # of simulators
    tasks: tuple[TaskProgress, ...]  # in the order of the moment


def progress_of(run: "Run") -> Progress:
    """What `run` is at now. Reads nothing from the device."""
    phase, learner, skip = run.phase, run.learner, run.logger.frame_skip
    done = run.step if phase.unit == "steps" else learner.updates
    lived = time.monotonic() - phase.started
    modules = learner.world_model.module_of_task if learner.grouping is not None else [None] * len(run.tasks)
    losses: Sequence[float | None] = run.last_loss or [None] * len(run.tasks)
    tasks = tuple(
        TaskProgress(task, module, loss, run.collector.scores[task].mean(), reference_returns(task))
        for task, module, loss in zip(run.tasks, modules, losses, strict=True)
    )
    return Progress(
        preset=run.config.preset,
        folder=str(run.logger.folder),
        phase=phase,
        done=done,
        eta=lived * (phase.end - done) / (done - phase.begun) if done > phase.begun else None,
        seconds=run.logger.seconds,
        step=run.step,
        total_steps=run.config.total_steps,
        frames=None if skip is None else run.step * skip,
        updates=learner.updates,
        split=run.split or run.watch.so_far,
        memory=peak_bytes(learner.device),
        score=run.score,
        best=run.best_score,
        left_out=run.left_out,
        restarts=run.collector.restarts,
        tasks=tasks,
    )
