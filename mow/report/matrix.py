"""Tables of shades as SVG: rows of tasks against experts, or tasks against tasks with a dendrogram above.

Their size is in pixels and does not shrink on a phone: the page puts them into a box that scrolls.
"""

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from mow.report.charts import MINUS, tick_text

Floats = NDArray[np.float64]

CELL = 40  # side of a cell where its number is written into it
ROW = 26  # its height where rows and columns are not the same things
SMALL = 18  # where it is not
_NUMBERS = 12  # columns up to which the numbers are written
_LETTER = 7.2  # width of a letter of a row's name at most, pixels
_TREE = 104  # height of a dendrogram with its numbers


def heat_map(
    rows: Sequence[str], columns: Sequence[str], value: Floats, *, column_name: str, marks: Sequence[int] | None = None
) -> str:
    """Shares [rows, columns] from 0 (blank) to 1 (full). Args: marks: a number behind each row's name, its module."""
    cell, left = _cell(len(columns)), _left(rows, marks)
    top = 34
    high = min(cell, ROW)
    width, height = left + cell * len(columns) + 8, top + high * len(rows) + 6
    parts = [_open(width, height, f"{column_name} of every task")]
    parts.append(f'<text class="label" x="{left}" y="11">{escape(column_name)}</text>')
    parts += _column_names(columns, left, top - 6, cell)
    parts += _row_names(rows, marks, left, top, high)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            said = f"{row}, {column_name} {column}: {value[i, j]:.2f}"
            place = (left + j * cell, top + i * high, cell, high)
            parts.append(_shade(place, value[i, j], said, blank=value[i, j] == 0))
    return "".join([*parts, "</svg>"])


def similarity_map(names: Sequence[str], module: Sequence[int], cosine: Floats) -> str:
    """Cosines [K, K] with a dendrogram (average linkage of 1 - cosine); tasks of one module are framed together.

    Rows and columns are in the order of the dendrogram's leaves. Raises: ValueError with fewer than two tasks.
    """
    order, links = tree(cosine)
    names, module = [names[k] for k in order], [module[k] for k in order]
    cosine = cosine[np.ix_(order, order)]
    cell, left = _cell(len(names)), _left(names, module)
    top = _TREE + 24
    side = cell * len(names)
    parts = [_open(left + side + 8, top + side + 6, "similarity of the tasks")]
    parts += _dendrogram(links, left, cell)
    parts += _column_names([str(k + 1) for k in range(len(names))], left, top - 6, cell)
    parts += _row_names([f"{k + 1} {name}" for k, name in enumerate(names)], module, left, top, cell)
    for i, row in enumerate(names):
        for j, column in enumerate(names):
            said = f"{row}, {column}: {cosine[i, j]:.2f}"
            parts.append(_shade((left + j * cell, top + i * cell, cell, cell), cosine[i, j], said))
    parts.append(f'<path class="outline" d="{outline(module, left, top, cell)}"/>')
    return "".join([*parts, "</svg>"])


def tree(cosine: Floats) -> tuple[list[int], list[tuple[Floats, Floats]]]:
    """Average linkage of 1 - cosine [K, K].

    Returns: the leaves in order; of every link its four corners, x in leaves (the first is at 0.5) and height.
    """
    from scipy.cluster.hierarchy import dendrogram, linkage
    from scipy.spatial.distance import squareform

    if len(cosine) < 2:
        raise ValueError(f"a dendrogram needs two tasks, got {len(cosine)}")
    distance = np.clip(1.0 - (cosine + cosine.T) / 2.0, 0.0, None)
    np.fill_diagonal(distance, 0.0)
    drawn = dendrogram(linkage(squareform(distance, checks=False), "average"), no_plot=True)
    # scipy puts leaves at 5, 15, 25, ...
    links = [(np.array(x) / 10.0, np.array(h)) for x, h in zip(drawn["icoord"], drawn["dcoord"], strict=True)]
    return [int(k) for k in drawn["leaves"]], links


