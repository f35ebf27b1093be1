"""Measures of a world model on held-out windows: pictures, use of the past, rewards. One number per task, [K]."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.past import past_use
from bench.recording import unbroken
from mow.batch import TransitionBatch
from mow.evaluate.held_out import HeldOutWindows
from mow.evaluate.open_loop import predict_open_loop, reconstruct, split
from mow.kernels import PhiloxState, two_hot_decode, two_hot_loss
from mow.methods.mow.learner import Learner
from mow.methods.mow.records import HeadInput, Posterior
from mow.methods.mow.world_model import WorldModel

AHEAD = (1, 10)  # imagined steps that are reported
_VISIBLE = 0.25  # a pixel is part of a moving thing where a channel is further than this from the background, of 1


@torch.no_grad()
def measure(
    learner: Learner, batch: TransitionBatch, seen: TransitionBatch, rng: PhiloxState, *, context: int
) -> dict[str, list[float]]:
    """All numbers, name -> [K].

    Args:
        learner: its world model is measured in evaluation mode; its agent need not be trained.
        batch: [K, B, L, ...] held-out windows.
        seen: [K, B, L, ...] training data, for the median frame and the mean reward.
        context: steps given before an open-loop prediction of max(AHEAD) steps.
    """
    model, routing = learner.world_model.eval(), learner.routing()
    temperature = learner.config.imagination.temperature
    windows = HeldOutWindows(batch, torch.full(batch.reward.shape[:2], batch.reward.shape[2]))
    past = past_use(model, learner.agent, windows, routing, rng, longest=batch.reward.shape[2])
    found = {"KL": past.kl, "KL/without past": past.kl / past.kl_without}

    # Squared errors per frame (sum over 64 x 64 x 3 numbers in [0, 1]) and the share of moving pixels that is kept.
    short = batch.map(lambda column: column[:, :, : context + max(AHEAD)])
    real = short.frame.float() / 255.0  # [K, B, L, 64, 64, 3]
    background = seen.frame.flatten(1, 2).median(dim=1).values.float()[:, None] / 255.0  # [K, 1, 64, 64, 3]
    prediction = predict_open_loop(model, *split(short, context), routing, rng, temperature=temperature)
    found["energy"] = _squared(real, background.unsqueeze(2)).mean(dim=(1, 2))
    found["reconstruction"] = _squared(reconstruct(model, short.frame, rng), real).mean(dim=(1, 2))
    found["reconstruction/energy"] = found["reconstruction"] / found["energy"]
    for n in AHEAD:
        inside = unbroken(short, context + n)  # [K, B]; none where episodes are shorter
        truth, imagined = real[:, :, context + n - 1], prediction.frame[:, :, n - 1].float()
        error, repeated = _squared(imagined, truth), _squared(real[:, :, context - 1], truth)
        found[f"{n} ahead/repeating"] = _task_mean(error, inside) / _task_mean(repeated, inside)
        kept, shown = _visible(imagined, background), _visible(truth, background)
        found[f"moving pixels kept, {n} ahead"] = _task_mean(kept, inside) / _task_mean(shown, inside)
    base_rate = [mean_code(of_task, learner.config.model.num_bins) for of_task in seen.reward.flatten(1)]
    found |= _rewards(model, batch, model.observe(batch, routing, rng), rng, temperature, base_rate)
    return {name: [float(value) for value in values] for name, values in found.items()}


def _rewards(
    model: WorldModel, batch: TransitionBatch, posterior: Posterior, rng: PhiloxState, temperature: float,
    base_rate: Sequence[Tensor],
) -> dict[str, Tensor]:  # fmt: skip
    """Errors of predicted rewards, given the real next latent, and given one drawn from the prior.

    Cross-entropy over that of a constant, the mean code of the training rewards; signs of rewards that are not 0.
    """
    moment = HeadInput(posterior.latent, batch.action, posterior.hidden, model.before(posterior.latent, batch.is_first))
    logits, events = model.predict_next_latent(moment)
    arrived = {"real": posterior.latent.roll(-1, dims=2), "imagined": model.sample(logits / temperature, rng)}
    known, reward = batch.leads_on, batch.reward[:, :, :-1]  # [K, B, L - 1] z_{t+1} is in the window
    found: dict[str, list[float]] = {}
    for source, latent in arrived.items():
        read = model.predict_reward_and_end(posterior.hidden, events, latent)[0][:, :, :-1]  # [K, B, L - 1, V]
        for k, rate in enumerate(base_rate):
            here, real = read[k][known[k]], reward[k][known[k]]  # [N, V], [N]
            constant = rate.clamp_min(1e-6).log().expand_as(here)
            ratio = two_hot_loss(here, real).mean() / two_hot_loss(constant, real).mean().clamp_min(1e-9)
            found.setdefault(f"reward CE/base rate, {source}", []).append(float(ratio))
            expected = two_hot_decode(here, form="mean_of_symexp").numpy()
            found.setdefault(f"sign, {source}", []).append(_sign(expected, real.numpy()))
    return {name: torch.tensor(values) for name, values in found.items()}


def _sign(expected: NDArray[np.float32], reward: NDArray[np.float32]) -> float:
    """Share of right signs, the mean of those of r > 0 and of r < 0; NaN where one is missing."""
    positive, negative = reward > 0, reward < 0
    if not (positive.any() and negative.any()):
        return float("nan")
    return float(((expected[positive] > 0).mean() + (expected[negative] < 0).mean()) / 2)


def mean_code(reward: Tensor, num_bins: int) -> Tensor:
    """[N] rewards -> [V] mean of their two-hot codes on symlog [-20, 20]."""
    place = (torch.sign(reward) * torch.log1p(reward.abs()) + 20.0) / 40.0 * (num_bins - 1)  # [N] in bins
    lower = place.floor().clamp(0, num_bins - 2)
    code = torch.zeros(num_bins)
    code.scatter_add_(0, lower.long(), 1.0 - (place - lower))
    code.scatter_add_(0, lower.long() + 1, place - lower)
    return code / len(reward)


def _squared(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().flatten(-3).sum(dim=-1)


def _visible(frame: Tensor, background: Tensor) -> Tensor:
    """Pixels of frames [K, B, 64, 64, 3] that are not background: [K, B]."""
    return ((frame - background).abs().amax(dim=-1) > _VISIBLE).flatten(2).float().sum(dim=-1)


def _task_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the windows of a task that `mask` [K, B] keeps; NaN where there is none."""
    return (values * mask).sum(dim=1) / mask.sum(dim=1)
