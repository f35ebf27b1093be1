"""Some tasks stepped one after the other, with what they answer written into an array that may be shared memory."""

import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mow.envs.base import FRAME_SHAPE, Action, Frame, TaskSpec
from mow.envs.guarded import GuardedEnv, SimulatorFailure
from mow.system.shell import command

# One record per slot. A slot is the place of a task in the list that the run began with; it never changes, while
# `reorder` changes which task number shows it.
RECORD = np.dtype(
    [
        ("frame", np.uint8, FRAME_SHAPE),
        ("reward", np.float32),
        ("is_first", np.bool_),
        ("is_last", np.bool_),
        ("terminated", np.bool_),
        ("truncated", np.bool_),
        ("life_lost", np.bool_),
        ("busy", np.bool_),  # being worked on: the task that a dead or hung worker was in
        ("called", np.float64),  # time.monotonic() of the latest call of its simulator, or of its latest beat
    ],
    align=True,
)
FLAGS = ("reward", "is_first", "is_last", "terminated", "truncated", "life_lost")
_SHORTEST_STILL = 5  # steps; a shorter episode in which nothing moves is no sign of a broken picture


def derived_seed(seed: int, slot: int, *episode: int) -> int:
    """The seed of a slot's environment, or of one of its episodes: 32 bits, without regard to the workers."""
    return int(np.random.SeedSequence(seed, spawn_key=(slot, *episode)).generate_state(1)[0])


@dataclass
class _Progress:
    """The episode that runs in one slot."""

    number: int = -1
    episode_return: float = 0.0
    length: int = 0
    success: bool | None = None
    restarts: int = 0  # of the simulator; every one has seeds of its own
    first_picture: int | None = None  # checksum
    moved: bool = False  # a frame was another than the first
    drawn: bool = False  # a frame had more than one colour
    over: bool = False  # its final frame is shown; the next step opens another


# A finished episode on its way to the parent: slot, return, length, success.
Finished = tuple[int, float, int, bool | None]


class Failure(NamedTuple):
    """A simulator that failed; it is not used again."""

    slot: int
    reason: str  # one line
    traceback: str


class Stepped(NamedTuple):
    """Results of one step of a group, beside those on the board."""

    finished: list[Finished]
    failed: list[Failure]
    notes: list[str]  # one line each, for the user


class Renewed(NamedTuple):
    """Slots whose simulators were made anew."""

    first: dict[int, Frame]  # by slot: the frame at which the action was taken
    failed: list[Failure]


