"""The seam between a method and the rest: what a method declares, and what the trainer calls.

A method is a folder of mow/methods with a METHOD in its __init__.py and a line in registry.py. The trainer executes the
phases that a learner declares; it collects, draws batches, logs and saves, and contains no method's name.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mow.envs.base import FRAME_SHAPE, ActionLayout, TaskSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from mow.batch import TransitionBatch
    from mow.config import RunConfig

Metrics = dict[str, "Tensor"]  # name -> [K], or a scalar that concerns all tasks
State = dict[str, Any]  # tensors, numbers, texts, lists and dicts of them: what torch.load reads without pickle
Watch = Callable[[str], AbstractContextManager[None]]  # name of a part of an update -> a timer around it


def untimed(part: str) -> AbstractContextManager[None]:
    """A timer that measures nothing."""
    return nullcontext()


@dataclass(frozen=True)
class ObservationSpec:
    """Observation of every task: pixels [height, width, 3] uint8, or a state vector [n] float32."""

    shape: tuple[int, ...] = FRAME_SHAPE
    dtype: str = "uint8"


@dataclass(frozen=True)
class TaskSet:
    """The tasks of a run, as their environments describe them; K rows, in the order of the config."""

    specs: tuple[TaskSpec, ...]
    layout: ActionLayout
    observation: ObservationSpec = ObservationSpec()

    @classmethod
    def of(cls, specs: Sequence[TaskSpec]) -> "TaskSet":
        """The tasks with one layout of actions and one of observations: states as long as the longest."""
        sizes = [spec.state_size for spec in specs if spec.state_size is not None]
        observation = ObservationSpec((max(sizes),), "float32") if sizes else ObservationSpec()
        return cls(tuple(specs), ActionLayout.from_tasks(specs), observation)


@dataclass(frozen=True)
class Update:
    """Training on batches of one kind within a phase."""

    kind: str
    num_sequences: int  # windows per task
    length: int  # steps per window
    stream: int  # of the replay's random draws: the same (seed, counter) gives other windows in each
    every: int = 0  # environment steps per update; 0: `count` updates without acting
    count: int = 0


@dataclass(frozen=True)
class Phase:
    """A part of a run: so many steps of every task, or so many updates."""

    name: str
    steps: int = 0
    act: Literal["random", "agent", "none"] = "none"
    random_action: float = 0.0  # probability of a uniformly random action in place of the agent's
    updates: tuple[Update, ...] = ()
    note: str = ""  # a line for the log when it begins

    def __post_init__(self) -> None:
        for update in self.updates:
            assert (update.every > 0) == (self.act != "none"), f"{self.name}: `every` where it acts, `count` elsewhere"

    @property
    def unit(self) -> Literal["steps", "updates"]:
        return "updates" if self.act == "none" else "steps"

    @property
    def size(self) -> int:
        """Steps or updates."""
        return sum(update.count for update in self.updates) if self.act == "none" else self.steps


class Reorder(NamedTuple):
    """Task k becomes the old task order[k], in everything that holds tasks."""

    order: tuple[int, ...]


class Note(NamedTuple):
    """A line for the log."""

    text: str


class Picture(NamedTuple):
    """An image for the log."""

    name: str
    image: NDArray[np.uint8]  # [height, width, 3]


Event = Reorder | Note | Picture


class Sampler(Protocol):
    """Windows of replay, drawn by (seed, counter, stream)."""

    def __call__(self, num_sequences: int, length: int, *, counter: int, stream: int) -> "TransitionBatch": ...


class ActorOutput(NamedTuple):
    """Chosen actions, and what the method's columns of replay hold for this step."""

    action: "Tensor"  # [K, A] or [K, B, A]
    extra: Mapping[str, "Tensor"] = {}  # float32 [K, n] or [K, B, n]


