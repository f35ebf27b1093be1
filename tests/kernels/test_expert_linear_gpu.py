"""expert_linear on a GPU: each kernel against float64, CUDA graphs, torch.compile, odd views, other devices."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from mow.kernels import Activation, RoutePlan, expert_linear, route_plan

pytestmark = pytest.mark.gpu

# Relative Frobenius norms of errors against float64 with the same rounded inputs: float32 sums in another order, tf32
# keeps 11 of 24 bits of each operand; the 16-bit types round what comes out and, for gradients, what is kept.
TOLERANCE = {torch.float32: 1e-5, "tf32": 1e-3, torch.float16: 2e-3, torch.bfloat16: 1e-2}

# (K, J, E, slots of the input, R, I, N): sizes of the model, and odd ones.
SIZES = {
    "decode": (26, 2, 12, 1, 39, 512, 1024),
    "decode_many": (50, 2, 8, 1, 20, 512, 1024),
    "acting": (26, 2, 12, 1, 1, 512, 512),
    "training": (26, 2, 12, 1, 1024, 512, 1024),
    "training_own_rows": (26, 2, 12, 2, 1024, 1024, 512),
    "four_slots": (7, 4, 12, 1, 200, 512, 512),
    "one_slot": (26, 1, 12, 1, 129, 512, 256),
    "odd": (5, 3, 4, 1, 39, 37, 255),
    "odd_long": (3, 2, 4, 2, 513, 1042, 255),
    "tiny": (2, 1, 2, 1, 13, 1, 1),
}


@pytest.fixture(autouse=True)
def _no_tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


def make(name: str, dtype: torch.dtype) -> tuple[RoutePlan, dict[str, Tensor]]:
    """A routing that leaves the last expert idle, and random tensors."""
    num_tasks, num_slots, num_experts, slots, num_rows, num_inputs, num_outputs = SIZES[name]
    routes = torch.stack([torch.randperm(num_experts - 1)[:num_slots].sort().values for _ in range(num_tasks)])
    if name == "tiny":
        routes = torch.zeros(num_tasks, 1, dtype=torch.int64)
    plan = route_plan(routes.cuda(), num_experts)
    shapes = {
        "input": (num_tasks, slots, num_rows, num_inputs),
        "weight": (num_experts, num_outputs, num_inputs),
        "bias": (num_experts, num_outputs),
        "task_bias": (num_tasks, num_slots, num_outputs),
        "residual": (num_tasks, num_slots, num_rows, num_outputs),
    }
    tensors = {name: torch.randn(shape, device="cuda") for name, shape in shapes.items()}
    tensors["weight"] /= max(1, num_inputs) ** 0.5
    return plan, {name: tensor.to(dtype).requires_grad_() for name, tensor in tensors.items()}


def error(got: Tensor, expected: Tensor) -> float:
    """Relative Frobenius norm; NaN, which fresh memory holds in tests, is below no tolerance."""
    return float((got.detach().double() - expected.detach()).norm() / expected.detach().norm().clamp_min(1e-30))


def compare(
    plan: RoutePlan, activation: Activation, inputs: dict[str, Tensor], tolerance: float
) -> tuple[Tensor, ...]:
    exact = {name: x.detach().double().requires_grad_() for name, x in inputs.items()}
    got = expert_linear(plan=plan, activation=activation, backend="triton", **inputs)
    expected = expert_linear(plan=plan, activation=activation, backend="reference", **exact)
    assert error(got, expected) < tolerance
    cotangent = torch.randn_like(got)
    gradients = torch.autograd.grad(got, list(inputs.values()), cotangent)
    truth = torch.autograd.grad(expected, list(exact.values()), cotangent.double())
    for name, ours, theirs in zip(inputs, gradients, truth, strict=True):
        assert error(ours, theirs) < tolerance, (name, error(ours, theirs))
    return got, *gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_values_and_gradients(size: str, dtype: torch.dtype) -> None:
    plan, inputs = make(size, dtype)
    compare(plan, "silu", inputs, TOLERANCE[dtype])


@pytest.mark.parametrize("terms", [(), ("bias",), ("bias", "task_bias")], ids=str)
@pytest.mark.parametrize("size", ["decode", "training", "training_own_rows"])
def test_without_residual(size: str, terms: tuple[str, ...]) -> None:
    # Only so do tiles travel by the copy engine where there is one.
    plan, inputs = make(size, torch.bfloat16)
    chosen = {name: inputs[name] for name in ("input", "weight", *terms)}
    for activation in ("none", "gelu"):
        compare(plan, activation, chosen, TOLERANCE[torch.bfloat16])


def test_every_implementation_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each different tiling of this GPU's table computes a layer and its gradients, whatever its bucket."""
    from mow.kernels import expert_linear_launch, tuned

    plan, inputs = make("four_slots", torch.bfloat16)
    chosen = {name: inputs[name] for name in ("input", "weight", "bias")}
    table = tuned._TABLES[tuned._ask_device(0)]
    for cut in {cut for (_, precision, *_), cut in table.items() if precision == "16bit"}:
        monkeypatch.setattr(expert_linear_launch, "tiling", lambda *_, cut=cut: cut)
        compare(plan, "none", chosen, TOLERANCE[torch.bfloat16])


