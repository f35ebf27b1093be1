"""Rings of random frames, and what windows of them must be, by plain loops; on any device."""

import pytest
import torch
from torch import Tensor

from mow.kernels import gather_frames

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# R, capacity, H, W, C, K, B, L: one pixel; sides that nothing divides; the frames of the games; a window of all steps.
SHAPES = [(1, 1, 1, 1, 1, 1, 1, 1), (3, 5, 7, 11, 3, 2, 3, 4), (2, 6, 64, 64, 3, 2, 2, 3), (2, 4, 5, 3, 4, 1, 5, 4)]


def random_ring(shape: tuple[int, ...], device: str) -> tuple[Tensor, Tensor, Tensor, int]:
    """Ring, rows, start and length; windows wrap."""
    num_rows, capacity, height, width, channels, num_tasks, num_windows, length = shape
    random = torch.Generator().manual_seed(0)
    ring = torch.randint(0, 256, (num_rows, capacity, height, width, channels), generator=random).to(torch.uint8)
    rows = torch.randint(0, num_rows, (num_tasks,), generator=random)
    start = torch.randint(0, capacity, (num_tasks, num_windows), generator=random)
    start[0, -1] = capacity - 1
    return ring.to(device), rows.to(device), start.to(device), length


def cut(x: Tensor) -> Tensor:
    """float32 to bfloat16 by leaving bits off, which is how Triton's interpreter does it; a GPU rounds."""
    return (x.view(torch.int32) & -65536).view(torch.float32).bfloat16()


def expected_frames(
    ring: Tensor, rows: Tensor, start: Tensor, length: int, dtype: torch.dtype, interpreted: bool
) -> Tensor:
    """Frame by frame, each byte over 255 in float64, rounded to float32 and then to `dtype`."""
    ring, rows, start = ring.cpu(), rows.cpu(), start.cpu()
    windows = [
        [ring[row, [(first + i) % ring.shape[1] for i in range(length)]] for first in firsts.tolist()]
        for row, firsts in zip(rows.tolist(), start, strict=True)
    ]
    frames = torch.stack([torch.stack(row) for row in windows])  # [K, B, L, H, W, C]
    single = (frames.double() / 255.0).float().permute(0, 1, 2, 5, 3, 4)
    return cut(single) if interpreted and dtype == torch.bfloat16 else single.to(dtype)


def check_gather(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, device: str, backend: str) -> None:
    """Values to the bit, and where in memory they lie."""
    inputs = random_ring(shape, device)
    frames = gather_frames(*inputs, dtype=dtype, channels_last=channels_last, backend=backend)  # type: ignore[arg-type]
    assert frames.dtype == dtype
    interpreted = (device, backend) == ("cpu", "triton")
    assert torch.equal(frames.cpu(), expected_frames(*inputs, dtype, interpreted))
    assert (frames.movedim(-3, -1) if channels_last else frames).is_contiguous()


def check_every_byte(device: str, backend: str) -> None:
    """All quotients, as IEEE division rounds them."""
    ring = torch.arange(256, dtype=torch.uint8, device=device).view(1, 1, 16, 16, 1)
    zero = torch.zeros(1, 1, dtype=torch.int64, device=device)
    frames = gather_frames(ring, zero[0], zero, 1, backend=backend)  # type: ignore[arg-type]
    assert torch.equal(frames.flatten().cpu(), torch.arange(256.0) / torch.tensor([255.0]))


cases = pytest.mark.parametrize(
    ("shape", "dtype", "channels_last"), [(s, d, last) for s in SHAPES for d in DTYPES for last in (False, True)]
)
