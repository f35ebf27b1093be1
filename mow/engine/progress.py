"""Progress of a run: a record read off the trainer between two steps, for the panel."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Phase:
    """A part of a run, as it begins."""

    name: str
    begun: int  # units that were done before
    end: int  # units when it is over
    started: float  # time.monotonic()
    unit: Literal["steps", "updates"] = "steps"


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
    """The parts of a run that change from step to step."""

    preset: str
    folder: str
    phase: Phase
    phases: tuple[str, ...]  # names of all, in their order
    done: int  # of the phase's units, those before it began included
    eta: float | None  # seconds to the end of the phase; None before its first unit is done
    seconds: float  # that the run has taken
    step: int  # environment steps per task
    total_steps: int
    frames: int | None  # per task; None where tasks differ in their frame skip
    updates: int  # of the first kind of the method, for mow: of the world model
    split: Mapping[str, float]  # part -> seconds, between the last two readings
    memory: int  # peak, bytes
    score: float | None  # mean over tasks, as checkpoints are compared
    best: float | None  # of the checkpoint that is kept
    left_out: int  # updates that would have broken the weights
    restarts: int  # of simulators
    tasks: tuple[TaskProgress, ...]  # in the present order
