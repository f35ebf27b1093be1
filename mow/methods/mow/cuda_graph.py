"""An imagined rollout as one CUDA graph: thousands of launches recorded once, and replayed by one.

The graph reads its inputs from buffers of its own, weights where they lie, and random numbers from the counter on the
device that it advances itself: so its rollout equals the plain one. Imagination reads nothing on the
host and no shape in it depends on a value, which is what makes this possible. An update of the world model is not
recorded: between its gradient and its step the host checks that the numbers are finite (mow.nn.finite).

torch.compile(mode="reduce-overhead") is not the way: it would record each function by itself, one graph for every
position of a rollout, and it leaves out, without an error, a function that writes to its inputs, as every step does to
the cache and to the random counter. The two are used together instead: compiled functions inside of this graph.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mow.batch import TransitionBatch
from mow.kernels import PhiloxState, RoutePlan
from mow.methods.mow.records import Imagination
from mow.methods.mow.router import Routing

Roll = Callable[[TransitionBatch, Routing], Imagination]
Replay = Callable[[], object]
Record = Callable[[Callable[[], Imagination], torch.device], tuple[Replay, Imagination]]

_WARM_UPS = 2  # so that kernels are compiled, and libraries have their work space, before anything is recorded


def record_cuda(call: Callable[[], Imagination], device: torch.device) -> tuple[Replay, Imagination]:
    """Record `call`; returns a function that repeats it, and the results, which each replay overwrites.

    Raises: ValueError if the device is no GPU.
    """
    if device.type != "cuda":
        raise ValueError(f"a CUDA graph needs a GPU, this is {device}: use --optim.no-cuda-graph")
    with torch.cuda.device(device):
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(_WARM_UPS):
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
        self._forget()

    def _forget(self) -> None:
        self._key: tuple[object, ...] = ()
        self._modules: tuple[nn.Module, ...] = ()
        self._inputs: list[Tensor] = []
        self._replay: Replay | None = None
        self._dream: Imagination | None = None

    def __call__(
        self, roll: Roll, context: TransitionBatch, routing: Routing, rng: PhiloxState, modules: Sequence[nn.Module]
    ) -> Imagination:
        """The result of roll(context, routing), in buffers that the next call overwrites.

        Args:
            roll: of these shapes always the same work. Under autocast it must enter it by itself, so that weights are
                rounded anew by each replay and not taken from the cache of the time when it was recorded.
            rng: the stream that `roll` draws from.
            modules: whose parameters and buffers `roll` reads.
        Raises: ValueError if the device is no GPU; RuntimeError if autocast was entered outside.
        """
        device = context.frame.device
        if torch.is_autocast_enabled(device.type):
            raise RuntimeError("a recorded rollout must enter autocast by itself: call it outside of any")
        inputs = _inputs(context, routing)
        key = _key(inputs, routing, rng, modules)
        if key != self._key or any(new is not old for new, old in zip(modules, self._modules, strict=True)):
            self._capture(roll, context, routing, rng, device)
            self._key, self._modules = key, tuple(modules)
        for kept, new in zip(self._inputs, inputs, strict=True):
            kept.copy_(new)
        assert self._replay is not None
        assert self._dream is not None
        self._replay()
        return self._dream

    def _capture(
        self, roll: Roll, context: TransitionBatch, routing: Routing, rng: PhiloxState, device: torch.device
    ) -> None:
        self._forget()  # first of all: the memory of the old graph
        context = context.map(Tensor.clone)
        plan = RoutePlan(routing.plan.routes.clone(), routing.plan.num_experts)
        plan.by_expert()  # made here it is kept, and is one of the buffers
        scale_KJ = None if routing.scale_KJ is None else routing.scale_KJ.detach().clone()
        own = Routing(plan, None, scale_KJ)
        before = rng.seed_offset.clone()
        self._replay, self._dream = self._record(lambda: roll(context, own), device)
        rng.seed_offset.copy_(before)
        self._inputs = _inputs(context, own)
        self.records += 1


def _inputs(context: TransitionBatch, routing: Routing) -> list[Tensor]:
    """All tensors that a rollout reads besides weights and random counter."""
    scale_KJ = [] if routing.scale_KJ is None else [routing.scale_KJ.detach()]
    return [*context.tensors().values(), routing.plan.routes, *routing.plan.by_expert(),
            *scale_KJ]  # fmt: skip


def _key(
    inputs: Sequence[Tensor], routing: Routing, rng: PhiloxState, modules: Sequence[nn.Module]
) -> tuple[object, ...]:
    """Conditions of a recorded rollout: shapes, and addresses of all tensors that it reads."""
    read = [x for module in modules for x in (*module.parameters(), *module.buffers())]
    where = tuple(x.data_ptr() for x in (rng.seed_offset, *read))
    return tuple((x.shape, x.dtype, x.device) for x in inputs), routing.plan.num_experts, where
