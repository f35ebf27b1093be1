"""Evaluation of the agent: whole episodes in fresh environments, no exploration, nothing stored.

Every task plays the same number of episodes, shared out among the copies of its environment before they begin: the
first to end are not favoured by being short, because each copy goes on until it has its number, and what it plays
later is left out. An episode whose simulator fails is lost, and another is played in its place.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from mow.envs.vector import VectorEnv
from mow.methods.base import Learner


@dataclass(frozen=True)
class TaskEvaluation:
    """Finished episodes of one task, copy after copy, each in order."""

    task: str
    returns: tuple[float, ...]
    lengths: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Mean return, units of the task."""
        return float(np.mean(self.returns))


class ScoringProgress:
    """Counts episodes and steps, and prints a line now and then.

    `episode` and `step` are what `evaluate` takes as `on_episode` and `check_stop`.

    Args: num_tasks: K. episodes: that count, per task. say: prints a line. check_stop: raises to stop.
    """

    SECONDS = 30.0  # between two lines

    def __init__(
        self, num_tasks: int, episodes: int, say: Callable[[str], None], check_stop: Callable[[], None]
    ) -> None:
        self.total, self.ended, self.steps = num_tasks * episodes, 0, 0  # episodes, episodes, steps of all tasks
        self._say, self._check_stop, self._said = say, check_stop, time.monotonic()

    @property
    def line(self) -> str:
        """`12 of 60 episodes, 3,400 steps`."""
        return f"{self.ended:,} of {self.total:,} episodes, {self.steps:,} steps"

    def episode(self, k: int) -> None:
        """One more episode of task k has ended."""
        self.ended += 1

    def step(self) -> None:
        """A step of all tasks begins. Raises: what `check_stop` raises."""
        self._check_stop()
        if time.monotonic() - self._said >= self.SECONDS:
            self._said = time.monotonic()
            self._say(self.line)
        self.steps += 1


@torch.no_grad()
def evaluate(
    learner: Learner,
    envs: VectorEnv,
    *,
    episodes: int,
    max_steps: int,
    on_episode: Callable[[int], None] = lambda k: None,
    check_stop: Callable[[], None] = lambda: None,
    own: slice = slice(None),
) -> list[TaskEvaluation]:
    """Play until every task has finished `episodes` episodes; actions are those of the learner's actor for evaluation.

    Args:
        envs: fresh environments in the learner's task order, each task as many times in a row as the others: copies,
            that play its episodes side by side.
        max_steps: agent steps per copy after which it ends all the same; a task may then have fewer episodes, or none.
        on_episode: called with the task's index in `learner.tasks` when an episode that counts has ended.
        check_stop: called once before every step of all tasks; it stops the play by raising.
        own: which of the learner's tasks the environments and its actors are of.
    Raises: what `check_stop` raises.
    Source: STORM (sampled actions).
    """
    actor, device = learner.actor(explore=False), learner.device
    num_tasks = len(learner.tasks[own])
    copies = len(envs.specs) // num_tasks
    wanted = [episodes // copies + (copy < episodes % copies) for _ in range(num_tasks) for copy in range(copies)]
    played: list[list[tuple[float, int]]] = [[] for _ in wanted]  # return and length, by slot
    frame, is_first = envs.reset()
    for _ in range(max_steps):
        check_stop()
        seen = torch.from_numpy(frame).to(device).unflatten(0, (num_tasks, copies))  # [K, B, ...]
        opens = torch.from_numpy(is_first).to(device).unflatten(0, (num_tasks, copies))
        action = actor.act(seen, opens).action  # [K, B, A]
        actor.record(action)
        step = envs.step(action.flatten(0, 1).cpu().numpy())
        frame, is_first = step.frame, step.is_first
        for episode in step.finished:
            if len(played[episode.index]) < wanted[episode.index]:
                played[episode.index].append((episode.episode_return, episode.length))
                on_episode(episode.index // copies)
        if all(len(found) == number for found, number in zip(played, wanted, strict=True)):
            break
    evaluations = []
    for k in range(num_tasks):
        counted = [episode for slot in range(k * copies, (k + 1) * copies) for episode in played[slot]]
        returns, lengths = zip(*counted, strict=True) if counted else ((), ())
        evaluations.append(TaskEvaluation(envs.specs[k * copies].name, returns, lengths))
    return evaluations
