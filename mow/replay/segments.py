"""Replay on disk: saves that write only what is new, and the way back. manifest.py says what a folder holds."""

import errno
import logging
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mow.replay.buffer import ReplayBuffer
from mow.replay.lz4 import pack, unpack
from mow.replay.manifest import (
    DataFile,
    Layout,
    Manifest,
    commit,
    next_save,
    prune,
    read_checked,
    read_manifests,
    unfinished_bytes,
    write_durably,
)
from mow.replay.packed import PackedStore
from mow.replay.sampler import build_info
from mow.replay.stores import BLOCK_STEPS, Frames, FrameStore
from mow.system.whole_file import flush_folder

_MAGIC = b"mow blocks 1\n"
_SEGMENT_BYTES = 2**25  # of packed frames; a segment is held in memory whole, and goes when its last block is old

# Stored bytes, whether they are raw frames, their CRC32C (0 where none could be computed).
Block = tuple[bytes, bool, int]


def save(buffer: ReplayBuffer, folder: Path, *, keep_steps: Collection[int] = ()) -> int:
    """Make `folder` hold what the buffer holds now; only what the last save into it lacks is written.

    Killed at any moment, the folder holds this save or the one before it. On a full disk it holds the one before. Call
    it on the thread that adds steps, and from one process per folder; other threads may sample meanwhile.

    Args: keep_steps: saves of these steps stay, such as those that checkpoints go with; else only the one before does.
    Returns: bytes written.
    Raises: ValueError if the folder holds the replay of another run, layout or version, or is ahead of the buffer;
        OSError if the disk does not take it all.
    """
    if not folder.is_dir():
        folder.mkdir(parents=True)
        flush_folder(folder.parent)
    base = _base(buffer, folder)
    number = next_save(folder)
    try:
        manifest, num_bytes = _write(buffer, folder, base, number)
    except OSError as error:
        _sweep(folder, number)
        kept = f"the save of step {base.num_steps} stays" if base else "no save was there before"
        remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "mend the disk"
        raise OSError(error.errno, f"replay of step {buffer.num_steps} was not saved ({error.strerror}), {kept}: "
                                   f"{remedy} and save again", str(folder)) from error
    prune(folder, manifest, base, keep_steps)
    return num_bytes


def load(folder: Path, buffer: ReplayBuffer, *, num_steps: int | None = None) -> int:
    """Fill an empty buffer with a save: the newest, or that of `num_steps` steps, such as a checkpoint asks for.

    Every file is checked before the buffer is touched. Either store reads what the other has written.

    Returns: steps per task of the run when it was saved; what came after is not on the disk.
    Raises: ValueError if the buffer is not empty, there is no such save, the layout differs (it says in what), or a
        file is damaged (it names it); ImportError where blocks are packed and liblz4 is missing.
    """
    if buffer.num_steps:
        raise ValueError(f"the buffer holds {buffer.num_steps} steps already: load into a new one")
    manifest = _find(folder, num_steps)
    _check_layout(folder, manifest.layout, _layout(buffer))
    for file in (*manifest.segments, manifest.open_steps):
        read_checked(folder, file)
    buffer.reorder(manifest.rows)
    _fill(buffer, folder, manifest)
    rest = unfinished_bytes(folder)
    torn = f"; a later save was cut off after {rest:,} bytes, what it added is missing" if rest else ""
    logging.getLogger("mow").info("replay: %s steps per task from %s (save %d), later steps are not on the disk%s",
                                  f"{manifest.num_steps:,}", folder, manifest.save, torn)
    return manifest.num_steps


# What there is to save -----------------------------------------------------------------------------------------------


def _layout(buffer: ReplayBuffer) -> Layout:
    columns = {name: (ring.dtype.str, ring.shape[2:]) for name, ring in buffer.columns.items()}
    return Layout(len(buffer.rows), buffer.store.capacity, tuple(buffer.store.frame_shape), columns, BLOCK_STEPS)