class Actor(Protocol):
    """Acts in K tasks, in each of which B episodes may run side by side."""

    def act(self, frame: "Tensor", is_first: "Tensor") -> ActorOutput:
        """Args: frame: [K, ...] or [K, B, ...] newest observation, a frame or a state. is_first: [K] or [K, B] bool, it
            opens an episode.
        Returns: actions in the layout of the TaskSet; `record` must follow.
        """

    def record(self, action: "Tensor") -> None:
        """The actions that were taken in the end: as those that `act` returned, or others."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any) -> None: ...


class Parallel(Protocol):
    """The ranks of a run: processes in lock-step, each with a range of the tasks in their present order.

    Every method is called by all ranks, in the same order.
    """

    rank: int
    size: int
    parts: tuple[slice, ...]  # tasks of each rank

    @property
    def own(self) -> slice:
        """Tasks of this rank."""

    def divide(self, module_of_task: Sequence[int]) -> None:
        """Set `parts` for tasks that are sorted by module; a module's tasks may be on several ranks."""

    def ranks_of(self, module: int) -> tuple[int, ...]:
        """The ranks with a task of the module, ascending; as divided last."""

    def summing(self, parameters: "Sequence[nn.Parameter]") -> "nn.Module":
        """A module that calls its argument; the backward pass of what that returns leaves the parameters' gradients
        summed over all ranks. Every parameter must get one. The weights of rank 0 are copied to the others.
        """

    def add(self, tensors: "Sequence[Tensor]", module: int | None = None) -> None:
        """Sum in place over all ranks, or over those of a module (called by these alone)."""

    def added(self, tensor: "Tensor", module: int) -> "Tensor":
        """The sum over the ranks of a module, with its gradient; called by these alone."""

    def copy_from(self, rank: int, tensors: "Sequence[Tensor]") -> None:
        """Overwrite `tensors` by those of one rank."""

    def rows(self, own: "Tensor") -> "Tensor":
        """[K, ...] of the rows of all ranks, in the order of the tasks."""

    def texts(self, own: str) -> list[str]:
        """One of every rank."""


class Learner(Protocol):
    """All that is trained, with its optimisers and random streams, on one device."""

    phases: tuple[Phase, ...]
    device: "torch.device"

    @property
    def tasks(self) -> list[str]:
        """Names, in the present order."""

    @property
    def groups(self) -> Sequence[int] | None:
        """Group of every task, whose members share parameters; None before the tasks are grouped."""

    @property
    def networks(self) -> Mapping[str, "nn.Module"]:
        """By name; all trained numbers are in them."""

    def actor(self, *, explore: bool = True) -> Actor:
        """A new actor, with an empty memory. Without `explore` it may leave out the noise of its actions."""

    def reseed(self, seed: int) -> None:
        """Make all later draws depend on `seed` alone."""

    def update(self, kind: str, batch: "TransitionBatch", watch: Watch = untimed) -> Metrics:
        """One update. Raises: NotFinite before a step that would break the weights."""

    def end_phase(self, name: str, sample: Sampler) -> tuple[Event, ...]:
        """Called once when a phase has ended; returns what follows from it."""

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


def num_parameters(learner: Learner) -> int:
    """Trained numbers of all networks; copies that follow them slowly are not counted."""
    return sum(p.numel() for part in learner.networks.values() for p in part.parameters() if p.requires_grad)


@dataclass(frozen=True)
class Method:
    """A method, as the registry lists it. Loading it imports no torch."""

    name: str
    config: type["RunConfig"]
    presets: Mapping[str, Callable[[], "RunConfig"]]
    build: Callable[[Any, TaskSet, "torch.device"], Learner]
    loss: str  # the metric, per task, that stands for how well the model has learnt
    columns: Callable[[Any, ActionLayout], Mapping[str, int]] = lambda config, layout: {}
    """Extra columns of replay, and their float32 numbers per step and task."""
    diagnostics: Callable[[Any, "TransitionBatch"], Metrics] | None = None
    context: Callable[[Any, "torch.device"], AbstractContextManager[str]] = lambda config, device: nullcontext("")
    """Entered for the life of a run; gives a line about how updates run, or none."""
    summary: Callable[[Any], str] = lambda config: ""  # updates and sizes, for the line that opens a run
    batchings: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)  # --batching NAME
    observations: tuple[str, ...] = ("frame",)  # kinds that it learns from, of env.obs: "frame", "state"
    exported: tuple[str, ...] = ()  # networks that mow export writes; none: the method mow has a form of its own
    shortened: Callable[[Any, int], tuple[Any, str]] | None = None  # config for fewer steps, and how it differs
    build_on_ranks: Callable[[Any, TaskSet, "torch.device", Parallel], Learner] | None = None
    """As `build`, on several ranks: batches, actors and metrics have rows of the rank's own tasks. None: refused."""
