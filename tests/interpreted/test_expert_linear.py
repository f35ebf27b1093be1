"""The kernels of expert_linear against the reference in float64: values, all gradients, views, edges, registration."""

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from mow.kernels import Activation, RoutePlan, expert_linear, expert_linear_launch, expert_linear_triton, route_plan
from mow.kernels.expert_linear_launch import chunk_rows, most_tiles, stages_asked
from mow.kernels.tuned import Tiling

TILES = {"packed": Tiling("packed", 32, 32, 32, 4, 1), "tma": Tiling("tma", 32, 32, 32, 4, 1)}
ALL_CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
# Expert 1 serves every task, expert 2 none; with one slot, two tasks share an expert.
ROUTES = {
    1: [[0], [1], [1]],
    2: [[0, 1], [1, 3], [1, 0]],
    4: [[0, 1, 3, 4], [1, 3, 4, 5], [0, 1, 4, 5]],
}
# Relative Frobenius norms of errors against float64 with the same rounded inputs. float32 sums in another order; the
# other two round what is saved and what comes out, a few times for a gradient (the interpreter rounds bfloat16 down).
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1.2e-2}


def plan_of(num_slots: int) -> RoutePlan:
    return route_plan(torch.tensor(ROUTES[num_slots]), num_experts=6)


