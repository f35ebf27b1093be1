"""Film strips: what came above, what was imagined below, one pair of rows per task."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]  # [H, W, 3] RGB

SCALE = 2  # picture pixels per frame pixel, on each side
FRAME = 64 * SCALE  # side of a frame in the picture
COLUMN = FRAME + 4  # from one frame's left edge to the next one's
MARGIN = 20  # around everything
LABELS = 130  # left of the frames, for the names of the rows
SEAM = 10  # between the last seen column and the first imagined one, with a line in it
HEADING = 76  # above the frames of a strip: task and step numbers
ROW = FRAME + 12  # from one frame's top edge to the next one's; the end marks lie between
STRIP = HEADING + 2 * ROW + 16  # from one strip's top to the next one's
LINE = 34  # height of a line of text

_FONT, _TEXT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.85
_PAPER, _INK, _GREY, _RED = (255, 255, 255), (20, 20, 20), (110, 110, 110), (205, 30, 30)


@dataclass(frozen=True, eq=False)
class Strip:
    """One window of one task; n columns, of which the first were seen."""

    name: str
    real: Picture  # [n, 64, 64, 3]
    imagined: Picture  # [n, 64, 64, 3]; in the seen columns the reconstruction
    shown: NDArray[np.bool_]  # [n] there is a frame; elsewhere the episode is over and both rows stay blank
    led_to: NDArray[np.bool_]  # [n] it opens the window, or an action led here, even where no frame is shown
    real_end: NDArray[np.bool_]  # [n] the step that leads here terminated the task
    imagined_end: NDArray[np.bool_]  # [n] the world model expected it to


def corner(strip: int, row: int, column: int, *, num_context: int, num_lines: int) -> tuple[int, int]:
    """(y, x) of the upper left pixel of a frame; row 0 is the real one.

    Args: num_lines: of text above the first strip.
    """
    y = MARGIN + num_lines * LINE + strip * STRIP + HEADING + row * ROW
    x = MARGIN + LABELS + column * COLUMN + (SEAM if column >= num_context else 0)
    return y, x


def draw_film(strips: Sequence[Strip], text: Sequence[str], *, num_context: int) -> Picture:
    """Draw the strips below one another, under `text`, whose parts begin lines of their own.

    Raises: ValueError if there is no strip or if they differ in their number of columns.
    """
    widths = {len(strip.shown) for strip in strips}
    if len(widths) != 1:
        raise ValueError(f"strips need one number of columns, got {sorted(widths)}: cut them from equal windows")
    (num_columns,) = widths
    width = 2 * MARGIN + LABELS + num_columns * COLUMN + SEAM
    lines = wrap(text, width - 2 * MARGIN)
    height = 2 * MARGIN + len(lines) * LINE + len(strips) * STRIP
    picture = np.full((height, width, 3), _PAPER, np.uint8)
    for i, line in enumerate(lines):
        _write(picture, line, MARGIN, MARGIN + i * LINE + 22, _GREY)
    for index, strip in enumerate(strips):
        _draw_strip(picture, strip, index, num_context, len(lines))
    return picture


def wrap(text: Sequence[str], width: int) -> list[str]:
    """Break each part of `text` into lines of at most `width` pixels, at spaces."""
    lines: list[str] = []
    for part in text:
        line = ""
        for word in part.split():
            longer = f"{line} {word}".strip()
            if line and _text_width(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines


def _draw_strip(picture: Picture, strip: Strip, index: int, num_context: int, num_lines: int) -> None:
    def place(row: int, column: int) -> tuple[int, int]:
        return corner(index, row, column, num_context=num_context, num_lines=num_lines)

    top, _ = place(0, 0)
    _write(picture, strip.name, MARGIN, top - HEADING + 34, _INK, bold=True)
    for column in range(len(strip.shown)):
        if not strip.led_to[column]:
            continue
        # Steps ahead: the last seen frame is step 0, those before it count down.
        number = str(column - num_context + 1)
        x = place(0, column)[1]
        colour = _INK if column >= num_context else _GREY
        _write(picture, number, x + (FRAME - _text_width(number)) // 2, top - 10, colour)
    for row, (name, frames, ends) in enumerate(
        (("real", strip.real, strip.real_end), ("imagined", strip.imagined, strip.imagined_end))
    ):
        y = place(row, 0)[0]
        _write(picture, name, MARGIN, y + FRAME // 2 + 6, _INK)
        for column, frame in enumerate(frames):
            x = place(row, column)[1]
            if strip.shown[column]:
                picture[y : y + FRAME, x : x + FRAME] = frame.repeat(SCALE, axis=0).repeat(SCALE, axis=1)
            if ends[column]:
                picture[y + FRAME + 2 : y + FRAME + 8, x : x + FRAME] = _RED
    line = place(0, num_context)[1] - SEAM // 2 - 2
    picture[top - HEADING // 2 : top + ROW + FRAME, line - 1 : line + 2] = _INK


def _write(
    picture: Picture, text: str, x: int, y: int, colour: tuple[int, int, int], *, bold: bool = False
) -> None:
    """Text whose baseline begins at (x, y)."""
    scale, thickness = (1.0, 2) if bold else (_TEXT_SCALE, 1)
    cv2.putText(picture, text, (x, y), _FONT, scale, colour, thickness, cv2.LINE_AA)


def _text_width(text: str) -> int:
    (width, _), _ = cv2.getTextSize(text, _FONT, _TEXT_SCALE, 1)
    return int(width)
