"""Gradient accumulation of a world-model update over groups of tasks: one group's activations live at a time.

Loss and gradient are those of the undivided update: tasks meet only in weights, whose gradients add up; in the router,
which runs once for all; and in batch norm shared by a module, which no group cuts in two. Sums are made in another
order, so float32 rounds them differently, and dropout draws other masks. Clipping and the step come after.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from operator import itemgetter

import torch
from torch import Tensor

from mow.batch import TransitionBatch
from mow.kernels import PhiloxState, RoutePlan
from mow.losses import balance_loss
from mow.methods.mow.config import LossConfig
from mow.methods.mow.router import Routing
from mow.methods.mow.task_slice import TaskSlice
from mow.methods.mow.task_weights import TaskWeights
from mow.methods.mow.world_model import WorldModel
from mow.methods.mow.world_model_loss import WorldModelLosses, world_model_losses


def backward_in_parts(
    model: WorldModel, batch: TransitionBatch, routing: Routing, rng: PhiloxState, config: LossConfig,
    task_weights: TaskWeights, parts: Sequence[slice], *, turn: int,
    autocast: Callable[[], AbstractContextManager[object]],
) -> tuple[WorldModelLosses, Tensor]:  # fmt: skip
    """Leave the gradient of L_H + 0.1 L_bal in the parameters.

    Args:
        parts: ranges of tasks, see mow.methods.mow.task_slice.task_parts.
        turn: as for world_model_losses.
        autocast: precision of the forward passes.
    Returns: the losses of all tasks, and their weighted sum; without gradient.
    """
    drawn = rng.seed_offset.clone()
    # The router runs backward once, at the end: the gradients of all groups add up at this leaf.
    scale_KJ = None if routing.scale_KJ is None else routing.scale_KJ.detach().requires_grad_()
    found: list[WorldModelLosses] = []
    totals: list[Tensor] = []
    for tasks in parts:
        rng.seed_offset.copy_(drawn)
        with autocast():
            experts = RoutePlan(routing.plan.routes[tasks], routing.plan.num_experts)
            some = Routing(experts, None, None if scale_KJ is None else scale_KJ[tasks])
            rows = batch.map(itemgetter(tasks))
            losses = world_model_losses(TaskSlice(model, tasks), rows, some, rng, config, turn=turn)
        total = task_weights(losses.weighted(config), tasks)
        total.backward()
        found.append(WorldModelLosses({name: loss.detach() for name, loss in losses.terms.items()}, None, losses.kl))
        totals.append(total.detach())
    balance = _router_backward(routing, scale_KJ, config)
    joined = {name: torch.cat([losses.terms[name] for losses in found]) for name in found[0].terms}
    total = torch.stack(totals).sum()
    if balance is not None:
        total = total + config.balance * balance
    return WorldModelLosses(joined, balance, torch.cat([losses.kl for losses in found])), total


def _router_backward(routing: Routing, scale_KJ: Tensor | None, config: LossConfig) -> Tensor | None:
    """Backward of the leaf's gradient and the balance loss through the router; returns the balance loss."""
    ends: list[tuple[Tensor, Tensor | None]] = []
    if scale_KJ is not None and routing.scale_KJ is not None and scale_KJ.grad is not None:
        ends.append((routing.scale_KJ, scale_KJ.grad))
    load_KE, balance = routing.load(), None
    if load_KE is not None:
        balance = balance_loss(load_KE)
        ends.append((config.balance * balance, None))
    if ends:
        torch.autograd.backward(*zip(*ends, strict=True))
    return None if balance is None else balance.detach()
