"""What all doors share: the name of the package, the backends they offer, one graph under torch.compile."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mow import kernels
from mow.kernels import Backend, PhiloxState, dispatch, route_plan

RNG = PhiloxState.from_seed(0, "cpu")
PLAN = route_plan(torch.tensor([[1, 0], [1, 1]]), num_experts=2)

CALLS: dict[str, Callable[[Backend], Tensor]] = {
    "sample_onehot": lambda backend: kernels.sample_onehot(torch.zeros(2, 3, 4), RNG, backend=backend)[0],
    "categorical_kl": lambda backend: kernels.categorical_kl(
        torch.zeros(2, 3, 4), torch.ones(2, 3, 4), backend=backend
    )[0],
    "two_hot_loss": lambda backend: kernels.two_hot_loss(torch.zeros(2, 5), torch.ones(2), backend=backend),
    "two_hot_decode": lambda backend: kernels.two_hot_decode(torch.zeros(2, 5), backend=backend),
    "lambda_return": lambda backend: kernels.lambda_return(
        torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 4), lam=0.5, backend=backend
    ),
    "expert_linear": lambda backend: kernels.expert_linear(
        torch.ones(2, 1, 3, 4), torch.ones(2, 5, 4), PLAN, backend=backend
    ),
    "add_layer_norm": lambda backend: kernels.add_layer_norm(
        torch.arange(48.0).view(2, 2, 3, 4), torch.ones(2, 4), torch.zeros(2, 4), PLAN, backend=backend
    ),
    "batch_norm_relu": lambda backend: kernels.batch_norm_relu(
        torch.arange(8.0).view(1, 2, 2, 2), *torch.ones(4, 2), backend=backend
    ),
    "decode_attention": lambda backend: kernels.decode_attention(
        *torch.arange(24.0).view(3, 1, 1, 2, 2, 2), *torch.zeros(2, 1, 1, 2, 2, 3, 2), torch.ones(1, 2, 1).bool(), 0,
        backend=backend,
    ),
}


def test_package_refuses_a_second_name() -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", "import kernels"]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "ImportError: imported as 'kernels': write 'from mow.kernels import ...'" in run.stderr


def test_everything_exported_exists() -> None:
    assert kernels.__all__ == sorted(kernels.__all__)
    assert all(hasattr(kernels, name) for name in kernels.__all__)


@pytest.mark.parametrize("op", CALLS)
def test_missing_backend_is_an_error(op: str) -> None:
    with pytest.raises(ValueError, match=f"{op} has no backend 'nonesuch' here: choose 'auto' or 'reference'"):
        CALLS[op]("nonesuch")  # type: ignore[arg-type]


@pytest.mark.parametrize("op", CALLS)
def test_one_graph_under_compile(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_CHOSEN", {})  # the first, logging, call happens while tracing
    torch.compiler.reset()
    compiled = torch.compile(lambda: CALLS[op]("auto"), backend="eager", fullgraph=True)
    offset = RNG.seed_offset.clone()
    got = compiled()
    RNG.load(offset)  # the same draw again for the op that has a stream
    assert torch.equal(got, CALLS[op]("reference"))