def test_tf32() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    plan, inputs = make("four_slots", torch.float32)
    compare(plan, "silu", inputs, TOLERANCE["tf32"])


def test_one_expert_with_all_tasks() -> None:
    plan = route_plan(torch.ones(26, 1, dtype=torch.int64, device="cuda"), num_experts=3)
    _, inputs = make("training", torch.bfloat16)
    chosen = {"input": inputs["input"], "weight": inputs["weight"].detach()[:3].clone().requires_grad_()}
    _, _, dw = compare(plan, "none", chosen, TOLERANCE[torch.bfloat16])
    assert not dw[0].any()
    assert not dw[2].any()


def test_float32_weight_gets_a_float32_gradient() -> None:
    plan, inputs = make("training", torch.float32)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        got = expert_linear(inputs["input"], inputs["weight"], plan, backend="triton")
    assert got.dtype == torch.bfloat16
    cotangent = torch.randn_like(got)
    (dw,) = torch.autograd.grad(got, inputs["weight"], cotangent)
    rows = inputs["input"].detach().bfloat16().double().expand(-1, 2, -1, -1)
    pairs = cotangent.double().mT @ rows  # [K, J, N, I]
    truth = torch.zeros_like(dw, dtype=torch.float64).index_add_(0, plan.routes.flatten(), pairs.flatten(0, 1))
    assert dw.dtype == torch.float32
    assert error(dw, truth) < 1e-5  # products of 16-bit numbers are exact in float32; their sums round


def test_views() -> None:
    plan, _ = make("four_slots", torch.bfloat16)
    wide = torch.randn(12, 512, 768, device="cuda", dtype=torch.bfloat16).div(22).requires_grad_()
    rows = torch.randn(200, 7, 1, 512, device="cuda", dtype=torch.bfloat16).permute(1, 2, 0, 3).requires_grad_()
    for columns in (slice(256, 768), slice(3, 515)):  # aligned, and not
        got = expert_linear(rows, wide[..., columns], plan, backend="triton")
        expected = expert_linear(rows.double(), wide[..., columns].double(), plan, backend="reference")
        assert error(got, expected) < TOLERANCE[torch.bfloat16]
        cotangent = torch.randn(*got.shape[:3], 1, device="cuda").bfloat16().expand(got.shape)  # as that of a sum
        gradients = torch.autograd.grad(got, (rows, wide), cotangent)
        truth = torch.autograd.grad(expected, (rows, wide), cotangent.double())
        for ours, theirs in zip(gradients, truth, strict=True):
            assert error(ours, theirs.double()) < 2 * TOLERANCE[torch.bfloat16]  # the truth was rounded as well


@pytest.mark.parametrize("size", ["decode", "training"])
def test_repeats_bitwise(size: str) -> None:
    plan, inputs = make(size, torch.bfloat16)
    tensors = list(inputs.values())

    def once() -> tuple[Tensor, ...]:
        return torch.autograd.grad(expert_linear(plan=plan, backend="triton", **inputs).square().sum(), tensors)

    assert all(torch.equal(a, b) for a, b in zip(once(), once(), strict=True))


