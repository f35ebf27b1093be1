"""Actor-critic targets of one imagined rollout, and policy and value losses per task. Tensors in, tensors out."""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from mow.losses import entropy_bonus, policy_loss, value_loss
from mow.losses.returns import ReturnScale, imagined_return
from mow.methods.mow.actor_critic import Agent
from mow.methods.mow.config_agent import ActorCriticConfig
from mow.methods.mow.records import Imagination


class ActorCriticTargets(NamedTuple):
    """Targets of actor and critics, computed once per rollout by the agent of that time; no gradient."""

    state: Tensor  # [K, B, T, X] of Agent.actor_critic_input
    raw_action: Tensor  # [K, B, T, A]
    log_prob: Tensor  # [K, B, T] nats, of the policy that acted
    advantage: Tensor  # [K, B, T] (R - v) / max(1, S)
    returns: Tensor  # [K, B, T] units of the task
    slow_target: Tensor  # [K, B, T] units of the task
    weight: Tensor  # [K, B, T] of the state in every mean

    def parts(self, number: int) -> "Iterator[ActorCriticTargets]":
        """Addition of this package: the sequences in `number` parts, as equal as can be, for a step on each."""
        return map(ActorCriticTargets, *(column.tensor_split(number, dim=1) for column in self))


class ActorCriticLosses(NamedTuple):
    total: Tensor  # scalar: mean over tasks
    metrics: dict[str, Tensor]  # name -> [K]


def compute_targets(
    agent: Agent, rollout: Imagination, scale: ReturnScale, config: ActorCriticConfig, *,
    embedding: Tensor | None = None, storm_index: bool = False,
) -> tuple[ActorCriticTargets, dict[str, Tensor]]:  # fmt: skip
    """Returns and advantages of a rollout, and their means for the log ([K] each).

    Args: embedding: e_k [K, d] where actor or critic read it.
    Source: MoW section 3. Differs: states past an imagined end weigh nothing (`survival_weight`); rollouts whose
    context had ended its episode never weigh anything.
    """
    with torch.no_grad():
        before = rollout.latent_before if agent.frames == 2 else None  # as large as all latents
        every_state = agent.actor_critic_input(rollout.latent, rollout.hidden, before)  # [K, B, T + 1, X]
        value = agent.value(every_state, embedding)  # [K, B, T + 1]
        slow_value = agent.value(every_state, embedding, slow=True)
        blend = partial(
            imagined_return, rollout.reward, rollout.terminated, discount=config.discount, lam=config.lam,
            storm_index=storm_index,
        )  # fmt: skip
        returns = blend(value)  # [K, B, T]
        slow_target = blend(slow_value) if config.slow_target == "lambda_return" else slow_value[:, :, :-1]
        weight = rollout.valid.unsqueeze(-1).expand_as(rollout.reward).float()
        if config.survival_weight:
            weight = rollout.alive[:, :, :-1]
        return_range = scale.update(returns, weight)  # [K]
        state = every_state[:, :, :-1].contiguous()  # else each reader of its rows makes a copy
        log_prob = agent.policy(state, embedding).log_prob(rollout.raw_action)
        advantage = (returns - value[:, :, :-1]) / return_range.view(-1, 1, 1)
        targets = ActorCriticTargets(state, rollout.raw_action, log_prob, advantage, returns, slow_target, weight)
        mean_return = (returns * weight).sum(dim=(1, 2)) / weight.sum(dim=(1, 2)).clamp_min(1.0)
        return targets, {"imagined_return": mean_return, "return_range": return_range}


def actor_critic_losses(
    agent: Agent, targets: ActorCriticTargets, *, entropy: float | Tensor, clip: float, embedding: Tensor | None = None
) -> ActorCriticLosses:
    """Losses of actor and critics on the targets; the world model gets no gradient.

        L_actor  = - min(r A, clip(r) A) - eta H(pi),   A = sg[(R_t - v(s_t)) / max(1, S_k)],  r = pi / sg(pi_old)
        L_critic = CE(v(s_t), sg R_t) + CE(v(s_t), sg v_slow(s_t))

    Args:
        entropy: eta, as it is now; a scalar, or [K].
        clip: of r, on either side of 1.
        embedding: as for compute_targets; it carries no gradient here.
    Source: MoW section 3. Differs: the mean over tasks where the paper sums, so that step size and clip keep their
    meaning for any number of tasks. Addition of this package: a rollout may be used more than once, hence r.
    """
    embedding = None if embedding is None else embedding.detach()
    policy = agent.policy(targets.state, embedding)
    log_prob = policy.log_prob(targets.raw_action)
    actor = policy_loss(log_prob, targets.log_prob, targets.advantage, targets.weight, clip=clip)  # [K]
    bonus = entropy_bonus(policy.entropy(), targets.weight)  # [K]
    logits = agent.value_logits(targets.state, embedding)  # [K, B, T, V]
    critic = value_loss(logits, targets.returns, targets.weight)
    critic = critic + value_loss(logits, targets.slow_target, targets.weight)
    total = (actor - entropy * bonus + critic).mean()
    metrics = {"policy": actor, "value": critic, "entropy": bonus}
    return ActorCriticLosses(total, {name: metric.detach() for name, metric in metrics.items()})