def _check_layout(folder: Path, there: Layout, here: Layout) -> None:
    differing = [f"{name} {getattr(there, name)} there and {getattr(here, name)} here"
                 for name in there.__dataclass_fields__ if getattr(there, name) != getattr(here, name)]
    if differing:
        raise ValueError(f"{folder} holds the replay of another layout: {'; '.join(differing)}: use the configuration "
                         "that it was saved with, or another folder")


def _oldest(num_steps: int, capacity: int) -> int:
    """The oldest step that can be seen."""
    return max(num_steps - capacity, 0)


def _raw_steps(buffer: ReplayBuffer, first: int, end: int) -> Frames:
    """Frames of all rows: [R, end - first, H, W, 3]; those that are no longer held are black."""
    store, num_rows = buffer.store, len(buffer.rows)
    frames = np.zeros((num_rows, end - first, *store.frame_shape), dtype=np.uint8)
    held = max(first, _oldest(store.num_steps, store.capacity))
    if held < end:
        windows = np.empty((num_rows, 1, end - held, *store.frame_shape), dtype=np.uint8)
        store.gather(np.arange(num_rows), np.full((num_rows, 1), held), end - held, windows)
        frames[:, held - first :] = windows[:, 0]
    return frames


def _block(buffer: ReplayBuffer, number: int) -> list[Block]:
    """Block `number` of every row, as it goes to the disk."""
    if isinstance(buffer.store, PackedStore):
        return [buffer.store.block_bytes(row, number) for row in range(len(buffer.rows))]
    blocks: list[Block] = []
    for frames in _raw_steps(buffer, BLOCK_STEPS * number, BLOCK_STEPS * (number + 1)):
        raw = frames.tobytes()
        packed = pack(raw)
        stored = raw if packed is None else packed
        blocks.append((stored, packed is None, _crc32c(stored)))
    return blocks


def _crc32c(stored: bytes) -> int:
    """What a packed store wants to know of a block; 0 where there can be no packed store."""
    if not build_info()["compiled"]:
        return 0
    from mow import _C

    return _C.crc32c(stored)


def _block_crc32(buffer: ReplayBuffer, number: int) -> int:
    """Of the frames themselves, as packed bytes may differ from one liblz4 to the next."""
    return zlib.crc32(_raw_steps(buffer, BLOCK_STEPS * number, BLOCK_STEPS * (number + 1)).tobytes())


def _column_steps(buffer: ReplayBuffer, first: int, end: int) -> list[NDArray[Any]]:
    """Of each column, the steps of all rows: [R, end - first, ...]; what is no longer held is what took its place."""
    return [np.ascontiguousarray(ring[:, np.arange(first, end) % ring.shape[1]]) for ring in buffer.columns.values()]


# Writing -------------------------------------------------------------------------------------------------------------


def _base(buffer: ReplayBuffer, folder: Path) -> Manifest | None:
    """The newest save that this buffer went on from; None where the folder holds none."""
    ahead, other = None, None
    for manifest in read_manifests(folder):
        _check_layout(folder, manifest.layout, _layout(buffer))
        if manifest.num_steps > buffer.num_steps:
            ahead = manifest
            continue
        newest = manifest.end_block - 1
        held = BLOCK_STEPS * newest >= _oldest(buffer.num_steps, buffer.store.capacity)
        if newest < 0 or not held or _block_crc32(buffer, newest) == manifest.newest_block_crc32:
            return manifest
        other = manifest
    if other is not None:
        raise ValueError(f"{folder} holds the replay of another run: step {other.num_steps - 1} there is not the one "
                         "in this buffer: load it first, or save to another folder")
    if ahead is not None:
        raise ValueError(f"{folder} is at step {ahead.num_steps}, ahead of this buffer at step {buffer.num_steps}: "
                         "load it first, or save to another folder")
    return None


