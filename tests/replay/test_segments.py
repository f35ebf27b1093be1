"""Saved replay: what was held comes back byte for byte, or an error says which file and what to do."""

import contextlib
import errno
import logging
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from mow.replay import ReplayBuffer, lz4, manifest, segments
from mow.replay.manifest import manifests, read_manifest
from mow.replay.packed import why_not_packed
from mow.replay.prefetch import Prefetcher, Request
from mow.replay.segments import load, save
from mow.system import whole_file

TASKS, CAPACITY, FRAME, ACTIONS = 2, 40, (4, 6, 3), 3
Kind = Literal["raw", "packed"]
needs_packed = pytest.mark.skipif(bool(why_not_packed()), reason=f"frames cannot be packed: {why_not_packed()}")
KINDS = ["raw", pytest.param("packed", marks=needs_packed)]


def make_buffer(kind: Kind = "raw", num_steps: int = 0, *, capacity: int = CAPACITY, run: int = 0) -> ReplayBuffer:
    return add(ReplayBuffer(TASKS, capacity, FRAME, ACTIONS, seed=5, store=kind), num_steps, run=run)


def add(buffer: ReplayBuffer, num_steps: int, *, run: int = 0) -> ReplayBuffer:
    for index in range(buffer.num_steps, buffer.num_steps + num_steps):
        buffer.add(**step_of(index, run))
    return buffer


def step_of(index: int, run: int = 0) -> dict[str, NDArray[Any]]:
    """Frames of one colour with a little noise, so that some blocks pack and some do not."""
    random = np.random.default_rng((index, run))
    frame = np.full((TASKS, *FRAME), index % 256, dtype=np.uint8)
    if index // 8 % 2:
        frame = random.integers(0, 256, size=(TASKS, *FRAME), dtype=np.uint8)
    frame[..., 0, 0, 0] = run
    return {
        "frame": frame,
        "action": random.random((TASKS, ACTIONS), dtype=np.float32),
        "reward": (1000 * np.arange(TASKS) + index).astype(np.float32),
        "terminated": random.random(TASKS) < 0.1,
        "truncated": random.random(TASKS) < 0.1,
        "is_first": random.random(TASKS) < 0.1,
        "is_last": random.random(TASKS) < 0.1,
    }


def held(buffer: ReplayBuffer) -> list[bytes]:
    """All that can be seen, in order."""
    size = min(buffer.num_steps, buffer.store.capacity)
    if size == 0:
        return []
    batch = buffer.sample(1, size, counter=0, stream=0)
    return [tensor.numpy().tobytes() for tensor in batch.tensors().values()]


def loaded(folder: Path, kind: Kind = "raw", *, capacity: int = CAPACITY, **options: Any) -> ReplayBuffer:
    buffer = make_buffer(kind, capacity=capacity)
    assert load(folder, buffer, **options) == buffer.num_steps
    return buffer


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Round trips ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", [0, 3, 8, 9, 40, 41, 47, 48, 101])
@pytest.mark.parametrize("reader", KINDS)
@pytest.mark.parametrize("writer", KINDS)
def test_what_was_held_comes_back(tmp_path: Path, writer: Kind, reader: Kind, num_steps: int) -> None:
    buffer = make_buffer(writer, num_steps)
    save(buffer, tmp_path)
    back = loaded(tmp_path, reader)
    assert back.num_steps == num_steps
    assert held(back) == held(buffer)
    for _ in range(3):  # and both go on alike, over the end of the ring
        assert held(add(back, 17)) == held(add(buffer, 17))


