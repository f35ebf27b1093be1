"""Some tasks stepped one after the other, with what they answer written into an array that may be shared memory."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mow.envs import make
from mow.envs.base import FRAME_SHAPE, Action, Resumable, TaskSpec

# One record per slot. A slot is the place of a task in the list that the run began with; it never changes, while
# `reorder` changes which task number shows it.
RECORD = np.dtype(
    [
        ("frame", np.uint8, FRAME_SHAPE),
        ("reward", np.float32),
        ("is_first", np.bool_),
        ("terminated", np.bool_),
        ("truncated", np.bool_),
        ("life_lost", np.bool_),
        ("busy", np.bool_),  # being worked on; tells which task a dead or hung worker was in
    ],
    align=True,
)
FLAGS = ("reward", "is_first", "terminated", "truncated", "life_lost")


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


# A finished episode on its way to the parent: slot, return, length, success.
Finished = tuple[int, float, int, bool | None]


class TaskGroup:
    """The environments of some slots, stepped one after the other; writes what they answer into `board` [K]."""

    def __init__(
        self, slots: Mapping[int, str], board: NDArray[np.void], seed: int, options: Mapping[str, object]
    ) -> None:
        self._board = board
        self._seed = seed
        self._envs = {}
        for slot in self._each(slots):
            self._envs[slot] = make(slots[slot], seed=derived_seed(seed, slot), options=options)
        self._progress = {slot: _Progress() for slot in slots}

    @property
    def specs(self) -> dict[int, TaskSpec]:
        return {slot: env.task for slot, env in self._envs.items()}

    def reset(self) -> list[Finished]:
        for slot in self._each(self._envs):
            self._open(slot)
            for name in FLAGS:
                self._board[name][slot] = name == "is_first"
        return []

    def step(self, actions: Mapping[int, Action]) -> list[Finished]:
        """Take native actions, by slot."""
        finished: list[Finished] = []
        for slot in self._each(self._envs):
            frame, reward, terminated, truncated, info = self._envs[slot].step(actions[slot])
            progress = self._progress[slot]
            progress.episode_return += reward
            progress.length += 1
            if "success" in info:
                progress.success = bool(progress.success) or bool(info["success"])
            ended = terminated or truncated
            flags = (reward, ended, terminated, truncated, bool(info.get("life_lost", False)))
            for name, flag in zip(FLAGS, flags, strict=True):
                self._board[name][slot] = flag
            if ended:
                finished.append((slot, progress.episode_return, progress.length, progress.success))
                self._open(slot)
            else:
                self._board["frame"][slot] = frame
        return finished

    def state_dict(self) -> dict[int, dict[str, Any]]:
        """By slot: the episode so far, and the environment's own state or None where it cannot tell it."""
        return {
            slot: {"env": env.state_dict() if isinstance(env, Resumable) else None, **asdict(self._progress[slot])}
            for slot, env in self._envs.items()
        }

    def load_state_dict(self, states: Mapping[int, Mapping[str, Any]]) -> list[int]:
        """Go on from state_dict() in the slots of this group; what else is named is left alone.

        Returns: slots that could not; they have opened a new episode.
        """
        renewed = []
        for slot in self._each(self._envs):
            own = dict(states[slot])
            kept = own.pop("env")
            env = self._envs[slot]
            self._progress[slot] = _Progress(**own)
            if kept is None or not isinstance(env, Resumable):
                self._open(slot)
                renewed.append(slot)
            else:
                env.load_state_dict(kept)
        return renewed

    def close(self) -> None:
        for env in self._envs.values():
            env.close()

    def _open(self, slot: int) -> None:
        number = self._progress[slot].number + 1
        self._progress[slot] = _Progress(number)
        self._board["frame"][slot] = self._envs[slot].reset(seed=derived_seed(self._seed, slot, number))[0]

    def _each(self, slots: Iterable[int]) -> Iterator[int]:
        # Without try and finally on purpose: the slot that fails stays marked.
        for slot in slots:
            self._board["busy"][slot] = True
            yield slot
            self._board["busy"][slot] = False
