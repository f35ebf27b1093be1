"""Values and all gradients against a loop over tasks and slots; idle and busy experts; views; autocast."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mow.kernels import Activation, RoutePlan, expert_linear, route_plan

ROUTES = torch.tensor([[0, 1], [1, 3], [1, 0]])  # expert 1 serves every task, expert 2 none
PLAN = route_plan(ROUTES, num_experts=4)
ACTIVATION = {"none": lambda x: x, "relu": F.relu, "silu": F.silu, "gelu": F.gelu}


def random_inputs(
    plan: RoutePlan, slots: int, num_rows: int, num_inputs: int, num_outputs: int, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    num_tasks, num_slots = plan.routes.shape
    shapes = {
        "input": (num_tasks, slots, num_rows, num_inputs),
        "weight": (plan.num_experts, num_outputs, num_inputs),
        "bias": (plan.num_experts, num_outputs),
        "task_bias": (num_tasks, num_slots, num_outputs),
        "residual": (num_tasks, num_slots, num_rows, num_outputs),
    }
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for name, shape in shapes.items()
    }


def loop(plan: RoutePlan, activation: Activation, input: Tensor, weight: Tensor, **terms: Tensor) -> Tensor:
    """The equation, one task and slot at a time."""
    output = []
    for k, experts in enumerate(plan.routes.tolist()):
        for j, expert in enumerate(experts):
            y = input[k, j if input.shape[1] > 1 else 0] @ weight[expert].T
            if "bias" in terms:
                y = y + terms["bias"][expert]
            if "task_bias" in terms:
                y = y + terms["task_bias"][k, j]
            y = ACTIVATION[activation](y)
            output.append(y + terms["residual"][k, j] if "residual" in terms else y)
    return torch.stack(output).unflatten(0, plan.routes.shape)


def test_by_hand() -> None:
    # Task 0 uses expert 1 (times 10), task 1 expert 0 (sum of both inputs).
    plan = route_plan(torch.tensor([[1], [0]]), num_experts=2)
    weight = torch.tensor([[[1.0, 1.0]], [[10.0, 0.0]]])
    input = torch.tensor([[[[1.0, 2.0]]], [[[3.0, -8.0]]]])
    assert expert_linear(input, weight, plan).flatten().tolist() == [10.0, -5.0]
    got = expert_linear(
        input,
        weight,
        plan,
        bias=torch.tensor([[0.5], [7.0]]),
        task_bias=torch.tensor([[[100.0]], [[1.0]]]),
        activation="relu",
        residual=torch.tensor([[[[0.25]]], [[[0.5]]]]),
    )
    assert got.flatten().tolist() == [117.25, 0.5]  # 10 + 7 + 100 + 0.25; relu(-5 + 0.5 + 1) + 0.5


@pytest.mark.parametrize("activation", ACTIVATION)
@pytest.mark.parametrize("slots", [1, 2])
def test_matches_the_loop_in_values_and_gradients(activation: Activation, slots: int) -> None:
    inputs = random_inputs(PLAN, slots, 13, 5, 7)
    got, expected = expert_linear(plan=PLAN, activation=activation, **inputs), loop(PLAN, activation, **inputs)
    assert got.shape == (3, 2, 13, 7)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)  # float64
    cotangent = torch.randn_like(got)
    for name, ours, theirs in zip(
        inputs,
        torch.autograd.grad(got, list(inputs.values()), cotangent),
        torch.autograd.grad(expected, list(inputs.values()), cotangent),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("terms", [(), ("bias",), ("task_bias",), ("residual",), ("bias", "residual")])
def test_terms_are_optional(terms: tuple[str, ...]) -> None:
    inputs = random_inputs(PLAN, 2, 3, 5, 7)
    chosen = {name: inputs[name] for name in ("input", "weight", *terms)}
    got = expert_linear(plan=PLAN, activation="silu", **chosen)
    torch.testing.assert_close(got, loop(PLAN, "silu", **chosen), rtol=1e-12, atol=1e-12)  # float64


def lone(num_slots: int) -> RoutePlan:
    return route_plan(torch.zeros(3, num_slots, dtype=torch.int64), num_experts=1)


PAIR = torch.tensor([[2]])
PAIR_OF_ONE = torch.tensor([[0]])


@pytest.mark.parametrize(
    ("plan", "slots"),
    [
        (lone(1), 1), (lone(2), 1), (lone(2), 2), (route_plan(PAIR, num_experts=4), 1),
        (RoutePlan(PAIR, 4, known=((2,),)), 1), (RoutePlan(PAIR_OF_ONE, 1), 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("terms", [(), ("task_bias",), ("bias", "residual"), ("bias", "task_bias", "residual")])
def test_lone_expert_and_lone_pair(plan: RoutePlan, slots: int, terms: tuple[str, ...]) -> None:
    inputs = random_inputs(plan, slots, 4, 5, 6)
    chosen = {name: inputs[name] for name in ("input", "weight", *terms)}
    got, expected = expert_linear(plan=plan, activation="relu", **chosen), loop(plan, "relu", **chosen)
    assert got.shape == expected.shape
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)  # float64
    cotangent = torch.randn_like(got)
    for ours, theirs in zip(
        torch.autograd.grad(got, list(chosen.values()), cotangent),
        torch.autograd.grad(expected, list(chosen.values()), cotangent),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)  # float64


def test_idle_expert_has_gradient_zero() -> None:
    inputs = random_inputs(PLAN, 1, 13, 5, 7)
    weight, bias = torch.autograd.grad(
        expert_linear(plan=PLAN, **inputs).square().sum(), (inputs["weight"], inputs["bias"])
    )
    assert [expert for expert in range(4) if not weight[expert].any()] == [2]
    assert [expert for expert in range(4) if not bias[expert].any()] == [2]


def test_one_expert_for_all_sums_their_gradients() -> None:
    plan = route_plan(torch.ones(3, 2, dtype=torch.int64), num_experts=2)
    inputs = random_inputs(plan, 2, 4, 5, 7)
    (got,) = torch.autograd.grad(expert_linear(inputs["input"], inputs["weight"], plan).sum(), inputs["weight"])
    column_sums = inputs["input"].sum(dim=(0, 1, 2))
    torch.testing.assert_close(got[1], column_sums.expand(7, 5), rtol=1e-12, atol=1e-12)  # float64
    assert not got[0].any()


@pytest.mark.parametrize("activation", ["none", "silu", "gelu"])  # relu has a corner
def test_gradcheck(activation: Activation) -> None:
    inputs = random_inputs(PLAN, 1, 2, 3, 2)

    def call(*tensors: Tensor) -> Tensor:
        return expert_linear(plan=PLAN, activation=activation, **dict(zip(inputs, tensors, strict=True)))

    assert torch.autograd.gradcheck(call, tuple(inputs.values()))


@pytest.mark.parametrize(("num_rows", "num_inputs", "num_outputs"), [(1, 1, 1), (63, 13, 1), (0, 5, 7), (1, 63, 13)])
def test_odd_and_empty_sizes(num_rows: int, num_inputs: int, num_outputs: int) -> None:
    inputs = random_inputs(PLAN, 2, num_rows, num_inputs, num_outputs)
    got = expert_linear(plan=PLAN, activation="gelu", **inputs)
    assert got.shape == (3, 2, num_rows, num_outputs)
    torch.testing.assert_close(got, loop(PLAN, "gelu", **inputs), rtol=1e-12, atol=1e-12)  # float64
    got.sum().backward()
    assert inputs["weight"].grad is not None


@pytest.mark.parametrize("num_experts", [1, 4])
def test_weight_and_input_may_be_views(num_experts: int) -> None:
    plan = route_plan(ROUTES % num_experts, num_experts)
    wide = torch.randn(num_experts, 7, 20, dtype=torch.float64, requires_grad=True)
    rows = torch.randn(13, 3, 1, 5, dtype=torch.float64)
    got = expert_linear(rows.permute(1, 2, 0, 3), wide[..., 10:15], plan)
    expected = loop(plan, "none", rows.permute(1, 2, 0, 3).contiguous(), wide[..., 10:15].contiguous())
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)  # float64
    (gradient,) = torch.autograd.grad(got.square().sum(), wide)
    assert not gradient[..., :10].any()
    assert not gradient[..., 15:].any()
    assert gradient[..., 10:15].any()


@pytest.mark.parametrize("num_experts", [1, 4])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_precision(num_experts: int, dtype: torch.dtype, rtol: float) -> None:
    plan = route_plan(ROUTES % num_experts, num_experts)
    inputs = random_inputs(plan, 1, 13, 63, 17, dtype)
    got = expert_linear(plan=plan, activation="silu", **inputs)
    assert got.dtype == dtype
    expected = loop(plan, "silu", **{name: x.double() for name, x in inputs.items()})
    # Relative Frobenius: about one unit of the output's rounding (6e-8, 5e-4, 4e-3) and some for the sums before it.
    assert (got.double() - expected).norm() / expected.norm() < rtol


@pytest.mark.parametrize(("routes", "num_experts"), [(ROUTES % 1, 1), (ROUTES, 4), (ROUTES[1:2, 1:], 4)])
def test_autocast(routes: Tensor, num_experts: int) -> None:
    plan = route_plan(routes, num_experts)
    inputs = random_inputs(plan, 1, 13, 63, 17, torch.float32)
    residual = inputs.pop("residual")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = expert_linear(plan=plan, **inputs)
        summed = expert_linear(plan=plan, residual=residual, **inputs)
    assert got.dtype == torch.bfloat16
    assert summed.dtype == torch.float32  # the residual stream keeps its digits
    assert torch.equal(summed, got + residual)
    expected = loop(plan, "none", **{name: x.double() for name, x in inputs.items()})
    assert (got.double() - expected).norm() / expected.norm() < 8e-3  # bfloat16 operands and output, 4e-3 each
    got.sum().backward()
    assert all(x.grad is not None and x.grad.dtype == torch.float32 for x in inputs.values())


def test_a_lone_pair_keeps_the_digits_of_its_bias() -> None:
    plan = route_plan(torch.zeros(1, 1, dtype=torch.int64), 1)
    input, weight = torch.ones(1, 1, 1, 1, dtype=torch.bfloat16), torch.ones(1, 1, 1, dtype=torch.bfloat16)
    # In bfloat16 the sum of -1 and 1.001 would be 0.
    bias = torch.tensor([[-1.001]])
    assert expert_linear(input, weight, plan, bias=bias).item() == pytest.approx(-0.001, rel=4e-3)


def test_autocast_accepts_mixed_dtypes() -> None:
    inputs = random_inputs(PLAN, 1, 3, 5, 7, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = expert_linear(inputs["input"].bfloat16(), inputs["weight"], PLAN)
    assert got.dtype == torch.bfloat16


def test_repeats_bitwise() -> None:
    inputs = random_inputs(PLAN, 1, 13, 5, 7, torch.float32)
    first, second = (
        torch.autograd.grad(expert_linear(plan=PLAN, **inputs).square().sum(), list(inputs.values())) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("routes", "message"),
    [
        (torch.tensor([[0, 4]]), r"routes must be in \[0, 4\), got 0 to 4: num_experts counts the weights"),
        (torch.tensor([[-1, 2]]), r"routes must be in \[0, 4\), got -1 to 2"),
        (torch.tensor([[0.0]]), r"routes must be int64 \[K, J\], got torch.float32 \[1, 1\]: convert them"),
        (torch.tensor([0, 1]), r"routes must be int64 \[K, J\], got torch.int64 \[2\]"),
        (torch.zeros(3, 0, dtype=torch.int64), r"routes need a task and a slot, got \[3, 0\]"),
    ],
)
def test_plan_errors(routes: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        route_plan(routes, num_experts=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.zeros(2, 1, 3, 5)}, r"input must be \[3, 2 or 1, R, I\] to fit the plan, got \[2, 1, 3, 5\]"),
        ({"input": torch.zeros(3, 3, 3, 5)}, r"input must be \[3, 2 or 1, R, I\] to fit the plan, got \[3, 3, 3, 5\]"),
        ({"input": torch.zeros(3, 3, 5)}, r"got \[3, 3, 5\]: unsqueeze the slot axis and fold time into R"),
        ({"weight": torch.zeros(5, 7, 5)}, r"weight must be \[4, N, 5\] to fit plan and input, got \[5, 7, 5\]"),
        ({"weight": torch.zeros(4, 7, 6)}, r"weight must be \[4, N, 5\] to fit plan and input, got \[4, 7, 6\]"),
        ({"weight": torch.zeros(7, 5)}, r"got \[7, 5\]: stack nn.Linear weights, one per expert"),
        ({"bias": torch.zeros(3, 7)}, r"bias must be \[4, 7\], got \[3, 7\]: expand it to the full shape"),
        ({"task_bias": torch.zeros(3, 7)}, r"task_bias must be \[3, 2, 7\], got \[3, 7\]"),
        ({"residual": torch.zeros(3, 1, 3, 7)}, r"residual must be \[3, 2, 3, 7\], got \[3, 1, 3, 7\]"),
        ({"weight": torch.zeros(4, 7, 5).bfloat16()}, "input is torch.float32 and weight torch.bfloat16: convert one"),
        ({"weight": torch.zeros(4, 7, 5).long()}, r"weight must be of a floating dtype, got torch.int64: convert with"),
        ({"input": torch.zeros(3, 1, 3, 5).int()}, "input must be of a floating dtype, got torch.int32"),
        ({"bias": torch.zeros(4, 7, device="meta")}, r"input is on cpu and bias on meta: move them to one device"),
        ({"plan": RoutePlan(ROUTES.to("meta"), 4)}, "input is on cpu and the plan on meta: move them to one device"),
        ({"plan": route_plan(ROUTES[:2], 4)}, r"input must be \[2, 2 or 1, R, I\] to fit the plan, got \[3, 1, 3, 5\]"),
        ({"activation": "tanh"}, r"unknown activation 'tanh': choose one of \['gelu', 'none', 'relu', 'silu'\]"),
    ],
)
def test_call_errors(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"input": torch.zeros(3, 1, 3, 5), "weight": torch.zeros(4, 7, 5), "plan": PLAN}
    with pytest.raises(ValueError, match=message):
        expert_linear(**{**arguments, **change})


def test_pairs_are_grouped_by_expert() -> None:
    member, offset = PLAN.by_expert()
    assert member.dtype == offset.dtype == torch.int32
    assert member.tolist() == [0, 5, 1, 2, 4, 3]  # pair = 2 k + j; each group ascending
    assert offset.tolist() == [0, 2, 5, 5, 6]  # expert 2 is idle


def test_pairs_are_grouped_once() -> None:
    plan = route_plan(ROUTES, num_experts=4)
    assert plan.by_expert() is plan.by_expert()


def test_pairs_grouped_while_compiling_are_not_kept() -> None:
    torch.compiler.reset()
    plan = route_plan(ROUTES, num_experts=4)
    compiled = torch.compile(lambda: plan.by_expert()[0] + 0, backend="eager", fullgraph=True)
    assert compiled().tolist() == [0, 5, 1, 2, 4, 3]
    assert "_by_expert" not in vars(plan)  # the next graph must not read the memory of this one
