"""What a world model has learnt, measured on held-out windows: pictures, the past, rewards. One number per task, [K]."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from bench.recording import unbroken
from mow.batch import Moment, Posterior, TransitionBatch
from mow.kernels import PhiloxState, two_hot_decode, two_hot_loss
from mow.losses import latent_losses
from mow.models import Routing, WorldModel
from mow.training.foresight import foresee, reconstruct, split

AHEAD = (1, 3, 10)  # imagined steps that are reported
_VISIBLE = 0.25  # a pixel is part of a moving thing where a channel is further than this from the background, of 1


@dataclass(frozen=True)
class Measured:
    """A model in evaluation mode, its routes, and what it is measured on."""

    model: WorldModel
    routing: Routing
    batch: TransitionBatch  # [K, B, L, ...] held-out windows
    background: Tensor  # [K, 64, 64, 3] float, 0 to 1: the median frame of the training data
    rng: PhiloxState


def measure(
    at: Measured, *, context: int, temperature: float, base_rate: Mapping[int, Tensor]
) -> dict[str, list[float]]:
    """All numbers, name -> [K].

    Args:
        context: steps seen before an open-loop prediction of max(AHEAD) steps.
        temperature: of imagined draws.
        base_rate: task -> [V] mean two-hot code of the training rewards.
    """
    posterior = at.model.observe(at.batch, at.routing, at.rng)
    found = {**_pictures(at, context, temperature), **_past(at, posterior), **_rewards(at, posterior, temperature, base_rate)}
    return {name: [float(value) for value in values] for name, values in found.items()}


def _pictures(at: Measured, context: int, temperature: float) -> dict[str, Tensor]:
    """Squared errors per frame (sum over 64 x 64 x 3 numbers in [0, 1]) and the share of moving pixels that is kept."""
    batch = TransitionBatch(*(column[:, :, : context + max(AHEAD)] for column in vars(at.batch).values()))
    real = batch.frame.float() / 255.0  # [K, B, L, 64, 64, 3]
    background = at.background[:, None]  # [K, 1, 64, 64, 3]
    foresight = foresee(at.model, *split(batch, context), at.routing, at.rng, temperature=temperature)
    found = {
        "energy": _squared(real, background.unsqueeze(2)).mean(dim=(1, 2)),
        "reconstruction": _squared(reconstruct(at.model, batch.frame, at.rng), real).mean(dim=(1, 2)),
    }
    found["reconstruction/energy"] = found["reconstruction"] / found["energy"]
    for n in AHEAD:
        inside = unbroken(batch, context + n)  # [K, B]; none where episodes are shorter
        came, imagined = real[:, :, context + n - 1], foresight.frame[:, :, n - 1].float()
        error, repeated = _squared(imagined, came), _squared(real[:, :, context - 1], came)
        found[f"{n} ahead/repeating"] = _task_mean(error, inside) / _task_mean(repeated, inside)
        kept, shown = _visible(imagined, background), _visible(came, background)
        found[f"moving pixels kept, {n} ahead"] = _task_mean(kept, inside) / _task_mean(shown, inside)
    return found


def _past(at: Measured, posterior: Posterior) -> dict[str, Tensor]:
    """KL (nats) of the posterior of the next step from the prior that has seen its own past, none, another window's."""
    model, batch = at.model, at.batch
    own = Moment(posterior.token, batch.action, posterior.hidden)
    alone = TransitionBatch(*(column.flatten(1, 2).unsqueeze(2) for column in vars(batch).values()))
    latent = posterior.latent.flatten(1, 2).unsqueeze(2)  # [K, B * L, 1, Z]
    window = model.window(torch.ones_like(alone.is_first))
    hidden = model.remember(latent, alone.action, window, at.routing).view_as(posterior.hidden)
    pasts = {
        "KL": own,
        "KL without past": Moment(posterior.token, batch.action, hidden),
        "KL with another past": Moment(posterior.token, batch.action, posterior.hidden.roll(1, dims=1)),
    }
    found = {name: _kl(at, posterior, moment) for name, moment in pasts.items()}
    found["KL/without past"] = found["KL"] / found["KL without past"]
    return found


def _kl(at: Measured, posterior: Posterior, moment: Moment) -> Tensor:
    logits, _ = at.model.foretell(moment)
    unimix = at.model.config.perception.unimix
    return latent_losses(posterior.logits, logits, at.batch.is_first, unimix=unimix, free_bits=0.0).kl


def _rewards(
    at: Measured, posterior: Posterior, temperature: float, base_rate: Mapping[int, Tensor]
) -> dict[str, Tensor]:
    """Cross-entropy over that of the training data's mean code, AUC and sign of rare rewards; real and imagined z_t+1."""
    moment = Moment(posterior.token, at.batch.action, posterior.hidden)
    logits, events = at.model.foretell(moment)
    del logits
    known = ~at.batch.is_first[:, :, 1:]  # [K, B, L - 1] z_{t+1} belongs to the same episode
    found: dict[str, list[float]] = {}
    for source in ("real",):
        reward_logits = at.model.outcome(posterior.hidden, events)[0][:, :, :-1]  # [K, B, L - 1, V]
        reward = at.batch.reward[:, :, :-1]
        for k, rate in base_rate.items():
            inside = known[k]
            loss = two_hot_loss(reward_logits[k][inside], reward[k][inside]).mean()
            base = two_hot_loss(rate.clamp_min(1e-6).log().expand(int(inside.sum()), -1), reward[k][inside]).mean()
            found.setdefault(f"reward CE/base rate, {source}", []).append(float(loss / base.clamp_min(1e-9)))
            expected = two_hot_decode(reward_logits[k][inside]).numpy()
            for name, value in _ranks(expected, reward[k][inside].numpy()).items():
                found.setdefault(f"{name}, {source}", []).append(value)
    return {name: torch.tensor(values) for name, values in found.items()}


def _ranks(expected: NDArray[np.float32], reward: NDArray[np.float32]) -> dict[str, float]:
    """AUC of r > 0 and of r < 0 against all else; sign among r != 0, mean of both kinds; NaN where a kind is missing."""
    positive, negative = reward > 0, reward < 0
    signs = [float((expected[positive] > 0).mean()), float((expected[negative] < 0).mean())] if _both(positive, negative) else [float("nan")]
    return {
        "AUC of r > 0": _auc(expected, positive),
        "AUC of r < 0": _auc(-expected, negative),
        "sign": float(np.mean(signs)),
    }


def _both(positive: NDArray[np.bool_], negative: NDArray[np.bool_]) -> bool:
    return bool(positive.any() and negative.any())


def _auc(score: NDArray[np.float32], label: NDArray[np.bool_]) -> float:
    """Probability that a labelled entry scores above another, ties counted half."""
    count = int(label.sum())
    if count in (0, len(label)):
        return float("nan")
    ranks = rankdata(score)
    return float((ranks[label].sum() - count * (count + 1) / 2) / (count * (len(label) - count)))


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
