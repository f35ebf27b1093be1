"""Use of the past: its effect on the predictions of the world model, and on the policy.

The past of a step is its input beside the picture: h_{t-1}, and z_{t-1} where prior or agent read it. Two questions: is
the next latent predicted worse without it, and does the policy change with the past of another window in its place?
Both stay near 0 where one picture shows all, or where a model makes no use of more.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mow.evaluate.held_out import HeldOutWindows
from mow.kernels import PhiloxState, categorical_kl
from mow.methods.mow.actor_critic import Agent
from mow.methods.mow.records import HeadInput
from mow.methods.mow.router import Routing
from mow.methods.mow.world_model import WorldModel


@dataclass(frozen=True)
class PastUse:
    """Means per task over the steps that have a past, nats; not-a-number where a task has none."""

    kl: Tensor  # [K] KL between the posterior of z_{t+1} and its prior
    kl_without: Tensor  # [K] the same with every step given as the first of an episode
    kl_other: Tensor  # [K] the same with h_t and z_{t-1} of another window, at the same step of it
    policy_kl: Tensor  # [K] between the policy and the policy with h_{t-1} and z_{t-1} of another window


@torch.no_grad()
def past_use(
    model: WorldModel, agent: Agent, windows: HeldOutWindows, routing: Routing, rng: PhiloxState, *, longest: int
) -> PastUse:
    """Args:
        model: in evaluation mode, which the caller sets.
        windows: [K, B, ...]; "another" is the one beside it, and where B is 1 there is none.
        longest: steps of a window that are looked at, its first.
    """
    batch = windows.batch.map(lambda tensor: tensor[:, :, :longest])
    posterior = model.observe(batch, routing, rng)
    latent, hidden = posterior.latent, posterior.hidden
    before = model.before(latent, batch.is_first)
    alone = model.sequence_model(latent, batch.action, model.window(torch.ones_like(batch.is_first)), routing)

    def kl(hidden: Tensor, before: Tensor) -> Tensor:  # [K, B, L - 1]
        logits, _ = model.predict_next_latent(HeadInput(latent, batch.action, hidden, before))
        divergence, _ = categorical_kl(
            posterior.logits[:, :, 1:], logits[:, :, :-1], unimix=model.config.perception.unimix
        )
        return divergence

    # h_{t-1} as the agent sees it; no window's first step has one.
    last = torch.cat([torch.zeros_like(hidden[:, :, :1]), hidden[:, :, :-1]], dim=2)
    last = last.masked_fill(batch.is_first.unsqueeze(-1), 0.0)
    embedding = model.embedding("actor")
    states = [agent.actor_critic_input(latent, *past) for past in ((last, before), _other(last, before))]
    policies = [agent.policy(state, embedding) for state in states]

    step = torch.arange(batch.is_first.shape[2], device=windows.length.device)
    acted = ~batch.is_first & (step < windows.length.unsqueeze(-1))  # [K, B, L]
    predicted = acted[:, :, :-1] & acted[:, :, 1:]
    beside = acted & _other(acted)[0] if acted.shape[1] > 1 else torch.zeros_like(acted)
    return PastUse(
        kl=_mean(kl(hidden, before), predicted),
        kl_without=_mean(kl(alone, torch.zeros_like(before)), predicted),
        kl_other=_mean(kl(*_other(hidden, before)), predicted & beside[:, :, :-1]),
        policy_kl=_mean(policies[0].divergence(policies[1]), beside),
    )


def _other(*past: Tensor) -> tuple[Tensor, ...]:
    """The past of the window beside it: [K, B, L, ...] each."""
    return tuple(x.roll(1, dims=1) for x in past)


def _mean(values: Tensor, which: Tensor) -> Tensor:
    """[K, B, T] -> [K] over the steps that count."""
    return values.masked_fill(~which, 0.0).sum(dim=(1, 2)) / which.sum(dim=(1, 2))
