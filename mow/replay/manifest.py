"""Content of a folder of saved replay, which changes as a whole or not at all.

    blocks-<save>-<part>.bin    segments: blocks of 8 steps, all tasks; written once, shared by later saves
    open-<save>.bin             the steps after the last whole block
    manifest-<save>.json        names the files of one save, with their lengths and checksums

A save writes its files, flushes them and the folder, and then puts its manifest in place by a rename: from then on it
exists. What no manifest names is the rest of a save that was killed. The save that the newest builds on is kept too,
and those of the steps that the caller names; the others, and the files that only they name, go after the rename.
"""

import json
import zlib
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mow.system.whole_file import flush_file, flush_folder, write_whole

VERSION = 3  # 1: before final frames; 2: with a checksum per block
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
class Manifest:
    """One save."""

    save: int  # counts the saves into a folder
    layout: dict[str, Any]  # what a buffer and a folder must agree on
    num_steps: int  # of each task since the start of the run
    rows: list[int]  # ring row of each task
    segments: tuple[DataFile, ...]  # oldest first, without gaps
    open_steps: DataFile

    @property
    def name(self) -> str:
        return f"manifest-{self.save:08d}.json"

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
    content = path.read_bytes() if path.exists() else b""
    if (found := (len(content), zlib.crc32(content))) != (file.num_bytes, file.crc32):
        raise ValueError(_broken(path, f"{file.num_bytes} bytes with CRC-32 {file.crc32:08x}",
                                 f"{found[0]} bytes with CRC-32 {found[1]:08x}"))
    return content


def _broken(path: Path, expected: str, got: str) -> str:
    return (f"{path} is damaged: expected {expected}, got {got}: restore the file from a copy, or load an earlier save "
            "if the folder holds one")


def commit(folder: Path, manifest: Manifest) -> int:
    """Put a manifest in place, whose files are written and flushed already; returns its length in bytes."""
    body = asdict(manifest)
    text = json.dumps({"format": "mow replay", "version": VERSION, "crc32": _checksum(body), "body": body}, indent=1)
    flush_folder(folder)
    write_whole(folder / manifest.name, text)
    flush_folder(folder)
    return len(text)


def manifests(folder: Path) -> list[Path]:
    """The manifests in a folder, oldest first."""
    return sorted(folder.glob(_MANIFESTS))


def read_manifest(path: Path) -> Manifest:
    """One save. Raises: ValueError that names the file if it is damaged or of another version."""
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
    segments = tuple(DataFile(**segment) for segment in body["segments"])
    return Manifest(**{**body, "segments": segments, "open_steps": DataFile(**body["open_steps"])})


def next_save(folder: Path) -> int:
    """A number that no file in the folder bears, those of killed saves included."""
    return 1 + max((int(path.name.split("-")[1][:8]) for path in _own_files(folder)), default=0)


def _own_files(folder: Path) -> list[Path]:
    patterns = ("blocks-????????-*.bin", "open-????????.bin", "manifest-????????.*")
    return [path for pattern in patterns for path in sorted(folder.glob(pattern))]


def prune(folder: Path, newest: Manifest, before: Manifest | None, keep_steps: Collection[int] = ()) -> None:
    """Delete what neither the two saves nor those of `keep_steps` name: manifests first, so that none ever names a file
    that is gone.
    """
    named = newest.files() | (before.files() if before is not None else set())
    if keep_steps:
        kept = [manifest for manifest in map(read_manifest, manifests(folder)) if manifest.num_steps in keep_steps]
        named.update(*(manifest.files() for manifest in kept))
    unnamed = [path for path in _own_files(folder) if path.name not in named]
    for path in sorted(unnamed, key=lambda path: not path.name.startswith("manifest")):
        path.unlink()
    flush_folder(folder)