def outline(module: Sequence[int], left: float, top: float, cell: float) -> str:
    """Path around the cells whose row and column are of one module."""
    num = len(module)

    def together(i: int, j: int) -> bool:
        return 0 <= i < num and 0 <= j < num and module[i] == module[j]

    path = []
    for i in range(num + 1):
        for j in range(num + 1):
            x, y = left + j * cell, top + i * cell
            if together(i, j) != together(i - 1, j):
                path.append(f"M{x:g} {y:g}h{cell:g}")
            if together(i, j) != together(i, j - 1):
                path.append(f"M{x:g} {y:g}v{cell:g}")
    return "".join(path)


def _dendrogram(links: Sequence[tuple[Floats, Floats]], left: float, cell: float) -> list[str]:
    """Links above the columns, with an axis of distances."""
    high = max(float(height.max()) for _, height in links) or 1.0
    top, bottom = 26.0, float(_TREE)
    parts = [f'<text class="label" x="2" y="11">distance, 1 {MINUS} cosine</text>']
    for value in (0.0, high):
        y = bottom - (bottom - top) * value / high
        parts.append(f'<path class="axis" d="M{left - 5} {y:.1f}h4"/>')
        parts.append(tick_text(left - 8, y + 3.5, f"{value:.2f}", "end"))
    parts.append(f'<path class="axis" d="M{left - 1} {top}V{bottom}"/>')
    for place, height in links:
        corners = zip(left + place * cell, bottom - (bottom - top) * height / high, strict=True)
        parts.append('<path class="link" d="M' + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners) + '"/>')
    return parts


def _cell(num_columns: int) -> int:
    return CELL if num_columns <= _NUMBERS else SMALL


def _left(rows: Sequence[str], marks: Sequence[int] | None) -> int:
    """Room for the names of the rows."""
    longest = max(len(row) for row in rows) + (3 if marks is not None else 0)
    return round(16 + _LETTER * longest) + (24 if marks is not None else 0)


def _open(width: float, height: float, said: str) -> str:
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    return f'<svg class="matrix" {size} role="img" aria-label="{escape(said)}">'


def _column_names(columns: Sequence[str], left: float, y: float, cell: float) -> list[str]:
    every = 1 if max(len(column) for column in columns) * 6.5 < cell else 2
    return [
        tick_text(left + (j + 0.5) * cell, y, column, "middle")
        for j, column in enumerate(columns)
        if j % every == 0
    ]


def _row_names(
    rows: Sequence[str], marks: Sequence[int] | None, left: float, top: float, height: float
) -> list[str]:
    parts = []
    for i, row in enumerate(rows):
        y = top + (i + 0.5) * height + 4
        end = left - 8
        if marks is not None:
            parts.append(f'<text class="mark" x="{end}" y="{y}" text-anchor="end">m{marks[i]}</text>')
            end -= 30
        parts.append(f'<text class="name" x="{end}" y="{y}" text-anchor="end">{escape(row)}</text>')
    return parts


def _shade(place: tuple[float, float, float, float], value: float, said: str, *, blank: bool = False) -> str:
    """One cell: blue above 0, orange below, the fuller the further; a number in it where there is room.

    Args: place: x, y, width, height.
    """
    x, y, width, height = place
    colour, strength = "above" if value >= 0 else "below", min(1.0, abs(value))
    cell = (
        f'<rect class="cell {colour}" x="{x:g}" y="{y:g}" width="{width - 1:g}" height="{height - 1:g}" '
        f'style="fill-opacity:{strength:.3f}"><title>{escape(said)}</title></rect>'
    )
    if width < CELL or blank:
        return cell
    shown = f"{value:.2f}".replace("-", MINUS)
    return f'{cell}<text x="{x + width / 2:g}" y="{y + height / 2 + 4:g}" text-anchor="middle">{shown}</text>'
