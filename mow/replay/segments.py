"""Replay on disk: saves that write only what is new, and the way back. manifest.py describes the folder.

A segment holds a table of lengths [N, R] of the stored blocks, the columns one after the other, each [R, 8 N, ...], and
the stored blocks: packed, or raw where they have the length of raw frames. The file of open steps holds their raw
frames [R, m, H, W, 3] and columns.
"""

import io
import logging
import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mow.replay.buffer import ReplayBuffer
from mow.replay.lz4 import pack, unpack
from mow.replay.manifest import (
    DataFile,
    Manifest,
    commit,
    manifests,
    next_save,
    prune,
    read_checked,
    read_manifest,
    write_durably,
)
from mow.replay.packed import PackedStore
from mow.replay.stores import BLOCK_STEPS, Frames, FrameStore
from mow.system.whole_file import flush_folder

_SEGMENT_BYTES = 2**25  # of packed frames; a segment is held in memory whole, and goes when its last block is old


def save(buffer: ReplayBuffer, folder: Path, *, keep_steps: Collection[int] = ()) -> int:
    """Make `folder` hold what the buffer holds now; only what the last save into it lacks is written.

    Killed at any moment, the folder holds this save or the one before it. On a full disk it holds the one before. Call
    it on the thread that adds steps, and from one process per folder; other threads may sample meanwhile.

    Args: keep_steps: saves of these steps stay, such as those that checkpoints go with; else only the one before does.
    Returns: bytes written.
    Raises: ValueError if the folder holds a replay that this buffer was neither saved to nor loaded from; OSError if
        the disk does not take it all.
    """
    if not folder.is_dir():
        folder.mkdir(parents=True)
        flush_folder(folder.parent)
    base = None
    if manifests(folder):
        if buffer.saved_as is None or buffer.saved_as.parent != folder:
            raise ValueError(f"{folder} holds another replay: load it first, or save to another folder")
        base = read_manifest(buffer.saved_as)
    number = next_save(folder)
    try:
        manifest, num_bytes = _write(buffer, folder, base, number)
    except OSError:
        if not (folder / f"manifest-{number:08d}.json").exists():
            for path in folder.glob(f"*-{number:08d}*"):
                path.unlink()
        raise
    finally:
        if (folder / f"manifest-{number:08d}.json").exists():
            buffer.saved_as = folder / f"manifest-{number:08d}.json"
    prune(folder, manifest, base, keep_steps)
    return num_bytes


def load(folder: Path, buffer: ReplayBuffer, *, num_steps: int | None = None) -> int:
    """Fill an empty buffer with a save: the newest, or that of `num_steps` steps, as a checkpoint needs it.

    Every file is checked before the buffer is touched. Either store reads what the other has written.

    Returns: steps per task of the run when it was saved; what came after is not on the disk.
    Raises: ValueError if the buffer is not empty, there is no such save, the layout differs, or a file is damaged
        (named); ImportError where blocks are packed and liblz4 is missing.
    """
    if buffer.num_steps:
        raise ValueError(f"the buffer holds {buffer.num_steps} steps already: load into a new one")
    manifest = _find(folder, num_steps)
    _check(folder, manifest, _layout(buffer))
    buffer.reorder(manifest.rows)
    every = [*range(len(manifest.rows))]
    _fill(buffer, [_Source(folder, manifest, every, every)])
    buffer.saved_as = folder / manifest.name
    logging.getLogger("mow").info("replay: %s steps per task from %s (save %d), later steps are not on the disk",
                                  f"{manifest.num_steps:,}", folder, manifest.save)
    return manifest.num_steps


def load_tasks(sources: Sequence[tuple[Path, int]], buffer: ReplayBuffer, *, num_steps: int) -> None:
    """Fill an empty buffer from saves of other tasks too, all of `num_steps` steps.

    Args: sources: of each task of the buffer, a folder and the task's number in the save there.
    Raises: as `load`.
    """
    layout, parts = _layout(buffer), []
    del layout["num_tasks"]
    for folder in dict.fromkeys(folder for folder, _ in sources):
        manifest = _find(folder, num_steps)
        _check(folder, manifest, layout)
        wanted = [(manifest.rows[task], row) for row, (place, task) in enumerate(sources) if place == folder]
        parts.append(_Source(folder, manifest, *map(list, zip(*wanted, strict=True))))
    _fill(buffer, parts)


class _Source(NamedTuple):
    """A save, and which of its rows are wanted in which rows of a buffer."""

    folder: Path
    manifest: Manifest
    rows: list[int]  # there
    into: list[int]  # here


