"""Charts of a report, drawn by matplotlib and put into the page as SVG images that need no network."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mow.report import html

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

# Style of a series or a level -> (colour of Okabe and Ito, dashes); dashes help readers who do not see the colours.
STYLES = {
    "s1": ("#0072b2", "solid"), "s2": ("#d55e00", "dashed"), "s3": ("#007a5a", "dotted"), "s4": ("#a8457f", "solid"),
    "s5": ("#8a6d00", "dashed"), "s6": ("#6fa8cf", "dotted"), "dots": ("#6fa8cf", "dotted"),
    "level1": ("#57606a", "dashed"), "level2": ("#57606a", "dotted"),
}  # fmt: skip
_GREY = "#57606a"
_MOST_NUMBERS = 12  # columns of a matrix up to which its numbers are written into the cells
_LARGEST = 1e300  # sums of larger numbers overflow in matplotlib


@dataclass(frozen=True)
class Series:
    """A curve, or a cloud of points in the style dots."""

    x: Sequence[float]
    y: Sequence[float]
    style: str = "s1"  # one of STYLES


def image(figure: "Figure", text: str) -> str:
    """A figure as an <img> element. Args: text: description for readers who do not see the picture."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "mow"}):
        figure.savefig(buffer, format="svg", transparent=True, dpi=150, metadata={"Date": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img class="chart" src="data:image/svg+xml;base64,{data}" alt="{escape(text)}">'


def chart(title: str, x_label: str, y_label: str, series: Sequence[Series], detail: str = "", **how: Any) -> str:
    """The HTML of `curves`, under a title and a line of detail. Args: how: levels, log and from_zero of `curves`."""
    text = f"{title}: {y_label} over {x_label}"
    return html.figure(title, image(curves(x_label, y_label, series, **how), text), detail)


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """An HTML list. Args: entries: (style of STYLES, meaning)."""
    items = (
        f'<li><i style="border-top: 3px {STYLES[style][1]} {STYLES[style][0]}"></i>{escape(text)}</li>'
        for style, text in entries
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def curves(
    x_label: str,
    y_label: str,
    series: Sequence[Series],
    levels: Sequence[float] = (),
    *,
    log: bool = False,
    from_zero: bool = False,
) -> "Figure":
    """Draw one pair of axes.

    Args:
        levels: horizontal lines to compare with, in the styles level1, level2; one that is further from the data than
            1.5 times their range would flatten the curves and is left out.
        log: logarithmic y axis; values below a hundred-thousandth of the largest are drawn at that value.
        from_zero: the y axis begins at 0.
    Raises: ValueError if there is no point to draw, or none above 0 where `log` is set.
    """
    from matplotlib.figure import Figure

    values = np.concatenate([np.asarray(one.y, np.float64) for one in series] or [np.empty(0)])
    if not values.size or (log and values.max() <= 0):
        raise ValueError(f"a chart of {y_label} needs a point")
    floor = max(1e-5 * values.max(), 1.0 / _LARGEST) if log else -_LARGEST
    values = values.clip(floor, _LARGEST)
    figure = Figure(figsize=(4.0, 2.4))
    axes = figure.add_axes((0.14, 0.18, 0.83, 0.71))
    for one in series:
        colour, dashes = STYLES[one.style]
        y = np.clip(one.y, floor, _LARGEST)
        if one.style == "dots" or len(y) == 1:  # thousands of points: as pixels inside the SVG
            axes.plot(one.x, y, ".", color=colour, alpha=0.75, markersize=4, rasterized=True)
        else:
            axes.plot(one.x, y, color=colour, linestyle=dashes, linewidth=1.6)
    reach = 1.5 * np.ptp(values) or max(1.0, abs(values.max()))
    for number, level in enumerate(levels, start=1):
        if values.min() - reach <= level <= values.max() + reach:
            colour, dashes = STYLES[f"level{number}"]
            axes.axhline(level, color=colour, linestyle=dashes, linewidth=1.2)
    axes.margins(0.01, 0.06)
    axes.xaxis.set_major_formatter(lambda x, _: _tick(x))
    if log:
        axes.set_yscale("log")
        decades = np.log10(values.max()) - np.log10(values.min())
        labelled = "123456789" if decades < 1 else "25" if decades < 2 else ""
        axes.yaxis.set_minor_formatter(lambda y, _: _tick(y) if f"{y:e}"[0] in labelled else "")
    axes.yaxis.set_major_formatter(lambda y, _: _tick(y))
    if from_zero:
        axes.set_ylim(bottom=0.0)
    axes.grid(axis="y", color="#d6dbe1")
    _plain(axes, x_label)
    axes.set_title(y_label, loc="left", fontsize=8, color=_GREY)
    return figure


def bars(values: Mapping[str, Sequence[float]], label: str) -> "Figure":
    """Draw the means of numbers as horizontal bars under their names, the last one in another colour.

    A whisker shows the standard deviation of several numbers. Args: label: of the numbers.
    """
    from matplotlib.figure import Figure

    high = 0.5 + 0.45 * len(values)  # inches
    figure = Figure(figsize=(4.0, high))
    axes = figure.add_axes((0.02, 0.4 / high, 0.84, 1 - 0.45 / high))
    for y, (name, numbers) in enumerate(values.items()):
        mean, spread = np.mean(numbers).clip(-_LARGEST, _LARGEST), np.std(numbers) if len(numbers) > 1 else None
        colour = STYLES["s1" if y == len(values) - 1 else "s6"][0]
        axes.barh(y, mean, 0.4, color=colour, xerr=spread, error_kw={"ecolor": _GREY, "capsize": 3})
        style: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "fontsize": 8, "parse_math": False}
        axes.text(0.01, y - 0.22, name, color=_GREY, va="bottom", **style)
        axes.text(1.02, y, html.digits(float(mean)), va="center", **style)
    axes.axvline(0.0, color=_GREY, linewidth=0.8)
    axes.set_ylim(len(values) - 0.6, -0.8)
    axes.set_yticks([])
    axes.set_axisbelow(True)
    axes.grid(axis="x", color="#d6dbe1")
    axes.xaxis.set_major_formatter(lambda x, _: _tick(x))
    _plain(axes, label)
    return figure


def _plain(axes: "Axes", x_label: str) -> None:
    """No frame, small grey numbers, the name of the x axis at its right end."""
    axes.tick_params(which="both", labelsize=8, colors=_GREY)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(x_label, loc="right", fontsize=8, color=_GREY)


def _tick(value: float) -> str:
    """2k, 1.5M, 0.05."""
    from matplotlib.ticker import EngFormatter

    return str(EngFormatter(sep="")(value)) if abs(value) >= 1000 else f"{value:.6g}"


def matrix(rows: Sequence[str], columns: Sequence[str], value: Floats) -> "Figure":
    """Draw numbers [rows, columns] in [-1, 1] as cells: blue above 0, red below, blank at 0."""
    figure, axes = _matrix_figure(rows, len(columns), above=0.25)
    _cells(axes, rows, columns, value)
    return figure


def similarity_matrix(names: Sequence[str], cosine: Floats) -> "Figure":
    """Draw cosines [K, K] under a dendrogram (average linkage of 1 - cosine), in the order of its leaves; K >= 2."""
    from scipy.cluster.hierarchy import dendrogram, linkage
    from scipy.spatial.distance import squareform

    distance = np.clip(1.0 - (cosine + cosine.T) / 2.0, 0.0, None)
    np.fill_diagonal(distance, 0.0)
    links = linkage(squareform(distance, checks=False), "average")
    figure, axes = _matrix_figure(names, len(names), above=1.3)
    left, _, width, _ = axes.get_position().bounds
    tree = figure.add_axes((left, 1 - 1.0 / figure.get_figheight(), width, 0.8 / figure.get_figheight()))
    order = dendrogram(links, ax=tree, no_labels=True, color_threshold=0.0, above_threshold_color=_GREY)["leaves"]
    tree.spines[["right", "top", "bottom"]].set_visible(False)
    tree.set_title("distance, 1 - cosine", loc="left", fontsize=8, color=_GREY)
    tree.tick_params(labelsize=8, colors=_GREY)
    places = [str(place) for place in range(1, len(names) + 1)]
    rows = [f"{place} {names[k]}" for place, k in zip(places, order, strict=True)]
    _cells(axes, rows, places, cosine[np.ix_(order, order)])
    return figure


def _matrix_figure(rows: Sequence[str], num_columns: int, above: float) -> tuple["Figure", "Axes"]:
    """A figure with axes for cells. Args: above: inches over the cells that stay free."""
    from matplotlib.figure import Figure

    cell = 0.5 if num_columns <= _MOST_NUMBERS else 0.25
    left = 0.4 + 0.07 * max(map(len, rows))  # room for the names of the rows, inches
    width, height = cell * num_columns, min(cell, 0.35) * len(rows)
    wide, high = left + width + 0.1, height + above + 0.1
    figure = Figure(figsize=(wide, high))
    return figure, figure.add_axes((left / wide, 0.1 / high, width / wide, height / high))


def _cells(axes: "Axes", rows: Sequence[str], columns: Sequence[str], value: Floats) -> None:
    axes.pcolormesh(value, cmap="RdBu", vmin=-1.0, vmax=1.0, edgecolor="#d6dbe1", linewidth=0.5)
    for (i, j), v in np.ndenumerate(value):
        if len(columns) <= _MOST_NUMBERS and v:
            colour = "white" if abs(v) > 0.6 else "black"
            axes.text(j + 0.5, i + 0.5, f"{v:.2f}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns, fontsize=8)
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows, fontsize=8, parse_math=False)
    axes.tick_params(length=0, labeltop=True, labelbottom=False, colors=_GREY)
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
