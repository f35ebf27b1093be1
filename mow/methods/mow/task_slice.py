"""View of a world model on a contiguous range of tasks: the same weights, fewer rows. Gradients of all slices add up.

Random streams are those of the whole model: every task draws the numbers that it would have drawn with all the others.
"""

import copy
from itertools import pairwise
from typing import TypeVar

from torch import Tensor, nn
from torch.nn import functional as F

from mow.kernels import PhiloxState
from mow.methods.mow.config_model import Condition
from mow.methods.mow.vae import ConvNet
from mow.methods.mow.world_model import WorldModel
from mow.nn.routes import FixedRoutes

Net = TypeVar("Net", bound=ConvNet)


class TaskSlice(WorldModel):
    """Tasks `tasks` of `whole`, for one update; without parameters of its own.

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


def _cut(net: Net, tasks: slice) -> Net:
    """Copy of `net` with the same weights and norms, and the groups of `tasks` alone, counted from their first."""
    cut, groups = copy.copy(net), []
    for group in net.groups:
        start, stop = max(group.tasks.start, tasks.start), min(group.tasks.stop, tasks.stop)
        if start < stop:
            groups.append(group._replace(tasks=slice(start - tasks.start, stop - tasks.start)))
    cut.groups = tuple(groups)
    return cut
