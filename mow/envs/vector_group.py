"""Some tasks stepped one after the other, with their answers written into an array that may be shared memory."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mow.envs.base import FRAME_SHAPE, MOST_STATE, Action, Observation, TaskSpec
from mow.envs.guarded import GuardedEnv, SimulatorFailure

FLAGS = ("reward", "is_first", "is_last", "terminated", "truncated", "life_lost")


def record_of(options: Mapping[str, object]) -> np.dtype[np.void]:
    """The record of one slot on a board: a frame, or with option obs "state" room for the longest state there may be.

    A slot is the place of a task in the list that the run began with; it never changes, while `reorder` changes which
    task number shows it.
    """
    states = options.get("obs") == "state"
    return np.dtype(
        [
            ("frame", np.float32, (MOST_STATE,)) if states else ("frame", np.uint8, FRAME_SHAPE),
            ("reward", np.float32),
            ("is_first", np.bool_),
            ("is_last", np.bool_),
            ("terminated", np.bool_),
            ("truncated", np.bool_),
            ("life_lost", np.bool_),
            ("busy", np.bool_),  # being worked on: the task that a dead or hung worker was in
            ("since", np.float64),  # time.monotonic() when that began
        ],
        align=True,
    )


def derived_seed(seed: int, slot: int, *episode: int) -> int:
    """The seed of a slot's environment, or of one of its episodes: 32 bits, without regard to the workers."""
    return int(np.random.SeedSequence(seed, spawn_key=(slot, *episode)).generate_state(1)[0])


@dataclass
class _Progress:
    """The episode that runs in one slot."""

    number: int = -1
    episode_return: float = 0.0
    length: int = 0
    success: bool | None = None  # at any step
    final_success: bool | None = None  # at the newest step
    restarts: int = 0  # of the simulator; every one has seeds of its own
    over: bool = False  # its final frame is shown; the next step opens another


# A finished episode on its way to the parent: slot, return, length, success at any step and at the last one.
Finished = tuple[int, float, int, bool | None, bool | None]


class Crash(NamedTuple):
    """Simulators lost at once: one that raised, or all of a process."""

    slots: tuple[int, ...]  # whose simulators are gone
    blamed: tuple[int, ...]  # those of them that were at work
    reason: str  # one line
    traceback: str = ""


