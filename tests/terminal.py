"""A terminal for tests: what is on the screen, and what has scrolled off it, after a program wrote to it."""

import fcntl
import os
import re
import struct
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_TOKEN = re.compile(r"\x1b\[(\??[\d;]*)([A-Za-z])|(.)", re.DOTALL)


class Screen:
    """Knows carriage return, line feed, cursor up, erasing a line, showing and hiding the cursor, and colours."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.lines = [""]  # all of them, those that have scrolled off too
        self.row = self.column = 0
        self.written = ""
        self.cursor_is_visible = True

    def feed(self, text: str) -> None:
        self.written += text
        for token in _TOKEN.finditer(text):
            count, what, character = token.groups()
            if what == "A":
                self.row = max(self.row - int(count or 1), len(self.lines) - self.height, 0)
            elif what == "K":
                self.lines[self.row] = ""
            elif count == "?25":
                self.cursor_is_visible = what == "h"
            elif character is not None:
                self._put(character)
            else:
                assert what == "m", f"the screen does not know {token.group()!r}"

    def _put(self, character: str) -> None:
        if character == "\r":
            self.column = 0
            return
        if character == "\n" or self.column == self.width:
            self.row, self.column = self.row + 1, 0
            if self.row == len(self.lines):
                self.lines.append("")
        if character != "\n":
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
            self.column += 1


@contextmanager
def terminal(width: int, height: int) -> Iterator[tuple[TextIO, Screen]]:
    """A pseudo-terminal to write to, and its screen, which is complete once this is left."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    screen, pieces = Screen(width, height), []

    def read() -> None:
        try:
            while piece := os.read(ours, 65536):
                pieces.append(piece)
        except OSError:  # EIO: everybody has closed the other end
            pass

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with open(theirs, "w", encoding="utf-8") as stream:
            yield stream, screen
    finally:
        reader.join()
        os.close(ours)
        screen.feed(b"".join(pieces).decode())
