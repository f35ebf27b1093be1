"""Updates without a host read, and each replayed from one CUDA graph.

What stops a host otherwise is on the device here: a step on numbers that are not finite is left out by the optimisers,
and looked at when the next update of that kind begins, which then raises what the plain update would have raised one
update before. Step sizes, temperature, noise and entropy are tensors, filled between updates.

The first two updates of a kind run op by op: kernels are compiled, and the optimisers' state is made. A recording holds
on to weights where they lie; `clear` it where they, the random stream or the optimisers are replaced.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mow.batch import TransitionBatch
from mow.methods.base import Metrics
from mow.nn.finite import NotFinite, check_finite

NUM_PLAIN = 2  # updates before the recording

Noted = tuple[Metrics, list["Note"]]
Record = Callable[[Callable[[], Noted]], Callable[[], Noted]]


class Note(NamedTuple):
    """Arguments of check_finite for one step, and whether the step was left out."""

    left_out: Tensor  # scalar float32, 1 or 0
    what: str
    total: Tensor
    norm: Tensor
    losses: Mapping[str, Tensor]
    tasks: Sequence[str]
    parameters: Sequence[tuple[str, nn.Parameter]]


class _Pending(NamedTuple):
    left_out: Tensor  # on the host once `copied` has happened: [steps]
    copied: torch.cuda.Event | None
    notes: list[Note]


def record_cuda_update(pool: list[Any]) -> Record:
    """Records into one memory pool, the first of `pool` once it is there: no two updates run at the same time."""

    def record(call: Callable[[], Noted]) -> Callable[[], Noted]:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        pool[:] = pool or [torch.cuda.graph_pool_handle()]
        with torch.cuda.graph(graph, pool=pool[0], capture_error_mode="thread_local"):
            made = call()

        def replay() -> Noted:
            graph.replay()
            return made

        return replay

    return record


class UpdateGraphs:
    """Runs the updates of one learner."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.numbers = {name: torch.zeros((), device=device) for name in ("temperature", "noise", "entropy")}
        self.recordings: dict[Hashable, tuple[TransitionBatch, Callable[[], Noted]]] = {}
        self._plain: Counter[Hashable] = Counter()
        # On a CPU there is nothing to record: a replay is the call.
        self._record: Record = record_cuda_update([]) if device.type == "cuda" else lambda call: call
        self._notes: list[Note] = []
        self._pending: dict[str, _Pending] = {}

    def clear(self) -> None:
        """Record anew from the next update on."""
        self.recordings.clear()
        self._plain.clear()

    def use_tensors(self, optimisers: Iterable[torch.optim.Optimizer]) -> None:
        """Step sizes as tensors on the device; beside each the number that it begins with."""
        for group in (group for optimiser in optimisers for group in optimiser.param_groups):
            group["initial_lr"] = float(group.get("initial_lr", group["lr"]))
            # Adam's kernel for GPUs reads float32; that for CPUs any, and float64 is exact.
            dtype = torch.float32 if self.device.type == "cuda" else torch.float64
            group["lr"] = torch.tensor(float(group["lr"]), dtype=dtype, device=self.device)
            if "capturable" in group:
                group["capturable"] = True

    def guard(
        self, what: str, total: Tensor, norm: Tensor, losses: Mapping[str, Tensor], tasks: Sequence[str],
        parameters: Iterable[tuple[str, nn.Parameter]], optimisers: Iterable[torch.optim.Optimizer],
    ) -> Tensor:  # fmt: skip
        """Let the optimisers leave out their next step if total or norm is not finite; see check_finite.

        Returns: scalar, 1 where it is left out, else 0.
        """
        left_out = (~torch.stack([total.detach().float(), norm.float()]).isfinite().all()).float()
        for optimiser in optimisers:
            optimiser.found_inf = left_out  # type: ignore[attr-defined]
        losses = {name: loss.detach() for name, loss in losses.items()}
        self._notes.append(Note(left_out, what, total.detach(), norm, losses, tasks, list(parameters)))
        return left_out

    def run(
        self, kind: str, key: Hashable, step: Callable[[TransitionBatch], Metrics], batch: TransitionBatch
    ) -> Metrics:
        """Make an update; raise what the one before of its kind has left out.

        Args:
            key: all that `step` depends on besides tensors that stay where they are.
            step: of one key always the same work.
            batch: on the device.
        Returns: metrics; those of an update that is left out too, which are not finite.
        Raises: NotFinite. The update itself is made nevertheless.
        """
        error = self._look(kind)

        def noted(batch: TransitionBatch) -> Noted:
            self._notes = []
            return step(batch), self._notes

        key = (kind, key, *((x.shape, x.dtype) for x in batch.tensors().values()))
        self._plain[key] += 1
        if self._plain[key] <= NUM_PLAIN:
            metrics, notes = noted(batch)
        else:
            if key not in self.recordings:
                own = batch.map(Tensor.clone)
                self.recordings[key] = own, self._record(lambda: noted(own))
            own, replay = self.recordings[key]
            for buffer, new in zip(own.tensors().values(), batch.tensors().values(), strict=True):
                buffer.copy_(new)
            metrics, notes = replay()
            metrics = {name: metric.clone() for name, metric in metrics.items()}  # the next replay overwrites them
        self._pending[kind] = self._on_their_way(notes)
        if error is not None:
            raise error
        return metrics

    def _on_their_way(self, notes: list[Note]) -> _Pending:
        """Copy to the host what was left out, without waiting for it."""
        left_out = torch.stack([note.left_out for note in notes])
        if self.device.type != "cuda":
            return _Pending(left_out, None, notes)
        host = torch.empty(left_out.shape, pin_memory=True)
        host.copy_(left_out, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        return _Pending(host, copied, notes)

    def _look(self, kind: str) -> NotFinite | None:
        """The fault for which the last update of the kind was left out, or none; its gradients are still there."""
        pending = self._pending.pop(kind, None)
        if pending is None:
            return None
        if pending.copied is not None:
            pending.copied.synchronize()
        for left_out, (_, *checked) in zip(pending.left_out.tolist(), pending.notes, strict=True):
            if left_out:
                try:
                    check_finite(*checked)  # type: ignore[arg-type]
                except NotFinite as error:
                    return error
        return None
