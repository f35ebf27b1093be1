"""Heads on a token: next latent, reward and termination per cluster, one task head for all."""

import torch
from torch import Tensor, nn

from mow.kernels import RoutePlan
from mow.methods.mow.config_model import WorldModelConfig
from mow.methods.mow.local_prior import LocalPrior
from mow.methods.mow.records import HeadInput, Prediction
from mow.nn.modular import ModularLinear, ModularMLP, for_matmul, rows_in


class DensePrior(nn.Module):
    """One Linear on h_t; no events. Source: STORM."""

    num_events = 0

    def __init__(self, config: WorldModelConfig, num_modules: int, embedding_size: int) -> None:
        super().__init__()
        latent_size = config.perception.latent_size
        self.next_latent = ModularLinear(num_modules, config.width, latent_size, embedding_size=embedding_size)

    def forward(self, head_input: HeadInput, plan: RoutePlan, embedding: Tensor | None) -> tuple[Tensor, Tensor]:
        """Prior logits [K, 1, B * L, Z] and events [K, 1, B * L, 0]."""
        hidden = rows_in(head_input.hidden)
        return self.next_latent(hidden, plan, embedding), hidden[..., :0]


class Heads(nn.Module):
    """g^D, g^R, g^C (per module, see e_k) and g^T (one for all, without e_k). Source: MoW section 3, STORM.

    All read h_t; g^R and g^C also read the events of the prior, where it has any, and z_{t+1} in the arrival form.
    Source of the arrival form: DreamerV3, whose reward head reads the state that o_{t+1} has entered.
    """

    def __init__(
        self, config: WorldModelConfig, num_modules: int, num_tasks: int, action_size: int, embedding_size: int
    ) -> None:
        super().__init__()
        width, d = config.width, embedding_size
        self.latent_shape = (config.perception.groups, config.perception.classes)
        self.prior: DensePrior | LocalPrior
        if config.prior == "local":
            self.prior = LocalPrior(config, num_modules, action_size, d)
        else:
            self.prior = DensePrior(config, num_modules, d)
        self.arrival = config.outcome == "arrival"
        in_features = width + self.prior.num_events + (config.perception.latent_size if self.arrival else 0)
        self.reward = ModularMLP(num_modules, in_features, width, config.num_bins, embedding_size=d, zero_output=True)
        self.termination = ModularMLP(num_modules, in_features, width, 1, embedding_size=d)
        self.task = ModularMLP(1, width, width, num_tasks) if config.task_head else None

    def forward(
        self, inputs: HeadInput, arrived: Tensor | None, plan: RoutePlan, shared: RoutePlan, embedding: Tensor | None
    ) -> Prediction:
        """`arrived`: z_{t+1} [K, B, L, Z]. `plan` names each task's module, `shared` leads to the task head."""
        logits, events = self.predict_next_latent(inputs, plan, embedding)
        reward, termination = self.predict_reward_and_end(inputs.hidden, events, arrived, plan, embedding)
        task = None
        if self.task is not None:
            task = self.task(rows_in(inputs.hidden), shared).view(*inputs.hidden.shape[:3], -1)
        return Prediction(logits, reward, termination, task)

    def predict_next_latent(
        self, inputs: HeadInput, plan: RoutePlan, embedding: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Prior logits of the next latent [K, B, L, S, C], and events [K, B, L, X] for `predict_reward_and_end`."""
        logits, events = self.prior(inputs, plan, embedding)
        shape = inputs.hidden.shape[:3]
        return logits.view(*shape, *self.latent_shape), events.view(*shape, -1)

    def predict_reward_and_end(
        self, hidden: Tensor, events: Tensor, arrived: Tensor | None, plan: RoutePlan, embedding: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """h_t [K, B, L, D], events [K, B, L, X] and, read in the arrival form alone, z_{t+1} [K, B, L, Z] -> reward
        logits [K, B, L, V] and termination logits [K, B, L].
        """
        features = [for_matmul(hidden), for_matmul(events)]
        if self.arrival:
            assert arrived is not None, "the arrival form reads z_{t+1}"
            features.append(for_matmul(arrived))
        rows = rows_in(torch.cat(features, dim=-1))  # [K, 1, B * L, D + X (+ Z)]
        shape = hidden.shape[:3]
        reward = self.reward(rows, plan, embedding).view(*shape, -1)
        return reward, self.termination(rows, plan, embedding).view(shape)
