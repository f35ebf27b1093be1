"""What is not finite is named: loss and task, or parameter."""

import pytest
import torch
from torch import nn

from mow.training.guard import NotFinite, check_finite

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
