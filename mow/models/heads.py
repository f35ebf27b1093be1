"""What is read off the hidden state: next latent, reward and termination per cluster, the task for all together."""

import torch
from torch import Tensor, nn

from mow.batch import Prediction
from mow.config import WorldModelConfig
from mow.kernels import RoutePlan
from mow.models.modular import ModularLinear, ModularMLP


class Heads(nn.Module):
    """g^D, g^R, g^C (per module, see e_k) and g^T (one for all, must not see e_k). Source: MoW section 3, STORM."""

    def __init__(self, config: WorldModelConfig, num_modules: int, num_tasks: int, embedding_size: int) -> None:
        super().__init__()
        width, d = config.width, embedding_size
        self.latent_shape = (config.perception.groups, config.perception.classes)
        self.next_latent = ModularLinear(num_modules, width, config.perception.latent_size, embedding_size=d)
        self.reward = ModularMLP(num_modules, width, width, config.num_bins, embedding_size=d, zero_output=True)
        self.termination = ModularMLP(num_modules, width, width, 1, embedding_size=d)
        self.task = ModularMLP(1, width, width, num_tasks) if config.task_head else None

    def forward(self, hidden: Tensor, plan: RoutePlan, shared: RoutePlan, embedding: Tensor | None) -> Prediction:
        """hidden [K, B, L, D]; `plan` names each task's module, `shared` leads to the task head."""
        reward_logits, termination_logits = self.outcome(hidden, plan, embedding)
        return Prediction(
            next_latent_logits=self.foretell(hidden, plan, embedding),
            reward_logits=reward_logits,
            termination_logits=termination_logits,
            task_logits=None if self.task is None else self.task(_rows(hidden), shared).view(*hidden.shape[:3], -1),
        )

    def foretell(self, hidden: Tensor, plan: RoutePlan, embedding: Tensor | None) -> Tensor:
        """Prior logits of the next latent: [K, B, L, D] -> [K, B, L, S, C]."""
        return self.next_latent(_rows(hidden), plan, embedding).view(*hidden.shape[:3], *self.latent_shape)

    def outcome(self, hidden: Tensor, plan: RoutePlan, embedding: Tensor | None) -> tuple[Tensor, Tensor]:
        """Reward logits [K, B, L, V] and termination logits [K, B, L] of the action in h_t."""
        rows = _rows(hidden)
        reward = self.reward(rows, plan, embedding).view(*hidden.shape[:3], -1)
        return reward, self.termination(rows, plan, embedding).view(hidden.shape[:3])


def _rows(hidden: Tensor) -> Tensor:
    return hidden.flatten(1, 2).unsqueeze(1)  # [K, 1, B * L, D]


def same_for_all(num_tasks: int, num_modules: int, device: torch.device) -> RoutePlan:
    """Every task uses module 0."""
    return RoutePlan(torch.zeros(num_tasks, 1, dtype=torch.long, device=device), num_modules)
