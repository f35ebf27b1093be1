"""Base class of the vector environments: order of the tasks, checks, and restarts of simulators that fail."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mow.envs.base import Action, ActionLayout, EnvFailure, EnvStep, Episode, Observation, Restart, TaskSpec
from mow.envs.vector_group import FLAGS, Crash

_LOG = logging.getLogger("mow")


class OrderedVectorEnv(ABC):
    """K tasks stepped together, whose order may change.

    A simulator that fails (raises, hangs, dies with its process, gives an answer that cannot be used) is made anew with
    fresh seeds, up to `max_restarts` times in a row without a finished episode of its task between. Its episode is cut
    off: the step whose answer was lost is truncated, with reward 0, and shows the first frame of the next episode.
    Without restarts, or after the last, EnvFailure is raised.
    """

    specs: tuple[TaskSpec, ...]  # [K]
    layout: ActionLayout  # of these tasks; a caller may put their rows of a larger one in its place

    def __init__(
        self, tasks: Sequence[str], board: NDArray[np.void], seed: int, max_restarts: int,
        places: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        if max_restarts < 0:
            raise ValueError(f"max_restarts counts restarts in a row, got {max_restarts}: pass 0 for none")
        self._names = tuple(tasks)  # by slot
        self.places = tuple(range(len(tasks)) if places is None else places)  # by slot, see `make_vector`
        self._board = board  # [K], by slot
        self._seed = seed  # that all seeds of simulators follow from
        self._slots: NDArray[np.integer] = np.arange(len(tasks))  # [K] the slot that task k shows
        self._max_restarts = max_restarts
        self._restarts = dict.fromkeys(range(len(tasks)), 0)  # by slot, of the whole run
        self._failures = dict.fromkeys(range(len(tasks)), 0)  # by slot, since its last finished episode
        self._sent: dict[int, Action] | None = None  # native actions, by slot, between send and receive
        self._ready = False  # reset has been called
        self._closed = False
        self._given_up = False

    def _set_specs(self, specs: Mapping[int, TaskSpec]) -> None:
        self.specs = tuple(specs[slot] for slot in range(len(self._slots)))
        self.layout = ActionLayout.from_tasks(self.specs)

    def reset(self) -> tuple[Observation, NDArray[np.bool_]]:
        """Open an episode in every task: frames [K, 64, 64, 3] or states [K, D], and is_first [K], all True.

        Raises: EnvFailure if a simulator fails.
        """
        self._check_idle()
        self._ask("reset")
        answers, crashes = self._answers()
        self._give_up_if([*crashes, *(crash for failed in answers for crash in failed)])
        self._ready = True
        return self._observations(), self._board["is_first"][self._slots]

    def step(self, action: NDArray[np.float32]) -> EnvStep:
        """`send` and `receive`."""
        self.send(action)
        return self.receive()

    def send(self, action: NDArray[np.float32]) -> None:
        """Begin one agent step of every task; workers take it while this process does other things.

        Args:
            action: [K, A] in `layout`.
        Raises: ValueError if the shape is wrong or an action is illegal, before any task is stepped; RuntimeError
            before the first reset, after close and while another step is under way.
        """
        self._check_idle()
        if not self._ready:
            raise RuntimeError("no episode is running: call reset before step")
        shape = (len(self._slots), self.layout.size)
        if action.shape != shape:
            raise ValueError(f"action needs shape {shape}, got {action.shape}: encode it with .layout")
        self._sent = {int(slot): self.layout.decode(k, action[k]) for k, slot in enumerate(self._slots)}
        self._ask("step", self._sent)

    def receive(self) -> EnvStep:
        """End the step that was sent. Raises: EnvFailure, which ends all; RuntimeError if none was sent."""
        if self._sent is None:
            raise RuntimeError("no step is under way: call send before receive")
        actions, self._sent = self._sent, None
        answers, crashes = self._answers()
        restarts, lost = self._recover([*crashes, *(crash for _, failed in answers for crash in failed)], actions)
        ended = [episode for episodes, _ in answers for episode in episodes]
        finished = {slot: rest for slot, *rest in ended if slot not in lost}
        self._failures.update((slot, 0) for slot in finished)
        shown = [(k, int(slot)) for k, slot in enumerate(self._slots)]
        return EnvStep(
            frame=self._observations(),  # a copy, as are the others
            finished=tuple(Episode(self.specs[k].name, k, *finished[slot]) for k, slot in shown if slot in finished),
            restarts=restarts,
            **{name: self._board[name][self._slots] for name in FLAGS},  # [K] each
        )

    def reorder(self, order: Sequence[int] | NDArray[np.integer]) -> None:
        """Make task k the old task order[k]; no environment is touched. Raises: ValueError unless a permutation."""
        self._check_idle()
        index = np.asarray(order).tolist()
        if sorted(index) != [*range(len(self._slots))]:
            raise ValueError(f"expected a permutation of 0..{len(self._slots) - 1}, got {index}: name every task once")
        self._slots = self._slots[index]
        self.specs = tuple(self.specs[old] for old in index)
        self.layout = self.layout.rows(index)

    def state_dict(self) -> dict[str, Any]:
        """State of all tasks in their present order, by their places, as JSON; after an EnvFailure: only the order.

        A task without a state begins a new episode when it is loaded.
        """
        # A simulator that is gone has no state, and is replaced and reported in the next step.
        states: dict[int, Any] = {slot: {"env": None, "restarts": count + 1} for slot, count in self._restarts.items()}
        if not self._given_up:
            self._check_idle()
            self._ask("state_dict")
            for kept in self._answers()[0]:
                states |= kept
        places = self.places
        return {"slots": [places[slot] for slot in self._slots],
                "tasks": {str(places[slot]): kept for slot, kept in states.items()}}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> dict[int, Observation]:
        """Go on from a state_dict() of the same tasks, whatever the number of workers; takes the place of reset.

        Returns: the tasks k without a state of their own, with the first observation of their new episodes.
        Raises: EnvFailure if a simulator cannot load its state or open an episode.
        """
        self._check_idle()
        slot_of = {place: slot for slot, place in enumerate(self.places)}
        self.reorder([self._slots.tolist().index(slot_of[place]) for place in state["slots"]])
        states = {slot_of[int(place)]: kept for place, kept in state["tasks"].items()}
        self._restarts.update((slot, kept["restarts"]) for slot, kept in states.items())
        self._ask("load_state_dict", states)
        answers, crashes = self._answers(making=True)
        self._give_up_if([*crashes, *(crash for _, failed in answers for crash in failed)])
        renewed = {slot for slots, _ in answers for slot in slots}
        self._ready = True
        shown = self._observations()
        return {k: shown[k] for k, slot in enumerate(self._slots) if slot in renewed}

    def abandon(self) -> None:
        """Close all, as after an EnvFailure: no task has a state to go on from."""
        self.close()
        self._given_up = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _observations(self) -> Observation:
        """Copies of the frames [K, 64, 64, 3], or of the states [K, D], D numbers being the longest of the tasks."""
        sizes = [spec.state_size for spec in self.specs if spec.state_size is not None]
        return self._board["frame"][:, : max(sizes, default=None)][self._slots]

    # Failures -------------------------------------------------------------------------------------------------------

    def _recover(
        self, crashes: Sequence[Crash], actions: Mapping[int, Action]
    ) -> tuple[tuple[Restart, ...], set[int]]:
        """Until every simulator runs again. Returns: what happened, and the slots whose step was lost.

        Raises: EnvFailure.
        """
        restarts: list[Restart] = []
        all_lost: set[int] = set()
        while crashes:
            crashes = sorted(crashes)  # whatever the order of the answers
            for crash in crashes:
                self._count(crash, actions)
                restarts.append(Restart(self._tasks(crash.slots), crash.reason, crash.traceback))
                _LOG.warning("%s: %s; a new episode begins", ", ".join(restarts[-1].tasks), crash.reason)
            lost = sorted(slot for crash in crashes for slot in crash.slots)
            for slot in lost:
                self._restarts[slot] += 1
            all_lost.update(lost)
            self._ask("renew", {slot: self._restarts[slot] for slot in lost})
            answers, dead = self._answers(making=True)
            crashes = [*dead, *(crash for failed in answers for crash in failed)]
        self._board["truncated"][list(all_lost)] = True
        return tuple(restarts), all_lost

    def _count(self, crash: Crash, actions: Mapping[int, Action]) -> None:
        for slot in crash.blamed:
            self._failures[slot] += 1
            if (times := self._failures[slot]) > self._max_restarts:
                often = f" failed {times} times in a row, with no finished episode between" if times > 1 else ""
                action = np.array2string(np.asarray(actions[slot]), precision=4, max_line_width=10_000)
                where = f"seed {self._seed}, simulator {self._restarts[slot] + 1}, action {action}"
                raise self._failure(crash, often, f" ({where})")

    def _give_up_if(self, crashes: Sequence[Crash]) -> None:
        if crashes:
            raise self._failure(min(crashes))

    def _failure(self, crash: Crash, often: str = "", where: str = "") -> EnvFailure:
        """Close everything. Returns: the error to raise."""
        self.abandon()
        return EnvFailure(f"{', '.join(self._tasks(crash.blamed))}{often}: {crash.reason}{where}", crash.traceback)

    def _tasks(self, slots: Iterable[int]) -> tuple[str, ...]:
        return tuple(self._names[slot] for slot in slots)

    def _check_idle(self) -> None:
        if self._closed:
            raise RuntimeError("these environments are closed: make new ones")
        if self._sent is not None:
            raise RuntimeError("a step is under way: call receive first")

    # Where they are -------------------------------------------------------------------------------------------------

    @abstractmethod
    def _ask(self, verb: str, by_slot: Mapping[int, Any] | None = None) -> None:
        """Begin a method of every TaskGroup: with its part of `by_slot`, or without arguments if that is None."""

    @abstractmethod
    def _answers(self, *, making: bool = False) -> tuple[list[Any], list[Crash]]:
        """End it. Returns: one answer per group, in any order, and simulators that are lost with their process.

        Args: making: the method makes simulators, which may take longer.
        """

    @abstractmethod
    def close(self) -> None: ...
