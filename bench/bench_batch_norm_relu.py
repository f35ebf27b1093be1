"""Batch norm by known statistics and ReLU in one kernel.  python -m bench -k batch_norm_relu

Peers: the two ops of PyTorch, and the same under torch.compile.
"""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench import floors
from bench.race import Race, close_to, peers_of
from mow.kernels import batch_norm_relu

SHAPES = [(1024, 64, 16, 16), (1024, 256, 4, 4)] if torch.cuda.is_available() else [(8, 16, 8, 8)]  # [n, C, H, W]

Images = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def make_images(shape: tuple[int, int, int, int], device: str) -> Images:
    x = torch.randn(shape, device=device).to(memory_format=torch.channels_last)
    mean, weight, bias = torch.randn(3, shape[1], device=device)
    return x, mean, torch.rand(shape[1], device=device) + 0.5, weight, bias


def plain(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.batch_norm(x, mean, var, weight, bias, False).relu()


def check(output: Tensor, inputs: Images) -> None:
    close_to(plain(*(x.double() for x in inputs)), output, 1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norm(race: Race, shape: tuple[int, int, int, int]) -> None:
    race.run(
        lambda *images: batch_norm_relu(*images, backend=race.backend),
        peers_of("PyTorch", plain, lambda function: function, race.device.kind),
        make=partial(make_images, shape, race.device.kind), check=check,
        work=floors.read_and_write(shape[0] * shape[1] * shape[2] * shape[3], 1, 4),
    )  # fmt: skip
