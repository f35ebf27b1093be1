"""Environments that count: every frame encodes its task, episode and step, so that a test can read them.

A picture is an 8 x 8 grid of blocks of constant colour. The upper four rows are the bits of (variant, episode high
byte, episode low byte, step), white for one; the lower half is one colour per variant, so that tasks look different.
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from mow.envs.base import FRAME_SHAPE, Action, Frame, TaskSpec

SLIDE_VARIANT = 9

# The last part of a task's name and its variant. Even variants end by termination, odd ones by a time limit.
VARIANTS = {**{f"count-{v}": v for v in range(8)}, "count": 8, "slide": SLIDE_VARIANT}


def draw_counter(variant: int, episode: int, step: int) -> Frame:
    """The frame of a counter: variant and step below 256, episode below 65536. [64, 64, 3]."""
    bits = np.unpackbits(np.array([variant, episode >> 8, episode & 255, step], np.uint8)).reshape(4, 8)
    frame = np.empty(FRAME_SHAPE, np.uint8)
    frame[:32] = 255 * bits.repeat(8, axis=0).repeat(8, axis=1)[..., None]  # [32, 64, 1]
    frame[32:] = (25 * variant, 255 - 25 * variant, 80 * (variant % 4))
    return frame


def read_counter(frame: Frame) -> tuple[int, int, int]:
    """(variant, episode, step) of a frame [64, 64, 3]; block means, so that a blurred frame still reads."""
    blocks = frame[:32].reshape(4, 8, 8, 8, 3)  # [row, y, column, x, channel]
    variant, high, low, step = np.packbits(blocks.mean(axis=(1, 3, 4)) > 127.5).tolist()
    return variant, 256 * high + low, step


class CountingEnv:
    """Reward 1 for the right action of the step that the frame shows, else 0; ends after 7 to 13 steps.

    The right action of a discrete variant at step t is (variant + t) mod its number of legal actions. Of "slide" it is
    any within 0.5 of (0.5, 0.5) at even steps and (-0.5, 0.5) at odd ones; being right is also its "success".
    Even variants lose a life at step 4. Only the length of an episode is random, and only the seed decides it.

    Args:
        name: a key of VARIANTS.
        seed: of the lengths, until a reset brings another.
        fail_at: steps after construction at which to raise RuntimeError, 0 for the first reset; None for never.
        hang_at: likewise, when to sleep for an hour, as a simulator that hangs.
    Raises: ValueError if fail_at or hang_at is neither None nor a count.
    """

    def __init__(self, name: str, *, seed: int, fail_at: object = None, hang_at: object = None) -> None:
        for option, at in (("fail_at", fail_at), ("hang_at", hang_at)):
            if at is not None and (not isinstance(at, int) or at < 0):
                raise ValueError(f"{option} counts steps, got {at!r}, expected None or an int >= 0: leave it out")
        self._variant = VARIANTS[name]
        self._fail_at, self._hang_at = fail_at, hang_at
        self._rng = np.random.default_rng(seed)
        self._total_steps, self._episode, self._step, self._length = 0, -1, 0, 0
        discrete = self._variant != SLIDE_VARIANT
        num_actions = 3 + self._variant % 3 if discrete else 2
        # Every fourth variant forbids its last action, so that masks have something to mask.
        num_legal = num_actions - (discrete and self._variant % 4 == 3)
        legal = tuple(index < num_legal for index in range(num_actions))
        self.task = TaskSpec(f"dummy:{name}", discrete, num_actions, legal, frame_skip=1, protocol="counting")

    def reset(self, *, seed: int | None = None) -> tuple[Frame, dict[str, object]]:
        """Open the next episode. Raises: RuntimeError if set to fail now."""
        self._fail_if_set()
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._episode += 1
        self._step = 0
        self._length = int(self._rng.integers(7, 14))
        return draw_counter(self._variant, self._episode, 0), {}

    def step(self, action: Action) -> tuple[Frame, float, bool, bool, dict[str, object]]:
        """Count one up. Raises: RuntimeError if the episode is over or if set to fail now; ValueError if illegal."""
        if self._step >= self._length:
            raise RuntimeError(f"{self.task.name}: no episode is running: call reset first")
        self._fail_if_set()
        right = self._is_right(action)
        self._step += 1
        self._total_steps += 1
        ended = self._step == self._length
        terminates = self._variant % 2 == 0
        info: dict[str, object] = {"life_lost": terminates and self._step == 4}
        if not self.task.discrete:
            info["success"] = right
        frame = draw_counter(self._variant, self._episode, self._step)
        return frame, float(right), ended and terminates, ended and not terminates, info

    def close(self) -> None:
        """Nothing to free."""

    def state_dict(self) -> dict[str, Any]:
        """See base.Resumable."""
        counts = {"total_steps": self._total_steps, "episode": self._episode, "step": self._step}
        return {**counts, "length": self._length, "rng": self._rng.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See base.Resumable."""
        self._total_steps, self._episode, self._step = state["total_steps"], state["episode"], state["step"]
        self._length, self._rng.bit_generator.state = state["length"], state["rng"]

    def _is_right(self, action: Action) -> bool:
        if self.task.discrete:
            index = int(action)
            if not 0 <= index < self.task.num_actions or not self.task.legal[index]:
                raise ValueError(f"{self.task.name}: got action {index}, legal are {self.task.legal}: take a legal one")
            return index == (self._variant + self._step) % sum(self.task.legal)
        target = np.array([-0.5 if self._step % 2 else 0.5, 0.5], np.float32)
        return bool(np.abs(np.asarray(action) - target).max() <= 0.5)

    def _fail_if_set(self) -> None:
        if self._hang_at == self._total_steps:
            time.sleep(3600)
        if self._fail_at == self._total_steps:
            raise RuntimeError(f"{self.task.name}: fails at step {self._fail_at}, as set")


make = CountingEnv