@pytest.mark.parametrize("capacity", [1, 5, 8, 12])
@pytest.mark.parametrize("kind", KINDS)
def test_small_buffers_too(tmp_path: Path, kind: Kind, capacity: int) -> None:
    buffer = make_buffer(kind, capacity=capacity)
    for _ in range(9):
        save(add(buffer, 3), tmp_path)
        back = loaded(tmp_path, kind, capacity=capacity)
        assert held(back) == held(buffer)
        assert held(add(back, 2)) == held(add(buffer, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_many_saves(tmp_path: Path, kind: Kind) -> None:
    """Of every size: none, part of a block, several blocks, more than the buffer holds."""
    buffer = make_buffer(kind)
    for num_new in (5, 0, 3, 1, 7, 8, 16, 2, 30, 41, 90, 1, 8):
        save(add(buffer, num_new), tmp_path)
        assert held(loaded(tmp_path, kind)) == held(buffer)


def test_the_files_of_a_save_by_hand(tmp_path: Path) -> None:
    """19 steps: blocks 0 and 1, and three open steps. Then block 2 comes, and nothing of 0 and 1 is written again."""
    buffer = make_buffer("raw", 19)
    num_bytes = save(buffer, tmp_path)
    assert names(tmp_path) == ["blocks-00000001-0000.bin", "manifest-00000001.json", "open-00000001.bin"]
    assert num_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    first = (tmp_path / "blocks-00000001-0000.bin").read_bytes()
    num_bytes = save(add(buffer, 6), tmp_path)
    new = [tmp_path / name for name in names(tmp_path) if "00000002" in name]
    assert [path.name for path in new] == ["blocks-00000002-0000.bin", "manifest-00000002.json", "open-00000002.bin"]
    assert num_bytes == sum(path.stat().st_size for path in new)
    assert (tmp_path / "blocks-00000001-0000.bin").read_bytes() == first
    found = read_manifest(manifests(tmp_path)[-1]).segments
    assert [(segment.first_block, segment.end_block) for segment in found] == [(0, 2), (2, 3)]


def test_large_saves_are_cut_into_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_SEGMENT_BYTES", 1000)
    buffer = make_buffer("raw", 40)
    save(buffer, tmp_path)
    assert len(read_manifest(manifests(tmp_path)[-1]).segments) > 1
    assert held(loaded(tmp_path)) == held(buffer)


def test_old_segments_go_once_two_saves_do_without_them(tmp_path: Path) -> None:
    buffer = make_buffer("raw", 24)
    save(buffer, tmp_path)  # blocks 0 to 2
    save(add(buffer, 16), tmp_path)  # 3 and 4; all visible
    save(add(buffer, 24), tmp_path)  # 5 to 7; visible from step 24 on: blocks 3 to 7
    assert "blocks-00000001-0000.bin" in names(tmp_path)  # for the save before
    save(add(buffer, 8), tmp_path)
    assert names(tmp_path) == [
        "blocks-00000002-0000.bin", "blocks-00000003-0000.bin", "blocks-00000004-0000.bin",
        "manifest-00000003.json", "manifest-00000004.json", "open-00000003.bin", "open-00000004.bin",
    ]
    assert loaded(tmp_path, num_steps=64).num_steps == 64
    assert held(loaded(tmp_path)) == held(buffer)


def test_files_of_others_stay(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    buffer = make_buffer("raw", 24)
    for _ in range(4):
        save(add(buffer, 24), tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_tasks_is_kept(tmp_path: Path, kind: Kind) -> None:
    buffer = make_buffer(kind, 20)
    save(buffer, tmp_path)
    buffer.reorder([1, 0])
    save(add(buffer, 10), tmp_path)
    back = loaded(tmp_path, kind)
    assert held(back) == held(buffer)
    assert held(add(back, 10)) == held(add(buffer, 10))


def test_an_earlier_save_and_another_future(tmp_path: Path) -> None:
    """A run goes back to the save of its last checkpoint; what it did after that is replaced, not mixed in."""
    buffer = make_buffer("raw", 20)
    save(buffer, tmp_path)
    save(add(buffer, 30), tmp_path)
    back = loaded(tmp_path, num_steps=20)
    save(add(back, 40, run=7), tmp_path)
    assert held(loaded(tmp_path)) == held(back)
    assert [read_manifest(path).num_steps for path in manifests(tmp_path)] == [20, 60]


@pytest.mark.parametrize("change", [add, lambda buffer, _: buffer])
def test_going_back_to_fewer_steps(tmp_path: Path, change: Callable[[ReplayBuffer, int], ReplayBuffer]) -> None:
    buffer = make_buffer("raw", 20)
    save(buffer, tmp_path)
    save(add(buffer, 30), tmp_path)
    back = change(loaded(tmp_path, num_steps=20), 4)
    save(back, tmp_path)
    assert held(loaded(tmp_path)) == held(back)


def test_a_save_without_liblz4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = tmp_path / "packed"
    buffer = make_buffer("raw", 20)
    with monkeypatch.context() as patch:
        patch.setattr(lz4, "_library", lambda: None)
        save(buffer, tmp_path / "raw")
        save(add(buffer, 8), tmp_path / "raw")
    assert held(loaded(tmp_path / "raw")) == held(buffer)
    if lz4._library() is None:
        return
    save(buffer, packed)
    assert sum(path.stat().st_size for path in packed.glob("blocks*")) < sum(
        path.stat().st_size for path in (tmp_path / "raw").glob("blocks*")
    )
    monkeypatch.setattr(lz4, "_library", lambda: None)
    with pytest.raises(ImportError, match="saved replay was packed with LZ4, and liblz4 is missing here: install it"):
        load(packed, make_buffer())


def test_lz4_refuses_what_it_did_not_pack() -> None:
    block = bytes(1000)
    packed = lz4.pack(block)
    if packed is None:
        pytest.skip("liblz4 is missing")
    assert len(packed) < 100
    assert lz4.unpack(packed, 1000) == block
    assert lz4.pack(np.random.default_rng(0).bytes(1000)) is None
    for damaged, num_bytes in ((packed, 999), (packed, 1001), (packed[:-3], 1000)):
        with pytest.raises(ValueError, match=f"expected LZ4 of {num_bytes} bytes, got what unpacks to"):
            lz4.unpack(damaged, num_bytes)


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_draws_what_the_uninterrupted_one_drew(tmp_path: Path, kind: Kind, depth: int) -> None:
    """Batches published before the save are published again after it; the other run prefetches one batch ahead."""

    def updates(buffer: ReplayBuffer, prefetcher: Prefetcher, first: int, end: int) -> list[bytes]:
        batches = []
        for update in range(first, end):
            prefetcher.wait()
            add(buffer, 1)
            batches.append(prefetcher.next(Request(4, 6, update, 0)).frame.numpy().tobytes())
        return batches

    buffer = make_buffer(kind, 30)
    with Prefetcher(buffer, depth=1) as prefetcher:
        updates(buffer, prefetcher, 0, 20)
        save(buffer, tmp_path)
        saved = prefetcher.saved()
        expected = updates(buffer, prefetcher, 20, 40)
    back = loaded(tmp_path, kind)
    with Prefetcher(back, depth=depth) as prefetcher:
        for request, step in saved:
            prefetcher.publish(request, as_of=step)
        assert updates(back, prefetcher, 20, 40) == expected


# What is refused -----------------------------------------------------------------------------------------------------


def test_a_load_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(make_buffer("raw", 20), tmp_path)
    with caplog.at_level(logging.INFO, logger="mow"):
        loaded(tmp_path)
    assert caplog.messages == [
        f"replay: 20 steps per task from {tmp_path} (save 1), later steps are not on the disk"
    ]


def test_what_is_not_there_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no saved replay: load another one"):
        load(tmp_path, make_buffer())
    buffer = make_buffer("raw", 20)
    save(buffer, tmp_path)
    with pytest.raises(ValueError, match=r"holds no replay of step 21, only of \[20\]: load another one"):
        load(tmp_path, make_buffer(), num_steps=21)
    with pytest.raises(ValueError, match="the buffer holds 20 steps already: load into a new one"):
        load(tmp_path, buffer)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((3, CAPACITY, FRAME, ACTIONS), "num_tasks 2 there and 3 here"),
        ((TASKS, 41, FRAME, ACTIONS), "capacity 40 there and 41 here"),
        ((TASKS, CAPACITY, (6, 4, 3), ACTIONS), r"frame_shape \[4, 6, 3\] there and \[6, 4, 3\] here"),
        ((TASKS, CAPACITY, FRAME, 4), r"columns .*'action': \['<f4', \[3\]\].* there and .*\[4\].* here"),
    ],
)
def test_another_layout_is_refused(tmp_path: Path, args: tuple[Any, ...], message: str) -> None:
    save(make_buffer("raw", 20), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = ReplayBuffer(*args, seed=0, store="raw")
    with pytest.raises(ValueError, match=f"holds the replay of another layout: .*{message}"):
        load(tmp_path, other)
    with pytest.raises(ValueError, match="holds another replay: load it first, or save to another folder"):
        save(other, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "VERSION", 99)
    save(make_buffer("raw", 20), tmp_path)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"01.json is of 'mow replay' version 99, this mow reads .* 3: use"):
        load(tmp_path, make_buffer())


# Damage --------------------------------------------------------------------------------------------------------------


def damages(content: bytes) -> dict[str, bytes]:
    """One bit flipped at 40 places spread over the file, cuts, an end too many."""
    found = {"empty": b"", "cut": content[:-1], "half": content[: len(content) // 2], "longer": content + b"\0"}
    for place in np.linspace(0, len(content) - 1, 40).astype(int).tolist():
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        found[f"bit of byte {place}"] = bytes(flipped)
    return found


@pytest.mark.parametrize("file", ["blocks-00000001-0000.bin", "blocks-00000002-0000.bin", "open-00000002.bin"])
@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_found_and_named(tmp_path: Path, kind: Kind, file: str) -> None:
    buffer = make_buffer(kind, 20)
    save(buffer, tmp_path)
    save(add(buffer, 10), tmp_path)
    path = tmp_path / file
    content = path.read_bytes()
    back = make_buffer(kind)
    for what, damaged in damages(content).items():
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{re.escape(str(path))} is damaged: expected .* restore the file from"):
            load(tmp_path, back)
        assert back.num_steps == 0, what
    path.unlink()
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} is damaged: expected .* bytes .*, got 0 bytes"):
        load(tmp_path, back)
    path.write_bytes(content)
    load(tmp_path, back)  # the buffer was not touched by any of it
    assert held(back) == held(buffer)


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    """In a digit of a length or a name as much as in a brace."""
    save(make_buffer("raw", 20), tmp_path)
    path = tmp_path / "manifest-00000001.json"
    content = path.read_bytes()
    for place in range(0, len(content), 3):
        flipped = bytearray(content)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        if b"".join(flipped.split()) == b"".join(content.split()):
            continue  # one space for another
        with pytest.raises(ValueError, match=f"{re.escape(str(path))} is (damaged|of )"):
            load(tmp_path, make_buffer())


def test_an_earlier_save_survives_damage_to_the_newest(tmp_path: Path) -> None:
    buffer = make_buffer("raw", 20)
    save(buffer, tmp_path)
    expected = held(buffer)
    save(add(buffer, 10), tmp_path)
    for name in ("manifest-00000002.json", "blocks-00000002-0000.bin", "open-00000002.bin"):
        (tmp_path / name).write_bytes(b"?")
    assert held(loaded(tmp_path, num_steps=20)) == expected


# Interruption --------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Not an Exception, as nothing of a killed process gets to handle it."""


class Disk:
    """Counts what is done to the disk and stops at one of these deeds."""

    def __init__(self, patch: pytest.MonkeyPatch, *, deed: int, error: BaseException) -> None:
        self.left, self.error, self.failed = deed, error, False
        for holder, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink")):
            patch.setattr(holder, name, self.counted(getattr(holder, name)))
        for module in (manifest, whole_file):
            patch.setattr(module, "open", self.open, raising=False)

    def step(self) -> bool:
        """Whether this deed is the one that fails."""
        self.left -= 1
        self.failed |= self.left == -1
        return self.left == -1

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if self.step():
                raise self.error
            return function(*args, **options)

        return call

    def open(self, path: Path, mode: str) -> Any:
        file = open(path, mode)  # noqa: SIM115  closed by Half
        write = file.write

        class Half:
            """Writes half of what it is given, then fails, when it is its turn."""

            def __enter__(self) -> "Half":
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

            def write(_, part: bytes) -> int:
                if self.step():
                    write(part[: len(part) // 2])
                    file.flush()
                    raise self.error
                return write(part)

            def __getattr__(self, name: str) -> Any:
                return getattr(file, name)

        return Half()


def test_a_name_is_flushed_before_and_after_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test can cut the power: without the last flush a manifest whose rename was seen may be gone after all."""
    deeds, replace = [], Path.replace

    def renamed(path: Path, target: Path) -> Path:
        deeds.append("renamed")
        return replace(path, target)

    monkeypatch.setattr(manifest, "flush_folder", lambda _: deeds.append("flushed"))
    monkeypatch.setattr(Path, "replace", renamed)
    save(make_buffer("raw", 20), tmp_path)
    assert deeds[:3] == ["flushed", "renamed", "flushed"]


FULL, BROKEN = OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize(
    ("kind", "error"), [("raw", Killed()), pytest.param("packed", Killed(), marks=needs_packed), ("raw", FULL)]
)
def test_interrupted_at_every_single_deed(tmp_path: Path, kind: Kind, error: BaseException) -> None:
    """The save before or the new one, never a mix; and the next save goes through."""
    outcomes = set()
    for deed in range(1000):
        folder = tmp_path / str(deed)
        buffer = make_buffer(kind, 50)
        save(buffer, folder)
        save(add(buffer, 3), folder)  # so that there is something to delete, too
        before = held(buffer)
        add(buffer, 30)
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, deed=deed, error=error)
            with contextlib.suppress(Killed, OSError):
                save(buffer, folder)
        if not disk.failed:
            break
        got = held(loaded(folder, kind))
        outcomes.add(got == held(buffer))
        assert got in (before, held(buffer))
        if isinstance(error, OSError) and got == before:
            assert not [name for name in names(folder) if "00000003" in name]
        save(add(buffer, 1), folder)
        assert held(loaded(folder, kind)) == held(buffer)
        assert len(manifests(folder)) == 2
    assert deed > 20
    assert outcomes == {True, False}


@pytest.mark.parametrize("error", [FULL, BROKEN])
def test_a_full_disk_at_the_first_save(tmp_path: Path, error: OSError) -> None:
    buffer = make_buffer("raw", 20)
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, deed=3, error=error)
        with pytest.raises(OSError, match=str(error.strerror)):
            save(buffer, tmp_path)
    assert names(tmp_path) == []
    save(buffer, tmp_path)
    assert held(loaded(tmp_path)) == held(buffer)


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random_moments(tmp_path: Path, kind: Kind) -> None:
    """A process that saves all the time is killed 25 times; each time its successor goes on from what is there.

    In a process of its own that forks: pytest's may hold locks of other threads.
    """
    program = f"""
        import os, random, signal, sys, time
        from pathlib import Path
        sys.path[:0] = [{str(Path(__file__).parent)!r}]
        import torch
        from test_segments import add, held, load, make_buffer, save
        torch.set_num_threads(1)
        folder, kind, random = Path({str(tmp_path)!r}), {kind!r}, random.Random(1)
        reached = folder.with_name("reached")
        def work():
            buffer = make_buffer(kind)
            if any(folder.glob("manifest*")):
                load(folder, buffer)
            while True:
                save(add(buffer, random.randrange(1, 20)), folder)
                reached.write_text(str(buffer.num_steps))
        for trial in range(25):
            child = os.fork()
            if child == 0:
                work()
            before = reached.stat().st_mtime_ns if reached.exists() else 0
            while not reached.exists() or reached.stat().st_mtime_ns == before:
                time.sleep(0.001)
            time.sleep(random.uniform(0, 0.05))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            buffer = make_buffer(kind)
            load(folder, buffer)
            said = int(reached.read_text() or 0)
            assert buffer.num_steps >= said, (buffer.num_steps, said)
            oracle = add(make_buffer(kind), buffer.num_steps)
            assert held(buffer) == held(oracle), trial
        print("steps", buffer.num_steps)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False,
                          timeout=60, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "steps" in done.stdout
