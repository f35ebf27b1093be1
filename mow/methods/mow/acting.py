"""Acting in real environments: the newest frame's posterior and a short memory that ends with the episode.

    z_t ~ q(z | o_t, e_k),   h_{t-1} = F(last tokens of this episode),   a_t ~ pi(z_t, z_{t-1}, h_{t-1})

Source: OC-STORM (posterior of the current frame, context cleared at episode ends). Differs: STORM samples z_t from the
prior and lets the context run across episodes.
"""

from collections import deque
from typing import Any

import torch
from torch import Tensor

from mow.kernels import PhiloxState
from mow.methods.base import ActorOutput
from mow.methods.mow.actor_critic import Agent
from mow.methods.mow.router import Routing
from mow.methods.mow.world_model import WorldModel


class MowActor:
    """Acts with the present weights of a learner, and a memory of its own."""

    def __init__(self, learner: Any, context: int) -> None:
        """Args: learner: mow.methods.mow.learner.Learner. context: steps of the episode in the memory."""
        self._learner, self._memory = learner, ActingMemory(context)
        self.record, self.state_dict = self._memory.record, self._memory.state_dict

    @torch.no_grad()
    def act(self, frame: Tensor, is_first: Tensor) -> ActorOutput:
        """Sampled actions [K, A] or [K, B, A]; see ActingMemory.act."""
        learner = self._learner
        if learner.own_model.training:  # the walk through all layers takes a tenth of a small step
            learner.own_model.eval()
        with learner.weight_cache.use():
            routing = learner.cached_routing()
            action = self._memory.act(learner.own_model, learner.own_agent, routing, frame, is_first, learner.rng)
        return ActorOutput(action)

    def load_state_dict(self, state: list[list[Tensor]]) -> None:
        self._memory.load_state_dict(state, self._learner.rng.seed_offset.device)


class ActingMemory:
    """The last tokens of every task, up to `capacity`."""

    def __init__(self, capacity: int) -> None:
        self._tokens: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=capacity)
        self._seen: tuple[Tensor, Tensor]  # latent and is_first of the last frames

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
        self._seen = latent, is_first
        action, _ = agent.policy(agent.actor_critic_input(latent, hidden, before), model.embedding("actor")).sample(rng)
        return action[:, 0, 0] if single else action[:, :, 0]

    def record(self, action: Tensor) -> None:
        """Keep the actions taken at the last frames: [K, A] or [K, B, A]."""
        latent, is_first = self._seen
        self._tokens.append((latent, action.reshape(*latent.shape[:3], -1), is_first))

    def state_dict(self) -> list[list[Tensor]]:
        """The tokens kept; valid between `record` and `act`."""
        return [[*token] for token in self._tokens]

    def load_state_dict(self, state: list[list[Tensor]], device: torch.device) -> None:
        """Take the tokens of another memory."""
        self._tokens.clear()
        self._tokens.extend((latent.to(device), action.to(device), first.to(device)) for latent, action, first in state)

    def _hidden(self, model: WorldModel, routing: Routing, like: Tensor) -> Tensor:
        """h_{t-1}, or zeros where there is no past."""
        if not self._tokens:
            return like.new_zeros(*like.shape[:2], 1, model.config.width)
        latent, action, is_first = (torch.cat(parts, dim=2) for parts in zip(*self._tokens, strict=True))
        return model.sequence_model(latent, action, model.window(is_first), routing)[:, :, -1:].float()
