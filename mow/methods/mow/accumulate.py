"""Gradient accumulation of a world-model update over groups of tasks: one group's activations live at a time.

Loss and gradient are those of the undivided update: tasks meet only in weights, whose gradients add up; in the router,
which runs once for all; and in batch norm shared by a module, which no group cuts in two. Sums are made in another
order, so float32 rounds them differently, and dropout draws other masks. Clipping and the step come after.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from operator import itemgetter
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mow.batch import TransitionBatch
from mow.kernels import PhiloxState
from mow.losses import balance_loss
from mow.methods.mow.config import LossConfig
from mow.methods.mow.config_model import Condition
from mow.methods.mow.router import Routing
from mow.methods.mow.task_weights import TaskWeights
from mow.methods.mow.vae import ConvNet
from mow.methods.mow.world_model import WorldModel
from mow.methods.mow.world_model_loss import WorldModelLosses, world_model_losses
from mow.nn.routes import FixedRoutes

Net = TypeVar("Net", bound=ConvNet)


class TaskSlice(WorldModel):
    """View of `whole` on some `tasks`: the same weights, fewer rows, no parameters of its own.

    Random streams are those of the whole: every task draws the numbers that it would have drawn with all the others.

    Args: tasks: contiguous, with start and stop; with batch norm shared by modules it must not cut a module in two.
    """

    def __init__(self, whole: WorldModel, tasks: slice) -> None:
        nn.Module.__init__(self)
        own = {"_modules": dict(whole._modules), "_buffers": dict(whole._buffers)}
        self.__dict__.update({**whole.__dict__, **own})
        self.tasks, self.first_task, self.num_all = tasks, tasks.start, whole.num_tasks
        self.module_of_task = whole.module_of_task[tasks]
        self.encoder, self.decoder = _cut(whole.encoder, tasks), _cut(whole.decoder, tasks)
        self.module_routes = FixedRoutes(whole.plan.routes[tasks], whole.num_modules)
        self.shared_routes = FixedRoutes(whole.shared_plan.routes[tasks], 1)
        if whole.background is not None:
            self.background = whole.background[tasks]

    def embedding(self, place: Condition) -> Tensor | None:
        """e_k [k, d] of these tasks."""
        every = super().embedding(place)
        return None if every is None else every[self.tasks]

    def route(
        self, *, temperature: float | Tensor = 1.0, noise: float | Tensor = 0.0, rng: PhiloxState | None = None,
        frozen: Tensor | None = None,
    ) -> Routing:  # fmt: skip
        """Their rows of the whole model's routing."""
        return super().route(temperature=temperature, noise=noise, rng=rng, frozen=frozen).rows(self.tasks)

    def sample(self, logits: Tensor, rng: PhiloxState) -> Tensor:
        """Draw as the whole model for these tasks. The others' rows are drawn too, from zeros, and dropped."""
        padding = [0, 0] * (logits.dim() - 1) + [self.tasks.start, self.num_all - self.tasks.stop]
        return super().sample(F.pad(logits, padding), rng)[self.tasks]

    def _uniform(self, rng: PhiloxState, shape: tuple[int, ...]) -> Tensor:
        return super()._uniform(rng, (self.num_all, *shape[1:]))[self.tasks]


def task_parts(model: WorldModel, number: int) -> tuple[slice, ...]:
    """At most `number` ranges of tasks, about equal; fewer where batch norm shared by a module keeps tasks together."""
    modules, num_tasks = model.module_of_task, model.num_tasks
    together = model.config.perception.norm == "bn_shared"
    borders = [k for k in range(1, num_tasks) if not together or modules[k] != modules[k - 1]]
    wanted = [num_tasks * part / number for part in range(1, number)]
    cuts = {min(borders, key=lambda k: abs(k - want)) for want in wanted} if borders else set()
    return tuple(slice(start, stop) for start, stop in pairwise([0, *sorted(cuts), num_tasks]))


def backward_in_parts(
    model: WorldModel, batch: TransitionBatch, routing: Routing, rng: PhiloxState, config: LossConfig,
    task_weights: TaskWeights, parts: Sequence[slice], *, turn: int,
    autocast: Callable[[], AbstractContextManager[object]],
) -> tuple[WorldModelLosses, Tensor]:  # fmt: skip
    """Leave the gradient of L_H + 0.1 L_bal in the parameters.

    Args:
        parts: ranges of tasks, see task_parts.
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
            some = routing._replace(scale_KJ=scale_KJ).rows(tasks)
            rows = batch.map(itemgetter(tasks))
            losses = world_model_losses(TaskSlice(model, tasks), rows, some, rng, config, turn=turn)
        total = task_weights(losses.weighted(config), tasks, counts=tasks.start == 0)
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
        tensors, gradients = zip(*ends, strict=True)
        torch.autograd.backward(tensors, gradients)
    return None if balance is None else balance.detach()


def _cut(net: Net, tasks: slice) -> Net:
    """Copy of `net` with the same weights and norms, and the groups of `tasks` alone, counted from their first."""
    cut, groups = copy.copy(net), []
    for group in net.groups:
        start, stop = max(group.tasks.start, tasks.start), min(group.tasks.stop, tasks.stop)
        if start < stop:
            groups.append(group._replace(tasks=slice(start - tasks.start, stop - tasks.start)))
    cut.groups = tuple(groups)
    return cut
