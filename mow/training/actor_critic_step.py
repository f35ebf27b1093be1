"""One look at an imagined rollout: policy and value losses, per task. Tensors in, tensors out."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mow.batch import Imagination
from mow.config import ActorCriticConfig
from mow.kernels import two_hot_decode
from mow.losses import entropy_bonus, policy_loss, value_loss
from mow.models import Agent
from mow.returns import ReturnScale, imagined_return


@dataclass(frozen=True)
class ActorCriticLosses:
    total: Tensor  # scalar: mean over tasks
    metrics: dict[str, Tensor]  # name -> [K]


def actor_critic_losses(
    agent: Agent,
    dream: Imagination,
    scale: ReturnScale,
    config: ActorCriticConfig,
    *,
    embedding: Tensor | None = None,
    storm_index: bool = False,
) -> ActorCriticLosses:
    """The actor and the critics on imagined states; the world model gets no gradient.

        L_actor  = - sg[(R_t - v(s_t)) / max(1, S_k)] ln pi(a_t | s_t) - eta H(pi)
        L_critic = CE(v(s_t), sg R_t) + CE(v(s_t), sg v_slow(s_t))

    Args: embedding: e_k [K, d] where actor or critic are told their task; carries no gradient here.
    Source: MoW section 3. Differs: the mean over tasks where the paper sums, so that step size and clip keep their
    meaning for any number of tasks; states past an imagined end weigh nothing (`survival_weight`).
    """
    embedding = None if embedding is None else embedding.detach()
    state = dream.state  # [K, B, T + 1, Z + D]
    logits = agent.value_logits(state, embedding)  # [K, B, T + 1, V]
    with torch.no_grad():
        value = two_hot_decode(logits)  # [K, B, T + 1]
        slow_value = agent.value(state, embedding, slow=True)
        blend = partial(imagined_return, discount=config.discount, lam=config.lam, storm_index=storm_index)
        returns = blend(dream.reward, dream.terminated, value)  # [K, B, T]
        slow_target = slow_value[:, :, :-1]
        if config.slow_target == "lambda_return":
            slow_target = blend(dream.reward, dream.terminated, slow_value)
        weight = dream.alive[:, :, :-1] if config.survival_weight else torch.ones_like(dream.reward)
        return_range = scale.update(returns, weight)  # [K]
        advantage = (returns - value[:, :, :-1]) / return_range.view(-1, 1, 1)

    policy = agent.policy(state[:, :, :-1], embedding)
    actor = policy_loss(policy.log_prob(dream.raw_action), advantage, weight)  # [K]
    entropy = entropy_bonus(policy.entropy(), weight)
    step_logits = logits[:, :, :-1]
    critic = value_loss(step_logits, returns, weight) + value_loss(step_logits, slow_target, weight)
    total = (actor - config.entropy * entropy + critic).mean()
    alive = weight.sum(dim=(1, 2)).clamp_min(1.0)
    metrics = {
        "policy": actor,
        "value": critic,
        "entropy": entropy,
        "imagined_return": (returns * weight).sum(dim=(1, 2)) / alive,
        "return_range": return_range,
    }
    return ActorCriticLosses(total, {name: metric.detach() for name, metric in metrics.items()})
