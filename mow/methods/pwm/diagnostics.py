"""Guards: a latent that collapses, or dynamics that predict no better than "z stays", show here before the scores.

Nothing is decoded, and without a value head only rewards and the next latents shape the encoder: where rewards are
sparse, a small effective rank is the sign to look for.
"""

import torch

from mow.batch import TransitionBatch
from mow.methods.base import Metrics
from mow.methods.pwm.learner import Learner
from mow.methods.pwm.losses import counted_steps, unroll
from mow.nn.effective_rank import effective_rank

DISTANCES = (1, 4, 8, 16)  # steps


@torch.no_grad()
def measure(learner: Learner, batch: TransitionBatch) -> Metrics:
    """Per task, on one batch of windows of T + 1 observations; changes nothing.

        rank              effective rank of the encoded observations
        rollout_error_n   mean |z_n - E(o_n)|^2 / mean |E(o_0) - E(o_n)|^2: above 1, "z stays" predicts better
        reward_r2         1 - sum (rhat - r)^2 / sum (r - mean r)^2 along the rollout; 0 where all rewards are equal

    Source: Roy and Vetterli 2007 for the rank; the others are ours.
    """
    batch, model = batch.to(learner.device), learner.world_model
    action, reward = batch.action[:, :, :-1], batch.reward[:, :, :-1]
    encoded = model.encode(batch.frame)  # [K, B, T + 1, Z]
    latent = unroll(model, encoded[:, :, 0], action)
    taken, arrived = counted_steps(batch)
    found = {"rank": effective_rank(encoded.flatten(1, 2)).float()}
    for n in (n for n in DISTANCES if n <= action.shape[2]):
        here = arrived[:, :, n - 1]  # [K, B]
        missed, moved = ((one - encoded[:, :, n]).square().sum(dim=-1).mul(here).sum(dim=1)
                         for one in (latent[:, :, n], encoded[:, :, 0]))  # fmt: skip
        found[f"rollout_error_{n}"] = missed / torch.where(moved > 0, moved, 1.0)
    count = taken.sum(dim=(1, 2), keepdim=True).clamp_min(1)
    mean = (reward * taken).sum(dim=(1, 2), keepdim=True) / count
    error = model.predict_reward(latent[:, :, :-1], action) - reward
    left, spread = ((one * taken).square().sum(dim=(1, 2)) for one in (error, reward - mean))
    found["reward_r2"] = torch.where(spread > 0, 1.0 - left / torch.where(spread > 0, spread, 1.0), 0.0)
    return {f"insight/{name}": value for name, value in found.items()}
