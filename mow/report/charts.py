"""Charts of a report, drawn by matplotlib as SVG elements of the page itself.

Colours are CSS variables of the page (--ink, --s1, ...), so that a chart follows the reader's light or dark mode.
Styles differ in their dashes as well, for readers who do not distinguish the colours.
"""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

MINUS = "\N{MINUS SIGN}"

# Style of a series or a level -> (CSS variable of its colour, dashes).
STYLES: dict[str, tuple[str, tuple[float, ...]]] = {
    "s1": ("s1", ()), "s2": ("s2", (8, 3)), "s3": ("s3", (2.5, 2.5)), "s4": ("s4", (9, 3, 2, 3)), "s5": ("s5", (4, 3)),
    "s6": ("s6", ()), "dots": ("s6", ()), "level1": ("soft", (7, 4)), "level2": ("soft", (1.5, 4)),
}  # fmt: skip
_VARIABLES = ("ink", "soft", "rule", "above", "below", "s1", "s2", "s3", "s4", "s5", "s6")
_WIDTH, _HEIGHT = 320, 190  # of a panel, CSS pixels before the page scales it
_CELL, _SMALL_CELL = 40, 18  # side of a cell with and without its number in it, CSS pixels
_MOST_NUMBERS = 12  # columns up to which the numbers are written
_LARGEST = 1e300  # sums of larger numbers overflow in matplotlib
_LETTER = 6.6  # CSS pixels, width of a letter at most


def _colour(variable: str) -> str:
    """A colour that stands for a CSS variable until `_svg` writes its name."""
    return f"#0000{_VARIABLES.index(variable) + 1:02}"


_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "mow", "text.parse_math": False, "font.family": "DejaVu Sans",
    "font.size": 11, "axes.titlesize": 11, "lines.scale_dashes": False, "xtick.major.size": 4, "ytick.major.size": 0,
    **dict.fromkeys(("xtick.color", "ytick.color", "axes.edgecolor", "axes.labelcolor", "text.color"), _colour("soft")),
}  # fmt: skip


@dataclass(frozen=True)
class Series:
    """A curve, or a cloud of points in the style dots."""

    x: Sequence[float]
    y: Sequence[float]
    style: str = "s1"  # one of STYLES


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare with."""

    name: str
    y: float


@dataclass(frozen=True)
class Panel:
    """One pair of axes with its curves."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    levels: tuple[Level, ...] = ()
    log: bool = False  # logarithmic y axis; values below a hundred-thousandth of the largest are drawn at that value
    from_zero: bool = False  # the y axis begins at 0


def digits(value: float | None) -> str:
    """A number with about three digits, - for None and values that are not finite."""
    if value is None or not math.isfinite(value):
        return "-"
    size = abs(value)
    if size >= 9.995:
        text = f"{value:,.0f}" if size >= 99.95 else f"{value:.1f}"
    else:
        text = f"{value:.2f}" if size >= 0.1 or size == 0 else f"{value:.2g}"
    return text.replace("-", MINUS)


def is_shown(panel: Panel, level: Level) -> bool:
    """True where a level lies within 1.5 times the range of the data; one further off would flatten the curves."""
    values = [y for series in panel.series for y in series.y]
    low, high = min(values), max(values)
    reach = 1.5 * (high - low) or max(1.0, abs(high))
    return low - reach <= level.y <= high + reach


def draw(panel: Panel) -> str:
    """Draw a panel. Returns: an SVG element. Raises: ValueError if there is no point to draw."""
    from matplotlib import rc_context
    from matplotlib.ticker import LogLocator, MaxNLocator

    values = [y for series in panel.series for y in series.y if y > 0 or not panel.log]
    if not values:
        raise ValueError(f"{panel.title}: a chart needs a point")
    floor = max(1e-5 * max(values), 1.0 / _LARGEST) if panel.log else -_LARGEST
    with rc_context(_SETTINGS):
        figure, axes = _figure(_WIDTH, _HEIGHT, (46, 20, 264, 136))
        for series in panel.series:
            _plot(axes, series, floor)
        for number, level in enumerate(panel.levels, start=1):
            if is_shown(panel, level):
                axes.axhline(level.y, linewidth=1.4, **_line_style(f"level{number}"))
        axes.margins(0, 0.06)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        if panel.log:
            axes.set_yscale("log")
            # Powers of ten; within two of them, 1, 2 and 5 times these.
            subs = (1.0,) if max(values) > 100 * max(floor, min(values)) else (1.0, 2.0, 5.0)
            axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=6))
        if panel.from_zero:
            axes.set_ylim(bottom=0.0)
        axes.minorticks_off()
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: _tick(value))
        axes.grid(axis="y", color=_colour("rule"), linewidth=1)
        axes.spines[["left", "right", "top"]].set_visible(False)
        axes.set_xlabel(panel.x_label, loc="right")
        axes.set_title(panel.y_label, loc="left")
        return _svg(figure, "panel", f"{panel.title}: {panel.y_label} over {panel.x_label}")


