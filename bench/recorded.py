"""Frames to measure replay on: random play of Atari games, or synthetic sprites where the emulator is missing."""

import importlib.util

import numpy as np
from numpy.typing import NDArray

from mow.envs import make
from mow.envs.base import FRAME_SHAPE
from mow.envs.task_sets import ATARI26

# Played steps per game; more are copies of these in memory of their own. A multiple of a packed block's eight.
_PLAYED = 512


def recorded_frames(num_tasks: int, num_steps: int) -> tuple[NDArray[np.uint8], str]:
    """Returns: frames uint8 [K, N, 64, 64, 3] in one array, and a description of them."""
    frames = np.empty((num_tasks, num_steps, *FRAME_SHAPE), dtype=np.uint8)
    played = min(num_steps, _PLAYED)
    real = emulator_is_here() and num_tasks <= len(ATARI26)
    for task in range(num_tasks):
        if real:
            _play(ATARI26[task], frames[task, :played])
        else:
            _draw_sprites(task, frames[task, :played])
    frames[:, played:] = frames[:, np.arange(played, num_steps) % played]
    source = "random play of Atari games" if real else "synthetic sprites (ale_py is missing)"
    repeated = f", {played:,} of them repeated" if played < num_steps else ""
    return frames, f"{source}, {num_tasks} x {num_steps:,} frames{repeated}"


def emulator_is_here() -> bool:
    return importlib.util.find_spec("ale_py") is not None


def _play(name: str, frames: NDArray[np.uint8]) -> None:
    env = make(name, seed=0, options={})
    legal = np.flatnonzero(env.task.legal)
    random, over = np.random.default_rng(0), True
    for t in range(len(frames)):
        if over:
            frames[t], over = env.reset()[0], False
        else:
            frames[t], _, terminated, truncated, _ = env.step(int(random.choice(legal)))
            over = terminated or truncated
    env.close()


def _draw_sprites(task: int, frames: NDArray[np.uint8]) -> None:
    """A still background of coloured tiles, six squares that move by a pixel or two per step."""
    random = np.random.default_rng(task)
    tiles = random.integers(0, 256, size=(8, 8, 3), dtype=np.uint8)
    frames[...] = tiles.repeat(8, axis=0).repeat(8, axis=1)
    place, speed = random.integers(0, 60, size=(6, 2)), random.integers(-2, 3, size=(6, 2))
    colour = random.integers(0, 256, size=(6, 3), dtype=np.uint8)
    for step, frame in enumerate(frames):
        for (y, x), shade in zip((place + step * speed) % 60, colour, strict=True):
            frame[y : y + 4, x : x + 4] = shade
