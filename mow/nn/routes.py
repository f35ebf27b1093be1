"""Routes that hold as long as a model lives: to a task's cluster, to its critic, to what all tasks share."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mow.kernels import RoutePlan


class FixedRoutes(nn.Module):
    """Routes [K, J] int64 in [0, num_experts); they follow the model from device to device.

    A model builds them from its arguments, so they are not part of the state_dict. `known`: the same numbers, where the
    host has them.
    """

    routes: Tensor

    def __init__(self, routes: Tensor, num_experts: int, known: tuple[tuple[int, ...], ...] | None = None) -> None:
        super().__init__()
        self._plan = RoutePlan(routes, num_experts, known)
        self.register_buffer("routes", routes, persistent=False)

    @property
    def plan(self) -> RoutePlan:
        """Made once per device, and with it the order in which kernels walk the pairs."""
        if self._plan.routes is not self.routes:
            self._plan = RoutePlan(self.routes, self._plan.num_experts, self._plan.known)
        return self._plan


def one_each(module_of_task: Sequence[int], num_modules: int) -> FixedRoutes:
    """Task k uses module `module_of_task[k]`."""
    known = tuple((module,) for module in module_of_task)
    return FixedRoutes(torch.tensor(module_of_task).unsqueeze(1), num_modules, known)


def same_for_all(num_tasks: int) -> FixedRoutes:
    """Every task uses the one module."""
    return FixedRoutes(torch.zeros(num_tasks, 1, dtype=torch.long), 1, ((0,),) * num_tasks)
