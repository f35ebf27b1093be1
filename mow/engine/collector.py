"""Steps all environments and writes the transitions to replay."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from mow.engine.recorded import RecordedEpisodes
from mow.envs.base import ActionLayout, EnvFailure, EnvStep
from mow.envs.vector import VectorEnv
from mow.methods.base import Actor
from mow.nn.finite import check_actions
from mow.replay import ReplayBuffer


class RecentReturns(deque[float]):
    """Returns of the last ten finished episodes of a task."""

    def __init__(self, returns: Iterable[float] = ()) -> None:
        super().__init__(returns, maxlen=10)

    def mean(self) -> float | None:
        """None before the first episode has ended."""
        return float(np.mean([*self])) if self else None


class Collector:
    """Steps of all tasks, by random actions or by an actor with a little randomness left.

    Atari's lost lives are stored as terminations; the episode itself goes on. Source: STORM.
    """

    def __init__(
        self, envs: VectorEnv, replay: "ReplayBuffer | RecordedEpisodes", *, seed: int,
        layout: ActionLayout | None = None, own: slice = slice(None),
    ) -> None:  # fmt: skip
        """Args: layout, own: of all tasks of the run, and which of them these are; random actions are drawn for all."""
        self.envs, self.replay = envs, replay
        self.layout, self.own = layout or envs.layout, own
        if layout is not None:
            envs.layout = layout.rows(own)
        self.rng = np.random.default_rng(seed)
        self.scores = {spec.name: RecentReturns() for spec in envs.specs}
        self.restarts = 0  # of simulators, each for one task
        self.frame, self.is_first = envs.reset()
        self.is_last = np.zeros_like(self.is_first)  # [K] `frame` is the final one of its episode
        self._action: NDArray[np.float32] | None = None  # [K, A] on its way
        self._extra: Mapping[str, NDArray[np.float32]] = {}  # columns that go with it

    def begin_random_step(self) -> None:
        """Act in every task, uniformly at random among the legal actions; `end_step` must follow."""
        self.begin_step(self.layout.random(self.rng)[self.own])

    @torch.no_grad()
    def begin_agent_step(self, actor: Actor, device: torch.device, random_action: float) -> None:
        """Act in every task by `actor`, with probability `random_action` at random; `end_step` must follow.

        Raises: FloatingPointError if broken weights give an action that is not finite.
        """
        frame, is_first = torch.from_numpy(self.frame).to(device), torch.from_numpy(self.is_first).to(device)
        chosen = actor.act(frame, is_first)
        action = chosen.action.cpu().numpy()
        check_actions(action, self.envs.layout, [spec.name for spec in self.envs.specs])
        explore = self.rng.random(len(self.layout.discrete))[self.own] < random_action
        action = np.where(explore[:, None], self.layout.random(self.rng)[self.own], action)
        actor.record(torch.from_numpy(action).to(device))
        self.begin_step(action, {name: column.cpu().numpy() for name, column in chosen.extra.items()})

    def begin_step(self, action: NDArray[np.float32], extra: Mapping[str, NDArray[np.float32]] | None = None) -> None:
        """Take `action` [K, A] in every task; `end_step` must follow. Args: extra: columns of the method [K, n]."""
        self.envs.send(action)
        self._action, self._extra = action, extra or {}

    def end_step(self, most: Callable[[int], int] = lambda number: number) -> EnvStep:
        """Wait for the environments and store their step.

        The action chosen at a final frame was not taken, and zeros are stored for it.
        Args: most: the largest of the numbers of all ranks.
        Raises: EnvFailure if one fails for good, on any rank; nothing is stored then.
        """
        assert self._action is not None, "a step begins first"
        action, self._action = self._action, None
        try:
            step = self.envs.receive()
        except EnvFailure:
            most(1)
            raise
        if most(0):
            self.envs.abandon()  # its step is lost on all ranks
            raise EnvFailure("a simulator of another rank fails for good")
        action = np.where(self.is_last[:, None], np.float32(0), action)
        terminated = step.terminated | step.life_lost
        assert isinstance(self.replay, ReplayBuffer), "nothing is added to recorded episodes"
        self.replay.add(
            self.frame, action, step.reward, terminated, step.truncated, self.is_first, self.is_last, **self._extra
        )
        self.frame, self.is_first, self.is_last = step.frame, step.is_first, step.is_last
        for episode in step.finished:
            self.scores[episode.task].append(episode.episode_return)
        self.restarts += sum(len(restart.tasks) for restart in step.restarts)
        return step

    def reorder(self, order: tuple[int, ...]) -> None:
        """Sort environments, replay and the current observation: task k becomes the old task order[k]."""
        self.envs.reorder(order)
        self.layout = self.layout.rows(order)
        self.replay.reorder(order)
        index = list(order)
        self.frame, self.is_first, self.is_last = self.frame[index], self.is_first[index], self.is_last[index]
