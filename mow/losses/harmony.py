"""One learned scale per task, so that loud tasks do not drown quiet ones."""

from torch import Tensor


def harmony_loss(loss: Tensor, log_sigma: Tensor) -> Tensor:
    """L_k / sigma_k + ln(1 + sigma_k), sigma_k = exp(s_k): any shape, elementwise.

    Stationary in sigma where sigma^2 = L (1 + sigma), that is sigma ~ L + 1 for large L: the weighted loss tends to 1.

    Source: MoW section 3 (harmony), HarmonyDream (rectified form).
    """
    sigma = log_sigma.exp()
    return loss / sigma + sigma.log1p()
