"""Imagination: roll the world model forward under the policy, from contexts of replay.

    context of C replay steps -> memory;  then T times:  a ~ pi(s),  h = F(z, a),  z' ~ prior(h),  r, c = heads(h, z')

z' is the next latent; the transition form reads r and c off h alone.

Source: MoW section 3 (key-value cache), STORM (context 8, horizon 16, hard terminations). Everything without gradient
and in evaluation mode, which the caller sets.
Additions of this package: `temperature` below 1 (cold draws of the prior), `ends` expected, `start` posterior.

A rollout is made of three functions, tensors in and tensors out, so that each can be compiled: `init_rollout` once,
`rollout_step` T times, `predict_reward_and_end` once. No shape depends on a value and nothing is read on the host, so
that a CUDA graph can hold it.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mow.batch import TransitionBatch
from mow.kernels import PhiloxState, two_hot_decode
from mow.methods.mow.actor_critic import Agent
from mow.methods.mow.records import HeadInput, Imagination
from mow.methods.mow.router import Routing
from mow.methods.mow.world_model import Memory, WorldModel
from mow.nn.modular import for_matmul
from mow.nn.transformer import Window


class RolloutState(NamedTuple):
    before: Tensor  # z_{-1} [K, B, 1, Z], zeros where z_0 opens an episode
    latent: Tensor  # z_0 [K, B, 1, Z]
    hidden: Tensor  # h_{-1} [K, B, 1, D]
    valid: Tensor  # [K, B] bool, False where the context had ended its episode


class Step(NamedTuple):
    latent: Tensor  # z_{t+1} [K, B, 1, Z]
    hidden: Tensor  # h_t [K, B, 1, D]
    action: Tensor  # a_t [K, B, 1, A]
    raw_action: Tensor  # [K, B, 1, A]
    events: Tensor  # [K, B, 1, X], read by `predict_reward_and_end` beside h_t


def init_rollout(
    model: WorldModel, context: TransitionBatch, window: Window, routing: Routing, memory: Memory, rng: PhiloxState,
    start: str, temperature: float,
) -> RolloutState:  # fmt: skip
    """Encode the context, fill the memory with it, and return the state of the first imagined action."""
    latent = for_matmul(model.sample(model.encode(context.frame), rng))  # [K, B, C, Z]
    num_context = context_steps(context, start)
    hidden = context.reward.new_zeros(*latent.shape[:2], 1, model.config.width)  # no past, as an episode's first state
    if num_context:
        past = (latent[:, :, :num_context], context.action[:, :, :num_context])
        hidden = model.sequence_model(*past, window.rows(0, num_context), routing, memory)[:, :, -1:].contiguous()
    before = model.before(latent[:, :, -2:], context.is_first[:, :, -2:])[:, :, -1:]
    newest = latent[:, :, -1:].contiguous()
    if start == "prior":
        valid = ~(context.terminated | context.truncated | context.is_last)[:, :, -1]
        last = HeadInput(newest, context.action[:, :, -1:], hidden, before)
        drawn = model.sample(_sharpened(model.predict_next_latent(last)[0], temperature), rng)
        return RolloutState(newest, for_matmul(drawn), hidden, valid)
    hidden = hidden.masked_fill(context.is_first[:, :, -1:, None], 0.0)
    return RolloutState(before.contiguous(), newest, hidden, ~context.is_last[:, :, -1])


def rollout_step(
    model: WorldModel, agent: Agent, before: Tensor, latent: Tensor, hidden: Tensor, window: Window, routing: Routing,
    memory: Memory, embedding: Tensor | None, rng: PhiloxState, temperature: float,
) -> Step:  # fmt: skip
    """One step: z_{t-1}, z_t [K, B, 1, Z], h_{t-1} [K, B, 1, D], the token's `window`, e_k for the actor [K, d] -> the
    next ones. The window's mask [K, B, 1, t + 1] alone holds the position in the memory.
    """
    action, raw_action = agent.policy(agent.actor_critic_input(latent, hidden, before), embedding).sample(rng)
    hidden = model.sequence_model(latent, action, window, routing, memory)
    converted = for_matmul(hidden)
    logits, events = model.predict_next_latent(HeadInput(latent, action, converted, before))
    latent = for_matmul(model.sample(_sharpened(logits, temperature), rng))
    return Step(latent, converted if agent.reads_memory_as_it_is else hidden, action, raw_action, events)


def _sharpened(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1.0 else logits / temperature


def predict_reward_and_end(
    model: WorldModel, hidden: Tensor, events: Tensor, arrived: Tensor, ends: str
) -> tuple[Tensor, Tensor]:
    """Rewards and terminations [K, B, T], read off all h_t [K, B, T, D] and z_{t+1} [K, B, T, Z] at once."""
    reward_logits, termination_logits = model.predict_reward_and_end(hidden, events, arrived)
    terminated = (termination_logits > 0).float() if ends == "hard" else termination_logits.float().sigmoid()
    return two_hot_decode(reward_logits, form=model.config.two_hot_form), terminated


class RolloutSteps(NamedTuple):
    """The three functions of a rollout, plain or compiled."""

    init_rollout: Callable[..., RolloutState] = init_rollout
    rollout_step: Callable[..., Step] = rollout_step
    predict_reward_and_end: Callable[..., tuple[Tensor, Tensor]] = predict_reward_and_end


PLAIN = RolloutSteps()


@torch.no_grad()
def imagine(
    model: WorldModel, agent: Agent, context: TransitionBatch, routing: Routing, rng: PhiloxState, *, horizon: int,
    start: str, ends: str = "hard", temperature: float = 1.0, steps: RolloutSteps = PLAIN,
) -> Imagination:  # fmt: skip
    """Args:
        context: windows of C steps per trajectory, [K, B, C, ...].
        horizon: T, steps to imagine.
        start: `prior` = first imagined latent predicted after the whole context (STORM); `posterior` = the latent of
            the context's last frame, so that the first state is a real one and also the first state of an episode.
        ends: `hard` = a step terminates where its logit is above 0 (STORM); `expected` = it does so by its probability,
            so that an uncertain end counts in part (DreamerV3).
        temperature: of the draws from the prior, above 0; below 1 they take the likelier class more often.
        steps: plain or compiled.
    """
    num_context, shape = context_steps(context, start), context.is_first.shape
    is_first = torch.cat([context.is_first, context.is_first.new_zeros(*shape[:2], horizon)], dim=-1)
    window = model.window(is_first)
    memory = model.new_memory(shape[1], num_context + horizon)
    state = steps.init_rollout(model, context, window, routing, memory, rng, start, temperature)
    before, latent, hidden, valid = state

    embedding = model.embedding("actor")
    latents, hiddens, taken = [latent], [hidden], []
    for position in range(num_context, num_context + horizon):
        token = window.rows(position, position + 1)
        step = steps.rollout_step(
            model, agent, before, latent, hidden, token, routing, memory, embedding, rng, temperature
        )
        before, latent, hidden = latent, step.latent, step.hidden
        taken.append(step[2:])
        latents.append(latent)
        hiddens.append(hidden)
    seen = torch.cat(latents, dim=2)  # [K, B, T + 1, Z]
    remembered = torch.cat([h.to(hidden.dtype) for h in hiddens], dim=2)  # [K, B, T + 1, D]
    action, raw_action, events = (torch.cat(column, dim=2) for column in zip(*taken, strict=True))
    reward, terminated = steps.predict_reward_and_end(model, remembered[:, :, 1:], events, seen[:, :, 1:], ends)
    return Imagination(state.before, seen, remembered, action, raw_action, reward, terminated, valid)


def context_steps(context: TransitionBatch, start: str) -> int:
    """Number of context steps in the memory before the first imagined action."""
    length = context.is_first.shape[2]
    return length if start == "prior" else length - 1
