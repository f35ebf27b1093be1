"""A film strip as SVG: what came above, what was imagined below, and under each column how far off it is.

Its size is in pixels and does not shrink on a phone: the page puts it into a box that scrolls.
"""

import base64
import math
from html import escape

import numpy as np
from numpy.typing import NDArray

from mow.report.charts import Axis, tick_labels, tick_text
from mow.report.data import Film

FRAME = 64  # side of a frame, pixels
GAP = 4  # between two frames
SEAM = 10  # more, between the last seen frame and the first imagined one

_LEFT, _RIGHT = 64, 8  # margins beside the frames
_REAL, _IMAGINED = 20, 96  # upper edges of the two rows
_CHART, _CHART_HEIGHT = 190, 74  # upper edge and height of the errors

STYLES = {"imagined": 2, "reconstructed": 3, "repeated": 4}


def column_x(column: int, num_context: int) -> int:
    """Left edge of a frame in its row, pixels."""
    return column * (FRAME + GAP) + (SEAM if column >= num_context else 0)


def picture(frames: NDArray[np.uint8], shown: NDArray[np.bool_], num_context: int) -> str:
    """Frames [n, 64, 64, 3] RGB side by side as a PNG in a data URI; transparent between them and where not shown."""
    import cv2

    width = column_x(len(frames) - 1, num_context) + FRAME
    row = np.zeros((FRAME, width, 4), np.uint8)
    for column in np.flatnonzero(shown):
        x = column_x(int(column), num_context)
        row[:, x : x + FRAME, :3] = frames[column][:, :, ::-1]
        row[:, x : x + FRAME, 3] = 255
    _, encoded = cv2.imencode(".png", row)
    return f"data:image/png;base64,{base64.b64encode(encoded.tobytes()).decode()}"


def draw_film(task: str, film: Film) -> str:
    """Both rows with their step numbers and end marks, and the errors of the imagined steps below them."""
    inner = column_x(film.num_columns - 1, film.num_context) + FRAME
    width, height = _LEFT + inner + _RIGHT, _CHART + _CHART_HEIGHT + 10
    said = escape(f"{task}: real frames, imagined frames and their error")
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    parts = [f'<svg class="film" {size} role="img" aria-label="{said}">']
    steps = [column - film.num_context + 1 for column in range(film.num_columns)]
    for column, text in enumerate(tick_labels(steps)):
        parts.append(tick_text(_middle(column, film.num_context), 14, text, "middle"))
    rows = ((_REAL, "real", film.real, film.real_end), (_IMAGINED, "imagined", film.imagined, film.imagined_end))
    for top, name, data, ends in rows:
        parts.append(f'<text class="name" x="{_LEFT - 6}" y="{top + FRAME / 2 + 4}" text-anchor="end">{name}</text>')
        parts.append(f'<image x="{_LEFT}" y="{top}" width="{inner}" height="{FRAME}" href="{data}"/>')
        for column in ends:
            x = _LEFT + column_x(column, film.num_context)
            parts.append(f'<rect class="end" x="{x}" y="{top + FRAME + 2}" width="{FRAME}" height="4"/>')
    seam = _LEFT + column_x(film.num_context, film.num_context) - (SEAM + GAP) / 2
    parts.append(f'<path class="axis" d="M{seam} 4V{_IMAGINED + FRAME}"/>')
    parts += _errors(film)
    return "".join([*parts, "</svg>"])


def _middle(column: int, num_context: int) -> float:
    return _LEFT + column_x(column, num_context) + FRAME / 2


def _errors(film: Film) -> list[str]:
    """A line for each kind of error, its points below the columns that they belong to."""
    values = [value for row in film.errors.values() for value in row if math.isfinite(value)]
    if not values:
        return [f'<text class="label" x="2" y="{_CHART}">every episode ended before the first imagined step</text>']
    bottom = _CHART + _CHART_HEIGHT
    axis = Axis(0.0, 1.05 * max(values) or 1.0, bottom, _CHART)
    right = _middle(film.num_columns - 1, film.num_context) + FRAME / 2
    parts = [f'<text class="label" x="2" y="{_CHART - 10}">squared error, by steps ahead</text>']
    for value, text in axis.labels()[:: max(1, len(axis.labels()) // 3)]:
        y = axis.pixel(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>')
        parts.append(tick_text(_LEFT - 5, y + 3.5, text, "end"))
    for kind, row in film.errors.items():
        points = [
            f"{_middle(film.num_context + step, film.num_context):.1f} {axis.pixel(value):.1f}"
            for step, value in enumerate(row)
            if math.isfinite(value)
        ]
        if len(points) == 1:
            parts.append(f'<path class="dot s{STYLES[kind]}" d="M{points[0]}h0"/>')
        elif points:
            parts.append(f'<path class="line s{STYLES[kind]}" d="M{"L".join(points)}"/>')
    return parts
