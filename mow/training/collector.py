"""Steps all environments and writes what happens to replay."""

from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mow.envs.base import Episode
from mow.envs.vector import VectorEnv
from mow.replay import ReplayBuffer
from mow.training.acting import ActingMemory
from mow.training.learner import Learner


@dataclass
class TaskScores:
    """Finished episodes of one task."""

    recent: deque[float]
    episodes: int = 0

    def mean(self) -> float | None:
        """Mean return of the last episodes; None before the first has ended."""
        return float(np.mean(self.recent)) if self.recent else None


class Collector:
    """Random steps for the prefill, then steps of the agent with a little randomness left.

    Atari's lost lives are stored as terminations; the episode itself goes on. Source: STORM.
    """

    def __init__(
        self, envs: VectorEnv, replay: ReplayBuffer, *, seed: int, random_action: float, context: int
    ) -> None:
        self.envs, self.replay = envs, replay
        self.random_action = random_action
        self.memory = ActingMemory(context)
        self.rng = np.random.default_rng(seed)
        self.scores = {spec.name: TaskScores(deque(maxlen=10)) for spec in envs.specs}
        self.frame, self.is_first = envs.reset()

    def random_step(self) -> tuple[Episode, ...]:
        """One step of every task with a uniformly random legal action."""
        return self._step(self.envs.layout.random(self.rng))

    @torch.no_grad()
    def agent_step(self, learner: Learner) -> tuple[Episode, ...]:
        """One step of every task with the agent's action, now and then a random one."""
        learner.world_model.eval()
        device = learner.device
        frame, is_first = torch.from_numpy(self.frame).to(device), torch.from_numpy(self.is_first).to(device)
        chosen = self.memory.act(
            learner.world_model, learner.agent, learner.routing(), frame, is_first, learner.rng
        )
        action = chosen.cpu().numpy()
        explore = self.rng.random(len(action)) < self.random_action
        action = np.where(explore[:, None], self.envs.layout.random(self.rng), action)
        self.memory.took(torch.from_numpy(action).to(device))
        return self._step(action)

    def _step(self, action: NDArray[np.float32]) -> tuple[Episode, ...]:
        step = self.envs.step(action)
        self._check_reward(step.reward)
        terminated = step.terminated | step.life_lost
        self.replay.add(self.frame, action, step.reward, terminated, step.truncated, self.is_first)
        self.frame, self.is_first = step.frame, step.is_first
        for episode in step.finished:
            score = self.scores[episode.task]
            score.recent.append(episode.episode_return)
            score.episodes += 1
        return step.finished

    def _check_reward(self, reward: NDArray[np.float32]) -> None:
        """Raises: FloatingPointError naming the task if a reward [K] is not finite; nothing of the step is kept."""
        if not np.isfinite(reward).all():
            k = int(np.isfinite(reward).argmin())
            raise FloatingPointError(
                f"the reward of {self.envs.specs[k].name} is {reward[k]} at step {self.replay.num_steps}: mend the "
                "environment, then go on with --resume, or start again"
            )

    def reorder(self, order: tuple[int, ...]) -> None:
        """Sort environments, replay and the current observation: task k becomes the old task order[k]."""
        self.envs.reorder(order)
        self.replay.reorder(order)
        self.frame, self.is_first = self.frame[list(order)], self.is_first[list(order)]
