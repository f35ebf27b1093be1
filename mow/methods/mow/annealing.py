"""Numbers that change linearly with the world model's updates: temperature and noise of the router, entropy bonus."""

from torch import Tensor

from mow.methods.mow.config import MowConfig
from mow.methods.mow.update_graph import UpdateGraphs


class Annealed:
    """The numbers as they are after `updates` updates."""

    config: MowConfig
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