def random_inputs(
    plan: RoutePlan, slots: int, num_rows: int, num_inputs: int, num_outputs: int, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    num_tasks, num_slots = plan.routes.shape
    shapes = {
        "input": (num_tasks, slots, num_rows, num_inputs),
        "weight": (plan.num_experts, num_outputs, num_inputs),
        "bias": (plan.num_experts, num_outputs),
        "task_bias": (num_tasks, num_slots, num_outputs),
        "residual": (num_tasks, num_slots, num_rows, num_outputs),
    }
    return {name: torch.randn(shape).to(dtype).requires_grad_() for name, shape in shapes.items()}


def error(got: Tensor, expected: Tensor) -> float:
    """Relative Frobenius norm; NaN in what was forgotten makes it NaN, which is below no tolerance."""
    return float((got.detach().double() - expected.detach()).norm() / expected.detach().norm().clamp_min(1e-30))


def compare(plan: RoutePlan, activation: Activation, inputs: dict[str, Tensor], tolerance: float) -> Tensor:
    """Triton against the float64 reference, value and gradient of each input."""
    exact = {name: x.detach().double().requires_grad_() for name, x in inputs.items()}
    got = expert_linear(plan=plan, activation=activation, backend="triton", **inputs)
    expected = expert_linear(plan=plan, activation=activation, backend="reference", **exact)
    assert got.shape == expected.shape
    assert error(got, expected) < tolerance
    cotangent = torch.randn(got.shape).to(got.dtype)
    gradients = torch.autograd.grad(got, list(inputs.values()), cotangent)
    truth = torch.autograd.grad(expected, list(exact.values()), cotangent.double())
    for name, ours, theirs in zip(inputs, gradients, truth, strict=True):
        assert ours.dtype == inputs[name].dtype, name
        assert error(ours, theirs) < tolerance, (name, error(ours, theirs))
    return got


@pytest.fixture(params=["packed", "tma"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Which kernels run; counts the launches of each, so that a test of one cannot be passed by the other."""
    launched: list[str] = []
    monkeypatch.setattr(expert_linear_launch, "tiling", lambda *_: TILES[request.param])
    launch_tma = expert_linear_launch._launch_tma

    def spy(*arguments: Any) -> None:
        launched.append("tma")
        launch_tma(*arguments)

    monkeypatch.setattr(expert_linear_launch, "_launch_tma", spy)
    yield request.param
    assert bool(launched) == (request.param == "tma")


@pytest.mark.parametrize(
    ("num_slots", "slots", "dtype"), [(1, 1, torch.bfloat16), (2, 1, torch.float16), (2, 2, torch.bfloat16)]
)
def test_values_and_gradients_in_16_bits(implementation: str, num_slots: int, slots: int, dtype: torch.dtype) -> None:
    plan = plan_of(num_slots)
    inputs = random_inputs(plan, slots, 13, 40, 40, dtype)  # multiples of 8, as the copy engine asks, not of the tiles
    compare(plan, "silu", inputs, TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("num_slots", "slots", "num_rows", "num_inputs", "num_outputs", "activation"),
    [
        (1, 1, 39, 32, 32, "none"),
        (2, 1, 13, 24, 40, "relu"),
        (2, 1, 64, 16, 16, "gelu"),  # whole tiles, two to a pair
        (4, 1, 1, 17, 33, "silu"),
        (4, 4, 13, 5, 7, "gelu"),
        (2, 2, 1, 1, 1, "none"),
    ],
)
def test_values_and_gradients_in_float32(
    num_slots: int, slots: int, num_rows: int, num_inputs: int, num_outputs: int, activation: Activation
) -> None:
    plan = plan_of(num_slots)
    inputs = random_inputs(plan, slots, num_rows, num_inputs, num_outputs)
    compare(plan, activation, inputs, TOLERANCE[torch.float32])


@pytest.mark.parametrize(
    ("terms", "activation"),
    [((), "none"), ((), "relu"), ((), "silu"), ((), "gelu"), (("bias",), "none"), (("bias",), "silu"),
     (("task_bias",), "none"), (("task_bias",), "relu"), (("residual",), "none"), (("residual",), "gelu")],
)  # fmt: skip
def test_each_term_alone(terms: tuple[str, ...], activation: Activation) -> None:
    plan = plan_of(2)
    inputs = random_inputs(plan, 1, 3, 8, 16)
    compare(plan, activation, {name: inputs[name] for name in ("input", "weight", *terms)}, TOLERANCE[torch.float32])


@pytest.mark.parametrize("num_slots", [1, 2])
def test_one_expert_with_all_tasks(num_slots: int) -> None:
    plan = route_plan(torch.ones(3, num_slots, dtype=torch.int64), num_experts=3)
    inputs = random_inputs(plan, 1, 13, 16, 16)
    compare(plan, "relu", inputs, TOLERANCE[torch.float32])
    (dw,) = torch.autograd.grad(expert_linear(plan=plan, backend="triton", **inputs).sum(), inputs["weight"])
    assert [bool(dw[e].any()) for e in range(3)] == [False, True, False]  # zero, not what the memory held


@pytest.mark.parametrize("slots", [1, 2])
def test_no_number_of_an_idle_expert_is_seen(slots: int) -> None:
    plan = plan_of(2)
    inputs = random_inputs(plan, slots, 3, 24, 40)  # not multiples of the tiles: what is read past the end must be zero
    with torch.no_grad():
        inputs["weight"][2], inputs["bias"][2] = float("nan"), float("nan")
    got = expert_linear(plan=plan, backend="triton", **inputs)
    gradients = torch.autograd.grad(got.sum(), list(inputs.values()))
    assert all(x.isfinite().all() for x in (got, *gradients))


def test_an_expert_cut_into_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    # 117 rows of one expert beside one with 13: four partial sums, one direct, four idle experts.
    plan = route_plan(torch.tensor([[1], [1], [1], [4], [1], [1], [1], [1], [1], [1]]), num_experts=6)
    inputs = random_inputs(plan, 1, 13, 8, 16)
    monkeypatch.setattr(expert_linear_launch, "chunk_rows", lambda *_: 32)
    compare(plan, "none", inputs, TOLERANCE[torch.float32])


def test_views(implementation: str) -> None:
    plan = plan_of(2)
    wide = torch.randn(6, 32, 64).half().requires_grad_()
    rows = torch.randn(13, 3, 1, 24).half()
    got = expert_linear(rows.permute(1, 2, 0, 3), wide[..., 32:56], plan, backend="triton")
    exact = wide.detach().double().requires_grad_()
    expected = expert_linear(rows.permute(1, 2, 0, 3).double(), exact[..., 32:56], plan, backend="reference")
    assert error(got, expected) < TOLERANCE[torch.float16]
    cotangent = torch.randn(*got.shape[:3], 1).half().expand(got.shape)  # as the gradient of a sum
    (dw,) = torch.autograd.grad(got, wide, cotangent)
    (truth,) = torch.autograd.grad(expected, exact, cotangent.double())
    assert error(dw, truth) < TOLERANCE[torch.float16]


def test_any_strides() -> None:
    plan = plan_of(2)
    inputs = random_inputs(plan, 2, 7, 6, 5)
    turned = {
        "input": inputs["input"].detach().mT.contiguous().mT.requires_grad_(),
        "weight": inputs["weight"].detach().permute(2, 1, 0).contiguous().permute(2, 1, 0).requires_grad_(),
        "residual": inputs["residual"].detach().mT.contiguous().mT.requires_grad_(),
    }
    compare(plan, "silu", inputs | turned, TOLERANCE[torch.float32])


@pytest.mark.parametrize("cast_in_kernel", [True, False])
def test_autocast(cast_in_kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not cast_in_kernel:
        monkeypatch.setattr(expert_linear_launch, "CAST_IN_KERNEL_ROWS", 0)
    plan = plan_of(2)
    inputs = random_inputs(plan, 1, 13, 32, 48)
    residual = inputs.pop("residual")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = expert_linear(plan=plan, activation="relu", backend="triton", **inputs)
        summed = expert_linear(plan=plan, activation="relu", residual=residual, backend="triton", **inputs)
        expected = expert_linear(plan=plan, activation="relu", backend="reference", **inputs)
    assert got.dtype == torch.bfloat16
    assert summed.dtype == torch.float32
    assert error(summed - residual, got.double()) < TOLERANCE[torch.bfloat16]
    assert error(got, expected.double()) < TOLERANCE[torch.bfloat16]
    cotangent = torch.randn(got.shape).bfloat16()
    gradients = torch.autograd.grad(got, list(inputs.values()), cotangent)
    truth = torch.autograd.grad(expected, list(inputs.values()), cotangent)
    for name, ours, theirs in zip(inputs, gradients, truth, strict=True):
        assert ours.dtype == torch.float32
        # relu's slope jumps: where rounding flips the sign of a sum near zero, a whole gradient differs.
        assert error(ours, theirs.double()) < 5 * TOLERANCE[torch.bfloat16], name


def test_repeats_bitwise() -> None:
    inputs = random_inputs(plan_of(2), 1, 13, 8, 16)
    first, second = (
        torch.autograd.grad(
            expert_linear(plan=plan_of(2), backend="triton", **inputs).square().sum(), list(inputs.values())
        )
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(("num_rows", "num_inputs", "num_outputs"), [(0, 5, 7), (3, 0, 7), (3, 5, 0)])
def test_empty_sizes(num_rows: int, num_inputs: int, num_outputs: int) -> None:
    plan = plan_of(2)
    inputs = random_inputs(plan, 1, num_rows, num_inputs, num_outputs)
    got = expert_linear(plan=plan, activation="relu", backend="triton", **inputs)
    expected = expert_linear(plan=plan, activation="relu", backend="reference", **inputs)
    torch.testing.assert_close(got, expected)
    cotangent = torch.randn_like(got)
    gradients = torch.autograd.grad(got, list(inputs.values()), cotangent)
    for ours, theirs in zip(
        gradients, torch.autograd.grad(expected, list(inputs.values()), cotangent), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_not_a_number_is_not_hidden() -> None:
    plan = route_plan(torch.tensor([[0]]), num_experts=1)
    input = torch.tensor([[[[float("nan")], [1.0]]]])
    for activation in ("none", "relu", "silu", "gelu"):
        got = expert_linear(input, torch.ones(1, 1, 1), plan, activation=activation, backend="triton").flatten()
        assert got.isnan().tolist() == [True, False], activation


def test_only_what_is_needed_is_kept() -> None:
    plan = plan_of(2)
    inputs = random_inputs(plan, 1, 13, 8, 16)
    sizes: list[int] = []

    def pack(x: Tensor) -> Tensor:
        if x.is_floating_point():
            sizes.append(x.numel())
        return x

    chosen = {name: inputs[name] for name in ("input", "weight", "bias")}
    frozen = chosen | {"input": chosen["input"].detach()}
    expected = {"none": [3 * 13 * 8], "relu": [3 * 13 * 8, 6 * 13 * 16], "silu": [3 * 13 * 8, 6 * 13 * 16]}
    for activation, kept in expected.items():
        sizes.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            expert_linear(plan=plan, activation=activation, backend="triton", **frozen)  # type: ignore[arg-type]
        assert sizes == kept, activation  # the input, and what the activation saw or gave; no weight: no dx is asked


def test_auto_on_a_cpu_is_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert_linear_triton, "launch", None)
    inputs = random_inputs(plan_of(1), 1, 2, 3, 4)
    assert expert_linear(plan=plan_of(1), **inputs).shape == (3, 1, 2, 4)


def test_float64_has_no_kernel() -> None:
    inputs = {name: x.double() for name, x in random_inputs(plan_of(1), 1, 2, 3, 4).items()}
    with pytest.raises(ValueError, match="expert_linear in float64 has no backend 'triton' here"):
        expert_linear(plan=plan_of(1), backend="triton", **inputs)


def test_signatures_agree() -> None:
    """The kernel's entry takes what the reference takes."""
    reference = inspect.signature(expert_linear.__globals__["_reference"])
    assert list(inspect.signature(expert_linear_triton.launch).parameters) == list(reference.parameters)


@pytest.mark.parametrize("activation", ["none", "silu"])
def test_opcheck(activation: str) -> None:
    plan = plan_of(2)
    x = random_inputs(plan, 1, 3, 8, 16)
    grouped = plan.by_expert()
    arguments = (x["input"], x["weight"], plan.routes, *grouped, x["bias"], x["task_bias"], x["residual"])
    # Without an activation nothing is kept for the backward pass; the rest of opcheck is that of silu.
    checks = ("test_schema", "test_faketensor") if activation == "none" else ALL_CHECKS
    torch.library.opcheck(
        torch.ops.mow.expert_linear.default, (*arguments, activation, activation == "silu"), test_utils=checks
    )


def test_opcheck_of_the_gradients() -> None:
    plan = plan_of(2)
    x = {name: tensor.detach() for name, tensor in random_inputs(plan, 1, 3, 8, 16).items()}
    grouped = plan.by_expert()
    dy, ops = torch.randn(3, 2, 3, 16), torch.ops.mow
    for op, arguments in (
        (ops.expert_linear_dpre, (dy, x["residual"], *grouped, "gelu", torch.float32, True, True)),
        (ops.expert_linear_dpre, (dy, None, *grouped, "none", torch.float32, False, True)),
        (ops.expert_linear_dx, (dy, x["weight"], plan.routes, *grouped, True)),
        (ops.expert_linear_dx, (dy, x["weight"], plan.routes, *grouped, False)),
        (ops.expert_linear_dw, (dy, x["input"], *grouped, torch.float32)),
    ):
        # They have no gradients; test_one_graph_under_compile traces them.
        torch.library.opcheck(op.default, arguments, test_utils=("test_schema", "test_faketensor"))


def test_one_graph_under_compile() -> None:
    torch.compiler.reset()
    plan = plan_of(2)
    inputs = random_inputs(plan, 1, 3, 8, 16)

    def layer(*tensors: Tensor) -> Tensor:
        named = dict(zip(inputs, tensors, strict=True))
        return expert_linear(plan=RoutePlan(plan.routes, 6), activation="gelu", backend="triton", **named)

    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    got, expected = compiled(*inputs.values()), layer(*inputs.values())
    assert torch.equal(got, expected)
    cotangent = torch.randn_like(got)
    for ours, theirs in zip(
        torch.autograd.grad(got, list(inputs.values()), cotangent),
        torch.autograd.grad(expected, list(inputs.values()), cotangent),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


def test_most_tiles_holds_for_any_routing() -> None:
    for counts in ([4, 0, 0], [1, 1, 2], [0, 2, 2], [3, 1, 0]):
        for num_rows in (1, 13, 16, 40):
            needed = sum(-(-count * num_rows // 16) for count in counts)
            assert needed <= most_tiles(4, num_rows, 3, 16)


def test_chunks_are_twice_the_mean_or_enough_to_keep_a_gpu_busy() -> None:
    assert chunk_rows(53248, 12, 64, 64, 100) == 8896  # six chunks of 8,875 rows, in whole blocks
    assert chunk_rows(53248, 1, 16, 64, 100) == 4096  # 13 chunks x 16 tiles for 200 programs
    assert chunk_rows(3, 12, 64, 64, 100) == 64


def test_stages() -> None:
    assert stages_asked(Tiling("packed", 16, 16, 16, 4, 3), index_in_loop=False) == 3
    assert stages_asked(Tiling("packed", 16, 16, 16, 4, 3), index_in_loop=True) == 5
