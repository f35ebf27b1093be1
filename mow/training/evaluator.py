"""What the agent scores: whole episodes in fresh environments, no exploration, nothing stored.

Every task plays the same number of episodes, counted from its first reset: the first to end are not favoured by being
short, because a task goes on until it has its number and the later ones are left out. An episode whose simulator fails
is lost, and another is played in its place.
"""

from dataclasses import dataclass

import numpy as np
import torch

from mow.envs.vector import VectorEnv
from mow.training.acting import ActingMemory
from mow.training.learner import Learner


@dataclass(frozen=True)
class TaskEvaluation:
    """Finished episodes of one task, in order."""

    task: str
    returns: tuple[float, ...]
    lengths: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Mean return, units of the task."""
        return float(np.mean(self.returns))


@torch.no_grad()
def evaluate(learner: Learner, envs: VectorEnv, *, episodes: int, max_steps: int) -> list[TaskEvaluation]:
    """Play until every task has finished `episodes` episodes; actions are drawn from the policy.

    Args:
        envs: fresh environments in the learner's task order.
        max_steps: agent steps per task after which it ends all the same; a task may then have fewer episodes, or none.
    Source: STORM (sampled actions).
    """
    learner.world_model.eval()
    routing, memory, device = learner.routing(), ActingMemory(learner.config.schedule.acting_context), learner.device
    returns: list[list[float]] = [[] for _ in envs.specs]
    lengths: list[list[int]] = [[] for _ in envs.specs]
    frame, is_first = envs.reset()
    for _ in range(max_steps):
        seen = torch.from_numpy(frame).to(device), torch.from_numpy(is_first).to(device)
        action = memory.act(learner.world_model, learner.agent, routing, *seen, learner.rng)
        memory.took(action)
        step = envs.step(action.cpu().numpy())
        frame, is_first = step.frame, step.is_first
        for episode in step.finished:
            if len(returns[episode.index]) < episodes:
                returns[episode.index].append(episode.episode_return)
                lengths[episode.index].append(episode.length)
        if all(len(found) == episodes for found in returns):
            break
    return [
        TaskEvaluation(spec.name, tuple(r), tuple(n)) for spec, r, n in zip(envs.specs, returns, lengths, strict=True)
    ]
