"""Packed frames on a disk: memory stays below its limit, no file is left, and a bad disk is said."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mow.replay.packed import BLOCK_STEPS, PackedStore, Spill, why_not_packed

Frames = NDArray[np.uint8]
SHAPE = (32, 32, 3)
BLOCK_BYTES = 2 * BLOCK_STEPS * 32 * 32 * 3  # of both rows, raw

pytestmark = pytest.mark.skipif(why_not_packed() != "", reason=why_not_packed() or "frames can be packed")
needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are not seen in /proc")


def noise(step: int) -> Frames:
    return np.random.default_rng(step).integers(0, 256, (2, *SHAPE), dtype=np.uint8)


def filled(folder: Path, num_steps: int, *, capacity: int, memory_bytes: int) -> PackedStore:
    store = PackedStore(2, capacity, SHAPE, spill=Spill(folder, memory_bytes))
    for step in range(num_steps):
        store.append(noise(step))
    return store


def window(store: PackedStore, first: int, length: int) -> Frames:
    out = np.empty((2, 1, length, *SHAPE), np.uint8)
    store.gather(np.arange(2), np.full((2, 1), first), length, out)
    return out[:, 0]


def open_files(folder: Path) -> Iterator[Path]:
    """Handles of this process on files that have lost their name in a folder."""
    for handle in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(handle)
        except FileNotFoundError:  # the handle of the listing itself
            continue
        if target.startswith(f"{folder}/") and target.endswith(" (deleted)"):
            yield handle


def test_memory_stays_below_the_limit_and_the_newest_blocks_in_it(tmp_path: Path) -> None:
    """Room for three blocks of noise and their tables; 20 blocks are held."""
    fixed = PackedStore(2, 160, SHAPE).memory_bytes
    limit = 3 * BLOCK_BYTES + 20 * 300
    store = PackedStore(2, 160, SHAPE, spill=Spill(tmp_path, limit))
    for step in range(160):
        store.append(noise(step))
        assert store.memory_bytes - fixed <= limit
    assert store.disk_bytes == 17 * BLOCK_BYTES
    assert store.ratio == pytest.approx(1, rel=0.02)
    assert store.projected_bytes == fixed + limit
    assert np.array_equal(window(store, 0, 160), np.stack([noise(step) for step in range(160)], axis=1))


@needs_proc
def test_the_file_has_no_name_and_gives_room_back(tmp_path: Path) -> None:
    """Five times the capacity passes through; what left the window is not on the disk, nor is the file in the end."""
    store = filled(tmp_path, 400, capacity=80, memory_bytes=0)
    assert [*tmp_path.iterdir()] == []
    assert store.disk_bytes == 10 * BLOCK_BYTES
    (handle,) = open_files(tmp_path)
    status = os.stat(handle)
    assert status.st_size == 50 * BLOCK_BYTES
    assert 10 * BLOCK_BYTES <= 512 * status.st_blocks <= 12 * BLOCK_BYTES  # pages that two blocks share stay
    assert np.array_equal(window(store, 320, 80), np.stack([noise(step) for step in range(320, 400)], axis=1))
    del store
    assert [*open_files(tmp_path)] == []


def test_a_gather_under_way_keeps_what_leaves_meanwhile(tmp_path: Path) -> None:
    store = filled(tmp_path, 16, capacity=16, memory_bytes=0)
    out = np.empty((2, 1, 16, *SHAPE), np.uint8)
    finish = store.begin_gather(np.arange(2), np.zeros((2, 1), np.int64), 16, out)
    for step in range(16, 64):
        store.append(noise(step))
    finish()
    assert np.array_equal(out[:, 0], np.stack([noise(step) for step in range(16)], axis=1))


@needs_proc
def test_a_flipped_bit_and_a_cut_on_the_disk_are_named(tmp_path: Path) -> None:
    store = filled(tmp_path, 32, capacity=32, memory_bytes=0)
    (handle,) = open_files(tmp_path)
    with open(handle, "r+b") as file:
        file.seek(2 * BLOCK_BYTES + 5)  # row 0 of block 2
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(RuntimeError, match=r"task 0 \(row 0\), steps 16 to 23: the checksum .* memory and disk"):
        window(store, 0, 32)
    with pytest.raises(RuntimeError, match="row 0, steps 16 to 23: the checksum"):
        store.block_bytes(0, 2)
    assert store.block_bytes(1, 2)[0] == np.stack([noise(step)[1] for step in range(16, 24)]).tobytes()
    os.truncate(handle, 3 * BLOCK_BYTES + 10)
    with pytest.raises(RuntimeError, match=r"steps 24 to 31: the packed frames cannot be read from the disk"):
        window(store, 24, 8)
    assert np.array_equal(window(store, 0, 16), np.stack([noise(step) for step in range(16)], axis=1))


def test_a_full_disk_is_said_and_no_frame_is_lost(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk."""
    store = filled(tmp_path, 2 * BLOCK_STEPS - 1, capacity=80, memory_bytes=0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (BLOCK_BYTES + 100, hard))
    try:
        with pytest.raises(OSError, match=r"packed frames beyond 0.00 GB cannot be moved there .*: free some space; no "
                                          r"frame is lost") as caught:
            store.append(noise(15))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(tmp_path)
    assert store.num_steps == 16
    assert store.disk_bytes == BLOCK_BYTES
    store.append(noise(16))  # there is room again
    assert store.disk_bytes == 2 * BLOCK_BYTES
    assert np.array_equal(window(store, 0, 17), np.stack([noise(step) for step in range(17)], axis=1))


def test_a_folder_that_takes_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"no file for packed frames can be made there .*: name a folder") as caught:
        PackedStore(1, 8, SHAPE, spill=Spill(tmp_path / "file", 0))
    assert caught.value.filename == str(tmp_path / "file")
