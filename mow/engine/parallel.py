"""The ranks of a run on PyTorch's own engine: gloo for what lies in main memory, NCCL for GPUs.

Where a rank ends, the others' next exchange fails at once on the same machine, else after the timeout. All then write
to the launcher's store that they are still here, and name those that did not.
"""

import json
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mow.engine.placement import place
from mow.errors import RankFailure, UsageError
from mow.runs.signals import Stopped, StopSwitch

_PATIENCE_S = 3.0  # of a rank whose exchange failed, for what the others write


class Alone:
    """One process with all tasks: every exchange gives back what it got. See mow.methods.base.Parallel."""

    rank, size, waited, doing = 0, 1, 0.0, ""
    own = slice(None)
    names: Sequence[str] = ()

    def rows(self, own: Tensor) -> Tensor:
        return own

    def texts(self, own: str) -> list[str]:
        return [own]

    def most(self, number: int) -> int:
        return number

    def collect(self, name: str, own: str, check_stop: Callable[[], None]) -> list[str]:
        return [own]


class Ranks:
    """The process group of all ranks, see mow.methods.base.Parallel.

    Args: store: of this attempt alone. rank, size, tasks: of the run. device: where gradients lie. seconds: that a call
        waits for the others before it fails.
    """

    def __init__(
        self, store: Any, rank: int, size: int, num_tasks: int, device: torch.device, seconds: float
    ) -> None:
        self.rank, self.size, self.store = rank, size, store
        self.waited = 0.0  # seconds, in all calls of `most`
        self.doing = "its start"  # for the message, should it be the last that is known of this rank
        self.names: Sequence[str] = ()  # of the tasks in their present order
        self._seen = 0.0
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

    def describe(self) -> str:
        """Line for the start of a run."""
        sizes = " ".join(str(part.stop - part.start) for part in self.parts)
        hosts = len(set(self.texts(socket.gethostname())))
        return f"{self.size} ranks on {hosts} machine{'s' if hosts > 1 else ''}; tasks {sizes}"

    def check_folder(self, folder: Path) -> None:
        """Raises: UsageError, on all ranks, if one does not see what rank 0 has written."""
        self.texts("")
        found = self.texts("" if (folder / "config.json").exists() else socket.gethostname())
        if missing := [host for host in found if host]:
            raise UsageError(f"{folder} is not shared: {missing[0]} does not see what rank 0 has written; give a "
                             "--folder on a file system that all machines share")

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
        if own.dtype == torch.bool:  # gloo has no such type
            return self.rows(own.to(torch.uint8)).bool()
        sizes = [int(text) for text in self.texts(str(len(own)))]
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

    def check_stop(self, switch: StopSwitch) -> None:
        """Raises: Stopped on all ranks after a signal to one."""
        if self.most(switch.requested):
            raise Stopped

    def most(self, number: int) -> int:
        """The largest of the ranks' numbers."""
        began = time.monotonic()
        if began - self._seen > 1.0:
            self._seen = began
            self.store.set(f"seen/{self.rank}", self.doing)
        largest = torch.tensor([number])
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        self.waited += time.monotonic() - began
        return int(largest)

    def collect(self, name: str, own: str, check_stop: Callable[[], None]) -> list[str]:
        """As `texts`, however long the others take; on rank 0 alone, the others get nothing and go on."""
        self.store.set(f"{name}/{self.rank}", own)
        keys = [f"{name}/{rank}" for rank in range(self.size)]
        while self.rank == 0 and not self.store.check(keys):
            check_stop()
            time.sleep(0.2)
        return [self.store.get(key).decode() for key in keys] if self.rank == 0 else []

    @contextmanager
    def failures_named(self) -> Iterator[None]:
        """Inside, an exchange that fails because of another rank is a RankFailure that names it; what this rank itself
        raises is left for the others to read.
        """
        try:
            yield
        except Exception as error:
            ours = not (isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error))
            line = f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]
            with suppress(RuntimeError, dist.DistError):  # the store has ended with rank 0
                self.store.set(f"last/{self.rank}", json.dumps([ours, line]))
            if ours:
                raise
            raise RankFailure(self._lost()) from error

    def _lost(self) -> str:
        """The ranks that have ended and why, where this is the lowest of those that are left; else nothing."""
        try:
            return self._ended()
        except (RuntimeError, dist.DistError):
            return f"{self._name(0)}, which has the store, is gone" if self.rank == 1 else ""

    def _ended(self) -> str:
        """The ranks that ended before, by what they left in the store, or do not answer."""
        end, others = time.monotonic() + _PATIENCE_S, [rank for rank in range(self.size) if rank != self.rank]
        while not self.store.check([f"last/{rank}" for rank in others]) and time.monotonic() < end:
            time.sleep(0.1)
        last = {rank: json.loads(self.store.get(f"last/{rank}")) for rank in others
                if self.store.check([f"last/{rank}"])}  # fmt: skip
        if any(not ours and rank < self.rank for rank, (ours, _) in last.items()):
            return ""
        lines = [f"{self._name(rank)}: {line}" for rank, (ours, line) in last.items() if ours]
        for rank in (rank for rank in others if rank not in last):
            seen = self.store.get(f"seen/{rank}").decode() if self.store.check([f"seen/{rank}"]) else "its start"
            lines.append(f"{self._name(rank)} is gone, or does not answer, since {seen}")
        return "; ".join(lines) or "the ranks have lost each other, and all are here: look at the network"

    def _name(self, rank: int) -> str:
        return f"rank {rank} ({', '.join(self.names[self.parts[rank]])})"


class _Calls(nn.Module):
    """Calls its argument; holds the parameters whose gradients are summed."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.parameters_ = nn.ParameterList(parameters)

    def forward(self, call: Callable[[], Any]) -> Any:
        return call()


def _sum(
    group: object, bucket: dist.GradBucket  # type: ignore[name-defined]
) -> torch.futures.Future[torch.Tensor]:
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