class TaskGroup:
    """The environments of some slots, stepped one after the other; writes what they answer into `board` [K].

    There are none before `build`, or before `renew` made some of them. An environment that fails is reported and left
    alone until it is renewed.

    Args: final_frames: see `make_vector`.
    """

    def __init__(
        self,
        slots: Mapping[int, str],
        board: NDArray[np.void],
        seed: int,
        options: Mapping[str, object],
        *,
        final_frames: bool = False,
    ) -> None:
        self._slots, self._seed, self._options, self._final_frames = slots, seed, options, final_frames
        # One column per field, made once: a view of a record array costs more than what is written through it.
        self._board = {name: board[name] for name in RECORD.names or ()}
        self._envs: dict[int, GuardedEnv] = {}
        self._progress = {slot: _Progress() for slot in slots}
        self._still: set[int] = set()  # slots that were reported for it
        self._fresh = False  # the first episodes are open and nothing was stepped

    def build(self) -> dict[int, TaskSpec]:
        """Make all environments and open their first episodes, so that what cannot be played is known at the start.

        Raises: SimulatorFailure of the first that fails, after the others are closed; ValueError, see GuardedEnv.
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

    def reset(self) -> None:
        """Open an episode in every slot; right after `build` they are open. Raises: SimulatorFailure."""
        if not self._fresh:
            for slot in self._each(self._envs):
                self._begin(slot)
        self._fresh = False

    def step(self, actions: Mapping[int, Action]) -> Stepped:
        """Take native actions, by slot."""
        stepped = Stepped([], [], [])
        for slot in self._each(self._envs):
            try:
                self._step(slot, actions[slot], stepped)
            except SimulatorFailure as failure:
                stepped.failed.append(Failure(slot, failure.reason, failure.traceback))
        return stepped

    def renew(self, lost: Mapping[int, tuple[int, Action]]) -> Renewed:
        """Make simulators anew and let each take the action that the lost one was given, in an episode of one step.

        That episode is real from its first frame to its reward, and is cut off as truncated; the board then shows its
        final frame, or the first of the next.

        Args: lost: by slot, how often its simulator has been made anew (seeds follow from it), and the action.
        """
        renewed = Renewed({}, [])
        for slot in self._each(lost):
            restarts, action = lost[slot]
            try:
                renewed.first[slot] = self._renew(slot, restarts, action)
            except SimulatorFailure as failure:
                renewed.failed.append(Failure(slot, failure.reason, failure.traceback))
        return renewed

    def state_dict(self) -> dict[int, dict[str, Any]]:
        """By slot: the episode so far, the environment's own state or None, and why where it should have one."""
        states = {}
        for slot in self._each(self._envs):
            own, why = self._envs[slot].state_dict()
            states[slot] = {"env": own, **({"why": why} if why else {}), **asdict(self._progress[slot])}
        return states

    def load_state_dict(self, states: Mapping[int, Mapping[str, Any]]) -> dict[int, str]:
        """Go on from state_dict() in the slots of this group; makes the environments that are missing.

        Returns: by slot, those that could not and have opened a new episode, and why, unless they just have no
            state.
        Raises: SimulatorFailure if not even that succeeds.
        """
        self._fresh, renewed = False, {}
        for slot in self._each(self._slots):
            own = dict(states[slot])
            kept, why = own.pop("env"), own.pop("why", "")
            progress = _Progress(**own)
            if slot not in self._envs or progress.restarts != self._progress[slot].restarts:
                self._make(slot, progress.restarts)
            self._progress[slot] = progress
            try:
                if kept is not None and self._envs[slot].load_state_dict(kept):
                    continue
            except SimulatorFailure as failure:
                why = failure.reason
                self._make(slot, progress.restarts)
                self._progress[slot] = progress
            if not progress.over:  # else nothing of the episode is to come
                self._open(slot)
                renewed[slot] = why
        return renewed

    def close(self) -> None:
        """Free all environments; what they raise is logged."""
        for env in self._envs.values():
            env.close()

    def _make(self, slot: int, restarts: int) -> None:
        if slot in self._envs:
            self._envs.pop(slot).close()
        seed = derived_seed(self._seed, slot, *([restarts, 0] if restarts else []))
        self._envs[slot] = GuardedEnv(
            self._slots[slot], seed=seed, options=self._options, on_call=partial(self._note_call, slot)
        )
        self._progress[slot] = _Progress(restarts=restarts)

    def _note_call(self, slot: int) -> None:
        self._board["called"][slot] = time.monotonic()

    def _begin(self, slot: int) -> None:
        """Open an episode that no step led to."""
        self._open(slot)
        for name in FLAGS:
            self._board[name][slot] = name == "is_first"

    def _open(self, slot: int) -> None:
        number, restarts = self._progress[slot].number + 1, self._progress[slot].restarts
        self._progress[slot] = _Progress(number, restarts=restarts)
        # As many entries as no other seed has: those of environments are of one or three, of first episodes two.
        seed = derived_seed(self._seed, slot, number, *([restarts, 0] if restarts else []))
        frame = self._envs[slot].reset(seed=seed)[0]
        self._look(slot, frame)
        self._board["frame"][slot] = frame

    def _step(self, slot: int, action: Action, stepped: Stepped) -> None:
        if self._progress[slot].over:  # the action was chosen at a final frame
            self._begin(slot)
            return
        frame, reward, terminated, truncated, info = self._envs[slot].step(action)
        self._look(slot, frame)
        progress = self._progress[slot]
        progress.episode_return += reward
        progress.length += 1
        if "success" in info:
            progress.success = bool(progress.success) or info["success"]
        flags = (reward, False, False, terminated, truncated, info.get("life_lost", False))
        for name, flag in zip(FLAGS, flags, strict=True):
            self._board[name][slot] = flag
        self._board["frame"][slot] = frame
        if terminated or truncated:
            stepped.finished.append((slot, progress.episode_return, progress.length, progress.success))
            self._report_a_still(slot, stepped)
            self._end(slot)

    def _end(self, slot: int) -> None:
        """Leave the final frame on the board for a step, or open the next episode at once."""
        if self._final_frames:
            self._progress[slot].over = self._board["is_last"][slot] = True
        else:
            self._board["is_first"][slot] = True
            self._open(slot)

    def _renew(self, slot: int, restarts: int, action: Action) -> Frame:
        self._make(slot, restarts)
        self._open(slot)
        first: Frame = self._board["frame"][slot].copy()
        self._step(slot, action, Stepped([], [], []))
        if not (self._board["terminated"][slot] or self._board["truncated"][slot]):  # it did not end by itself
            self._board["truncated"][slot] = True
            self._end(slot)
        return first

    def _look(self, slot: int, frame: Frame) -> None:
        """Has this episode shown anything yet? Costs nothing once it has."""
        progress = self._progress[slot]
        if not progress.drawn:
            progress.drawn = bool((frame != frame[0, 0]).any())
        if not progress.moved:
            picture = zlib.crc32(frame.tobytes())
            progress.moved = progress.first_picture not in (None, picture)
            progress.first_picture = picture

    def _report_a_still(self, slot: int, stepped: Stepped) -> None:
        progress, name = self._progress[slot], self._slots[slot]
        if (progress.drawn and progress.moved) or progress.length < _SHORTEST_STILL or slot in self._still:
            return
        self._still.add(slot)
        shown = "the same frame" if progress.drawn else "frames of one colour"
        excuse = "unless the agent only ran against something, " if progress.drawn else ""
        preview = command("mow", "envs", "--preview", name, "out.png")
        stepped.notes.append(
            f"{name} showed {shown} through a whole episode of {progress.length} steps, from which nothing can be "
            f"learnt: {excuse}look at it with {preview}"
        )

    def _each(self, slots: Iterable[int]) -> Iterator[int]:
        # Without try and finally on purpose: the slot that fails stays marked.
        for slot in slots:
            self._board["busy"][slot] = True
            yield slot
            self._board["busy"][slot] = False