def captured(step: Callable[[], tuple[Tensor, ...]]) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()  # compiles; a capture cannot
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step()
    return graph, outputs


@pytest.mark.parametrize("size", ["decode", "training"])
def test_cuda_graph_replays_with_new_numbers_and_another_routing(size: str) -> None:
    plan, inputs = make(size, torch.bfloat16)
    tensors = list(inputs.values())
    cotangent = torch.randn(*plan.routes.shape, inputs["input"].shape[2], inputs["weight"].shape[1], device="cuda")
    routes = plan.routes.clone()

    def step() -> tuple[Tensor, ...]:
        # A new plan each time: it is grouped within the graph, so the graph follows the routes.
        got = expert_linear(plan=RoutePlan(routes, 12), activation="relu", backend="triton", **inputs)
        return got, *torch.autograd.grad(got, tensors, cotangent.to(got.dtype))

    graph, outputs = captured(step)
    with torch.no_grad():
        inputs["input"].copy_(torch.randn_like(inputs["input"]))
        routes.copy_((routes + 1) % 12)
    expected = step()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


def test_a_plan_first_used_in_a_capture_is_not_kept() -> None:
    plan, inputs = make("decode", torch.bfloat16)
    expert_linear(plan=RoutePlan(plan.routes, 12), backend="triton", **inputs)  # compiles
    fresh = RoutePlan(plan.routes, 12)
    with torch.cuda.graph(torch.cuda.CUDAGraph()), torch.no_grad():
        expert_linear(plan=fresh, backend="triton", **inputs)
    assert "_by_expert" not in vars(fresh)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_torch_compile(mode: str) -> None:
    torch.compiler.reset()
    plan, inputs = make("decode", torch.bfloat16)
    tensors = list(inputs.values())

    def layer(*arguments: Tensor) -> Tensor:
        return expert_linear(plan=plan, activation="gelu", **dict(zip(inputs, arguments, strict=True)))

    compiled = torch.compile(layer, fullgraph=True, mode=mode)
    expected = layer(*tensors)
    cotangent = torch.randn_like(expected)
    truth = torch.autograd.grad(expected, tensors, cotangent)
    for _ in range(3):  # the second and third replay a graph
        torch.compiler.cudagraph_mark_step_begin()
        got = compiled(*tensors)
        assert torch.equal(got, expected)
        gradients = torch.autograd.grad(got, tensors, cotangent)
        assert all(torch.equal(a, b) for a, b in zip(gradients, truth, strict=True))


def test_auto_takes_triton_and_cublas_for_a_lone_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    from mow.kernels import expert_linear_triton

    calls: list[int] = []
    launch = expert_linear_triton.launch

    def spy(*arguments: Any) -> Tensor:
        calls.append(1)
        return launch(*arguments)

    monkeypatch.setattr(expert_linear_triton, "launch", spy)
    plan, inputs = make("decode", torch.bfloat16)
    expert_linear(inputs["input"], inputs["weight"], plan)
    assert len(calls) == 1
    lone = route_plan(torch.zeros(26, 2, dtype=torch.int64, device="cuda"), num_experts=1)
    expert_linear(inputs["input"], inputs["weight"][:1], lone)
    assert len(calls) == 1
    expert_linear(inputs["input"], inputs["weight"][:1], lone, activation="relu")
    assert len(calls) == 2


def test_no_wait_for_the_device() -> None:
    plan, inputs = make("decode", torch.bfloat16)
    fresh = RoutePlan(plan.routes, 12)
    expert_linear(plan=plan, backend="triton", **inputs).sum().backward()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        expert_linear(plan=fresh, backend="triton", **inputs).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_other_device_is_an_error() -> None:
    plan, inputs = make("decode", torch.bfloat16)
    with pytest.raises(ValueError, match=r"input is on cuda:0 and weight on cpu: move them to one device"):
        expert_linear(inputs["input"], inputs["weight"].cpu(), plan)
