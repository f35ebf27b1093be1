"""The packed store: what it takes, what it does with noise and damage, how it leaves memory and comes back."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mow.replay import PackedStore, RawStore, ReplayBuffer, lz4, sampler, set_num_threads
from mow.replay.packed import BLOCK_STEPS, Block, why_not_packed

Frames = NDArray[np.uint8]
SHAPE = (32, 32, 3)

pytestmark = pytest.mark.skipif(why_not_packed() != "", reason=why_not_packed() or "frames can be packed")


@pytest.fixture
def restored_threads() -> Iterator[None]:
    from mow import _C

    before = _C.num_threads()
    yield
    set_num_threads(before)


def sprites(num_steps: int, num_rows: int, shape: tuple[int, int, int] = SHAPE) -> Iterator[Frames]:
    """A small square that moves over a background that stands still: [R, H, W, 3] at a time."""
    random = np.random.default_rng(0)
    background = random.integers(0, 4, (num_rows, *shape), dtype=np.uint8)
    for step in range(num_steps):
        frame = background.copy()
        for row in range(num_rows):
            y, x = (step + 3 * row) % (shape[0] - 3), (2 * step + row) % (shape[1] - 3)
            frame[row, y : y + 3, x : x + 3] = 200 + row
        yield frame


def noise(num_steps: int, num_rows: int, shape: tuple[int, int, int] = SHAPE) -> Iterator[Frames]:
    random = np.random.default_rng(1)
    return (random.integers(0, 256, (num_rows, *shape), dtype=np.uint8) for _ in range(num_steps))


def filled(frames: Iterator[Frames], num_rows: int, capacity: int) -> PackedStore:
    store = PackedStore(num_rows, capacity, SHAPE)
    for frame in frames:
        store.append(frame)
    return store


def all_held(store: PackedStore | RawStore, num_rows: int) -> bytes:
    """Every visible frame of every row."""
    oldest = max(store.num_steps - store.capacity, 0)
    out = np.full((num_rows, 1, store.num_steps - oldest, *SHAPE), 0xA5, dtype=np.uint8)
    store.gather(np.arange(num_rows), np.full((num_rows, 1), oldest), store.num_steps - oldest, out)
    return out.tobytes()


def test_crc32c_gives_the_known_answers() -> None:
    """RFC 3720, appendix B.4, and the check value of the catalogues; both ways agree at every length about a lane."""
    from mow import _C

    answers = {b"123456789": 0xE3069283, bytes(32): 0x8A9136AA, b"\xff" * 32: 0x62A8AB43, bytes(range(32)): 0x46DD794E}
    for by_table in (False, True):
        assert {data: _C.crc32c(data, by_table) for data in answers} == answers
    data = np.random.default_rng(0).integers(0, 256, 3_000, dtype=np.uint8).tobytes()
    for num_bytes in [*range(40), *range(760, 780), *range(1_530, 1_545), 3_000]:
        assert _C.crc32c(data[:num_bytes]) == _C.crc32c(data[:num_bytes], True)


def test_still_backgrounds_are_packed_and_noise_costs_no_more_than_raw() -> None:
    still, wild = filled(sprites(400, 2), 2, 400), filled(noise(400, 2), 2, 400)
    raw_bytes = 2 * 400 * 32 * 32 * 3
    assert still.ratio > 4
    assert still.memory_bytes < raw_bytes / 3
    assert 0.99 < wild.ratio < 1
    # 400 steps are 50 sealed blocks; an open block and the room to pack it in come on top, whatever the capacity.
    fixed = PackedStore(2, 400, SHAPE).memory_bytes
    assert fixed < 2 * BLOCK_STEPS * 2 * 32 * 32 * 3
    assert wild.memory_bytes - fixed <= 1.01 * raw_bytes


def test_what_lies_around_the_packed_frames_takes_two_percent_at_most() -> None:
    """Of 26 rows, with frames that shrink to a twentieth: tables, pointers and what malloc adds."""
    shape = (64, 64, 3)
    store = PackedStore(26, 200, shape)
    random = np.random.default_rng(0)
    base = random.integers(0, 256, (26, 64, 64, 3), dtype=np.uint8)
    base[:, 16:] = 0  # 3 KB of noise per block of 98 KB
    for _ in range(200):
        store.append(base)
    payload = sum(len(store.block_bytes(row, n)[0]) for row in range(26) for n in range(*store._store.block_range()))
    taken = store.memory_bytes - PackedStore(26, 200, shape).memory_bytes
    assert 15 < 26 * 200 * 64 * 64 * 3 / payload < 40
    assert taken <= 1.02 * payload


def test_blocks_that_left_the_window_are_freed() -> None:
    store = PackedStore(1, 20, SHAPE)
    most = 0
    for step, frame in enumerate(noise(200, 1)):
        store.append(frame)
        first, end = store._store.block_range()
        assert first == max(step + 1 - 20, 0) // BLOCK_STEPS  # the oldest visible step lies in the first block
        assert end == (step + 1) // BLOCK_STEPS
        most = max(most, store.memory_bytes)
    assert most <= store.projected_bytes <= PackedStore(1, 20, SHAPE).projected_bytes * 1.05


def test_the_projected_size_follows_the_observed_ratio() -> None:
    store = PackedStore(2, 10_000, SHAPE)
    assert store.projected_bytes > 2 * 10_000 * 3_072  # nothing known: the upper bound
    for frame in sprites(80, 2):
        store.append(frame)
    assert store.projected_bytes < 2 * 10_000 * 3_072 / (0.99 * store.ratio)


@pytest.mark.usefixtures("restored_threads")
def test_the_number_of_threads_changes_no_byte() -> None:
    """Sealed and gathered with one thread and with two; 5 MB, so that the pool takes part and stores stream."""
    held = []
    for num_threads in (1, 2):
        set_num_threads(num_threads)
        store = filled(sprites(300, 6), 6, 300)
        held.append((all_held(store, 6), [store.block_bytes(row, n) for row in range(6) for n in range(37)]))
    assert held[0] == held[1]
    assert held[0][0] == np.stack([*sprites(300, 6)], axis=1).tobytes()


@pytest.mark.parametrize("shape", [(32, 32, 3), (19, 23, 3)])  # the second at addresses that divide by nothing
@pytest.mark.parametrize("frames", [sprites, noise])
def test_large_batches_equal_the_raw_store(frames: Any, shape: tuple[int, int, int]) -> None:
    """8 MB at least of windows that begin and end within blocks: parts of blocks go past the caches."""
    stores = PackedStore(3, 100, shape), RawStore(3, 100, shape)
    for frame in frames(150, 3, shape):
        for store in stores:
            store.append(frame)
    first = np.random.default_rng(2).integers(50, 150 - 21 + 1, (3, 100))
    out = [np.full((3, 100, 21, *shape), fill, dtype=np.uint8) for fill in (0, 1)]  # a place not written differs
    for store, windows in zip(stores, out, strict=True):
        store.gather(np.array([1, 2, 0]), first, 21, windows)
    assert out[0].nbytes > 8e6
    assert np.array_equal(out[0], out[1])


@pytest.mark.parametrize("length", [1, 3, 8, 24])
@pytest.mark.parametrize("frames", [sprites, noise])
def test_windows_that_touch_the_same_blocks_equal_the_raw_store(frames: Any, length: int) -> None:
    """Twelve windows at every step, in no order, of a row that two tasks read: each block serves a hundred of them."""
    stores = PackedStore(2, 48, SHAPE), RawStore(2, 48, SHAPE)
    for frame in frames(48, 2):
        for store in stores:
            store.append(frame)
    first = np.random.default_rng(3).permuted(np.tile(np.arange(48 - length + 1), (3, 12)), axis=1)
    out = [np.full((*first.shape, length, *SHAPE), fill, dtype=np.uint8) for fill in (0, 1)]
    for store, windows in zip(stores, out, strict=True):
        store.gather(np.array([1, 0, 1]), first, length, windows)
    assert np.array_equal(out[0], out[1])


def test_frames_are_taken_however_they_lie() -> None:
    """Rows apart, in the order backwards, channels apart, sides exchanged."""
    frames = next(noise(1, 3, (32, 32, 6)))
    for frame in (frames[:2, ..., :3], frames[::-2, ..., :3], frames[:2, ..., ::2], frames[:2, ..., 3:].swapaxes(1, 2),
                  np.repeat(frames[:, None, ..., :3], 4, axis=1)[1:, 2]):
        store = filled(iter([frame]), 2, 8)
        out = np.empty((2, 1, 1, *SHAPE), np.uint8)
        store.gather(np.arange(2), np.zeros((2, 1), np.int64), 1, out)
        assert np.array_equal(out[:, 0, 0], frame)


@pytest.mark.usefixtures("restored_threads")
def test_of_several_damaged_blocks_the_same_one_is_named_by_any_number_of_threads() -> None:
    store = filled(sprites(400, 3), 3, 400)
    for row, block in ((1, 30), (1, 20), (2, 3)):
        store._store._flip_bit(row, block)
    said = set()
    for num_threads in (1, 2, 4):
        set_num_threads(num_threads)
        for _ in range(5):
            with pytest.raises(RuntimeError, match=r"steps 160 to 167: the checksum") as error:
                store.gather(np.array([2, 1]), np.array([[0], [0]]), 400, np.empty((2, 1, 400, *SHAPE), np.uint8))
            said.add(str(error.value))
    assert len(said) == 1


@pytest.mark.parametrize("frames", [sprites, noise])
def test_a_damaged_block_is_an_error_that_names_task_and_steps(frames: Any) -> None:
    store = filled(frames(60, 3), 3, 60)
    store._store._flip_bit(2, 4)  # steps 32 to 39 of row 2
    rows, out = np.array([0, 2]), np.zeros((2, 1, 60, *SHAPE), dtype=np.uint8)
    said = r"task 1 \(row 2\), steps 32 to 39: the checksum of the packed frames is wrong: .* this machine's memory"
    with pytest.raises(RuntimeError, match=said):
        store.gather(rows, np.zeros((2, 1), np.int64), 60, out)
    with pytest.raises(RuntimeError, match="row 2, steps 32 to 39"):
        store.block_bytes(2, 4)
    for begin in (0, 40):  # the windows beside it are whole
        part = np.zeros((2, 1, 20, *SHAPE), dtype=np.uint8)
        store.gather(rows, np.full((2, 1), begin), 20, part)
        expected = np.stack([frame[[0, 2]] for frame in frames(60, 3)], axis=1)[:, begin : begin + 20]
        assert np.array_equal(part[:, 0], expected)


def test_the_buffer_names_the_task_and_not_the_row() -> None:
    buffer = ReplayBuffer(3, 16, SHAPE, 1, seed=0, store="packed")
    zeros = np.zeros(3, dtype=np.bool_)
    for frame in sprites(16, 3):
        buffer.add(frame, np.zeros((3, 1), np.float32), np.zeros(3, np.float32), zeros, zeros, zeros, zeros)
    buffer.reorder([2, 0, 1])
    assert isinstance(buffer.store, PackedStore)
    buffer.store._store._flip_bit(0, 1)
    with pytest.raises(RuntimeError, match=r"task 1 \(row 0\), steps 8 to 15"):
        buffer.sample(2, 16, counter=0, stream=0)


# Leaving and coming back


def blocks_of(store: PackedStore, number: int, num_rows: int) -> list[Block]:
    return [store.block_bytes(row, number) for row in range(num_rows)]


def refilled(other: PackedStore, num_rows: int) -> PackedStore:
    """A store that was given what another one holds."""
    store = PackedStore(num_rows, other.capacity, SHAPE)
    first, end = other._store.block_range()
    store.resume(BLOCK_STEPS * first)
    for number in range(first, end):
        store.append_block(blocks_of(other, number, num_rows))
    for frame in np.stack([other._store.open_frames(row).reshape(-1, *SHAPE) for row in range(num_rows)], axis=1):
        store.append(frame)
    return store


@pytest.mark.parametrize("num_steps", [0, 5, 8, 40, 61, 64])
@pytest.mark.parametrize("frames", [sprites, noise])
def test_a_refilled_store_goes_on_as_the_other(frames: Any, num_steps: int) -> None:
    store = filled(frames(num_steps, 2), 2, 30)
    both = store, refilled(store, 2)
    for frame in [None, *sprites(20, 2)]:
        if frame is not None:
            for store in both:
                store.append(frame)
        if both[0].num_steps:
            assert all_held(both[0], 2) == all_held(both[1], 2)
        assert (both[0].num_steps, both[0]._store.block_range()) == (both[1].num_steps, both[1]._store.block_range())
        assert (both[0].ratio, both[0].memory_bytes) == (both[1].ratio, both[1].memory_bytes)


def flipped(payload: bytes) -> bytes:
    return bytes([payload[0] ^ 1]) + payload[1:]


def test_a_bad_block_is_refused_and_nothing_is_taken() -> None:
    """Blocks 1 to 4 of 40 steps; the fifth is brought in whole after all that was wrong with it."""
    other = filled(sprites(48, 2), 2, 40)
    store = PackedStore(2, 40, SHAPE)
    store.resume(8)
    for number in range(1, 5):
        store.append_block(blocks_of(other, number, 2))
    good = blocks_of(other, 5, 2)
    payload, is_raw, crc = good[1]
    planted = [
        ([good[0], (flipped(payload), is_raw, crc)], r"row 1, block 5: expected checksum \d+, got \d+:"),
        ([good[0], (payload, is_raw, crc ^ 1)], "row 1, block 5: expected checksum"),
        ([good[0], (payload[:-1], is_raw, crc)], "row 1, block 5: expected checksum"),
        ([good[0], (b"", is_raw, 0)], "row 1, block 5: expected fewer than 24576 bytes, got 0"),
        ([good[0], (payload, True, crc)], "row 1, block 5: expected 24576 bytes, got"),
        (good[:1], "blocks: expected 2 of them, one a row, got 1"),
        ([*good, good[0]], "blocks: expected 2 of them, one a row, got 3"),
    ]
    before = all_held_since(store, 8)
    for blocks, message in planted:
        with pytest.raises(ValueError, match=message):
            store.append_block(blocks)
        assert store.num_steps == 40
        assert all_held_since(store, 8) == before
    store.append_block(good)
    assert all_held(store, 2) == all_held(other, 2)
    with pytest.raises(ValueError, match="resume: expected an empty store, got one with 48 steps"):
        store.resume(8)
    store.append(next(sprites(1, 2)))
    with pytest.raises(ValueError, match="append_block: expected no open frames, got 1"):
        store.append_block(good)
    for num_steps in (-8, 4):
        with pytest.raises(ValueError, match=f"num_steps: expected 0 or a multiple of 8, got {num_steps}"):
            PackedStore(2, 40, SHAPE).resume(num_steps)


def all_held_since(store: PackedStore, first: int) -> bytes:
    """Every frame of two rows from a step on."""
    out = np.empty((2, 1, store.num_steps - first, *SHAPE), np.uint8)
    store.gather(np.arange(2), np.full((2, 1), first), store.num_steps - first, out)
    return out.tobytes()


def test_a_block_with_a_good_checksum_that_is_no_lz4_is_an_error() -> None:
    from mow import _C

    nonsense = b"\xff" * 100
    store = filled(sprites(8, 1), 1, 30)
    store.append_block([(nonsense, False, _C.crc32c(nonsense))])
    for first, length in ((8, 8), (8, 3), (12, 4)):  # whole, its first frames, its last
        out = np.empty((1, 1, length, *SHAPE), np.uint8)
        with pytest.raises(RuntimeError, match=r"\(row 0\), steps 8 to 15: the packed frames cannot be unpacked"):
            store.gather(np.zeros(1, np.int64), np.full((1, 1), first), length, out)


def test_blocks_and_rows_that_are_not_held_are_refused() -> None:
    store = filled(sprites(60, 2), 2, 30)
    assert store._store.block_range() == (3, 7)
    for row, block, message in [(2, 3, "row: expected 0 to 1, got 2"), (0, 2, "block: expected 3 to 6, got 2"),
                                (0, 7, "block: expected 3 to 6, got 7")]:
        with pytest.raises(ValueError, match=message):
            store.block_bytes(row, block)
    with pytest.raises(ValueError, match="row: expected 0 to 1, got -1"):
        store.block_bytes(-1, 3)


def test_without_the_extension_or_the_codec_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lz4, "_library", lambda: None)
    with pytest.raises(ImportError, match=r"a packed store cannot be made here: .* `apt install liblz4-1`"):
        PackedStore(1, 5, SHAPE)
    monkeypatch.setitem(sys.modules, "mow._C", None)
    sampler._why_not_compiled.cache_clear()
    try:
        with pytest.raises(ImportError, match=r"the extension mow\._C is missing .* `pip install -e \.`"):
            PackedStore(1, 5, SHAPE)
    finally:
        monkeypatch.undo()
        sampler._why_not_compiled.cache_clear()


def test_the_extension_refuses_on_its_own() -> None:
    """Called past the door: a wrong argument must not crash the process."""
    from mow import _C

    _C.use_lz4(0, 0, 0)
    with pytest.raises(ValueError, match="PackedStore: expected a call of use_lz4 before, got none"):
        _C.PackedStore(2, 10, 12)
    _C.use_lz4(*lz4.addresses())
    store = _C.PackedStore(2, 10, 12)
    for _ in range(12):
        store.append(np.zeros((2, 12), np.uint8))
    rows, first, out = np.array([0, 1]), np.full((2, 1), 4), np.zeros((2, 1, 3, 12), np.uint8)
    store.begin_gather(rows, first, 3, out).finish()
    planted: list[tuple[tuple[Any, ...], str]] = [
        ((np.array([0, 2]), first, 3, out), r"rows\[1\]: expected 0 to 1, got 2"),
        ((rows, np.full((2, 1), 1), 3, out), r"first\[0\]: expected 2 to 9, got 1"),
        ((rows, np.full((2, 1), 10), 3, out), r"first\[0\]: expected 2 to 9, got 10"),
        ((rows, first, 2, out), r"out: expected shape \[2, 1, 2, 12\], got \[2, 1, 3, 12\]"),
        ((rows, first, 0, out[:, :, :0]), "length: expected at least 1, got 0"),
        ((rows, first, 11, np.zeros((2, 1, 11, 12), np.uint8)), "steps held: expected at least 11, got 10"),
    ]
    for args, message in planted:
        with pytest.raises(ValueError, match=message):
            store.begin_gather(*args)
    with pytest.raises(ValueError, match=r"frames: expected shape \[2, 12\], got \[2, 11\]"):
        store.append(np.zeros((2, 11), np.uint8))
    with pytest.raises(ValueError, match="frames: expected each frame in one piece of memory, got a stride of 2"):
        store.append(np.zeros((2, 24), np.uint8)[:, ::2])
    with pytest.raises(ValueError, match="frame_bytes: expected 1 to 134217728, got 0"):
        _C.PackedStore(1, 1, 0)
