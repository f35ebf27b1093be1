"""What is not finite is named: loss and task, or parameter."""

import numpy as np
import pytest
import torch
from torch import nn

from mow.envs.base import ActionLayout, TaskSpec
from mow.nn.finite import NotFinite, check_actions, check_finite, check_weights

TASKS = ["a:one", "a:two"]
NAN, INF = float("nan"), float("inf")


def check(total: float, norm: float, losses: dict[str, list[float]], gradient: list[float]) -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor(gradient)
    fine = nn.Parameter(torch.zeros(1))
    parts = {name: torch.tensor(values) for name, values in losses.items()}
    named = [("fine", fine), ("weight", parameter)]
    check_finite("agent", torch.tensor(total), torch.tensor(norm), parts, TASKS, named)


def test_finite_numbers_pass() -> None:
    check(1.0, 2.0, {"policy": [0.0, 3e38]}, [1.0, 2.0])


@pytest.mark.parametrize(
    ("total", "norm", "losses", "gradient", "message"),
    [
        (NAN, NAN, {"value": [1.0, 2.0], "policy": [0.0, NAN]}, [NAN, 0.0], "agent: policy of a:two is nan"),
        (INF, 1.0, {"value": [-INF, 2.0]}, [0.0, 0.0], "agent: value of a:one is -inf"),
        (1.0, NAN, {"value": [1.0, 2.0]}, [0.0, NAN], "agent: the gradient of weight is not finite, though all losses"),
        (1.0, INF, {"value": [1.0, 2.0]}, [3e38, 3e38], "agent: the gradient is too large for its norm, inf"),
    ],
)
def test_what_is_at_fault_is_named(
    total: float, norm: float, losses: dict[str, list[float]], gradient: list[float], message: str
) -> None:
    with pytest.raises(NotFinite, match=message):
        check(total, norm, losses, gradient)


def test_a_policy_that_chooses_nothing_is_named_with_its_task() -> None:
    specs = [
        TaskSpec("a:one", discrete=True, num_actions=2, legal=(True, True), frame_skip=1, protocol=""),
        TaskSpec("a:two", discrete=False, num_actions=1, legal=(True,), frame_skip=1, protocol=""),
    ]
    layout = ActionLayout.from_tasks(specs)
    check_actions(np.array([[0, 1, 0], [0, 0, -0.5]], np.float32), layout, TASKS)
    for rows, task in (([[0, 0, 0], [0, 0, 1]], "a:one"), ([[1, 0, 0], [0, 0, NAN]], "a:two")):
        with pytest.raises(FloatingPointError, match=f"^the agent chooses no action in {task}: its weights are broken"):
            check_actions(np.array(rows, np.float32), layout, TASKS)


def test_broken_weights_are_not_saved() -> None:
    fine, broken = nn.Linear(2, 2), nn.BatchNorm1d(2)
    check_weights({"world model": fine, "agent": broken})
    assert broken.running_var is not None
    broken.running_var[1] = INF
    with pytest.raises(FloatingPointError, match=r"^agent: running_var is not finite, nothing was saved; start a new"):
        check_weights({"world model": fine, "agent": broken})
