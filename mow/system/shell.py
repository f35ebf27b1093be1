"""Paths as they are typed, and commands as they are printed: each can be pasted into a shell."""

import os
import shlex
from pathlib import Path


def typed_path(text: str) -> Path:
    """The type of every argument that is a path: `~` is the home folder, also in `--folder=~/x`."""
    return Path(os.path.expanduser(text))


def as_word(path: Path) -> str:
    """A path that no command takes for a flag."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def command(*words: str | Path) -> str:
    """A command line that gives a program these words; a path that looks like a flag is written as ./-path."""
    return shlex.join(as_word(word) if isinstance(word, Path) else word for word in words)
