"""Raw or packed: by arithmetic, said once, with numbers and the remedy."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mow.replay import PackedStore, RawStore, ReplayBuffer, store_choice
from mow.replay.packed import why_not_packed
from mow.replay.store_choice import StoreKind, make_store

SHAPE = (64, 64, 3)
RAW_BYTES = 2 * 1_000 * 64 * 64 * 3  # of the stores below

needs_packing = pytest.mark.skipif(why_not_packed() != "", reason=why_not_packed() or "frames can be packed")


def made(kind: Any, free_bytes: int | None, caplog: pytest.LogCaptureFixture) -> tuple[type, list[str]]:
    with caplog.at_level(logging.INFO, logger="mow"):
        store = make_store(kind, 2, 1_000, SHAPE, free_bytes=free_bytes)
    return type(store), [f"{record.levelname}: {record.message}" for record in caplog.records]


def test_auto_takes_raw_where_it_fits_into_half(caplog: pytest.LogCaptureFixture) -> None:
    said = "INFO: replay store: raw (raw frames take 0.02 GB once full, 0.05 GB is free)"
    assert made("auto", 2 * RAW_BYTES, caplog) == (RawStore, [said])


@needs_packing
def test_auto_packs_where_it_does_not(caplog: pytest.LogCaptureFixture) -> None:
    said = "raw frames take 0.02 GB once full, 0.05 GB is free, of which half may go to replay"
    assert made("auto", 2 * RAW_BYTES - 1, caplog) == (PackedStore, [f"INFO: replay store: packed ({said})"])


def test_auto_warns_where_it_cannot_pack(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_choice, "why_not_packed", lambda: "cannot open liblz4.so.1: `apt install liblz4-1`")
    kind, said = made("auto", RAW_BYTES, caplog)
    assert kind is RawStore
    assert said == ["WARNING: replay store: raw (raw frames take 0.02 GB once full, 0.02 GB is free, but frames cannot "
                    "be packed: cannot open liblz4.so.1: `apt install liblz4-1`)"]


@pytest.mark.parametrize(("kind", "expected"), [("raw", RawStore), pytest.param("packed", PackedStore,
                                                                                 marks=needs_packing)])
def test_a_kind_that_is_asked_for_is_taken(kind: Any, expected: type, caplog: pytest.LogCaptureFixture) -> None:
    assert made(kind, 0, caplog) == (expected, [])


@needs_packing
@pytest.mark.parametrize("kind", ["auto", "packed"])
def test_packed_frames_beyond_half_of_the_free_memory_go_to_the_disk(
    kind: StoreKind, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Noise of 12 KB a frame; 31 KB may stay in memory: a block of 98 KB may not."""
    with caplog.at_level(logging.INFO, logger="mow"):
        store = make_store(kind, 1, 1_000, SHAPE, free_bytes=62_000, disk=tmp_path / "new")
    if kind == "auto":
        assert caplog.messages[0].endswith(f"half may go to replay, the rest to {tmp_path / 'new'})")
    for seed in range(8):
        store.append(np.random.default_rng(seed).integers(0, 256, (1, *SHAPE), dtype=np.uint8))
    assert store.disk_bytes == 8 * 64 * 64 * 3


def test_raw_frames_stay_in_memory(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"only packed frames go to a disk, got store 'raw' and disk .*: use store"):
        make_store("raw", 1, 1, SHAPE, disk=tmp_path)
    store = make_store("auto", 1, 10, SHAPE, free_bytes=10**9, disk=tmp_path)
    assert isinstance(store, RawStore)
    assert store.disk_bytes == 0


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="store must be one of auto, raw, packed, gpu, got 'zip'"):
        make_store("zip", 1, 1, SHAPE)  # type: ignore[arg-type]


@needs_packing
def test_the_buffer_tells_what_it_holds_and_will_take(tmp_path: Path) -> None:
    buffer = ReplayBuffer(2, 1_000, SHAPE, 3, seed=0, free_bytes=RAW_BYTES)
    column_bytes = 2 * 1_000 * (3 * 4 + 4 + 4)
    assert buffer.memory_bytes > RAW_BYTES + column_bytes  # before the first block, the upper bound
    flags = np.zeros(2, dtype=np.bool_)
    for step in range(100):
        frame = np.full((2, *SHAPE), step, dtype=np.uint8)
        buffer.add(frame, np.zeros((2, 3), np.float32), np.zeros(2, np.float32), flags, flags, flags, flags)
    assert buffer.memory_bytes < RAW_BYTES / 10
    ratio, size = buffer.store.ratio, buffer.memory_bytes / 1e9
    assert buffer.describe() == (f"replay (packed): 100 of 1,000 steps of 2 tasks in 0.00 GB, frames packed "
                                 f"{ratio:.1f}x, {size:.2f} GB once full")
    disk = ReplayBuffer(2, 1_000, SHAPE, 3, seed=0, store="packed", free_bytes=0, disk=tmp_path)
    for step in range(100):
        frame = np.random.default_rng(step).integers(0, 256, (2, *SHAPE), dtype=np.uint8)
        disk.add(frame, np.zeros((2, 3), np.float32), np.zeros(2, np.float32), flags, flags, flags, flags)
    assert disk.describe() == ("replay (packed): 100 of 1,000 steps of 2 tasks in 0.00 GB, 0.00 GB more on disk, "
                               "frames packed 1.0x, 0.00 GB once full")
    raw = ReplayBuffer(2, 1_000, SHAPE, 3, seed=0, store="raw")
    assert raw.memory_bytes == RAW_BYTES + column_bytes
    assert raw.describe() == ("replay (raw): 0 of 1,000 steps of 2 tasks in 0.00 GB, 0.02 GB once "
                              "full")


@needs_packing
@pytest.mark.parametrize("noise", [False, True])
def test_frames_that_cannot_be_packed_are_said_once_when_they_will_not_fit(
    noise: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """6.1 MB of raw frames to come, 2 MB free; the warning comes at step 1,000 of 8,000, long before they are taken."""
    buffer = ReplayBuffer(1, 8_000, (16, 16, 3), 1, seed=0, store="packed", free_bytes=2_000_000)
    random, flags = np.random.default_rng(0), np.zeros(1, dtype=np.bool_)
    for _ in range(3_000):
        frame = np.zeros((1, 16, 16, 3), dtype=np.uint8)
        if noise:
            frame = random.integers(0, 256, frame.shape, dtype=np.uint8)
        buffer.add(frame, np.zeros((1, 1), np.float32), np.zeros(1, np.float32), flags, flags, flags, flags)
    said = [record.message for record in caplog.records if record.name == "mow"]
    assert len(said) == noise
    if noise:
        assert said[0].startswith("replay (packed): 1,000 of 8,000 steps of 1 tasks in 0.00 GB, frames packed 1.0x, ")
        assert said[0].endswith("0.01 GB once full, but 0.00 GB was free before its first step: give packed frames "
                                "a disk (replay.disk), lower the number of steps or tasks, or take a machine with more "
                                "memory")


@needs_packing
def test_raw_frames_beyond_any_memory_are_not_even_tried(caplog: pytest.LogCaptureFixture) -> None:
    """A ring of 10^15 bytes, which no system grants."""
    with caplog.at_level(logging.INFO, logger="mow"):
        store = make_store("auto", 2, 10**11 // 2, SHAPE)
    assert type(store) is PackedStore
    assert "raw frames take 1228800.00 GB" in caplog.messages[0]
