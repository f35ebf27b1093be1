"""Targets for the critic: returns of all horizons, blended."""

import torch
from torch import Tensor

from mow.kernels.dispatch import Backend, backends, choose, compute_dtype


def lambda_return(
    reward: Tensor, continuation: Tensor, value: Tensor, *, lam: float, backend: Backend = "auto"
) -> Tensor:
    """Blend all n-step returns, backwards in time.

        G_t = r_t + c_t * ((1 - lam) * v_{t+1} + lam * G_{t+1}),   G_T = v_T

    Args:
        reward: [K, B, T], units of the task, received after action t; any leading axes do.
        continuation: [K, B, T] in [0, 1], discount times the probability that the episode goes on.
        value: [K, B, T + 1], units of reward; the last entry is the bootstrap, the first does not matter.
        lam: 0 gives one-step targets, 1 the full return.
        backend: "auto", or the name of an implementation.
    Returns: [K, B, T], float64 if a tensor has it, else float32; carries no gradient.
    Raises: ValueError if value lacks the extra step, shapes, dtypes or devices are wrong, or lam is outside [0, 1].
    Source: MoW section 3 (critic target); Sutton and Barto, section 12.8.
    """
    if reward.dim() < 1 or continuation.shape != reward.shape or value.shape[:-1] != reward.shape[:-1]:
        raise ValueError(
            "reward and continuation must share [..., T] and value have [..., T + 1], got "
            f"{list(reward.shape)}, {list(continuation.shape)} and {list(value.shape)}: align their axes"
        )
    if value.shape[-1] != reward.shape[-1] + 1:
        raise ValueError(
            f"value needs one step more than reward, got {value.shape[-1]} and {reward.shape[-1]}: "
            "append the value of the last imagined state"
        )
    if not 0.0 <= lam <= 1.0:
        raise ValueError(f"lam must be in [0, 1], got {lam}: 0.95 is the usual value")
    if not reward.device == continuation.device == value.device:
        raise ValueError(
            "reward, continuation and value must share a device, got "
            f"{reward.device}, {continuation.device} and {value.device}: move them with .to()"
        )
    compute_dtype(reward, continuation, value)
    with torch.no_grad():
        if choose("lambda_return", backend, backends(reward)) == "triton":
            # Loaded when first chosen: triton takes longer to import than all of this package.
            from mow.kernels.lambda_return_triton import lambda_return_triton

            return lambda_return_triton(reward, continuation, value, lam)
        return _reference(reward, continuation, value, lam)


def _reference(reward: Tensor, continuation: Tensor, value: Tensor, lam: float) -> Tensor:
    dtype = compute_dtype(reward, continuation, value)
    reward, continuation, value = reward.to(dtype), continuation.to(dtype), value.to(dtype)
    returns = torch.empty_like(reward)
    following = value[..., -1]  # G_{t+1}
    for t in reversed(range(reward.shape[-1])):
        blend = (1.0 - lam) * value[..., t + 1] + lam * following
        following = reward[..., t] + continuation[..., t] * blend
        returns[..., t] = following
    return returns
