"""How far the decoded frame is from the one seen."""

from torch import Tensor


def reconstruction_loss(decoded: Tensor, frame: Tensor) -> Tensor:
    """Squared error on the [0, 1] pixel scale, summed over the image, averaged over B and L.

        L_rec = mean_{b,l} sum_{h,w,c} (o_hat - o / 255)^2

    Args:
        decoded: [K, B, L, 64, 64, 3] float.
        frame: [K, B, L, 64, 64, 3] uint8.
    Returns: [K].
    Source: MoW section 3 (written there as a norm), STORM (the squared sum).
    """
    error = decoded.float() - frame.float() / 255.0
    return error.square().flatten(3).sum(dim=-1).mean(dim=(1, 2))
