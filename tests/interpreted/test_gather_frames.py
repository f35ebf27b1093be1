"""The kernel against plain loops."""

import importlib
import inspect

import pytest
import torch

from mow.kernels import gather_frames, gather_frames_triton
from tests.frame_cases import cases, check_every_byte, check_gather, random_ring


def test_every_byte() -> None:
    check_every_byte("cpu", "triton")


@cases
def test_equals_plain_loops(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> None:
    check_gather(shape, dtype, channels_last, "cpu", "triton")


def test_frames_of_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather_frames_triton, "_BLOCK", 64)
    check_gather((3, 5, 7, 11, 3, 2, 3, 4), torch.float32, False, "cpu", "triton")


def test_strided_indices_and_nothing_at_all() -> None:
    ring, rows, start, length = random_ring((3, 5, 7, 11, 3, 2, 3, 4), "cpu")
    expected = gather_frames(ring, rows, start, length, backend="reference")
    twice = start.repeat_interleave(2, dim=1)[:, ::2], rows.repeat_interleave(2)[::2]
    assert torch.equal(gather_frames(ring, twice[1], twice[0], length, backend="triton"), expected)
    assert gather_frames(ring, rows, start[:, :0], length, backend="triton").shape == (2, 0, 4, 3, 7, 11)


@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck(channels_last: bool) -> None:
    inputs = random_ring((3, 5, 7, 11, 3, 2, 3, 4), "cpu")
    torch.library.opcheck(torch.ops.mow.gather_frames.default, (*inputs, torch.bfloat16, channels_last))


def test_equal_signatures() -> None:
    reference = importlib.import_module("mow.kernels.gather_frames")._reference
    rooms = (reference, gather_frames_triton.gather_frames_triton)
    door, *rooms = (list(inspect.signature(f).parameters) for f in (gather_frames, *rooms))
    assert door == [*rooms[0], "backend"] == [*rooms[1], "backend"]
