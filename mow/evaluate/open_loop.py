"""Open-loop prediction: imagine along recorded actions, and compare with the recorded frames and rewards.

    o_0 .. o_{C-1} seen, a_0 .. a_{C+T-2} given
    T times:  h = F(z, a),  z ~ prior(h),  r, c = heads(h, z),  o = decode(z)

Step n is read off h_{C-2+n}: the reward and the termination that follow action a_{C-2+n}, and the frame o_{C-1+n} that
it leads to. Everything without gradient and in evaluation mode, which the caller sets.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mow.batch import TransitionBatch
from mow.evaluate.held_out import HeldOutWindows
from mow.kernels import PhiloxState, two_hot_decode
from mow.methods.mow.records import HeadInput
from mow.methods.mow.router import Routing
from mow.methods.mow.world_model import WorldModel


@dataclass(frozen=True)
class OpenLoopPrediction:
    """Prediction of the world model for T steps."""

    frame: Tensor  # [K, B, T, 64, 64, 3] float32, 0 black to 1 white
    reward: Tensor  # [K, B, T] float32, units of the task
    terminated: Tensor  # [K, B, T] bool


@dataclass(frozen=True)
class OpenLoopErrors:
    """Errors of a prediction against the ground truth; not-a-number where the window's episode had ended before.

    Without final frames (mow.envs.vector.make_vector) the ending step has a reward and a termination but no frame: the
    next one opens another episode.
    """

    imagined: Tensor  # [K, B, T] squared error of the imagined frame, mean over its 64 x 64 x 3 numbers in [0, 1]
    reconstructed: Tensor  # [K, B, T] the same of the posterior's reconstruction: what the decoder alone loses
    repeated: Tensor  # [K, B, T] the same of the last context frame: the error of a frozen frame
    reward: Tensor  # [K, B, T] absolute error, units of the task
    no_reward: Tensor  # [K, B, T] the same of always expecting 0
    agrees: Tensor  # [K, B, T] 1 where the termination is as it was, else 0


def split(batch: TransitionBatch, num_context: int) -> tuple[TransitionBatch, Tensor]:
    """Windows of C + T steps -> contexts [K, B, C, ...] and the T - 1 actions [K, B, T - 1, A] after them.

    The last action is left out: the frame that it leads to lies behind the window.
    """
    context = batch.map(lambda tensor: tensor[:, :, :num_context])
    return context, batch.action[:, :, num_context:-1]


@torch.no_grad()
def predict_open_loop(
    model: WorldModel,
    context: TransitionBatch,
    action: Tensor,
    routing: Routing,
    rng: PhiloxState,
    *,
    temperature: float = 1.0,
) -> OpenLoopPrediction:
    """Imagine T steps from contexts of C steps.

    Args:
        context: [K, B, C, ...]; its last action leads to the first imagined frame.
        action: [K, B, T - 1, A], the actions after it.
        temperature: of the draws, as the agent's rollouts have it.
    Source: as mow.methods.mow.imagination.imagine with start prior; here the actions are given.
    """
    latent = model.sample(model.encode(context.frame), rng)  # [K, B, C, Z]
    num_sequences, num_context = latent.shape[1:3]
    num_ahead = action.shape[2]
    is_first = torch.cat([context.is_first, context.is_first.new_zeros(*latent.shape[:2], num_ahead)], dim=-1)
    window = model.window(is_first)
    memory = model.new_memory(num_sequences, num_context + num_ahead)
    hidden = model.sequence_model(latent, context.action, window.rows(0, num_context), routing, memory)
    before = model.before(latent[:, :, -2:], context.is_first[:, :, -2:])
    head_input = HeadInput(*(x[:, :, -1:] for x in (latent, context.action, hidden, before)))
    steps: list[tuple[Tensor, ...]] = []
    for step in range(num_ahead + 1):
        logits, events = model.predict_next_latent(head_input)
        seen, latent = head_input.latent, model.sample(logits / temperature, rng)
        steps.append((model.decode(latent), head_input.hidden, events, latent))
        if step < num_ahead:
            rows = window.rows(num_context + step, num_context + step + 1)
            taken = action[:, :, step : step + 1]
            hidden = model.sequence_model(latent, taken, rows, routing, memory)
            head_input = HeadInput(latent, taken, hidden, seen)
    frame, *read = (torch.cat(parts, dim=2) for parts in zip(*steps, strict=True))
    reward_logits, termination_logits = model.predict_reward_and_end(*read)
    reward = two_hot_decode(reward_logits, form=model.config.two_hot_form)
    return OpenLoopPrediction(frame, reward, termination_logits > 0)


@torch.no_grad()
def reconstruct(model: WorldModel, frame: Tensor, rng: PhiloxState) -> Tensor:
    """Frames [K, B, L, 64, 64, 3] uint8 through encoder, draw and decoder: float, same shape, 0 black to 1 white."""
    # Column by column: the activations of whole windows of many tasks would take gigabytes.
    columns = frame.split(1, dim=2)
    return torch.cat([model.decode(model.sample(model.encode(column), rng)) for column in columns], dim=2)


def open_loop_errors(prediction: OpenLoopPrediction, reconstruction: Tensor, windows: HeldOutWindows) -> OpenLoopErrors:
    """Compare with the windows of L = C + T steps that the context and the actions were taken from.

    Args: reconstruction: [K, B, L, 64, 64, 3] float, of all frames of the windows.
    """
    batch, num_steps = windows.batch, prediction.reward.shape[2]
    num_context = batch.reward.shape[2] - num_steps
    real = batch.frame.float() / 255.0  # [K, B, L, 64, 64, 3]
    truth, last = real[:, :, num_context:], real[:, :, num_context - 1 : num_context]
    shown, acted = alive(windows, num_context, num_steps)
    # Reward and termination of step n stand beside the action before it, one column to the left.
    reward, terminated = (x[:, :, num_context - 1 : -1] for x in (batch.reward, batch.terminated))
    return OpenLoopErrors(
        imagined=_only(shown, _squared_error(prediction.frame, truth)),
        reconstructed=_only(shown, _squared_error(reconstruction[:, :, num_context:], truth)),
        repeated=_only(shown, _squared_error(last, truth)),
        reward=_only(acted, (prediction.reward - reward).abs()),
        no_reward=_only(acted, reward.abs()),
        agrees=_only(acted, (prediction.terminated == terminated).float()),
    )


def alive(windows: HeldOutWindows, num_context: int, num_steps: int) -> tuple[Tensor, Tensor]:
    """Masks of the imagined steps that have a real counterpart in the windows.

    Returns: ([K, B, T], [K, B, T]) bool: the frame was shown; the action that should lead to it was taken.
    """
    ahead = torch.arange(1, num_steps + 1, device=windows.length.device)
    remaining, acted = ((n - num_context).unsqueeze(-1) for n in (windows.length, windows.num_actions))
    return ahead <= remaining, ahead <= acted + 1


def _squared_error(frame: Tensor, real: Tensor) -> Tensor:
    return (frame.float() - real).square().flatten(3).mean(dim=-1)  # [K, B, T]


def _only(lives: Tensor, error: Tensor) -> Tensor:
    return error.masked_fill(~lives, float("nan"))
