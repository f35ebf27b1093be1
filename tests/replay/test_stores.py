"""All stores of frames: what goes in comes out, at every border; what does not fit is refused."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mow.replay.gpu_store import GpuStore
from mow.replay.packed import PackedStore, Spill, why_not_packed
from mow.replay.stores import FrameStore, RawStore

Frames = NDArray[np.uint8]
SHAPE = (4, 6, 3)

needs_packing = pytest.mark.skipif(why_not_packed() != "", reason=why_not_packed() or "frames can be packed")


def on_disk(num_rows: int, capacity: int, frame_shape: tuple[int, ...]) -> PackedStore:
    """Every sealed block goes to a disk at once."""
    return PackedStore(num_rows, capacity, frame_shape, spill=Spill(Path(tempfile.gettempdir()), 0))


def on_device(num_rows: int, capacity: int, frame_shape: tuple[int, ...]) -> GpuStore:
    """With a CPU tensor in place of the ring on a GPU."""
    return GpuStore(num_rows, capacity, frame_shape, torch.device("cpu"))


STORES = [
    pytest.param(RawStore, id="raw"),
    pytest.param(on_device, id="gpu store"),
    pytest.param(PackedStore, id="packed", marks=needs_packing),
    pytest.param(on_disk, id="on disk", marks=needs_packing),
]
MakeStore = Callable[[int, int, tuple[int, ...]], FrameStore]


def frame_of(step: int, num_rows: int, *, noise: bool = False) -> Frames:
    """Tells row and step; noise cannot be packed."""
    if noise:
        return np.random.default_rng(step).integers(0, 256, (num_rows, *SHAPE), dtype=np.uint8)
    frame = np.zeros((num_rows, *SHAPE), dtype=np.uint8)
    frame[:, 1, 1], frame[:, 2, 2] = step % 251, np.arange(num_rows)[:, None]
    return frame


def gathered(store: FrameStore, rows: list[int], first: list[list[int]], length: int) -> Frames:
    out = np.full((len(rows), len(first[0]), length, *SHAPE), 0xA5, dtype=np.uint8)  # a place not written shows
    store.gather(np.array(rows, dtype=np.int64), np.array(first, dtype=np.int64), length, out)
    return out


@pytest.mark.parametrize("make", STORES)
def test_windows_by_hand(make: MakeStore) -> None:
    """Eleven steps into nine places: 2 to 10 are left, and 2 to 7 are of the first sealed block."""
    store = make(2, 9, SHAPE)
    for step in range(11):
        store.append(frame_of(step, 2))
    out = gathered(store, [1, 0], [[2, 7], [8, 6]], 3)
    assert out[:, :, :, 1, 1, 0].tolist() == [[[2, 3, 4], [7, 8, 9]], [[8, 9, 10], [6, 7, 8]]]
    assert out[:, :, :, 2, 2, 1].tolist() == [[[1, 1, 1]] * 2, [[0, 0, 0]] * 2]
    assert (store.num_steps, store.capacity, store.frame_shape, store.frame_bytes) == (11, 9, SHAPE, 72)


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("make", STORES)
@pytest.mark.parametrize("capacity", [1, 7, 8, 9, 17, 24])
def test_every_window_of_every_state(make: MakeStore, capacity: int, noise: bool) -> None:
    """At each of the first 60 steps: the border of blocks, the open block, the wrap and the oldest step move by."""
    store, history = make(2, capacity, SHAPE), []
    for step in range(60):
        frame = frame_of(step, 2, noise=noise)
        store.append(frame)
        frame[...] = 0  # the store keeps a copy
        history.append(frame_of(step, 2, noise=noise))
        oldest = max(len(history) - capacity, 0)
        for length in {1, min(8, step + 1 - oldest), step + 1 - oldest}:
            first = [*range(oldest, len(history) - length + 1)]
            out = gathered(store, [1, 0], [first, first], length)
            for k, row in enumerate([1, 0]):
                for b, begin in enumerate(first):
                    expected = np.stack([frame[row] for frame in history[begin : begin + length]])
                    assert np.array_equal(out[k, b], expected), (step, length, row, begin)


@pytest.mark.parametrize("make", STORES)
def test_a_gather_that_has_begun_is_not_changed_by_later_steps(make: MakeStore) -> None:
    """Steps 3 to 10: a sealed block and an open one; then everything is overwritten and its blocks are dropped."""
    store = make(1, 11, SHAPE)
    for step in range(11):
        store.append(frame_of(step, 1))
    out = np.zeros((1, 1, 8, *SHAPE), dtype=np.uint8)
    finish = store.begin_gather(np.zeros(1, np.int64), np.full((1, 1), 3), 8, out)
    for step in range(11, 50):
        store.append(frame_of(step, 1))
    finish()
    assert out[0, 0, :, 1, 1, 0].tolist() == [*range(3, 11)]


def test_a_raw_store_resumes_where_another_stopped() -> None:
    store, resumed = RawStore(1, 5, SHAPE), RawStore(1, 5, SHAPE)
    resumed.resume(8)
    for step in range(13):
        store.append(frame_of(step, 1))
        if step >= 8:
            resumed.append(frame_of(step, 1))
    assert gathered(store, [0], [[8, 10]], 3).tobytes() == gathered(resumed, [0], [[8, 10]], 3).tobytes()


def test_what_a_raw_store_takes() -> None:
    store = RawStore(2, 5, SHAPE)
    taken = [(store.memory_bytes, store.projected_bytes)]
    for step in range(7):
        store.append(frame_of(step, 2))
        taken.append((store.memory_bytes, store.projected_bytes))
    assert taken == [(2 * min(step, 5) * 72, 2 * 5 * 72) for step in range(8)]
    assert store.ratio == 1.0


def args(**change: Any) -> dict[str, Any]:
    """Of a gather that fits a store of 2 rows with the steps 3 to 10."""
    fitting: dict[str, Any] = {
        "rows": np.array([0, 1]),
        "first": np.full((2, 3), 4),
        "length": 5,
        "out": np.zeros((2, 3, 5, *SHAPE), dtype=np.uint8),
    }
    return {**fitting, **change}


def read_only(array: Frames) -> Frames:
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("make", STORES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": np.array([0, 2])}, r"rows must be in 0 to 1, got \[0, 2\]"),
        ({"rows": np.array([-1, 0])}, r"rows must be in 0 to 1, got \[-1, 0\]"),
        ({"length": 0}, "length must be in 1 to the 8 steps held, got 0"),
        ({"length": 9}, "length must be in 1 to the 8 steps held, got 9: collect more steps"),
        ({"first": np.full((2, 3), 2)}, "first must be in 3 to 6 for windows of 5 steps, got 2 to 2"),
        ({"first": np.full((2, 3), 7)}, "first must be in 3 to 6 for windows of 5 steps, got 7 to 7"),
        ({"out": np.zeros((2, 3, 4, *SHAPE), np.uint8)}, r"writeable uint8 \[2, 3, 5, 4, 6, 3\], got"),
        ({"out": np.zeros((2, 3, 5, *SHAPE), np.int8)}, "got int8"),
        ({"out": np.zeros((2, 3, 5, 4, 6, 6), np.uint8)[..., ::2]}, "out must be contiguous, writeable"),
        ({"out": read_only(np.zeros((2, 3, 5, *SHAPE), np.uint8))}, "out must be contiguous, writeable"),
    ],
)
def test_gather_refuses(make: MakeStore, change: dict[str, Any], message: str) -> None:
    store = make(2, 8, SHAPE)
    for step in range(11):
        store.append(frame_of(step, 2))
    store.gather(**args())
    with pytest.raises(ValueError, match=message):
        store.gather(**args(**change))


@pytest.mark.parametrize("make", STORES)
def test_append_refuses_and_takes_nothing(make: MakeStore) -> None:
    store = make(2, 8, SHAPE)
    for frame in (np.zeros((3, *SHAPE), np.uint8), np.zeros((2, *SHAPE), np.float32), np.zeros((2, 72), np.uint8)):
        with pytest.raises(ValueError, match=r"frame of one step: expected uint8 \[2, 4, 6, 3\], got"):
            store.append(frame)
    assert store.num_steps == 0


@pytest.mark.parametrize("make", STORES)
def test_append_takes_frames_with_strides(make: MakeStore) -> None:
    store = make(2, 8, SHAPE)
    wide = np.random.default_rng(0).integers(0, 256, (2, 4, 12, 3), dtype=np.uint8)
    store.append(wide[:, :, ::2])
    assert np.array_equal(gathered(store, [0, 1], [[0], [0]], 1)[:, 0, 0], wide[:, :, ::2])


@pytest.mark.parametrize("make", STORES)
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 5, SHAPE), "num_rows must be at least 1, got 0"),
        ((1, 0, SHAPE), "capacity must be at least 1, got 0"),
        ((1, 5, (4, 0, 3)), r"frame_shape\[1\] must be at least 1, got 0"),
    ],
)
def test_a_store_that_cannot_be_is_refused(make: MakeStore, sizes: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(*sizes)
