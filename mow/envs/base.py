"""Contract of every environment, and the action layout of a run with many tasks. Numpy only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

FRAME_SHAPE = (64, 64, 3)  # height, width, RGB; uint8
MOST_STATE = 3072  # numbers of a state at most; as many bytes as a frame has

Frame = NDArray[np.uint8]  # [64, 64, 3]
Observation = NDArray[Any]  # a Frame, or a state float32 [state_size]
Action = int | NDArray[np.float32]  # index of a discrete action, or [n] in [-1, 1]


@dataclass(frozen=True)
class TaskSpec:
    """Properties of one task that the agent needs before it acts.

    As JSON: `dataclasses.asdict(spec)`, and `TaskSpec(**data)` back.
    Raises: ValueError if `legal` has another length than num_actions or allows nothing, or state_size is out of range.
    """

    name: str  # "suite:Task"
    discrete: bool
    num_actions: int  # of a discrete task: how many; of a continuous one: its dimensions
    legal: tuple[bool, ...]  # [num_actions]; False where a discrete action must not be taken
    frame_skip: int  # emulator frames per agent step
    protocol: str  # a few words for logs and score tables
    state_size: int | None = None  # numbers of an observation, which is a state; None: it is a frame

    def __post_init__(self) -> None:
        object.__setattr__(self, "legal", tuple(self.legal))  # JSON has lists only
        if len(self.legal) != self.num_actions or not (any if self.discrete else all)(self.legal):
            raise ValueError(
                f"task {self.name!r}: expected {self.num_actions} bools as legal, one True or more if discrete, "
                f"all True if continuous, got {self.legal}"
            )
        if self.state_size is not None and not 1 <= self.state_size <= MOST_STATE:
            raise ValueError(
                f"task {self.name!r}: a state has 1 to {MOST_STATE} numbers, got {self.state_size}: take its frames"
            )


def spec_differences(before: Sequence[TaskSpec], now: Sequence[TaskSpec]) -> tuple[str, ...]:
    """One line per difference: the task, the field and both values; empty if all tasks are the same in any order."""
    then, later = ({spec.name: spec for spec in specs} for specs in (before, now))
    lines = [f"{name}: missing now" for name in then if name not in later]
    lines += [f"{name}: added" for name in later if name not in then]
    for one, other in ((then[name], later[name]) for name in then if name in later):
        for entry in fields(TaskSpec):
            values = getattr(one, entry.name), getattr(other, entry.name)
            if values[0] != values[1] and not (entry.name == "legal" and one.num_actions != other.num_actions):
                lines.append(f"{one.name}: {entry.name} {_shown(values[0])} -> {_shown(values[1])}")
    return tuple(lines)


def _shown(value: object) -> str:
    """A field for a message; legal actions by their indices."""
    return str(np.flatnonzero(value).tolist()) if isinstance(value, tuple) else repr(value)


class Env(Protocol):
    """One task. `reset` and `step` are gymnasium's, with frames [64, 64, 3] uint8, or states [state_size] float32.

    info may hold "life_lost" (bool: a life went in this step) and "success" (bool: the goal is reached in this step).
    """

    @property
    def task(self) -> TaskSpec: ...

    def reset(self, *, seed: int | None = None) -> tuple[Observation, Mapping[str, object]]: ...

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, Mapping[str, object]]: ...

    def close(self) -> None: ...


@runtime_checkable
class Resumable(Protocol):
    """An environment whose state can be kept in a file: it goes on exactly as it would have.

    One without these opens a new episode where a run is resumed.
    """

    def state_dict(self) -> dict[str, Any]:
        """All that the future depends on, as what JSON can hold; random states included."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state_dict() of an environment made with the same arguments."""


@dataclass(frozen=True)
class Episode:
    """One finished episode, for logs."""

    task: str  # "suite:Task"
    index: int  # position k of the task in the run, as ordered when the episode ended
    episode_return: float  # sum of unclipped rewards, units of the task
    length: int  # agent steps
    success: bool | None  # success at any step; None where the task has no success
    final_success: bool | None = None  # success at the last step


# Arrays have no single truth value, so the records below compare by identity (eq=False).
@dataclass(frozen=True, eq=False)
class EnvStep:
    """Results of one step of all K tasks. The arrays are copies."""

    frame: Observation  # [K, 64, 64, 3] uint8, or states [K, D] float32, those of fewer numbers ending in zeros: the
    # next observation; after an end see `make_vector`, final_frames
    is_first: NDArray[np.bool_]  # [K] `frame` opens an episode
    is_last: NDArray[np.bool_]  # [K] `frame` is the final one of its episode: the next action is ignored
    reward: NDArray[np.float32]  # [K] units of the task
    terminated: NDArray[np.bool_]  # [K] the task ended by itself
    truncated: NDArray[np.bool_]  # [K] a time limit cut the episode
    life_lost: NDArray[np.bool_]  # [K] a life went; the episode goes on
    finished: tuple[Episode, ...]  # in the order of the tasks
    restarts: tuple["Restart", ...] = ()  # their tasks are truncated, with reward 0: the answer is unknown


