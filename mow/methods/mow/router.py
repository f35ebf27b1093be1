"""Router: experts are chosen once per task, from its embedding, never per token.

    score_k = softmax((MLP(e_k) + noise) / temperature),   J_k = the top experts of score_k, in ascending index

The gradient favours or penalises the chosen experts, and holds nothing on the others; with one expert per task the
balance loss has none, since a single share is always 1. Effects: bench/results/LOG.md.

Source: MoW section 3 (task-level router); the slot order is inferred. Addition of this package: the noise (Gumbel,
fading with the temperature); a temperature alone never changes the order.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mow.kernels import PhiloxState, RoutePlan, uniform
from mow.methods.mow.config_model import ExpertsConfig, RoutingConfig, WorldModelConfig
from mow.nn.routes import FixedRoutes


class Routing(NamedTuple):
    """The experts of every task; made once per update."""

    plan: RoutePlan  # routes [K, J], ascending
    weight_KJ: Tensor | None  # share of each chosen expert, rows sum to 1; None where routing is not learned
    scale_KJ: Tensor | None  # what multiplies each expert's output; None = nothing does

    def rows(self, tasks: slice) -> "Routing":
        """Those of some tasks, without the shares that `load` reads."""
        plan = RoutePlan(self.plan.routes[tasks], self.plan.num_experts)
        return Routing(plan, None, None if self.scale_KJ is None else self.scale_KJ[tasks])

    def load(self) -> Tensor | None:
        """W [K, E]: J times the renormalised shares, zero elsewhere, so that rows sum to J; None if not learned.

        Differs: the paper's raw softmax entries sum to less than 1 and could never meet the target K J / E.
        """
        if self.weight_KJ is None:
            return None
        num_tasks, num_slots = self.weight_KJ.shape
        zero = self.weight_KJ.new_zeros(num_tasks, self.plan.num_experts)
        return zero.scatter(1, self.plan.routes, num_slots * self.weight_KJ)


class Router(nn.Module):
    """Learned routing: e_k -> hidden -> one score per expert."""

    def __init__(self, embedding_size: int, experts: ExpertsConfig, config: RoutingConfig) -> None:
        super().__init__()
        self.num_experts, self.num_slots, self.scale = experts.num_experts, experts.experts_per_task, config.scale
        self.hidden = nn.Linear(embedding_size, config.hidden)
        self.output = nn.Linear(config.hidden, experts.num_experts)

    def forward(
        self, embedding: Tensor, temperature: float | Tensor = 1.0, noise: float | Tensor = 0.0,
        rng: PhiloxState | None = None, frozen: Tensor | None = None,
    ) -> Routing:  # fmt: skip
        """Args:
            embedding: [K, d], unit length.
            temperature: divides the logits.
            noise: scale of the Gumbel noise on the logits, where there is an `rng` that it is drawn from.
            frozen: [K, J] experts fixed earlier. The shares still follow the scores, but only `plain` scaling, where
                they multiply the outputs, passes a gradient to router and e_k.
        """
        logits = self.output(self.hidden(embedding).relu()).float()  # [K, E]
        if rng is not None:
            u = uniform(rng, logits.numel()).view(logits.shape)
            rng.advance()
            logits = logits - noise * torch.log(-torch.log(u.clamp(1e-7, 1 - 1e-7)))
        score_KE = F.softmax(logits / temperature, dim=-1)
        routes = score_KE.topk(self.num_slots, dim=-1).indices if frozen is None else frozen
        routes = routes.sort(dim=-1).values
        chosen = score_KE.gather(1, routes)  # [K, J]
        weight_KJ = chosen / chosen.sum(dim=-1, keepdim=True)
        scale_KJ = self.num_slots * weight_KJ if self.scale == "plain" else None
        if self.scale == "straight_through" and torch.is_grad_enabled():
            # Worth exactly 1, so the outputs are concatenated untouched as in the paper, while the task losses still
            # give the router a gradient for each chosen expert against all others.
            scale_KJ = 1.0 + (chosen - chosen.detach()) / chosen.detach()
            scale_KJ = scale_KJ if frozen is None else _without_gradient(scale_KJ)
        weight_KJ = weight_KJ if frozen is None else _without_gradient(weight_KJ)
        return Routing(RoutePlan(routes, self.num_experts), weight_KJ, scale_KJ)


def _without_gradient(x: Tensor) -> Tensor:
    """The same values with a gradient of zero; still part of the graph, as a compiled update expects."""
    return x.detach() + 0.0 * (x - x.detach())


def fixed_experts(config: WorldModelConfig, module_of_task: Sequence[int]) -> FixedRoutes:
    """Experts [K, J] where nothing is learned: the tasks of a module share theirs if the config's method is `cluster`,
    else task k takes the next J in turn, a balanced choice.
    """
    by_cluster, slots = config.routing.method == "cluster", config.experts.experts_per_task
    first = module_of_task if by_cluster else range(len(module_of_task))
    num_experts = config.experts.num_experts
    routes = torch.tensor([sorted((k * slots + j) % num_experts for j in range(slots)) for k in first])
    return FixedRoutes(routes, num_experts)
