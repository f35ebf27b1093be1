"""An imagined rollout as one CUDA graph: thousands of launches recorded once, and replayed by one.

The graph reads its inputs from buffers of its own, weights where they lie, and random numbers from the counter on the
device that it advances itself: so its rollout equals the plain one. Imagination reads nothing on the host and no shape
in it depends on a value. An update of the world model is not recorded: between its gradient and its step the host
checks that the numbers are finite (mow.nn.finite).

Compiled functions may run inside of it. torch.compile(mode="reduce-overhead") would record each function by itself, one
graph for every position, and leaves out, without an error, a function that writes to its inputs, as every step does.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mow.batch import TransitionBatch
from mow.kernels import PhiloxState, RoutePlan
from mow.methods.mow.records import Imagination
from mow.methods.mow.router import Routing

Replay = Callable[[], object]
Record = Callable[[Callable[[], Imagination], torch.device], tuple[Replay, Imagination]]


def record_cuda(call: Callable[[], Imagination], device: torch.device) -> tuple[Replay, Imagination]:
    """Record `call`; returns a function that repeats it, and the results, which each replay overwrites."""
    with torch.cuda.device(device):
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(2):  # before the recording kernels are compiled, and libraries get their work space
                call()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on: one of them copies the next batches to the GPU.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            made = call()
    return graph.replay, made


class RolloutGraph:
    """Replays a rollout while shapes and models stay what they were; else records it anew.

    What it holds on to, the memory of a whole rollout, is free for nothing else as long as it lives.
    """

    def __init__(self, record: Record = record_cuda) -> None:
        self.records = 0  # how often it has recorded
        self._record = record
        self._key: tuple[object, ...] = ()
        self._recorded: tuple[list[Tensor], Replay, Imagination] | None = None  # inputs, replay and results

    def __call__(
        self, roll: Callable[[TransitionBatch, Routing], Imagination], context: TransitionBatch, routing: Routing,
        rng: PhiloxState, modules: Sequence[nn.Module],
    ) -> Imagination:  # fmt: skip
        """The result of roll(context, routing), in buffers that the next call overwrites.

        Args:
            roll: of these shapes always the same work. It must enter autocast by itself, so that each replay rounds
                the weights anew and takes none from the cache of the time when it was recorded.
            rng: the stream that `roll` draws from.
            modules: whose parameters and buffers `roll` reads.
        """
        assert not torch.is_autocast_enabled(context.frame.device.type), "a recorded rollout enters autocast by itself"
        inputs = _inputs(context, routing)
        read = [rng.seed_offset, *(x for module in modules for x in (*module.parameters(), *module.buffers()))]
        # The modules themselves too: another one may lie where a freed one lay.
        key = (*modules, routing.plan.num_experts, *((x.shape, x.dtype, x.device) for x in inputs),
               *(x.data_ptr() for x in read))  # fmt: skip
        if key != self._key or self._recorded is None:
            self._recorded, self._key = None, ()  # first of all: the memory of the old graph
            context = context.map(Tensor.clone)
            plan = RoutePlan(routing.plan.routes.clone(), routing.plan.num_experts)
            plan.by_expert()  # made here it is kept, and is one of the buffers
            own = Routing(plan, None, None if routing.scale_KJ is None else routing.scale_KJ.detach().clone())
            before = rng.seed_offset.clone()
            replay, made = self._record(lambda: roll(context, own), context.frame.device)
            rng.seed_offset.copy_(before)
            self._recorded, self._key = (_inputs(context, own), replay, made), key
            self.records += 1
        kept, replay, made = self._recorded
        for buffer, new in zip(kept, inputs, strict=True):
            buffer.copy_(new)
        replay()
        return made


def _inputs(context: TransitionBatch, routing: Routing) -> list[Tensor]:
    """All tensors that a rollout reads besides weights and random counter."""
    scale_KJ = [] if routing.scale_KJ is None else [routing.scale_KJ.detach()]
    return [*context.tensors().values(), routing.plan.routes, *routing.plan.by_expert(), *scale_KJ]
