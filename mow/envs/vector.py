"""All K tasks of a run stepped as one: in this process, or in worker processes that share memory with it."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from mow.envs.base import ActionLayout, EnvStep, Observation, TaskSpec
from mow.envs.vector_base import OrderedVectorEnv
from mow.envs.vector_group import Crash, TaskGroup, record_of
from mow.envs.vector_workers import WorkerVectorEnv

__all__ = ["SerialVectorEnv", "VectorEnv", "WorkerVectorEnv", "make_vector"]


class VectorEnv(Protocol):
    """K tasks that are stepped together, as OrderedVectorEnv describes its methods."""

    @property
    def specs(self) -> tuple[TaskSpec, ...]: ...
    layout: ActionLayout
    def reset(self) -> tuple[Observation, NDArray[np.bool_]]: ...
    def step(self, action: NDArray[np.float32]) -> EnvStep: ...
    def send(self, action: NDArray[np.float32]) -> None: ...
    def receive(self) -> EnvStep: ...
    def reorder(self, order: Sequence[int] | NDArray[np.integer]) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> dict[int, Observation]: ...
    def abandon(self) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...


def make_vector(
    tasks: Sequence[str], *, seed: int, num_workers: int, options: Mapping[str, object], max_restarts: int = 0,
    timeout_s: float = 60.0, final_frames: bool = False, places: Sequence[int] | None = None,
) -> VectorEnv:
    """The tasks in this process (num_workers = 0) or in at most one worker process per task.

    Rollouts are the same for every num_workers, as long as no process dies.

    Args:
        tasks: [K] names, "suite:Task".
        seed: >= 0; rollouts depend on it, on the tasks' places in the list and on the actions, on nothing else.
        num_workers: processes.
        options: of the suites.
        max_restarts: in a row, of a simulator that fails; see OrderedVectorEnv.
        timeout_s: seconds that one simulator in a worker may take for a step and a reset; to be made it may take 10 s
            more. Without workers a simulator that hangs cannot be ended.
        final_frames: show the final frame of an episode too (EnvStep.is_last). The action taken at it is ignored: the
            next step has reward 0 and opens the next episode, and is no step of either. Without, the step that ends an
            episode shows the first frame of the next one.
        places: [K] in a longer list of tasks, of which these are some; rollouts are those of that list.
    Raises: ValueError in one line if num_workers or max_restarts is negative, there is no task, a task or option is
        unknown, or a simulator is not installed or fails in its constructor or first reset.
    """
    if num_workers < 0:
        raise ValueError(f"num_workers counts processes, got {num_workers}: pass 0 to stay in this process")
    if num_workers == 0:
        return SerialVectorEnv(
            tasks, seed=seed, options=options, max_restarts=max_restarts, final_frames=final_frames, places=places
        )
    return WorkerVectorEnv(
        tasks, seed=seed, num_workers=num_workers, options=options, max_restarts=max_restarts, timeout_s=timeout_s,
        final_frames=final_frames, places=places,
    )  # fmt: skip


class SerialVectorEnv(OrderedVectorEnv):
    """All tasks in this process, one after the other: for tests, debugging and single cores. See `make_vector`.

    The step is taken by `receive`. A simulator that hangs or dies takes this process with it.
    """

    def __init__(
        self, tasks: Sequence[str], *, seed: int, options: Mapping[str, object], max_restarts: int = 0,
        final_frames: bool = False, places: Sequence[int] | None = None,
    ) -> None:
        super().__init__(tasks, np.zeros(len(tasks), record_of(options)), seed, max_restarts, places)
        self._group = TaskGroup(
            dict(enumerate(tasks)), self._board, seed, options, final_frames=final_frames, places=self.places
        )
        self._set_specs(self._group.build())

    def close(self) -> None:
        """Free the simulators; more than once does no harm."""
        if not self._closed:
            self._closed = True
            self._group.close()

    def _ask(self, verb: str, by_slot: Mapping[int, Any] | None = None) -> None:
        self._call = partial(getattr(self._group, verb), *(() if by_slot is None else (by_slot,)))

    def _answers(self, *, making: bool = False) -> tuple[list[Any], list[Crash]]:
        return [self._call()], []