@dataclass(frozen=True)
class Restart:
    """Simulators that failed and were made anew."""

    tasks: tuple[str, ...]  # whose episodes were cut off
    reason: str  # one line
    traceback: str  # of the worker; empty where it left none


class EnvFailure(RuntimeError):
    """A simulator failed too often. Args: line: task and reason. traceback: of the worker, or empty."""

    def __init__(self, line: str, traceback: str = "") -> None:
        super().__init__(f"{line}\n{traceback}".strip())
        self.line, self.traceback = line, traceback


@dataclass(frozen=True, eq=False)
class ActionLayout:
    """Layout of an encoded action float32 [A]: a one-hot block, then a continuous block, A = A_d + A_c.

    A_d is the size of the largest discrete task of the run, A_c of the largest continuous one; a task leaves the block
    that it does not use at zero.
    """

    num_discrete: int  # A_d
    num_continuous: int  # A_c
    discrete: NDArray[np.bool_]  # [K] the task is discrete
    discrete_mask: NDArray[np.bool_]  # [K, A_d] legal actions; all False for continuous tasks
    continuous_mask: NDArray[np.bool_]  # [K, A_c] used dimensions; all False for discrete tasks

    @classmethod
    def from_tasks(cls, specs: Sequence[TaskSpec]) -> "ActionLayout":
        """The smallest layout that holds the actions of all `specs`. Raises: ValueError if there are none."""
        if not specs:
            raise ValueError("an action layout needs one task or more, got none: name the tasks of the run")
        num_discrete = max((spec.num_actions for spec in specs if spec.discrete), default=0)
        num_continuous = max((spec.num_actions for spec in specs if not spec.discrete), default=0)
        discrete_mask = np.zeros((len(specs), num_discrete), np.bool_)
        continuous_mask = np.zeros((len(specs), num_continuous), np.bool_)
        for k, spec in enumerate(specs):
            mask = discrete_mask if spec.discrete else continuous_mask
            mask[k, : spec.num_actions] = spec.legal
        discrete = np.array([spec.discrete for spec in specs])
        return cls(num_discrete, num_continuous, discrete, discrete_mask, continuous_mask)

    @property
    def size(self) -> int:
        """A, the length of an encoded action."""
        return self.num_discrete + self.num_continuous

    def rows(self, tasks: slice | Sequence[int]) -> "ActionLayout":
        """The same layout for some of the tasks, or for all of them in another order."""
        index = tasks if isinstance(tasks, slice) else [*tasks]
        own = (mask[index] for mask in (self.discrete, self.discrete_mask, self.continuous_mask))
        return ActionLayout(self.num_discrete, self.num_continuous, *own)

    def decode(self, k: int, vector: NDArray[np.floating]) -> Action:
        """The native action of task k from an encoded one [A].

        Raises: ValueError if the one-hot block does not mark exactly one action, if that action is illegal, or if a
        continuous entry is not finite or leaves [-1, 1].
        """
        if vector.shape != (self.size,):
            raise ValueError(f"an action has shape {(self.size,)}, got {vector.shape}: encode it with this layout")
        if not self.discrete[k]:
            entries = vector[self.num_discrete :][self.continuous_mask[k]].astype(np.float32)  # [n]
            if not (np.abs(entries) <= 1.0).all():
                raise ValueError(f"task {k}: continuous actions lie in [-1, 1], got {entries.tolist()}: clip them")
            return entries
        marked = np.flatnonzero(vector[: self.num_discrete] > 0.5)
        if len(marked) != 1:
            raise ValueError(f"task {k}: expected one marked action, got {marked.tolist()}: pass a one-hot block")
        index = int(marked[0])
        if not self.discrete_mask[k, index]:
            legal = np.flatnonzero(self.discrete_mask[k]).tolist()
            raise ValueError(f"task {k}: action {index} is illegal, expected one of {legal}: mask the policy's logits")
        return index

    def random(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """One action per task, uniform over its legal actions or over [-1, 1]^n: [K, A]."""
        vector = np.zeros((len(self.discrete), self.size), np.float32)
        for k in np.flatnonzero(self.discrete):
            vector[k, rng.choice(np.flatnonzero(self.discrete_mask[k]))] = 1.0
        entries = rng.uniform(-1.0, 1.0, self.continuous_mask.shape)  # [K, A_c]
        vector[:, self.num_discrete :] = np.where(self.continuous_mask, entries, 0.0)
        return vector