class TaskGroup:
    """The environments of some slots, stepped one after the other; writes what they answer into `board` [K].

    There are none before `build`, or before `renew` made some of them. An environment that fails is reported and not
    stepped until it is renewed.

    Args: final_frames, places: see `make_vector`.
    """

    def __init__(
        self, slots: Mapping[int, str], board: NDArray[np.void], seed: int, options: Mapping[str, object], *,
        final_frames: bool = False, places: Sequence[int] | None = None,
    ) -> None:
        self._places = range(max(slots) + 1) if places is None else places  # by slot; all seeds follow from them
        self._slots, self._seed, self._options, self._final_frames = slots, seed, options, final_frames
        # One column per field, made once: a view of a record array costs more than what is written through it.
        self._board = {name: board[name] for name in board.dtype.names or ()}
        self._envs: dict[int, GuardedEnv] = {}
        self._progress = {slot: _Progress() for slot in slots}
        self._fresh = False  # the first episodes are open and nothing was stepped

    def build(self) -> dict[int, TaskSpec]:
        """Make all environments and open their first episodes, so that what cannot be played fails at the start.

        Raises: SimulatorFailure of the first that fails, after the others are closed.
        """
        try:
            for slot in self._each(self._slots):
                self._make(slot, 0)
                self._begin(slot)
        except BaseException:
            self.close()
            raise
        self._fresh = True
        return {slot: env.task for slot, env in self._envs.items()}

    def reset(self) -> list[Crash]:
        """Open an episode in every slot; right after `build` they are open. Returns: simulators that failed."""
        fresh, self._fresh = self._fresh, False
        return [] if fresh else self._tried(self._begin, self._envs)

    def step(self, actions: Mapping[int, Action]) -> tuple[list[Finished], list[Crash]]:
        """Take native actions, by slot. Returns: finished episodes, and simulators that failed."""
        finished: list[Finished] = []
        return finished, self._tried(lambda slot: finished.extend(self._step(slot, actions[slot])), self._envs)

    def renew(self, lost: Mapping[int, int]) -> list[Crash]:
        """Make simulators anew, each with an open episode. Returns: those that failed again.

        Args: lost: by slot, how often its simulator has been made anew; its seeds follow from that.
        """

        def renew_one(slot: int) -> None:
            self._make(slot, lost[slot])
            self._begin(slot)

        return self._tried(renew_one, lost)

    def state_dict(self) -> dict[int, dict[str, Any]]:
        """By slot: the episode so far, and the environment's own state or None."""
        return {
            slot: {"env": self._envs[slot].state_dict(), **asdict(self._progress[slot])}
            for slot in self._each(self._envs)
        }

    def load_state_dict(self, states: Mapping[int, Mapping[str, Any]]) -> tuple[list[int], list[Crash]]:
        """Go on from state_dict() in the slots of this group; makes the environments that are missing.

        Returns: slots without a state of their own, which have opened a new episode, and simulators that failed.
        """
        self._fresh, renewed = False, list[int]()

        def load(slot: int) -> None:
            own = dict(states[slot])
            kept, progress = own.pop("env"), _Progress(**own)
            if slot not in self._envs or progress.restarts != self._progress[slot].restarts:
                self._make(slot, progress.restarts)
            self._progress[slot] = progress
            if kept is not None:
                self._envs[slot].load_state_dict(kept)
            elif not progress.over:  # else nothing of the episode is to come
                self._open(slot)
                renewed.append(slot)

        return renewed, self._tried(load, self._slots)

    def close(self) -> None:
        """Free all environments; what they raise is logged."""
        for env in self._envs.values():
            env.close()

    def _make(self, slot: int, restarts: int) -> None:
        if slot in self._envs:
            self._envs.pop(slot).close()
        seed = derived_seed(self._seed, self._places[slot], *([restarts, 0] if restarts else []))
        self._envs[slot] = GuardedEnv(self._slots[slot], seed=seed, options=self._options)
        self._progress[slot] = _Progress(restarts=restarts)

    def _begin(self, slot: int) -> None:
        """Open an episode that no step led to."""
        self._open(slot)
        for name in FLAGS:
            self._board[name][slot] = name == "is_first"

    def _open(self, slot: int) -> None:
        number, restarts = self._progress[slot].number + 1, self._progress[slot].restarts
        self._progress[slot] = _Progress(number, restarts=restarts)
        # As many entries as no other seed has: those of environments are of one or three, of first episodes two.
        seed = derived_seed(self._seed, self._places[slot], number, *([restarts, 0] if restarts else []))
        self._show(slot, self._envs[slot].reset(seed=seed)[0])

    def _show(self, slot: int, frame: Observation) -> None:
        self._board["frame"][slot, : len(frame)] = frame  # beyond a state the board stays 0

    def _step(self, slot: int, action: Action) -> list[Finished]:
        """Returns: the episode, if it is finished."""
        if self._progress[slot].over:  # the action was chosen at a final frame
            self._begin(slot)
            return []
        frame, reward, terminated, truncated, info = self._envs[slot].step(action)
        progress, ended = self._progress[slot], terminated or truncated
        progress.episode_return += reward
        progress.length += 1
        if "success" in info:
            progress.success, progress.final_success = bool(progress.success) or info["success"], info["success"]
        progress.over = ended and self._final_frames
        opens = ended and not self._final_frames
        flags = (reward, opens, progress.over, terminated, truncated, info.get("life_lost", False))
        for name, flag in zip(FLAGS, flags, strict=True):
            self._board[name][slot] = flag
        self._show(slot, frame)
        if opens:
            self._open(slot)
        if not ended:
            return []
        return [(slot, progress.episode_return, progress.length, progress.success, progress.final_success)]

    def _tried(self, call: Callable[[int], None], slots: Iterable[int]) -> list[Crash]:
        """Call `call` with each slot. Returns: simulators that failed."""
        crashes = []
        for slot in self._each(slots):
            try:
                call(slot)
            except SimulatorFailure as failure:
                crashes.append(Crash((slot,), (slot,), failure.reason, failure.traceback))
        return crashes

    def _each(self, slots: Iterable[int]) -> Iterator[int]:
        # Without try and finally on purpose: the slot that fails stays marked.
        for slot in slots:
            self._board["busy"][slot], self._board["since"][slot] = True, time.monotonic()
            yield slot
            self._board["busy"][slot] = False
