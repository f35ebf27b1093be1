"""Does it pay to gather, scale and lay out frames in one pass?  python -m bench -k gather_frames

Windows out of a ring of bytes, as convolutions take them, in bfloat16. Peer: index_select, then layout and scale.
"""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor

from bench.floors import Work
from bench.race import Race
from mow.kernels import gather_frames


@dataclass(frozen=True)
class WindowShape:
    """B windows of L steps for each of K tasks that hold N frames of side x side x 3."""

    K: int
    B: int
    L: int
    N: int
    side: int
    channels_last: bool

    def __str__(self) -> str:
        return f"K{self.K} B{self.B} L{self.L}{' channels last' if self.channels_last else ''}"


SHAPES = [
    WindowShape(26, 16, 64, 2000, 64, last) if torch.cuda.is_available() else WindowShape(4, 2, 8, 100, 64, last)
    for last in (False, True)
]

Inputs = tuple[Tensor, Tensor, Tensor]


def make_windows(shape: WindowShape, device: str) -> Inputs:
    """Ring [K, N, side, side, 3], rows [K], start [K, B]."""
    ring = torch.randint(0, 256, (shape.K, shape.N, shape.side, shape.side, 3), dtype=torch.uint8, device=device)
    return ring, torch.arange(shape.K, device=device), torch.randint(0, shape.N, (shape.K, shape.B), device=device)


def bytes_first(ring: Tensor, rows: Tensor, start: Tensor, *, shape: WindowShape) -> Tensor:
    """[K, B, L, 3, side, side]: what one writes without a kernel."""
    position = (start.unsqueeze(-1) + torch.arange(shape.L, device=ring.device)) % shape.N  # [K, B, L]
    index = (rows[:, None, None] * shape.N + position).flatten()
    window = ring.flatten(0, 1).index_select(0, index).unflatten(0, position.shape)  # [K, B, L, side, side, 3]
    scale = torch.tensor([255.0], device=ring.device)  # a number would be multiplied with as its rounded inverse
    frames = (window.movedim(-1, -3) / scale).to(torch.bfloat16)
    return frames if shape.channels_last else frames.contiguous()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_windows(race: Race, shape: WindowShape) -> None:
    peer = partial(bytes_first, shape=shape)

    def check(output: Tensor, inputs: Inputs) -> None:
        assert torch.equal(output, peer(*inputs)), "frames differ"

    race.run(
        lambda ring, rows, start: gather_frames(
            ring, rows, start, shape.L, dtype=torch.bfloat16, channels_last=shape.channels_last, backend=race.backend
        ),
        {"bytes, then torch": peer},
        make=partial(make_windows, shape, race.device.kind),
        check=check,
        work=Work(0.0, 3.0 * shape.K * shape.B * shape.L * shape.side**2 * 3),  # a byte read, two written
    )