def _plot(axes: "Axes", series: Series, floor: float) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    x, y = np.asarray(series.x, np.float64), np.clip(series.y, floor, _LARGEST)
    if series.style != "dots" and len(x) > 1:
        axes.plot(x, y, linewidth=1.8, **_line_style(series.style))
        return
    # A path of lines of length 0 with round ends takes a fifth of the bytes of markers; one line for each 1/300 of both
    # ranges. It is a patch, because matplotlib leaves out such parts of a curve.
    steps = [np.round(300 * (z - z.min()) / (np.ptp(z) or 1.0)) for z in (x, y)]
    first = np.sort(np.unique(np.stack(steps), axis=1, return_index=True)[1])
    path = Path(np.repeat(np.stack([x, y], axis=1)[first], 2, axis=0), [Path.MOVETO, Path.LINETO] * len(first))
    path.should_simplify = False
    size, alpha = (3.0, 0.75) if series.style == "dots" else (6.0, 1.0)
    colour = _colour(STYLES[series.style][0])
    axes.add_patch(PathPatch(path, fill=False, color=colour, linewidth=size, alpha=alpha, capstyle="round"))


def _line_style(style: str) -> dict[str, Any]:
    variable, dashes = STYLES[style]
    return {"color": _colour(variable), "linestyle": (0, dashes) if dashes else "-"}


