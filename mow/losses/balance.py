"""Balance: every expert in use, and one learned scale per task, so that large losses do not hide small ones."""

import torch
from torch import Tensor


def balance_loss(load_KE: Tensor) -> Tensor:
    """L_bal = || sum_k W_k - (K J / E) 1 ||^2: squared distance of the experts' loads from an equal share; a scalar.

    Args: load_KE: [K, E], rows sum to J (see Routing.load).
    Source: MoW section 3. Differs: W_k is J times the renormalised top-J scores, so that the target can be reached.
    """
    num_experts = load_KE.shape[1]
    target = load_KE.detach().sum() / num_experts  # K J / E
    return (load_KE.sum(dim=0) - target).square().sum()


def expert_use(load_KE: Tensor) -> Tensor:
    """Share of all loads that each expert carries: [E], sums to 1; a metric."""
    return load_KE.detach().sum(dim=0) / torch.clamp_min(load_KE.detach().sum(), 1e-8)


def harmony_loss(loss: Tensor, log_sigma: Tensor) -> Tensor:
    """L_k / sigma_k + ln(1 + sigma_k), sigma_k = exp(s_k): any shape, elementwise.

    Stationary in sigma where sigma^2 = L (1 + sigma), that is sigma ~ L + 1 for large L: the weighted loss tends to 1.

    Source: MoW section 3 (harmony), HarmonyDream (rectified form).
    """
    sigma = log_sigma.exp()
    return loss / sigma + sigma.log1p()
