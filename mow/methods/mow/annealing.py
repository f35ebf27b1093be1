"""Numbers that change linearly with the world model's updates: step sizes, temperature and noise of the router, entropy
bonus; and the precision of updates.
"""

import torch
from torch import Tensor

from mow.losses import entropy_unit
from mow.methods.mow.config import MowConfig
from mow.methods.mow.optim import uses_bf16
from mow.methods.mow.update_graph import UpdateGraphs
from mow.nn.policy import ActionMask


class Annealed:
    """The numbers as they are after `updates` updates."""

    config: MowConfig
    device: torch.device
    mask: ActionMask
    world_model_optimisers: list[torch.optim.Optimizer]
    agent_optimisers: list[torch.optim.Optimizer]
    updates: int
    graphs: UpdateGraphs | None

    def _progress(self, number: int) -> float:
        """Share of the world model's first `number` updates that are done: 0 to 1."""
        return min(1.0, self.updates / number) if number > 0 else 1.0

    @property
    def entropy(self) -> float:
        """eta: falls linearly to `final_entropy` times what it began with, in `entropy_updates`."""
        config = self.config.actor_critic
        progress = self._progress(config.entropy_updates or self.config.world_model_updates)
        return config.entropy * (1.0 - (1.0 - config.final_entropy) * progress)

    @property
    def temperature(self) -> float:
        """Falls linearly over the first `anneal_updates` of the world model."""
        routing = self.config.model.routing
        progress = self._progress(routing.anneal_updates)
        return (1.0 - progress) * routing.temperature_start + progress * routing.temperature_end  # exact at both ends

    @property
    def noise(self) -> float:
        """Scale of the noise on the router's logits: it falls with the temperature."""
        config = self.config.model.routing
        return config.noise * (self.temperature - config.temperature_end)

    def _set_numbers(self) -> None:
        """Fill the tensors that stand for the numbers where updates are recorded."""
        if self.graphs is not None:
            for name, number in self.graphs.numbers.items():
                number.fill_(getattr(self, name))

    def _number(self, name: str) -> float | Tensor:
        """The number, or the tensor that stands for it."""
        return getattr(self, name) if self.graphs is None else self.graphs.numbers[name]

    @property
    def _optimisers(self) -> list[torch.optim.Optimizer]:
        return [*self.world_model_optimisers, *self.agent_optimisers]

    @property
    def entropy_of_tasks(self) -> Tensor:
        """eta of each task as `entropy_scale` has it: [K]; a tensor, because a number is a constant if compiled."""
        if self.config.actor_critic.entropy_scale == "none":
            return torch.ones(len(self.config.tasks), device=self.device) * self._number("entropy")
        return self._number("entropy") / entropy_unit(self.mask.discrete, self.mask.continuous)

    def _anneal(self) -> None:
        """Step sizes for the next updates: they fall linearly to `final_lr` times what they began with."""
        share = 1.0 - (1.0 - self.config.optim.final_lr) * self._progress(self.config.world_model_updates)
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                lr = share * group.setdefault("initial_lr", group["lr"])
                group["lr"] = lr if self.graphs is None else group["lr"].fill_(lr)
        self._set_numbers()

    def autocast(self) -> torch.autocast:
        """Precision of the config on this device."""
        enabled = uses_bf16(self.config, self.device)
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)
