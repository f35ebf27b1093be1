"""Acting in real environments: the newest frame's posterior and a short memory that ends with the episode.

    z_t ~ q(z | o_t, e_k),   h_{t-1} = F(last tokens of this episode),   a_t ~ pi(z_t, z_{t-1}, h_{t-1})

Source: OC-STORM (posterior of the current frame, context cleared at episode ends). Differs: STORM samples z_t from the
prior and lets the context run across episodes.
"""

from collections import deque
from typing import Protocol

import torch
from torch import Tensor

from mow.kernels import PhiloxState
from mow.methods.base import ActorOutput
from mow.methods.mow.actor_critic import Agent
from mow.methods.mow.router import Routing
from mow.methods.mow.world_model import WorldModel
from mow.nn.weight_cache import WeightCache


class Agents(Protocol):
    """The part of a learner that acting reads, as it is at each step."""

    world_model: WorldModel
    agent: Agent
    rng: PhiloxState
    weight_cache: WeightCache

    def cached_routing(self) -> Routing: ...


class MowActor:
    """Acts with the present weights of a learner, and a memory of its own."""

    def __init__(self, learner: Agents, context: int) -> None:
        """Args: context: steps of the episode that are remembered."""
        self._learner, self._memory = learner, ActingMemory(context)

    @torch.no_grad()
    def act(self, frame: Tensor, is_first: Tensor) -> ActorOutput:
        """Sampled actions [K, A] or [K, B, A]; see ActingMemory.act."""
        learner = self._learner
        if learner.world_model.training:  # the walk through all layers takes a tenth of a small step
            learner.world_model.eval()
        with learner.weight_cache.use():
            routing = learner.cached_routing()
            action = self._memory.act(learner.world_model, learner.agent, routing, frame, is_first, learner.rng)
        return ActorOutput(action)

    def record(self, action: Tensor) -> None:
        self._memory.record(action)

    def state_dict(self) -> list[list[Tensor]]:
        return self._memory.state_dict()

    def load_state_dict(self, state: list[list[Tensor]]) -> None:
        self._memory.load_state_dict(state, self._learner.rng.seed_offset.device)


class ActingMemory:
    """The last tokens of every task, up to `capacity`."""

    def __init__(self, capacity: int) -> None:
        self._tokens: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=capacity)
        self._latent: Tensor | None = None
        self._is_first: Tensor | None = None

    @torch.no_grad()
    def act(
        self, model: WorldModel, agent: Agent, routing: Routing, frame: Tensor, is_first: Tensor, rng: PhiloxState
    ) -> Tensor:
        """Args:
            frame: [K, 64, 64, 3] uint8, the newest observation of every task; or [K, B, 64, 64, 3], of B episodes each.
            is_first: [K] or [K, B] bool, it opens an episode.
        Returns: actions [K, A] or [K, B, A]; call `record` with those that were taken in the end.
        """
        single = frame.dim() == 4
        if single:
            frame, is_first = frame.unsqueeze(1), is_first.unsqueeze(1)
        is_first = is_first.unsqueeze(-1)  # [K, B, 1]
        latent = model.sample(model.encode(frame.unsqueeze(2)), rng)  # [K, B, 1, Z]
        hidden = self._hidden(model, routing, latent).masked_fill(is_first.unsqueeze(-1), 0.0)  # [K, B, 1, D]
        before = self._tokens[-1][0] if self._tokens else torch.zeros_like(latent)
        before = before.masked_fill(is_first.unsqueeze(-1), 0.0)  # [K, B, 1, Z]
        self._latent, self._is_first = latent, is_first
        action, _ = agent.policy(agent.actor_critic_input(latent, hidden, before), model.embedding("actor")).sample(rng)
        return action[:, 0, 0] if single else action[:, :, 0]

    def record(self, action: Tensor) -> None:
        """Keep the actions taken at the last frames: [K, A] or [K, B, A]."""
        assert self._latent is not None, "act comes first"
        assert self._is_first is not None, "act comes first"
        num_tasks, num_episodes = self._latent.shape[:2]
        self._tokens.append((self._latent, action.reshape(num_tasks, num_episodes, 1, -1), self._is_first))

    def state_dict(self) -> list[list[Tensor]]:
        """The tokens kept; valid between `record` and `act`."""
        return [[*token] for token in self._tokens]

    def load_state_dict(self, state: list[list[Tensor]], device: torch.device) -> None:
        """Take the tokens of another memory."""
        self._tokens.clear()
        for latent, action, is_first in state:
            self._tokens.append((latent.to(device), action.to(device), is_first.to(device)))

    def _hidden(self, model: WorldModel, routing: Routing, like: Tensor) -> Tensor:
        """h_{t-1}, or zeros where there is no past."""
        if not self._tokens:
            return like.new_zeros(*like.shape[:2], 1, model.config.width)
        latent, action, is_first = (torch.cat(parts, dim=2) for parts in zip(*self._tokens, strict=True))
        return model.sequence_model(latent, action, model.window(is_first), routing)[:, :, -1:].float()