def _tick(value: float) -> str:
    """2k, 1.5M, 0.05."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.6g}{letter}".replace("-", MINUS)
    return f"{value:.6g}".replace("-", MINUS)


# Matrices ------------------------------------------------------------------------------------------------------------


def heat_map(rows: Sequence[str], columns: Sequence[str], value: Floats, *, x_label: str, title: str) -> str:
    """Draw a matrix [rows, columns] of shares from 0 (blank) to 1 (full). Returns: an SVG element."""
    from matplotlib import rc_context

    cell, left = _cell(len(columns)), _margin(rows)
    width, height = cell * len(columns), min(cell, 26) * len(rows)
    with rc_context(_SETTINGS):
        figure, axes = _figure(left + width + 8, height + 42, (left, 36, width, height))
        _cells(axes, rows, columns, value)
        axes.set_title(x_label, loc="left")
        return _svg(figure, "matrix", title)


def similarity_map(names: Sequence[str], module: Sequence[int], cosine: Floats) -> str:
    """Draw cosines [K, K] under a dendrogram (average linkage of 1 - cosine), tasks of one module framed together.

    Rows and columns are in the order of the dendrogram's leaves. Returns: an SVG element. Raises: ValueError if K < 2.
    """
    from matplotlib import rc_context

    order, x, height = tree(cosine)
    rows = [f"{place} {names[k]}  m{module[k]}" for place, k in enumerate(order, start=1)]
    left, side = _margin(rows), _cell(len(names)) * len(names)
    with rc_context(_SETTINGS):
        figure, axes = _figure(left + side + 8, side + 138, (left, 132, side, side))
        _cells(axes, rows, [str(place) for place in range(1, len(rows) + 1)], cosine[np.ix_(order, order)])
        ordered = np.array(module)[order]
        same = np.pad(ordered[:, None] == ordered, 1)
        i, j = np.nonzero(same[1:, 1:-1] != same[:-1, 1:-1])
        axes.hlines(i, j, j + 1, color=_colour("ink"), linewidth=2.5)
        i, j = np.nonzero(same[1:-1, 1:] != same[1:-1, :-1])
        axes.vlines(j, i, i + 1, color=_colour("ink"), linewidth=2.5)
        above = _axes(figure, (left, 26, side, 80))
        above.plot(x.T, height.T, color=_colour("soft"), linewidth=1.4)
        above.set(xlim=(0, len(names)), ylim=(0, height.max() or 1.0), xticks=[], yticks=[0.0, height.max()])
        above.yaxis.set_major_formatter(lambda value, _: f"{value:.2f}")
        above.spines[["right", "top", "bottom"]].set_visible(False)
        above.set_title(f"distance, 1 {MINUS} cosine", loc="left")
        return _svg(figure, "matrix", "similarity of the tasks")


def tree(cosine: Floats) -> tuple[list[int], Floats, Floats]:
    """Average linkage of 1 - cosine [K, K].

    Returns: the leaves in order; the corners of the K - 1 links, x [K - 1, 4] (the first leaf is at 0.5) and height
        [K - 1, 4].
    Raises: ValueError if K < 2.
    """
    from scipy.cluster.hierarchy import dendrogram, linkage
    from scipy.spatial.distance import squareform

    if len(cosine) < 2:
        raise ValueError(f"a dendrogram needs two tasks, got {len(cosine)}")
    distance = np.clip(1.0 - (cosine + cosine.T) / 2.0, 0.0, None)
    np.fill_diagonal(distance, 0.0)
    drawn = dendrogram(linkage(squareform(distance, checks=False), "average"), no_plot=True)
    # scipy puts the leaves at 5, 15, 25, ...
    return [int(k) for k in drawn["leaves"]], np.array(drawn["icoord"]) / 10.0, np.array(drawn["dcoord"])


def _cells(axes: "Axes", rows: Sequence[str], columns: Sequence[str], value: Floats) -> None:
    """One cell per number: blue above 0, orange below, the more opaque the larger; the number where there is room."""
    from matplotlib.colors import to_rgba

    mesh = axes.pcolormesh(value, edgecolor=_colour("rule"), linewidth=1)
    mesh.set_array(None)
    mesh.set_facecolor([to_rgba(_colour("above" if v >= 0 else "below"), min(1.0, abs(v))) for v in value.flat])
    for (i, j), v in np.ndenumerate(value):
        if len(columns) <= _MOST_NUMBERS and v:
            axes.text(j + 0.5, i + 0.5, f"{v:.2f}".replace("-", MINUS), ha="center", va="center", color=_colour("ink"))
    every = 1 if max(map(len, columns)) * _LETTER < _cell(len(columns)) else 2
    axes.set_xticks(np.arange(0, len(columns), every) + 0.5, columns[::every])
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows, color=_colour("ink"))
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)


def _cell(num_columns: int) -> int:
    return _CELL if num_columns <= _MOST_NUMBERS else _SMALL_CELL


def _margin(names: Sequence[str]) -> int:
    """Room for the names of the rows, CSS pixels."""
    return round(14 + _LETTER * max(40 / _LETTER, *map(len, names)))


# SVG -----------------------------------------------------------------------------------------------------------------


def _figure(width: int, height: int, place: tuple[int, int, int, int]) -> tuple["Figure", "Axes"]:
    """A figure of CSS pixels with axes at `place`: left, top, width, height."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72))
    figure.patch.set_visible(False)
    return figure, _axes(figure, place)


def _axes(figure: "Figure", place: tuple[int, int, int, int]) -> "Axes":
    (width, height), (left, top, wide, high) = 72 * figure.get_size_inches(), place
    axes: Axes = figure.add_axes((left / width, 1 - (top + high) / height, wide / width, high / height))
    axes.patch.set_visible(False)
    return axes


def _svg(figure: "Figure", kind: str, title: str) -> str:
    """The figure as an SVG element of class `kind`: no addresses, no fonts, no ids but those of tick marks."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    # Behind a style sheet that would apply to the whole page.
    _, _, body = buffer.getvalue().rpartition("</svg>")[0].partition("</style>\n </defs>")
    assert body, "matplotlib writes its style sheet first"
    body = re.sub(r"<defs>\s*<clipPath.*?</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r' id="(?!m[0-9a-f]{10}")[^"]*"| clip-path="[^"]*"| transform="rotate\(-0 [^"]*"', "", body)
    body = body.replace(" font-family: 'DejaVu Sans';", "")
    body = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d)\d+", r"\1", path[0].replace("\n", "")), body)
    body = re.sub(r"((?:fill|stroke): )#0000(\d\d)", lambda c: f"{c[1]}var(--{_VARIABLES[int(c[2]) - 1]})", body)
    body = re.sub(r">\s+<", "><", body)
    width, height = (round(72 * inches) for inches in figure.get_size_inches())
    size = f'viewBox="0 0 {width} {height}"' + ("" if kind == "panel" else f' width="{width}" height="{height}"')
    return f'<svg class="{kind}" {size} role="img" aria-label="{escape(title)}">{body}</svg>'
