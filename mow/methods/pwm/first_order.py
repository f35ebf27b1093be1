"""First-order policy learning: the gradient of imagined rewards, back through the frozen world model, to the policy.

    a_i = pi(z_i, eps_i),  z_{i+1} = F(z_i, a_i),  g_i = reward(z_i, a_i),  S_0 = 1,  S_{i+1} = S_i (1 - c(z_{i+1}))
    J = sum_{i<T} gamma^i S_i g_i + gamma^T S_T min_c V_c(z_T)
    L_pi = - mean_B J / sqrt(Var + 1e-5)                           Var: of J, over all samples of the task so far
    L_V = mean_{c,B,i} (V_c(z_i) - G_i)^2,                         G_i: lambda-return with V = min_c V_c, no gradient

The gradient reaches the policy from g_i by z_i, a_{i-1}. With feedback "cut" it ends at the policy's input: what a_i
changes in later states is felt there, and not in how the policy answers to them.
Source: PWM (arXiv 2407.02466). Differs: gamma^T at the last value, where the released code has gamma^{T+1}; survival S;
lambda-returns also without a simulator, where the released code has one-step targets (lam 0).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from mow.kernels import PhiloxState, lambda_return, uniform

Policy = Callable[[Tensor, Tensor], Tensor]  # states [K, B, Z], noise [K, B, A] -> actions [K, B, A]


class Model(Protocol):
    """The parts of a world model that a rollout calls."""

    def next_latent(self, latent: Tensor, action: Tensor, /) -> Tensor: ...

    def predict_reward(self, latent: Tensor, action: Tensor, /, *, objective: str) -> Tensor: ...

    def continuation(self, latent: Tensor, /) -> Tensor: ...


class Rollout(NamedTuple):
    """T imagined steps of every task, with their gradient."""

    latent: Tensor  # [K, B, T + 1, Z], of z_0 .. z_T
    action: Tensor  # [K, B, T, A]
    reward: Tensor  # [K, B, T], g_i
    continuation: Tensor  # [K, B, T], 1 - c(z_{i+1})


def roll_out(
    model: Model, policy: Policy, start: Tensor, noise: Tensor, *, feedback: str = "cut", objective: str = "symlog"
) -> Rollout:
    """Act in the world model.

    Args:
        start: z_0 [K, B, Z].
        noise: eps [K, B, T, A], standard normal.
        feedback: `cut` hides from the gradient that the policy reads z_i; `full` hides nothing.
        objective: units of the rewards, as WorldModel.predict_reward.
    Source: PWM (arXiv 2407.02466).
    """
    latents, actions, rewards, continuations = [start], [], [], []
    for eps in noise.unbind(dim=2):
        latent = latents[-1]
        action = policy(latent.detach() if feedback == "cut" else latent, eps)
        rewards.append(model.predict_reward(latent, action, objective=objective))
        latents.append(model.next_latent(latent, action))
        continuations.append(model.continuation(latents[-1]))
        actions.append(action)
    return Rollout(*(torch.stack(one, dim=2) for one in (latents, actions, rewards, continuations)))


def objective_of(rollout: Rollout, last_value: Tensor, *, discount: float) -> Tensor:
    """J of each rollout: [K, B], with its gradient.

    Args: last_value: min_c V_c(z_T) [K, B].
    Source: PWM (arXiv 2407.02466). Differs: as in the module's docstring.
    """
    survival = torch.cat([torch.ones_like(rollout.continuation[..., :1]), rollout.continuation.cumprod(dim=-1)], dim=-1)
    gained = torch.cat([rollout.reward, last_value.unsqueeze(-1)], dim=-1)  # [K, B, T + 1]
    powers = discount ** torch.arange(gained.shape[-1], device=gained.device, dtype=gained.dtype)
    return (powers * survival * gained).sum(dim=-1)


def critic_targets(rollout: Rollout, value: Tensor, *, discount: float, lam: float) -> Tensor:
    """G_i of z_0 .. z_{T-1}: [K, B, T], without gradient.

        G_i = g_i + gamma (1 - c(z_{i+1})) [(1 - lam) V(z_{i+1}) + lam G_{i+1}],   G_T = V(z_T)

    Args: value: min_c V_c of z_0 .. z_T [K, B, T + 1].
    Source: PWM (arXiv 2407.02466); Sutton and Barto, section 12.8.
    """
    return lambda_return(rollout.reward.detach(), discount * rollout.continuation.detach(), value.detach(), lam=lam)


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Inside, no parameter of the modules takes part in a gradient."""
    held = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)


class RunningVariance:
    """Mean and population variance of all samples so far, per task; begins as 1e-4 samples of variance 1.

    Source: Chan, Golub and LeVeque 1979 (merging two sets); PWM for its use.
    """

    def __init__(self, num_tasks: int, device: torch.device) -> None:
        self.mean = torch.zeros(num_tasks, dtype=torch.float64, device=device)
        self.variance = torch.ones(num_tasks, dtype=torch.float64, device=device)
        self.count = torch.full((num_tasks,), 1e-4, dtype=torch.float64, device=device)

    def update(self, samples: Tensor) -> Tensor:
        """Take in samples [K, B]; returns sqrt(Var + 1e-5): [K]."""
        fresh = samples.detach().double()
        mean, variance, number = fresh.mean(dim=1), fresh.var(dim=1, unbiased=False), fresh.shape[1]
        total, apart = self.count + number, mean - self.mean
        between = apart.square() * self.count * number / total
        self.variance = (self.variance * self.count + variance * number + between) / total
        self.mean, self.count = self.mean + apart * number / total, total
        return (self.variance + 1e-5).sqrt().to(samples.dtype)

    def state_dict(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "variance": self.variance, "count": self.count}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            setattr(self, name, value.to(self.mean.device))


def permutation(rng: PhiloxState, size: int) -> Tensor:
    """A random order of `size` things, int64; advances."""
    order = uniform(rng, size).argsort(stable=True)
    rng.advance()
    return order
