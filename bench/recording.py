"""A fixed recording of play without an agent: what a world model is trained on, and what it is measured on."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mow.batch import TransitionBatch
from mow.engine.collector import Collector
from mow.envs.base import ActionLayout
from mow.envs.vector import make_vector
from mow.methods.mow.config import MowConfig
from mow.replay import ReplayBuffer

_LONGEST_HOLD = 8  # steps that one action is kept for


@dataclass(frozen=True)
class Recording:
    """Two independent replays of the same play policy, and the layout of their actions."""

    layout: ActionLayout
    train: ReplayBuffer
    held_out: ReplayBuffer

    def windows(self, num_windows: int, length: int, counter: int, *, held_out: bool = True) -> TransitionBatch:
        """Windows [K, B, L, ...] of one of the two; the same counter gives the same windows."""
        replay = self.held_out if held_out else self.train
        return replay.sample(num_windows, length, counter=counter, stream=0)


def record(config: MowConfig, *, steps: int, held_out: int) -> Recording:
    """Play mixed actions: in half of all episodes uniform at every step, in the others each action is held for 1 to 8.

    Args: steps, held_out: steps per task of the two replays; final frames count where the config collects them.
    """
    layout, train = _play(config, steps, 2 * config.seed)
    return Recording(layout, train, _play(config, held_out, 2 * config.seed + 1)[1])


def _play(config: MowConfig, steps: int, seed: int) -> tuple[ActionLayout, ReplayBuffer]:
    tasks = config.tasks
    rng = np.random.default_rng(seed)
    with make_vector(
        tasks, seed=seed, num_workers=0, options=config.env.options, final_frames=config.final_frames
    ) as envs:
        replay = ReplayBuffer(len(tasks), steps, (64, 64, 3), envs.layout.size, seed=seed)
        collector = Collector(envs, replay, seed=seed)
        action = envs.layout.random(rng)
        left: NDArray[np.integer] = np.zeros(len(tasks), np.int64)  # steps that the action of each task is still held
        holds = rng.random(len(tasks)) < 0.5
        for _ in range(steps):
            holds = np.where(collector.is_first, rng.random(len(tasks)) < 0.5, holds)
            renew = (left <= 0) | ~holds
            action = np.where(renew[:, None], envs.layout.random(rng), action)
            left = np.where(renew, rng.integers(1, _LONGEST_HOLD + 1, len(tasks)), left) - 1
            collector.begin_step(action)
            collector.end_step()
        return envs.layout, replay


def unbroken(batch: TransitionBatch, steps: int) -> Tensor:
    """[K, B] bool: the window's first `steps` steps lie in one episode."""
    return ~batch.is_first[:, :, 1:steps].any(dim=-1)
