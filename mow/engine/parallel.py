"""The ranks of a run on PyTorch's own engine: gloo for what lies in main memory, NCCL for GPUs."""

from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mow.engine.placement import place


class Ranks:
    """The process group of all ranks, see mow.methods.base.Parallel.

    Args: store: of this attempt alone. rank, size, tasks: of the run. device: where gradients lie. seconds: that a call
        waits for the others before it fails.
    """

    def __init__(
        self, store: dist.Store, rank: int, size: int, num_tasks: int, device: torch.device, seconds: float
    ) -> None:
        self.rank, self.size, self.device = rank, size, device
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=seconds),
            device_id=device if device.type == "cuda" else None,
        )  # fmt: skip
        self.parts = place([0] * num_tasks, size)
        self._holders: list[tuple[int, ...]] = []  # ranks of each module
        self._groups: dict[int, Any] = {}  # of the modules on several ranks
        self._made: dict[tuple[int, ...], Any] = {}

    @property
    def own(self) -> slice:
        return self.parts[self.rank]

    def close(self) -> None:
        dist.destroy_process_group()

    def divide(self, module_of_task: Sequence[int]) -> None:
        self.parts = place(module_of_task, self.size)
        self._holders = [
            tuple(r for r, part in enumerate(self.parts) if module in module_of_task[part])
            for module in range(max(module_of_task) + 1)
        ]
        everyone = tuple(range(self.size))
        self._made.setdefault(everyone, dist.group.WORLD)
        for ranks in self._holders:  # in the same order on all ranks
            if ranks not in self._made and len(ranks) > 1:
                self._made[ranks] = dist.new_group(list(ranks))
        self._groups = {module: self._made[ranks] for module, ranks in enumerate(self._holders) if len(ranks) > 1}

    def ranks_of(self, module: int) -> tuple[int, ...]:
        return self._holders[module]

    def summing(self, parameters: Sequence[nn.Parameter]) -> nn.Module:
        summing = DistributedDataParallel(_Calls(parameters))
        summing.register_comm_hook(None, _sum)
        return summing

    def add(self, tensors: Sequence[Tensor], module: int | None = None) -> None:
        group = None if module is None else self._groups[module]
        for flat, parts in _flattened(tensors):
            dist.all_reduce(flat, group=group)
            _unflatten(flat, parts)

    def added(self, tensor: Tensor, module: int) -> Tensor:
        summed: Tensor = _Sum.apply(tensor, self._groups[module])
        return summed

    def copy_from(self, rank: int, tensors: Sequence[Tensor]) -> None:
        for flat, parts in _flattened(tensors):
            dist.broadcast(flat, rank)
            _unflatten(flat, parts)

    def rows(self, own: Tensor) -> Tensor:
        sizes = [part.stop - part.start for part in self.parts]
        padded = own.new_zeros(max(sizes), *own.shape[1:])
        padded[: len(own)] = own
        found = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(found, padded)
        return torch.cat([rows[:size] for rows, size in zip(found, sizes, strict=True)])

    def texts(self, own: str) -> list[str]:
        data = torch.frombuffer(bytearray(own.encode() + b"\0"), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(data)]))
        found = [torch.zeros(int(max(sizes)), dtype=torch.uint8) for _ in sizes]
        padded = found[self.rank].clone()
        padded[: len(data)] = data
        dist.all_gather(found, padded)
        return [bytes(text[: int(size) - 1].tolist()).decode() for text, size in zip(found, sizes, strict=True)]

    def most(self, number: int) -> int:
        """The largest of the ranks' numbers."""
        largest = torch.tensor([number])
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)


class _Calls(nn.Module):
    """Calls its argument; holds the parameters whose gradients are summed."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.parameters_ = nn.ParameterList(parameters)

    def forward(self, call: Callable[[], Any]) -> Any:
        return call()


def _sum(group: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Sum a bucket of gradients, where DistributedDataParallel by itself takes the mean."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda future: future.value()[0])


class _Sum(torch.autograd.Function):
    """Sum over a group; as every rank's loss reads it, so is its gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = tensor.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        total = gradient.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


def _flattened(tensors: Sequence[Tensor]) -> Iterable[tuple[Tensor, list[Tensor]]]:
    """One flat copy of all tensors of a type, and these tensors."""
    kinds = sorted(tensors, key=lambda tensor: (str(tensor.device), str(tensor.dtype)))
    for _, group in groupby(kinds, key=lambda tensor: (str(tensor.device), str(tensor.dtype))):
        parts = list(group)
        yield torch.cat([part.reshape(-1) for part in parts]), parts


def _unflatten(flat: Tensor, parts: Sequence[Tensor]) -> None:
    for part, values in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
        part.copy_(values.view(part.shape))
