"""Windows of frames, scaled and laid out for convolutions: by hand, and against plain loops."""

from typing import Any

import pytest
import torch

from mow.kernels import gather_frames
from mow.replay import gather_windows
from tests.frame_cases import cases, check_every_byte, check_gather, random_ring


def test_by_hand() -> None:
    """A ring of one row and three frames of two pixels in three channels; the window begins at the last and wraps."""
    ring = torch.tensor([[[[[0, 1, 2], [3, 4, 5]]], [[[6, 7, 8], [9, 10, 11]]], [[[255, 51, 0], [102, 153, 204]]]]])
    frames = gather_frames(ring.to(torch.uint8), torch.tensor([0]), torch.tensor([[2]]), 2)
    assert frames.shape == (1, 1, 2, 3, 1, 2)
    assert frames[0, 0, 0, :, 0].tolist() == torch.tensor([[1.0, 0.4], [0.2, 0.6], [0.0, 0.8]]).tolist()
    assert (255 * frames[0, 0, 1, :, 0]).round().tolist() == [[0, 3], [1, 4], [2, 5]]


def test_every_byte() -> None:
    check_every_byte("cpu", "reference")


@cases
def test_equals_plain_loops(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> None:
    check_gather(shape, dtype, channels_last, "cpu", "reference")


def test_the_windows_are_those_of_the_replay_gather() -> None:
    ring, rows, start, length = random_ring((3, 5, 7, 11, 3, 2, 3, 4), "cpu")
    out = torch.empty(2, 3, 4, 7, 11, 3, dtype=torch.uint8)
    gather_windows([ring.numpy()], rows.numpy(), start.numpy(), length, [out.numpy()])
    assert torch.equal(gather_frames(ring, rows, start, length), out.movedim(-1, -3).float() / 255)


ARGS: dict[str, Any] = {
    "ring": torch.zeros(2, 5, 4, 4, 3, dtype=torch.uint8),
    "rows": torch.tensor([0, 1]),
    "start": torch.zeros(2, 4, dtype=torch.int64),
    "length": 3,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ring": torch.zeros(2, 5, 4, 4, 3)}, r"ring must be contiguous uint8 \[R, capacity, H, W, C\], got"),
        ({"ring": torch.zeros(2, 5, 48, dtype=torch.uint8)}, r"ring must be .* got torch.uint8 \[2, 5, 48\]"),
        ({"ring": ARGS["ring"].transpose(2, 3)}, r"ring must be contiguous .* with strides \(240, 48, 3, 12, 1\)"),
        ({"rows": torch.tensor([0])}, r"expected rows \[K\] and start \[K, B\], got \[1\] and \[2, 4\]"),
        ({"start": torch.zeros(2, dtype=torch.int64)}, r"expected rows \[K\] and start \[K, B\], got \[2\] and \[2\]"),
        ({"rows": torch.zeros(2)}, "rows and start must be int64, got torch.float32 and torch.int64"),
        ({"rows": torch.tensor([0, 1], device="meta")}, "must share a device, got cpu, meta and cpu"),
        ({"length": 6}, "length must be in 1 to capacity 5, got 6"),
        ({"length": 0}, "length must be in 1 to capacity 5, got 0"),
        ({"dtype": torch.float64}, "dtype must be one of torch.float32, .* got torch.float64"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gather_frames(**{**ARGS, **change})
