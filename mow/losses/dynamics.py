"""Dynamics and representation losses: KL between posterior and prior, free bits per task."""

from typing import NamedTuple

import torch
from torch import Tensor

from mow.kernels import categorical_kl


class LatentLosses(NamedTuple):
    dynamics: Tensor  # [K] nats, trains the prior
    representation: Tensor  # [K] nats, trains the posterior
    kl: Tensor  # [K] nats, before the floor; a metric


def latent_losses(
    posterior_logits: Tensor, prior_logits: Tensor, leads_on: Tensor, *, unimix: float, free_bits: float
) -> LatentLosses:
    """KL between the posterior at t + 1 and the prior predicted from h_t, with a stop-gradient on either side in turn.

        L_dyn = max(free_bits, mean KL[sg(post_{t+1}) || prior_t])
        L_rep = max(free_bits, mean KL[post_{t+1} || sg(prior_t)])

    The mean runs over the task's pairs (t, t + 1) inside one episode; the floor acts once per task, after the mean.

    Args:
        posterior_logits: [K, B, L, S, C].
        prior_logits: [K, B, L, S, C]; entry t predicts t + 1, the last entry is not used.
        leads_on: [K, B, L - 1] bool; a pair whose second step opens another episode has no prediction and is left out.
    Source: MoW section 3; STORM (floor after the mean). Differs: STORM floors the mean over its whole batch and
    counts pairs across episode ends.
    """
    dynamics, representation = categorical_kl(posterior_logits[:, :, 1:], prior_logits[:, :, :-1], unimix=unimix)
    counted = leads_on.float()  # [K, B, L - 1]
    count = counted.sum(dim=(1, 2)).clamp_min(1.0)

    def task_mean(kl: Tensor) -> Tensor:
        return (kl * counted).sum(dim=(1, 2)) / count

    mean_dynamics = task_mean(dynamics)
    return LatentLosses(
        dynamics=torch.clamp_min(mean_dynamics, free_bits),
        representation=torch.clamp_min(task_mean(representation), free_bits),
        kl=mean_dynamics.detach(),
    )
