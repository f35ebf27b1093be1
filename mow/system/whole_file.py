"""Files that are written whole or not at all, and JSON that is read back or refused in one line."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mow.system.durable import flush_file


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` to write to: at the end it is renamed to `path`, after any error it is deleted.

    A process that is killed leaves `path` as it was before, and perhaps the file beside it.
    """
    partial = path.with_suffix(".partial")
    try:
        yield partial
        partial.replace(path)
    except (Exception, KeyboardInterrupt, SystemExit):
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file, flushed to the disk before it takes its name. Raises: OSError; `path` is as before then."""
    with replacing(path) as partial, open(partial, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        flush_file(file)


def write_json(path: Path, content: object) -> None:
    """Write JSON with line breaks, as write_whole does."""
    write_whole(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Content of a JSON file. Raises: ValueError in one line, naming the file, if it cannot be read or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error})") from error


def read_object(path: Path) -> dict[str, Any]:
    """As read_json. Raises: ValueError as well if the file holds something else than an object with named fields."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object")
    return content
