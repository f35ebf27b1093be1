"""The agent: one actor for all tasks, a critic per cluster and its slow copy. Source: MoW section 3, STORM (layers)."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mow.config import ActorCriticConfig, Condition
from mow.distributions import ActionMask, Policy
from mow.kernels import TwoHotForm, two_hot_decode
from mow.models.fixed_routes import one_each, same_for_all
from mow.models.modular import ModularMLP


class Agent(nn.Module):
    """pi(a | s) and v_i(s) on agent states s = (z, h).

    Args:
        latent_size, hidden_size: Z and D.
        mask: legal actions of each task.
        module_of_task: cluster of each task.
        num_modules: M.
        two_hot_form: what a distribution over the value's bins stands for.
        embedding_size: d where `condition` names "actor" or "critic", else unused.
    """

    def __init__(
        self,
        config: ActorCriticConfig,
        *,
        latent_size: int,
        hidden_size: int,
        num_bins: int,
        mask: ActionMask,
        module_of_task: Sequence[int],
        num_modules: int,
        two_hot_form: TwoHotForm = "symexp_of_mean",
        embedding_size: int = 0,
        condition: Sequence[Condition] = (),
    ) -> None:
        super().__init__()
        self.condition, self.mask, self.two_hot_form = tuple(condition), mask, two_hot_form
        self.latent_size, self.memory_gain = latent_size, config.memory_gain
        state_size = latent_size + hidden_size
        num_tasks = len(module_of_task)
        routes = {
            "cluster": (list(module_of_task), num_modules),
            "shared": ([0] * num_tasks, 1),
            "per_task": (list(range(num_tasks)), num_tasks),
        }
        critic_of_task, self.num_critics = routes[config.critic]
        hidden, layers = config.hidden, config.num_layers
        actor_size = embedding_size if "actor" in condition else 0
        critic_size = embedding_size if "critic" in condition else 0
        self.actor = ModularMLP(1, state_size, hidden, mask.num_outputs, num_layers=layers, embedding_size=actor_size)
        self.critic = ModularMLP(
            self.num_critics,
            state_size,
            hidden,
            num_bins,
            num_layers=layers,
            embedding_size=critic_size,
            zero_output=True,
        )
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.actor_routes = same_for_all(len(module_of_task))
        self.critic_routes = one_each(critic_of_task, self.num_critics)

    def see(self, latent: Tensor, hidden: Tensor) -> Tensor:
        """What actor and critics see of states (z_t, h_{t-1}): [K, B, T, Z], [K, B, T, D] -> [K, B, T, Z + D]."""
        return torch.cat([latent, hidden if self.memory_gain == 1.0 else self.memory_gain * hidden], dim=-1)

    def policy(self, state: Tensor, embedding: Tensor | None = None, *, seen: bool = False) -> Policy:
        """States [K, B, T, Z + D] -> pi(a | s). Args: seen: the states come from `see`, which many calls share."""
        plan = self.actor_routes.plan
        outputs = self.actor(self._rows(state, seen), plan, embedding if "actor" in self.condition else None)
        return Policy(outputs.view(*state.shape[:3], -1), self.mask)

    def value_logits(
        self, state: Tensor, embedding: Tensor | None = None, *, slow: bool = False, seen: bool = False
    ) -> Tensor:
        """States [K, B, T, Z + D] -> two-hot logits of the value [K, B, T, V] by each task's own critic."""
        critic = self.slow_critic if slow else self.critic
        plan = self.critic_routes.plan
        logits = critic(self._rows(state, seen), plan, embedding if "critic" in self.condition else None)
        return logits.view(*state.shape[:3], -1)

    def value(
        self, state: Tensor, embedding: Tensor | None = None, *, slow: bool = False, seen: bool = False
    ) -> Tensor:
        """v(s) [K, B, T], units of the return."""
        return two_hot_decode(self.value_logits(state, embedding, slow=slow, seen=seen), form=self.two_hot_form)

    def _rows(self, state: Tensor, seen: bool) -> Tensor:
        if not seen and self.memory_gain != 1.0:
            state = self.see(*state.tensor_split((self.latent_size,), dim=-1))
        return state.flatten(1, 2).unsqueeze(1)  # [K, 1, B * T, Z + D]

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """slow <- decay * slow + (1 - decay) * critic, once per update. Source: STORM (0.98)."""
        torch._foreach_lerp_(list(self.slow_critic.parameters()), list(self.critic.parameters()), 1.0 - decay)
