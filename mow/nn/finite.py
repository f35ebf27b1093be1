"""Numbers that would break the weights, found before the step is made; broken weights, before they do harm."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mow.envs.base import ActionLayout

# A run that goes on keeps its step sizes, and would do the same again.
REMEDY = "start a new run with a lower step size: the flags of its preset that end in lr (--help lists them)"


class NotFinite(FloatingPointError):
    """An update whose loss or gradient is not finite; it was not made."""


def check_finite(
    what: str, total: Tensor, norm: Tensor, losses: Mapping[str, Tensor], tasks: Sequence[str],
    parameters: Iterable[tuple[str, nn.Parameter]],
) -> None:  # fmt: skip
    """Check a loss and the norm of its gradient; waits for the device, once.

    Args:
        what: the trained model, for the message.
        total: scalar, the loss.
        norm: scalar, of its whole gradient: finite only if every entry is.
        losses: parts of the loss, name -> [K].
        tasks: K names.
        parameters: with their gradients.
    Raises: NotFinite, naming the first loss and task at fault, or the first parameter if all losses are finite.
    """
    if bool(torch.stack([total.detach().float(), norm.float()]).isfinite().all()):
        return
    for name, loss in losses.items():
        broken = (~loss.detach().isfinite()).nonzero().flatten().tolist()
        if broken:
            raise NotFinite(f"{what}: {name} of {tasks[broken[0]]} is {loss[broken[0]].item()}")
    for name, parameter in parameters:
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
            raise NotFinite(f"{what}: the gradient of {name} is not finite, though all losses are")
    raise NotFinite(f"{what}: the gradient is too large for its norm, {norm.item()}")


def check_actions(action: NDArray[np.float32], layout: ActionLayout, tasks: Sequence[str]) -> None:
    """Check actions [K, A] of the policy. Raises: FloatingPointError, naming the first task without an action."""
    marked = action[:, : layout.num_discrete].sum(axis=1) == 1.0
    chosen = np.isfinite(action).all(axis=1) & (marked | ~layout.discrete)
    if not chosen.all():
        task = tasks[int(np.flatnonzero(~chosen)[0])]
        raise FloatingPointError(f"the agent chooses no action in {task}: its weights are broken; {REMEDY}")


def check_weights(models: Mapping[str, nn.Module]) -> None:
    """Check weights before they are saved. Raises: FloatingPointError, naming the first that is not finite."""
    held = {f"{model}: {name}": value for model, module in models.items()
            for name, value in module.state_dict().items() if value.is_floating_point()}  # fmt: skip
    finite = torch.stack([value.isfinite().all() for value in held.values()]).tolist()  # waits for the device, once
    for name, fine in zip(held, finite, strict=True):
        if not fine:
            raise FloatingPointError(f"{name} is not finite, nothing was saved; {REMEDY}")
