"""Paths as they are typed, and commands as they are printed: each can be pasted into a shell as it stands."""

import argparse
import os
import shlex
import sys
from pathlib import Path


def expanded(text: str) -> str:
    """A path with its leading `~` or `~user` replaced, which a shell does not do in `--folder=~/runs`.

    Raises: ValueError in one line where that user has no home folder, and for bytes that are no text, which TensorBoard
        and reports cannot write.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{_escaped(text)} has bytes that are no UTF-8 text: give the path another name") from error
    if not text.startswith("~"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError as error:
        raise ValueError(f"{text} names no home folder: write the whole path, or ./{text}") from error


def typed_path(text: str) -> Path:
    """The type of every argument that is a path, for argparse."""
    try:
        return Path(expanded(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def command(*words: str | Path) -> str:
    """A command line that gives a program these words; a path that looks like a flag is written as ./-path.

    Words with line breaks, with bytes that are no text, or with letters that the console cannot show are written with
    escapes, as $'a\\nb' of bash, zsh and POSIX.1-2024.
    """
    return " ".join(_quoted(as_word(word) if isinstance(word, Path) else word) for word in words)


def as_word(path: Path) -> str:
    """A path that no command takes for a flag."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def _quoted(word: str) -> str:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        word.encode(encoding)
    except UnicodeEncodeError:
        return _escaped(word)
    return shlex.quote(word) if word.isprintable() else _escaped(word)


def _escaped(word: str) -> str:
    plain = (chr(byte) if 32 <= byte < 127 and byte not in b"'\\" else f"\\x{byte:02x}" for byte in os.fsencode(word))
    return f"$'{''.join(plain)}'"