def _check(folder: Path, manifest: Manifest, layout: dict[str, Any]) -> None:
    """Raises: ValueError if the sizes in `layout` are others in the save, or a file is damaged."""
    if differing := [f"{name} {manifest.layout[name]} there and {here} here" for name, here in layout.items()
                     if manifest.layout[name] != here]:
        raise ValueError(f"{folder} holds the replay of another layout: {'; '.join(differing)}: use the configuration "
                         "that it was saved with, or another folder")
    for file in (*manifest.segments, manifest.open_steps):
        read_checked(folder, file)


# Writing -------------------------------------------------------------------------------------------------------------


def _layout(buffer: ReplayBuffer) -> dict[str, Any]:
    """The sizes that a buffer and a folder must agree on, as JSON has them."""
    columns = {name: [ring.dtype.str, [*ring.shape[2:]]] for name, ring in buffer.columns.items()}
    store = buffer.store
    return {"num_tasks": store.num_rows, "capacity": store.capacity, "frame_shape": [*store.frame_shape],
            "columns": columns, "block_steps": BLOCK_STEPS}  # fmt: skip


def _raw_steps(store: FrameStore, first: int, end: int) -> Frames:
    """Frames of all rows: [R, end - first, H, W, 3]; those that are no longer held are black."""
    frames = np.zeros((store.num_rows, end - first, *store.frame_shape), store.dtype)
    held = max(first, store.oldest)
    if held < end:
        windows = np.empty((store.num_rows, 1, end - held, *store.frame_shape), store.dtype)
        store.gather(np.arange(store.num_rows), np.full((store.num_rows, 1), held), end - held, windows)
        frames[:, held - first :] = windows[:, 0]
    return frames


def _block(store: FrameStore, number: int) -> list[bytes]:
    """Block `number` of every row, as it goes to the disk."""
    if isinstance(store, PackedStore):
        return [store.block_bytes(row, number)[0] for row in range(store.num_rows)]
    rows = _raw_steps(store, BLOCK_STEPS * number, BLOCK_STEPS * (number + 1))
    return [pack(raw) or raw for raw in (frames.tobytes() for frames in rows)]


def _column_steps(buffer: ReplayBuffer, first: int, end: int) -> list[memoryview]:
    """Steps of all rows of each column: [R, end - first, ...]; for those no longer held, what took their place."""
    return [_view(ring[:, np.arange(first, end) % ring.shape[1]]) for ring in buffer.columns.values()]


