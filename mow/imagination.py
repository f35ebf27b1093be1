"""Dreaming: roll the world model forward under the policy, from contexts of replay.

    context of C replay steps -> memory;  then T times:  a ~ pi(s),  h = F(z, a),  r, c = heads(h),  z ~ prior(h)

Source: MoW section 3 (key-value cache), STORM (context 8, horizon 16, hard terminations). Everything without gradient
and in evaluation mode, which the caller sets.
"""

import torch
from torch import Tensor

from mow.batch import Imagination, Moment, TransitionBatch
from mow.kernels import PhiloxState, two_hot_decode
from mow.models import Agent, Routing, WorldModel


@torch.no_grad()
def imagine(
    model: WorldModel,
    agent: Agent,
    context: TransitionBatch,
    routing: Routing,
    rng: PhiloxState,
    *,
    horizon: int,
    start: str,
    ends: str = "hard",
    temperature: float = 1.0,
) -> Imagination:
    """Args:
        context: windows of C steps per trajectory, [K, B, C, ...].
        horizon: T, steps to imagine.
        start: `prior` = first imagined latent predicted after the whole context (STORM); `posterior` = the latent of
            the context's last frame, so that the first state is a real one and also the first state of an episode.
        ends: `hard` = a step terminates where its logit is above 0 (STORM); `expected` = it does so by its probability,
            so that a danger only half foreseen is felt too (DreamerV3).
        temperature: of the draws from the prior, above 0; below 1 they take the likelier class more often.
    """
    latent = model.sample(model.encode(context.frame), rng)  # [K, B, C, Z]
    num_context = latent.shape[2] if start == "prior" else latent.shape[2] - 1
    is_first = torch.cat([context.is_first, context.is_first.new_zeros(*latent.shape[:2], horizon)], dim=-1)
    window = model.window(is_first)
    memory = model.new_memory(latent.shape[1], num_context + horizon, _like(latent))

    hidden = latent.new_zeros(*latent.shape[:2], 1, model.config.width)  # no past: what an episode's first state has
    if num_context:
        past = (latent[:, :, :num_context], context.action[:, :, :num_context])
        hidden = model.remember(*past, window.rows(0, num_context), routing, memory)[:, :, -1:]
    valid = torch.ones_like(context.terminated[:, :, -1])  # [K, B]
    if start == "prior":
        valid = ~(context.terminated | context.truncated)[:, :, -1]
        last = Moment(latent[:, :, -1:], context.action[:, :, -1:], hidden)
        state_latent = model.sample(model.foretell(last)[0] / temperature, rng)  # [K, B, 1, Z]
    else:
        state_latent = latent[:, :, -1:]
        hidden = hidden.masked_fill(context.is_first[:, :, -1:, None], 0.0)

    embedding = model.embedding("actor")
    steps: list[tuple[Tensor, ...]] = []
    latents, hiddens = [state_latent], [hidden.float()]
    for step in range(num_context, num_context + horizon):
        state = torch.cat([state_latent, hidden], dim=-1)  # [K, B, 1, Z + D]
        action, raw_action = agent.policy(state, embedding).sample(rng)
        hidden = model.remember(state_latent, action, window.rows(step, step + 1), routing, memory)
        logits, events = model.foretell(Moment(state_latent, action, hidden))
        state_latent = model.sample(logits / temperature, rng)
        steps.append((action, raw_action, events))
        latents.append(state_latent)
        hiddens.append(hidden.float())
    action, raw_action, happened = (torch.cat(parts, dim=2) for parts in zip(*steps, strict=True))
    remembered = torch.cat(hiddens, dim=2)  # [K, B, T + 1, D]
    # What no step waits for is read off all steps at once.
    reward_logits, termination_logits = model.outcome(remembered[:, :, 1:], happened)
    return Imagination(
        latent=torch.cat(latents, dim=2),
        hidden=remembered,
        action=action,
        raw_action=raw_action,
        reward=two_hot_decode(reward_logits),
        terminated=(termination_logits > 0).float() if ends == "hard" else termination_logits.float().sigmoid(),
        valid=valid,
    )


def _like(latent: Tensor) -> Tensor:
    """A tensor of the dtype that keys and values will have: autocast's, where it is on."""
    device = latent.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else latent.dtype
    return latent.new_empty(0, dtype=dtype)
