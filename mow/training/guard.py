"""Numbers that would break the weights: found before the step is made."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn


class NotFinite(FloatingPointError):
    """An update whose loss or gradient is not finite; it was not made."""


def check_finite(
    what: str,
    total: Tensor,
    norm: Tensor,
    losses: Mapping[str, Tensor],
    tasks: Sequence[str],
    parameters: Iterable[tuple[str, nn.Parameter]],
) -> None:
    """Look at a loss and the norm of its gradient; waits for the device, once.

    Args:
        what: learns, for the message.
        total: scalar, what the gradient is of.
        norm: scalar, of the whole gradient: finite only if every entry is.
        losses: its parts, name -> [K].
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
