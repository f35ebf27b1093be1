"""The agent: one actor for all tasks, a critic per cluster and its slow copy. Source: MoW section 3, STORM (layers).

Inputs: z_t and h_{t-1}, which holds the past. Additions of this package: z_{t-1} too (`frames`), h_{t-1} brought to
mean 0 and variance 1 (`memory_norm`) and scaled (`memory_gain`), e_k (`condition`).
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mow.kernels import TwoHotForm, two_hot_decode
from mow.methods.mow.config_agent import ActorCriticConfig
from mow.methods.mow.config_model import Condition
from mow.nn.modular import ModularMLP, for_matmul, rows_in
from mow.nn.policy import ActionMask, Policy
from mow.nn.routes import one_each, same_for_all


class Agent(nn.Module):
    """pi(a | s) and v_i(s) on agent states s = (z, h), joined by `actor_critic_input`: [K, B, T, X].

    Args:
        latent_size, hidden_size: Z and D.
        mask: legal actions of each task.
        module_of_task: cluster of each task.
        num_modules: M.
        two_hot_form: what a distribution over the value's bins stands for.
        embedding_size: d where `condition` names "actor" or "critic", else unused.
    """

    def __init__(
        self, config: ActorCriticConfig, *, latent_size: int, hidden_size: int, num_bins: int, mask: ActionMask,
        module_of_task: Sequence[int], num_modules: int, two_hot_form: TwoHotForm = "symexp_of_mean",
        embedding_size: int = 0, condition: Sequence[Condition] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.condition, self.mask, self.two_hot_form = tuple(condition), mask, two_hot_form
        self.memory_gain, self.memory_norm, self.frames = config.memory_gain, config.memory_norm, config.frames
        state_size = self.frames * latent_size + hidden_size  # X
        num_tasks = len(module_of_task)
        critic_of_task = {"cluster": module_of_task, "shared": [0] * num_tasks, "per_task": range(num_tasks)}
        self.num_critics = {"cluster": num_modules, "shared": 1, "per_task": num_tasks}[config.critic]
        hidden, layers = config.hidden, config.num_layers
        actor_size = embedding_size if "actor" in condition else 0
        critic_size = embedding_size if "critic" in condition else 0
        self.actor = ModularMLP(1, state_size, hidden, mask.num_outputs, num_layers=layers, embedding_size=actor_size)
        self.critic = ModularMLP(
            self.num_critics, state_size, hidden, num_bins, num_layers=layers, embedding_size=critic_size,
            zero_output=True,
        )  # fmt: skip
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.actor_routes = same_for_all(num_tasks)
        self.critic_routes = one_each(critic_of_task[config.critic], self.num_critics)

    @property
    def reads_memory_as_it_is(self) -> bool:
        """True if h enters matmuls alone, and nothing is lost where it is kept in their dtype."""
        return not self.memory_norm and self.memory_gain == 1.0

    def actor_critic_input(self, latent: Tensor, hidden: Tensor, before: Tensor | None) -> Tensor:
        """z_t [K, B, T, Z], h_{t-1} [K, B, T, D], z_{t-1} [K, B, T, Z] (zeros where z_t opens an episode, not read
        where `frames` is 1) -> input of actor and critics [K, B, T, X].
        """
        if self.memory_norm:
            hidden = F.layer_norm(hidden, hidden.shape[-1:])  # where there is no past it stays zero
        if self.memory_gain != 1.0:
            hidden = self.memory_gain * hidden
        parts = [latent, hidden]
        if self.frames == 2:
            assert before is not None, "frames 2 sees z_{t-1}"
            parts.insert(1, before)
        return torch.cat([for_matmul(part) for part in parts], dim=-1)

    def policy(self, state: Tensor, embedding: Tensor | None = None) -> Policy:
        """[K, B, T, X] -> pi(a | s)."""
        vector = embedding if "actor" in self.condition else None
        outputs = self.actor(rows_in(state), self.actor_routes.plan, vector)
        return Policy(outputs.view(*state.shape[:3], -1), self.mask)

    def value_logits(self, state: Tensor, embedding: Tensor | None = None, *, slow: bool = False) -> Tensor:
        """[K, B, T, X] -> two-hot logits of the value [K, B, T, V] by each task's own critic."""
        critic, vector = self.slow_critic if slow else self.critic, embedding if "critic" in self.condition else None
        logits = critic(rows_in(state), self.critic_routes.plan, vector)
        return logits.view(*state.shape[:3], -1)

    def value(self, state: Tensor, embedding: Tensor | None = None, *, slow: bool = False) -> Tensor:
        """v(s) [K, B, T], units of the return."""
        return two_hot_decode(self.value_logits(state, embedding, slow=slow), form=self.two_hot_form)

    @torch.no_grad()
    def update_target_critic(self, decay: float, left_out: Tensor | None = None) -> None:
        """slow <- decay * slow + (1 - decay) * critic, once per update. Source: STORM (0.98).

        Args: left_out: scalar; where it is 1 nothing moves.
        """
        slow: list[Tensor] = list(self.slow_critic.parameters())
        critic: list[Tensor] = list(self.critic.parameters())
        if left_out is None:
            torch._foreach_lerp_(slow, critic, 1.0 - decay)
            return
        change = torch._foreach_sub(critic, slow)
        torch._foreach_mul_(change, (1.0 - decay) * (1.0 - left_out))
        torch._foreach_add_(slow, list(change))
