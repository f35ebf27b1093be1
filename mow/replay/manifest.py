"""What a folder of saved replay holds, and how it changes: whole, or not at all.

    blocks-<save>-<part>.bin    segments: blocks of 8 steps, all tasks; written once, shared by later saves
    open-<save>.bin             the steps after the last whole block
    manifest-<save>.json        names the files of one save, with their lengths and checksums

A save writes its files, flushes them and the folder, and only then puts its manifest in place by a rename, which is
the moment it comes into being. What no manifest names is the rest of a save that was killed. The save that the newest
builds on is kept too, and those of the steps that the caller names; the others, and the files that only they name, go
once the newest is in place.
"""

import json
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mow.system.whole_file import flush_file, flush_folder

VERSION = 2  # 1: before final frames
_MANIFESTS = "manifest-????????.json"


@dataclass(frozen=True)
class DataFile:
    """One file of blocks, as it must be found again."""

    name: str
    first_block: int  # of the run; block n holds the steps 8n to 8n + 7
    end_block: int
    num_bytes: int
    crc32: int


@dataclass(frozen=True)
class Layout:
    """What a buffer and a folder must agree on."""

    num_tasks: int
    capacity: int
    frame_shape: tuple[int, ...]
    columns: dict[str, tuple[str, tuple[int, ...]]]  # dtype and shape of one step, of what is stored beside frames
    block_steps: int


@dataclass(frozen=True)
class Manifest:
    """One save."""

    save: int  # counts the saves into a folder
    layout: Layout
    num_steps: int  # of each task since the start of the run
    rows: tuple[int, ...]  # ring row of each task
    segments: tuple[DataFile, ...]  # oldest first, without gaps
    open_steps: DataFile
    newest_block_crc32: int  # of the last whole block, not packed; 0 where there is none

    @property
    def name(self) -> str:
        return f"manifest-{self.save:08d}.json"

    @property
    def end_block(self) -> int:
        """The first block that is not whole yet."""
        return self.num_steps // self.layout.block_steps

    def files(self) -> set[str]:
        """All names that belong to this save."""
        return {self.name, self.open_steps.name, *(segment.name for segment in self.segments)}


def _checksum(body: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())


def write_durably(path: Path, parts: Sequence[bytes | memoryview]) -> tuple[int, int]:
    """Write a new file and flush it to the disk; returns its length in bytes and its CRC-32."""
    crc32 = 0
    with open(path, "wb") as file:
        for part in parts:
            file.write(part)
            crc32 = zlib.crc32(part, crc32)
        flush_file(file)
        return file.tell(), crc32


def read_checked(folder: Path, file: DataFile) -> bytes:
    """The content of a file. Raises: ValueError that names it if it is missing, cut, longer, or has a flipped bit."""
    path = folder / file.name
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ValueError(_broken(path, f"{file.num_bytes} bytes", "no file")) from error
    if len(content) != file.num_bytes:
        raise ValueError(_broken(path, f"{file.num_bytes} bytes", f"{len(content)}"))
    if (crc32 := zlib.crc32(content)) != file.crc32:
        raise ValueError(_broken(path, f"CRC-32 {file.crc32:08x}", f"{crc32:08x}"))
    return content


def _broken(path: Path, expected: str, got: str) -> str:
    return (f"{path} is damaged: expected {expected}, got {got}: restore the file from a copy, load an earlier save if "
            "the folder holds one without it (num_steps=), or start with an empty folder")


def commit(folder: Path, manifest: Manifest) -> int:
    """Put a manifest in place, whose files are written and flushed already; returns its length in bytes."""
    body = asdict(manifest)
    text = json.dumps({"format": "mow replay", "version": VERSION, "crc32": _checksum(body), "body": body}, indent=1)
    partial = folder / f"{manifest.name}.partial"
    num_bytes, _ = write_durably(partial, [text.encode()])
    flush_folder(folder)
    partial.replace(folder / manifest.name)
    flush_folder(folder)
    return num_bytes


def read_manifests(folder: Path, *, oldest_first: bool = False) -> Iterator[Manifest]:
    """The saves in a folder, newest first unless told otherwise, each read when it is asked for.

    Raises: ValueError that names the file if one is damaged or of another version.
    """
    for path in sorted(folder.glob(_MANIFESTS), reverse=not oldest_first):
        yield _read_manifest(path)


def _read_manifest(path: Path) -> Manifest:
    try:
        content = json.loads(path.read_bytes())
        found, version, crc32, body = (content[key] for key in ("format", "version", "crc32", "body"))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(_broken(path, "the JSON of a save", f"{type(error).__name__}")) from error
    if (found, version) != ("mow replay", VERSION):
        raise ValueError(f"{path} is of {found!r} version {version}, this mow reads 'mow replay' version {VERSION}: "
                         "use the mow that wrote it, or start with an empty folder")
    if (got := _checksum(body)) != crc32:
        raise ValueError(_broken(path, f"CRC-32 {crc32}", f"{got}"))
    layout = body["layout"]
    columns = {name: (dtype, tuple(shape)) for name, (dtype, shape) in layout["columns"].items()}
    return Manifest(
        save=body["save"],
        layout=Layout(**{**layout, "frame_shape": tuple(layout["frame_shape"]), "columns": columns}),
        num_steps=body["num_steps"],
        rows=tuple(body["rows"]),
        segments=tuple(DataFile(**segment) for segment in body["segments"]),
        open_steps=DataFile(**body["open_steps"]),
        newest_block_crc32=body["newest_block_crc32"],
    )


def next_save(folder: Path) -> int:
    """A number that no file in the folder bears, those of killed saves included."""
    return 1 + max(map(_save_of, _own_files(folder)), default=0)


def unfinished_bytes(folder: Path) -> int:
    """What a save that never came into being has left behind."""
    newest = max(map(_save_of, folder.glob(_MANIFESTS)), default=0)
    return sum(path.stat().st_size for path in _own_files(folder) if _save_of(path) > newest)


def _own_files(folder: Path) -> list[Path]:
    patterns = ("blocks-????????-*.bin", "open-????????.bin", f"{_MANIFESTS}*")
    return [path for pattern in patterns for path in sorted(folder.glob(pattern))]


def _save_of(path: Path) -> int:
    return int(path.name.split("-")[1][:8])


def prune(folder: Path, newest: Manifest, before: Manifest | None, keep_steps: Collection[int] = ()) -> None:
    """Delete what neither the two saves nor those of `keep_steps` name: manifests first, so that none ever names a file
    that is gone.
    """
    named = newest.files() | (before.files() if before is not None else set())
    if keep_steps:
        named.update(*(kept.files() for kept in read_manifests(folder) if kept.num_steps in keep_steps))
    unnamed = [path for path in _own_files(folder) if path.name not in named]
    for path in sorted(unnamed, key=lambda path: not path.name.startswith("manifest")):
        path.unlink()
    flush_folder(folder)