def _write(buffer: ReplayBuffer, folder: Path, base: Manifest | None, number: int) -> tuple[Manifest, int]:
    """All files of a save; returns its manifest and the bytes written."""
    num_steps = buffer.num_steps
    end = num_steps // BLOCK_STEPS
    # Block n is gone as a whole once step 8n + 7 is.
    oldest = min(_oldest(num_steps, buffer.store.capacity) // BLOCK_STEPS, end)
    shared = [segment for segment in base.segments if segment.end_block > oldest] if base else []
    first = shared[-1].end_block if shared else oldest
    written = []
    for part, (start, blocks) in enumerate(_parts(buffer, first, end)):
        stop = start + len(blocks)
        content = _segment(blocks, _column_steps(buffer, BLOCK_STEPS * start, BLOCK_STEPS * stop))
        name = f"blocks-{number:08d}-{part:04d}.bin"
        written.append(DataFile(name, start, stop, *write_durably(folder / name, content)))
    name = f"open-{number:08d}.bin"
    steps = [_raw_steps(buffer, BLOCK_STEPS * end, num_steps), *_column_steps(buffer, BLOCK_STEPS * end, num_steps)]
    open_steps = DataFile(name, end, end, *write_durably(folder / name, [_MAGIC, *map(_view, steps)]))
    manifest = Manifest(
        save=number,
        layout=_layout(buffer),
        num_steps=num_steps,
        rows=tuple(buffer.rows.tolist()),
        segments=(*shared, *written),
        open_steps=open_steps,
        newest_block_crc32=_block_crc32(buffer, end - 1) if end > oldest else 0,
    )
    num_bytes = commit(folder, manifest)
    return manifest, num_bytes + sum(file.num_bytes for file in (*written, open_steps))


def _parts(buffer: ReplayBuffer, first: int, end: int) -> Iterator[tuple[int, list[list[Block]]]]:
    """(number of the first block, blocks [N][R]) of each segment that takes blocks `first` to `end` to the disk."""
    blocks: list[list[Block]] = []
    num_bytes, start = 0, first
    for number in range(first, end):
        blocks.append(_block(buffer, number))
        num_bytes += sum(len(stored) for stored, _, _ in blocks[-1])
        if num_bytes >= _SEGMENT_BYTES or number == end - 1:
            yield start, blocks
            blocks, num_bytes, start = [], 0, number + 1


def _view(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _segment(blocks: list[list[Block]], columns: Sequence[NDArray[Any]]) -> list[bytes | memoryview]:
    """The content of a segment: three tables [N, R], the columns one after the other, the stored bytes."""
    lengths = np.array([[len(stored) for stored, _, _ in row] for row in blocks], dtype="<u4")
    raw = np.array([[is_raw for _, is_raw, _ in row] for row in blocks], dtype=np.uint8)
    crc32c = np.array([[crc for _, _, crc in row] for row in blocks], dtype="<u4")
    tables = [_view(table) for table in (lengths, raw, crc32c, *columns)]
    return [_MAGIC, *tables, *(stored for row in blocks for stored, _, _ in row)]


def _sweep(folder: Path, number: int) -> None:
    """Take away what a failed save has left, unless its manifest made it into place."""
    if not (folder / f"manifest-{number:08d}.json").exists():
        for path in folder.glob(f"*-{number:08d}*"):
            path.unlink()


# Reading -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Segment:
    """What a segment holds."""

    first_block: int
    blocks: list[list[Block]]  # [N][R]
    columns: list[NDArray[Any]]  # each [R, 8 N, ...]


class _Reader:
    """Takes one array after the other from the content of a file."""

    def __init__(self, content: bytes) -> None:
        self._content, self._place = content, len(_MAGIC)

    def array(self, dtype: str, shape: Sequence[int]) -> NDArray[Any]:
        num_items = int(np.prod(shape))
        array = np.frombuffer(self._content, dtype, num_items, self._place).reshape(shape)
        self._place += array.nbytes
        return array

    def bytes(self, num_bytes: int) -> bytes:
        self._place += num_bytes
        return self._content[self._place - num_bytes : self._place]


def _find(folder: Path, num_steps: int | None) -> Manifest:
    manifests = read_manifests(folder) if num_steps is None else read_manifests(folder, oldest_first=True)
    seen = []
    for manifest in manifests:
        if num_steps in (None, manifest.num_steps):
            return manifest
        seen.append(manifest.num_steps)
    if num_steps is None:
        raise ValueError(f"{folder} holds no saved replay: name the folder that was given to save, or collect anew")
    raise ValueError(f"{folder} holds no replay of step {num_steps}, only of {seen}: load one of these, with the "
                     "checkpoint that belongs to it")


def _read_segment(folder: Path, file: DataFile, layout: Layout) -> _Segment:
    reader = _Reader(read_checked(folder, file))
    num_blocks, num_rows = file.end_block - file.first_block, layout.num_tasks
    lengths, raw, crc32c = (reader.array(dtype, (num_blocks, num_rows)).tolist() for dtype in ("<u4", "u1", "<u4"))
    columns = [reader.array(dtype, (num_rows, BLOCK_STEPS * num_blocks, *shape))
               for dtype, shape in layout.columns.values()]
    blocks = [[(reader.bytes(lengths[n][row]), bool(raw[n][row]), crc32c[n][row]) for row in range(num_rows)]
              for n in range(num_blocks)]
    return _Segment(file.first_block, blocks, columns)


def _fill(buffer: ReplayBuffer, folder: Path, manifest: Manifest) -> None:
    """The files hold what their checksums say, so nothing is expected to fail from here on."""
    layout, store = manifest.layout, buffer.store
    oldest = _oldest(manifest.num_steps, layout.capacity)
    first = min(oldest // BLOCK_STEPS, manifest.end_block)  # a segment may begin before what can be seen
    store.resume(BLOCK_STEPS * first)
    for file in manifest.segments:
        segment = _read_segment(folder, file, layout)
        for number, blocks in enumerate(segment.blocks, segment.first_block):
            if number >= first:
                _append_block(store, blocks)
        _fill_columns(buffer, BLOCK_STEPS * segment.first_block, segment.columns, oldest)
    reader = _Reader(read_checked(folder, manifest.open_steps))
    num_open = manifest.num_steps - BLOCK_STEPS * manifest.end_block
    open_frames = reader.array("u1", (layout.num_tasks, num_open, *layout.frame_shape))
    columns = [reader.array(dtype, (layout.num_tasks, num_open, *shape)) for dtype, shape in layout.columns.values()]
    for step in range(num_open):
        store.append(open_frames[:, step])
    _fill_columns(buffer, BLOCK_STEPS * manifest.end_block, columns, oldest)


def _append_block(store: FrameStore, blocks: list[Block]) -> None:
    """Put eight steps of all rows at the end of a store of either kind."""
    if isinstance(store, PackedStore):
        store.append_block([(stored, is_raw, crc32c or _crc32c(stored)) for stored, is_raw, crc32c in blocks])
        return
    raw = [stored if is_raw else unpack(stored, BLOCK_STEPS * store.frame_bytes) for stored, is_raw, _ in blocks]
    frames = np.frombuffer(b"".join(raw), np.uint8).reshape(len(blocks), BLOCK_STEPS, *store.frame_shape)
    for step in range(BLOCK_STEPS):
        store.append(frames[:, step])


def _fill_columns(buffer: ReplayBuffer, first: int, columns: Sequence[NDArray[Any]], oldest: int) -> None:
    """Put steps `first` and later of every column where they belong, those that can be seen."""
    for ring, steps in zip(buffer.columns.values(), columns, strict=True):
        skipped = max(oldest - first, 0)
        place = np.arange(first + skipped, first + steps.shape[1]) % ring.shape[1]
        ring[:, place] = steps[:, skipped:]
