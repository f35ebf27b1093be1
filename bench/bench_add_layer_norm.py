"""Residual sum, layer norm, affine per pair and ReLU in one kernel.  python -m bench -k add_layer_norm

Peers: the same ops of PyTorch, and the same under torch.compile.
"""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench import floors
from bench.race import Race, close_to, peers_of
from mow.kernels import RoutePlan, add_layer_norm

SHAPES = [(26, 2, 1024, 512), (26, 1, 1024, 512)] if torch.cuda.is_available() else [(4, 2, 64, 128)]  # [K, J, R, W]
_EXPERTS = 4

Rows = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def make_rows(shape: tuple[int, int, int, int], device: str) -> Rows:
    routes = torch.arange(shape[0] * shape[1], device=device).view(shape[:2]) % _EXPERTS
    x, residual = torch.randn(2, *shape, device=device)
    weight, bias = torch.randn(2, _EXPERTS, shape[3], device=device)
    return x, residual, weight, bias, routes


def plain(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, routes: Tensor) -> Tensor:
    y = F.layer_norm(x + residual, x.shape[-1:])
    return torch.addcmul(bias[routes].unsqueeze(2), y, weight[routes].unsqueeze(2)).relu()


def check(output: Tensor, inputs: Rows) -> None:
    # Sums over a row in float32.
    x, residual, weight, bias, routes = inputs
    close_to(plain(x.double(), residual.double(), weight.double(), bias.double(), routes), output, 1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norm(race: Race, shape: tuple[int, int, int, int]) -> None:
    def op(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, routes: Tensor) -> Tensor:
        plan = RoutePlan(routes, _EXPERTS)
        return add_layer_norm(x, weight, bias, plan, residual=residual, relu=True, backend=race.backend)

    race.run(
        op, peers_of("PyTorch", plain, lambda function: function, race.device.kind),
        make=partial(make_rows, shape, race.device.kind), check=check,
        work=floors.read_and_write(shape[0] * shape[1] * shape[2] * shape[3], 2, 4),
    )  # fmt: skip
