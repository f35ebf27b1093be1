"""The grouped matmul beside bmm, grouped_mm and a loop.  python -m bench -k expert_linear

Forward with bias and ReLU, forward alone, gradient of the input, gradient of the weights; weights of several tasks that
share an expert are one weight. Peers:
- loop: one F.linear per expert over the rows of its tasks.
- bmm: weights gathered per (task, slot), untimed since once per optimiser step will do; input expanded, bmm, epilogue.
- grouped_mm: rows gathered in the order of experts, one grouped matmul, epilogue that also restores the order.
- reference: this package's own plain PyTorch, where the kernel is another one.
Epilogues of the peers are compiled on a GPU.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench import floors
from bench.floors import ExpertShape
from bench.race import TOLERANCE, Contestant, Eager, Race, close_to, compiled, dtype_of
from mow.kernels import Backend, RoutePlan, expert_linear, route_plan

LARGE, SMALL = [ExpertShape(4, 2, 3, 128, 64, 128)], [ExpertShape(4, 2, 3, 5, 64, 128)]
if torch.cuda.is_available():
    LARGE = [ExpertShape(26, 2, 8, 1024, 512, 1024), ExpertShape(26, 4, 12, 1024, 512, 2048)]
    SMALL = [ExpertShape(26, 2, 8, rows, 512, 1024) for rows in (64, 39)]
    SMALL += [ExpertShape(26, 4, 12, 39, 512, 2048), ExpertShape(50, 2, 8, 20, 512, 1024)]

GROUPED_MM: Any = getattr(F, "grouped_mm", getattr(torch, "_grouped_mm", None))


@dataclass(frozen=True)
class Layer:
    """Everything that op and peers read, made outside of the clock."""

    shape: ExpertShape
    plan: RoutePlan
    input: Tensor  # [K, 1, R, I]
    weight: Tensor  # [E, N, I]
    bias: Tensor  # [E, N]
    task_bias: Tensor  # [K, J, N]
    upstream: Tensor  # [K, J, R, N], gradient of the output
    gathered: Tensor  # [K * J, N, I], the weights of all pairs
    members: list[tuple[Tensor, Tensor]]  # pairs of each expert and their tasks
    tasks: Tensor  # [K * J], tasks of the pairs sorted by expert
    inverse: Tensor  # [K * J], where each pair is in that order
    ends: Tensor  # [E] int32, where the rows of each expert end


def make_layer(shape: ExpertShape, device: str) -> tuple[Layer]:
    dtype = dtype_of(device)
    # Every expert in turn, shuffled over tasks: what a balanced router arrives at.
    experts = torch.stack([torch.randperm(shape.E)[: shape.J] for _ in range(shape.K)])
    plan = route_plan(experts.to(device), shape.E)
    flat = experts.flatten()
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=shape.E)

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(size, device=device) * scale).to(dtype)

    weight = normal(shape.E, shape.N, shape.I, scale=shape.I**-0.5)
    return (
        Layer(
            shape=shape,
            plan=plan,
            input=normal(shape.K, 1, shape.R, shape.I).requires_grad_(),
            weight=weight.requires_grad_(),
            bias=normal(shape.E, shape.N),
            task_bias=normal(shape.K, shape.J, shape.N),
            upstream=normal(shape.K, shape.J, shape.R, shape.N),
            gathered=weight.detach()[flat.to(device)],
            members=[(pairs, pairs // shape.J) for pairs in order.to(device).split(counts.tolist())],
            tasks=(order // shape.J).to(device),
            inverse=order.argsort().to(device),
            ends=(counts.cumsum(0) * shape.R).int().to(device),
        ),
    )


def _epilogue(
    output: Tensor, layer_bias: Tensor, task_bias: Tensor, routes: Tensor, inverse: Tensor | None = None
) -> Tensor:
    """Order of pairs restored by `inverse`, bias of expert and pair, then ReLU: [K, J, R, N]."""
    if inverse is not None:
        output = output.view(routes.numel(), -1, output.shape[-1])[inverse]
    return (output.view(*routes.shape, -1, output.shape[-1]) + (layer_bias[routes] + task_bias).unsqueeze(2)).relu()


def _expanded(layer: Layer) -> Tensor:
    """The rows of every pair: [K * J, R, I], a copy."""
    return layer.input.expand(-1, layer.shape.J, -1, -1).reshape(-1, layer.shape.R, layer.shape.I)


def loop(layer: Layer) -> Tensor:
    shape = layer.shape
    output = layer.input.new_empty(shape.K * shape.J, shape.R, shape.N)
    for expert, (pairs, tasks) in enumerate(layer.members):
        biased = F.linear(layer.input[tasks, 0], layer.weight[expert], layer.bias[expert])
        output[pairs] = (biased + layer.task_bias.flatten(0, 1)[pairs].unsqueeze(1)).relu()
    return output.view(shape.K, shape.J, shape.R, shape.N)


def bmm_alone(layer: Layer) -> Tensor:
    return torch.bmm(_expanded(layer), layer.gathered.mT).view(layer.shape.K, layer.shape.J, layer.shape.R, -1)


def bmm_chain(layer: Layer, epilogue: Callable[..., Tensor]) -> Tensor:
    return epilogue(bmm_alone(layer), layer.bias, layer.task_bias, layer.plan.routes)


def grouped_chain(layer: Layer, epilogue: Callable[..., Tensor]) -> Tensor:
    rows = layer.input[layer.tasks, 0].flatten(0, 1)
    output = GROUPED_MM(rows, layer.weight.mT, offs=layer.ends)
    return epilogue(output, layer.bias, layer.task_bias, layer.plan.routes, layer.inverse)


def bmm_dx(layer: Layer) -> Tensor:
    of_pair = torch.bmm(layer.upstream.flatten(0, 1), layer.gathered)  # [K * J, R, I]
    return of_pair.unflatten(0, layer.plan.routes.shape).sum(dim=1, keepdim=True)


def bmm_dw(layer: Layer) -> Tensor:
    of_pair = torch.bmm(layer.upstream.flatten(0, 1).mT, _expanded(layer))  # [K * J, N, I]
    zeros = torch.zeros(layer.weight.shape, dtype=torch.float32, device=of_pair.device)
    return zeros.index_add_(0, layer.plan.routes.flatten(), of_pair.float()).to(layer.weight.dtype)


def grouped_peer(device: str) -> dict[str, Contestant]:
    """grouped_mm where this torch has it. On other GPUs than Hopper and data-centre Blackwell it waits for the host."""
    if GROUPED_MM is None:
        return {}
    call = torch.no_grad()(partial(grouped_chain, epilogue=compiled(_epilogue, device)))
    fast = device == "cpu" or torch.cuda.get_device_capability() in ((9, 0), (10, 0))
    return {"grouped_mm": call if fast else Eager(call)}


def check_forward(output: Tensor, inputs: tuple[Layer], *, epilogue: bool) -> None:
    (layer,) = inputs
    want = layer.input.detach().double() @ layer.gathered.double().unflatten(0, layer.plan.routes.shape).mT
    if epilogue:
        want = _epilogue(want, layer.bias.double(), layer.task_bias.double(), layer.plan.routes)
    close_to(want, output, TOLERANCE[layer.input.dtype])


def check_dx(output: Tensor, inputs: tuple[Layer]) -> None:
    (layer,) = inputs
    upstream, weights = layer.upstream.double(), layer.gathered.double().unflatten(0, layer.plan.routes.shape)
    close_to((upstream @ weights).sum(dim=1, keepdim=True), output, TOLERANCE[layer.input.dtype])


def check_dw(output: Tensor, inputs: tuple[Layer]) -> None:
    (layer,) = inputs
    of_pair = layer.upstream.double().mT @ layer.input.detach().double()  # [K, J, N, I]
    want = torch.zeros(layer.weight.shape, dtype=torch.float64, device=of_pair.device)
    want.index_add_(0, layer.plan.routes.flatten(), of_pair.flatten(0, 1))
    close_to(want, output, TOLERANCE[layer.input.dtype])


def forward_of(backend: Backend, *, epilogue: bool) -> Contestant:
    def call(layer: Layer) -> Tensor:
        if not epilogue:
            return expert_linear(layer.input, layer.weight, layer.plan, backend=backend)
        added = {"bias": layer.bias, "task_bias": layer.task_bias}
        return expert_linear(layer.input, layer.weight, layer.plan, **added, activation="relu", backend=backend)

    return torch.no_grad()(call)


def gradient_of(backend: Backend, name: str) -> Contestant:
    """The backward pass towards `name` alone; the forward pass runs once per set of inputs, outside of the clock."""
    outputs: dict[int, Tensor] = {}

    def call(layer: Layer) -> Tensor:
        read = {"input": layer.input.detach(), "weight": layer.weight.detach()}
        wanted = read[name] = getattr(layer, name)
        if id(layer) not in outputs:
            outputs[id(layer)] = expert_linear(read["input"], read["weight"], layer.plan, backend=backend)
        return torch.autograd.grad(outputs[id(layer)], wanted, layer.upstream, retain_graph=True)[0]

    return Eager(call)


def _race(
    race: Race, shape: ExpertShape, subject: Contestant, peers: dict[str, Contestant], check: Callable[..., None]
) -> None:
    """Forward and both gradients read and write tensors of the same sizes, and have the same floor."""
    work = floors.expert_linear(shape, race.itemsize)
    peers = {name: peer if isinstance(peer, Eager) else torch.no_grad()(peer) for name, peer in peers.items()}
    race.run(subject, peers, make=partial(make_layer, shape, race.device.kind), check=check, work=work)


@pytest.mark.parametrize("shape", LARGE + SMALL, ids=str)
def test_forward(race: Race, shape: ExpertShape) -> None:
    kind = race.device.kind
    bmm: Contestant = partial(bmm_chain, epilogue=compiled(_epilogue, kind))
    peers = {"bmm": bmm, "loop": loop, **grouped_peer(kind)}
    if race.backend != "reference":
        peers["reference"] = forward_of("reference", epilogue=True)
    _race(race, shape, forward_of(race.backend, epilogue=True), peers, partial(check_forward, epilogue=True))


@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_matmul_alone(race: Race, shape: ExpertShape) -> None:
    subject, check = forward_of(race.backend, epilogue=False), partial(check_forward, epilogue=False)
    _race(race, shape, subject, {"bmm": bmm_alone}, check)


@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_gradient_of_input(race: Race, shape: ExpertShape) -> None:
    _race(race, shape, gradient_of(race.backend, "input"), {"bmm": bmm_dx}, check_dx)


@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_gradient_of_weight(race: Race, shape: ExpertShape) -> None:
    _race(race, shape, gradient_of(race.backend, "weight"), {"bmm": bmm_dw}, check_dw)
