"""Acting: every action reads the newest observation. a = tanh(mu(E(o)) + sigma eps), in evaluation tanh(mu(E(o)))."""

from typing import Any

import torch
from torch import Tensor

from mow.methods.base import ActorOutput, State


class PwmActor:
    """Acts with the present weights of a learner; it has no memory."""

    def __init__(self, learner: Any, *, explore: bool) -> None:
        """Args: learner: mow.methods.pwm.learner.Learner. explore: False acts without noise."""
        self._learner, self._explore = learner, explore

    @torch.no_grad()
    def act(self, frame: Tensor, is_first: Tensor) -> ActorOutput:
        """Args: frame: states [K, O] or [K, B, O]. Returns: actions [K, A] or [K, B, A]."""
        learner, single = self._learner, frame.dim() == 2
        state = frame.unsqueeze(1) if single else frame
        noise = learner.noise(state.shape[1]) if self._explore else None
        action = learner.actors(learner.seen(learner.world_model.encode(state)), noise)  # [K, B, A]
        return ActorOutput(action[:, 0] if single else action)

    def record(self, action: Tensor) -> None:
        """Nothing is kept."""

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        """Nothing was kept."""
