"""Which weights serve which task: checked once per change of routing, then read by every modular layer."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class RoutePlan:
    """Which expert serves which task in which slot; made and checked by route_plan, once per change of routing."""

    routes: Tensor  # [K, J] int64 in [0, num_experts)
    num_experts: int
    known: tuple[tuple[int, ...], ...] | None = None  # the routes as the host knows them without asking the device
    in_order: bool = False  # the weights lie gathered: row p serves pair p = k * J + j

    @property
    def single_expert(self) -> int | None:
        """The expert of the only pair, where there is but one and the host knows its expert."""
        if self.routes.numel() > 1:
            return None
        if self.num_experts == 1:
            return 0
        return None if self.known is None else self.known[0][0]

    def of_task(self, k: int) -> "RoutePlan":
        """The routes of task k alone, [1, J]; the same object whenever it is asked for."""
        kept: list[RoutePlan] | None = self.__dict__.get("_of_task")
        if kept is None:
            parts = [(self.routes[i : i + 1], self.known and self.known[i : i + 1]) for i in range(len(self.routes))]
            kept = [RoutePlan(one, self.num_experts, known) for one, known in parts]
            if not torch.compiler.is_compiling():  # what a compiler holds are no tensors that a later call could use
                self.__dict__["_of_task"] = kept
        return kept[k]

    def by_expert(self) -> tuple[Tensor, Tensor]:
        """The (task, slot) pairs in the order of their experts, as the kernels walk them. See pairs_by_expert.

        Made when first asked for and kept, so a plan that many layers share is grouped once.
        """
        kept = self.__dict__.get("_by_expert")
        if kept is None:
            kept = pairs_by_expert(self.routes, self.num_experts)
            # What is made while a CUDA graph is captured or a function compiled lives in the memory of that graph,
            # which a later call outside of it must not read.
            if not torch.compiler.is_compiling() and not _captures(self.routes):
                self.__dict__["_by_expert"] = kept
        return kept


def route_plan(routes: Tensor, num_experts: int) -> RoutePlan:
    """Check routes [K, J] int64 and keep them. Reads their values on the host, so it waits for the device.

    Raises: ValueError if the shape or dtype is wrong or an index is outside [0, num_experts).
    """
    if routes.dtype != torch.int64 or routes.dim() != 2:
        raise ValueError(f"routes must be int64 [K, J], got {routes.dtype} {list(routes.shape)}: convert them")
    if routes.numel() == 0:
        raise ValueError(f"routes need a task and a slot, got {list(routes.shape)}: give every task an expert")
    smallest, largest = int(routes.min()), int(routes.max())
    if smallest < 0 or largest >= num_experts:
        raise ValueError(
            f"routes must be in [0, {num_experts}), got {smallest} to {largest}: num_experts counts the weights"
        )
    return RoutePlan(routes=routes, num_experts=num_experts)


def gathered(stacked: Tensor, plan: RoutePlan) -> tuple[Tensor, RoutePlan]:
    """What belongs to each pair, stacked [E, ...] -> [K * J, ...], and the plan that says so."""
    rows = rows_of(stacked, plan).flatten(0, 1)
    routes = torch.arange(len(rows), device=rows.device).view(plan.routes.shape)
    return rows, RoutePlan(routes, len(rows), in_order=True)


def rows_of(stacked: Tensor, plan: RoutePlan) -> Tensor:
    """What belongs to the expert of each pair: stacked [E, ...] -> [K, J, ...].

    Same as stacked[plan.routes], whose gradient on a CPU takes many times longer to add up. Where the host knows the
    expert of a lone pair, it is a view.
    """
    if plan.in_order:
        return stacked.unflatten(0, plan.routes.shape)
    index = plan.routes.flatten()
    if torch.compiler.is_compiling():  # a compiler lays the gradient out by itself
        return stacked.index_select(0, index).unflatten(0, plan.routes.shape)
    if plan.single_expert is not None:
        return stacked[plan.single_expert].unsqueeze(0).unsqueeze(0)
    if len(stacked) == 1 and not torch.is_grad_enabled():
        return stacked.unsqueeze(0).expand(*plan.routes.shape, *stacked.shape[1:])
    return _Pick.apply(stacked, index).unflatten(0, plan.routes.shape)  # type: ignore[no-untyped-call]


class _Pick(torch.autograd.Function):
    """stacked [E, ...], index [P] -> [P, ...]; the gradients of the copies of a row are added up."""

    @staticmethod
    def forward(ctx: Any, stacked: Tensor, index: Tensor) -> Tensor:
        ctx.num_rows = stacked.shape[0]
        ctx.save_for_backward(index)
        return stacked.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (index,), (grad,) = ctx.saved_tensors, grads
        # The matmul x W^T leaves the gradient of W transposed in memory. Added up as it lies there it takes a thirtieth
        # of the time: 4.4 ms become 0.15 for ten pairs of 128 x 1029 on one core.
        transposed = grad.dim() > 2 and grad.mT.is_contiguous()
        lying = grad.mT if transposed else grad
        total = lying.new_zeros(ctx.num_rows, *lying.shape[1:]).index_add_(0, index, lying)
        return (total.mT if transposed else total), None


def pairs_by_expert(routes: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Group the pairs p = k * J + j by their expert, without waiting for the device.

    Both results have a size that does not depend on the routing, so a CUDA graph captured with one routing serves the
    next one.

    Args:
        routes: [K, J] int64 in [0, num_experts).
        num_experts: E.
    Returns:
        member_P: [K * J] int32, the pairs, first those of expert 0, each group in ascending order.
        offset_E: [E + 1] int32; the pairs of expert e are member_P[offset_E[e] : offset_E[e + 1]].
    """
    expert_P, member_P = routes.flatten().sort(stable=True)
    offset_E = torch.searchsorted(expert_P, torch.arange(num_experts + 1, device=routes.device), out_int32=True)
    return member_P.int(), offset_E


def _captures(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()
