"""The gather of frames on a GPU: to the bit, on any stream, in a graph, and where addresses outgrow 32 bits."""

import pytest
import torch

from mow.kernels import gather_frames
from tests.frame_cases import cases, check_every_byte, check_gather, expected_frames, random_ring

pytestmark = pytest.mark.gpu

SHAPE = (2, 6, 64, 64, 3, 2, 2, 3)


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_every_byte(backend: str) -> None:
    check_every_byte("cuda", backend)


@cases
@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_equals_plain_loops(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, backend: str) -> None:
    check_gather(shape, dtype, channels_last, "cuda", backend)


def test_a_captured_gather_takes_new_windows_on_a_stream_of_its_own() -> None:
    ring, rows, start, length = random_ring(SHAPE, "cuda")
    gather_frames(ring, rows, start, length, dtype=torch.bfloat16)  # compiled before the capture
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.cuda.graph(graph, stream=stream):
        frames = gather_frames(ring, rows, start, length, dtype=torch.bfloat16)
    start.copy_((start + 1) % ring.shape[1])
    graph.replay()
    expected = expected_frames(ring, rows, start, length, torch.bfloat16, False)
    assert torch.equal(frames.cpu(), expected)


def test_nothing_waits_for_the_host() -> None:
    inputs = random_ring(SHAPE, "cuda")
    gather_frames(*inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        gather_frames(*inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_ring_of_more_than_two_to_the_31_bytes() -> None:
    capacity = 200_000
    if torch.cuda.mem_get_info()[0] < 4e9:
        pytest.skip("needs 4 GB of free GPU memory")
    ring = torch.zeros(1, capacity, 64, 64, 3, dtype=torch.uint8, device="cuda")
    ring[0, -1, 0, 0, 2] = 255
    start = torch.tensor([[capacity - 1]], device="cuda")
    frames = gather_frames(ring, torch.zeros(1, dtype=torch.int64, device="cuda"), start, 2, backend="triton")
    assert frames[0, 0, 0, 2, 0, 0] == 1
    assert frames.sum() == 1


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_launches_where_the_tensors_are() -> None:
    check_gather(SHAPE, torch.float32, False, "cuda:1", "triton")