def _view(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _write(buffer: ReplayBuffer, folder: Path, base: Manifest | None, number: int) -> tuple[Manifest, int]:
    """All files of a save; returns its manifest and the bytes written."""
    num_steps, store = buffer.num_steps, buffer.store
    end = num_steps // BLOCK_STEPS
    # Block n is gone as a whole once step 8n + 7 is.
    oldest = min(store.oldest // BLOCK_STEPS, end)
    shared = [segment for segment in base.segments if segment.end_block > oldest] if base else []
    first = shared[-1].end_block if shared else oldest
    written = []
    for part, (start, blocks) in enumerate(_parts(store, first, end)):
        stop = start + len(blocks)
        lengths = np.array([[len(stored) for stored in row] for row in blocks], dtype="<u4")
        columns = _column_steps(buffer, BLOCK_STEPS * start, BLOCK_STEPS * stop)
        content: list[bytes | memoryview] = [_view(lengths), *columns, *(stored for row in blocks for stored in row)]
        name = f"blocks-{number:08d}-{part:04d}.bin"
        written.append(DataFile(name, start, stop, *write_durably(folder / name, content)))
    name = f"open-{number:08d}.bin"
    frames = _raw_steps(store, BLOCK_STEPS * end, num_steps)
    steps = [_view(frames), *_column_steps(buffer, BLOCK_STEPS * end, num_steps)]
    open_steps = DataFile(name, end, end, *write_durably(folder / name, steps))
    manifest = Manifest(number, _layout(buffer), num_steps, buffer.rows.tolist(), (*shared, *written), open_steps)
    num_bytes = commit(folder, manifest)
    return manifest, num_bytes + sum(file.num_bytes for file in (*written, open_steps))


def _parts(store: FrameStore, first: int, end: int) -> Iterator[tuple[int, list[list[bytes]]]]:
    """(number of the first block, blocks [N][R]) of each segment that takes blocks `first` to `end` to the disk."""
    blocks: list[list[bytes]] = []
    num_bytes = 0
    for number in range(first, end):
        blocks.append(_block(store, number))
        num_bytes += sum(map(len, blocks[-1]))
        if num_bytes >= _SEGMENT_BYTES or number == end - 1:
            yield number + 1 - len(blocks), blocks
            blocks, num_bytes = [], 0


# Reading -------------------------------------------------------------------------------------------------------------


def _find(folder: Path, num_steps: int | None) -> Manifest:
    paths, seen = manifests(folder), []
    if num_steps is None and paths:
        return read_manifest(paths[-1])
    for path in paths:
        manifest = read_manifest(path)
        if manifest.num_steps == num_steps:
            return manifest
        seen.append(manifest.num_steps)
    wanted = "no saved replay" if num_steps is None else f"no replay of step {num_steps}, only of {seen}"
    raise ValueError(f"{folder} holds {wanted}: load another one, with the checkpoint that belongs to it")


def _fill(buffer: ReplayBuffer, sources: Sequence[_Source]) -> None:
    """The files hold what their checksums say, so nothing is expected to fail from here on."""
    store, num_steps = buffer.store, sources[0].manifest.num_steps
    oldest, num_open = max(num_steps - store.capacity, 0), num_steps % BLOCK_STEPS
    end_block = num_steps // BLOCK_STEPS
    first = min(oldest // BLOCK_STEPS, end_block)  # a segment may begin before what can be seen
    store.resume(BLOCK_STEPS * first)
    for found in zip(*(_blocks(buffer, source, first, oldest) for source in sources), strict=True):
        blocks = [b""] * store.num_rows
        for source, there in zip(sources, found, strict=True):
            for row, into in zip(source.rows, source.into, strict=True):
                blocks[into] = there[row]
        _append_block(store, blocks)
    frames = np.zeros((store.num_rows, num_open, *store.frame_shape), store.dtype)
    for source in sources:
        content = io.BytesIO(read_checked(source.folder, source.manifest.open_steps))
        there = _read(content, store.dtype.str, (len(source.manifest.rows), num_open, *store.frame_shape))
        frames[source.into] = there[source.rows]
        _fill_columns(buffer, source, BLOCK_STEPS * end_block, num_open, content, oldest)
    for step in range(num_open):
        store.append(frames[:, step])


def _blocks(buffer: ReplayBuffer, source: _Source, first: int, oldest: int) -> Iterator[list[bytes]]:
    """Blocks `first` and later of all rows of a save; the columns are filled on the way."""
    for file in source.manifest.segments:
        content, num_blocks = io.BytesIO(read_checked(source.folder, file)), file.end_block - file.first_block
        lengths = _read(content, "<u4", (num_blocks, len(source.manifest.rows))).tolist()
        _fill_columns(buffer, source, BLOCK_STEPS * file.first_block, BLOCK_STEPS * num_blocks, content, oldest)
        for number, row_lengths in enumerate(lengths, file.first_block):
            blocks = [content.read(length) for length in row_lengths]
            if number >= first:
                yield blocks


def _read(content: io.BytesIO, dtype: str, shape: Sequence[int]) -> NDArray[Any]:
    """The next array of a file."""
    return np.frombuffer(content.read(np.dtype(dtype).itemsize * math.prod(shape)), dtype).reshape(shape)


def _append_block(store: FrameStore, blocks: list[bytes]) -> None:
    """Put eight steps of all rows at the end of a store of either kind."""
    size = BLOCK_STEPS * store.frame_bytes
    if isinstance(store, PackedStore):
        from mow import _C

        store.append_block([(stored, len(stored) == size, _C.crc32c(stored)) for stored in blocks])
        return
    raw = b"".join(stored if len(stored) == size else unpack(stored, size) for stored in blocks)
    frames = np.frombuffer(raw, store.dtype).reshape(len(blocks), BLOCK_STEPS, *store.frame_shape)
    for step in range(BLOCK_STEPS):
        store.append(frames[:, step])


def _fill_columns(
    buffer: ReplayBuffer, source: _Source, first: int, num_steps: int, content: io.BytesIO, oldest: int
) -> None:
    """Put the steps `first` and later of every column where they belong, those that can be seen."""
    skipped = max(oldest - first, 0)
    for ring in buffer.columns.values():
        steps = _read(content, ring.dtype.str, (len(source.manifest.rows), num_steps, *ring.shape[2:]))
        places = np.arange(first + skipped, first + num_steps) % ring.shape[1]
        ring[np.array(source.into)[:, None], places] = steps[source.rows, skipped:]
