"""Line charts as SVG: a panel with axes, lines, dots and levels to compare with.

Numbers become pixels here and nowhere else. Colours are classes (s1 to s6) that the page's style sheet fills, so that a
chart follows the reader's light or dark mode; every colour has a dash of its own, for those who tell colours apart
badly.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

WIDTH, HEIGHT = 320, 190  # of a panel, pixels before the page scales it
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 20, 34  # margins of the plot in it

MINUS = "\N{MINUS SIGN}"  # as wide as a plus, unlike the hyphen

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: int  # 1 to 6
    kind: Literal["line", "dots"] = "line"


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare with."""

    name: str
    y: float


@dataclass(frozen=True)
class Panel:
    title: str  # for those who hear the page
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    levels: tuple[Level, ...] = ()
    log: bool = False  # of y; then what lies below a hundred-thousandth of the largest value is drawn at the lower edge
    from_zero: bool = False  # y begins at 0


@dataclass(frozen=True)
class Axis:
    """A range of numbers on a range of pixels."""

    low: float
    high: float
    start: float  # pixel of `low`
    end: float
    log: bool = False

    def pixel(self, value: float) -> float:
        """Where a number lies; those outside lie on the edge."""
        low, high = self.low, self.high
        value = min(max(value, low), high)
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round numbers within the range."""
        if self.log:
            return _decades(self.low, self.high)
        return round_ticks(self.low, self.high)

    def labels(self) -> list[tuple[float, str]]:
        """The ticks, each with its text."""
        ticks = self.ticks()
        return list(zip(ticks, tick_labels(ticks), strict=True))


def round_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most `most` multiples of 1, 2 or 5 times a power of ten from low to high."""
    size = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (size, 2 * size, 5 * size, 10 * size, 20 * size):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= most:
            break
    return [n * step for n in range(first, last + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten from low to high; where there are too few 1, 2 and 5 times these, or any round numbers."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = max(1, math.ceil(len(powers) / 6))
    found = [10.0**p for p in powers if p % every == 0 and low <= 10.0**p <= high]
    if len(found) >= 2:
        return found
    finer = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    return finer if len(finer) >= 2 else round_ticks(low, high)


def digits(value: float | None) -> str:
    """A number with the digits that a reader can use; - for none."""
    if value is None or not math.isfinite(value):
        return "-"
    size = abs(value)
    if size >= 999.5:
        text = f"{value:,.0f}"
    elif size >= 99.95:
        text = f"{value:.0f}"
    elif size >= 9.995:
        text = f"{value:.1f}"
    elif size >= 0.1 or size == 0:
        text = f"{value:.2f}"
    elif size >= 0.001:
        text = f"{value:.2g}"
    else:
        text = f"{value:.1e}".replace("e-0", "e-")
    return text.replace("-", MINUS)


def tick_labels(values: Sequence[float]) -> list[str]:
    """Short texts, with as many digits as keep them apart: 2k, 1.5M, 0.05, 1e-5."""
    precision = 4
    while len({_tick_label(value, precision) for value in values}) < len(values) and precision < 12:
        precision += 1
    return [_tick_label(value, precision) for value in values]


def _tick_label(value: float, precision: int) -> str:
    size = abs(value)
    if size < 1e-12:
        return "0"
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= unit:
            return f"{value / unit:.{precision}g}{letter}".replace("-", MINUS)
    text = f"{value:.{precision}g}" if size >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")
    return text.replace("-", MINUS)


def tick_text(x: float, y: float, text: str, anchor: Literal["middle", "end"]) -> str:
    """A number beside an axis; `anchor` says which part of it stands at x."""
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def draw(panel: Panel) -> str:
    """The panel as an SVG element. Raises: ValueError if no series has a point."""
    xs = [x for series in panel.series for x in series.x]
    ys = [y for series in panel.series for y in series.y if not panel.log or y > 0]
    if not xs or not ys:
        raise ValueError(f"{panel.title}: a chart needs a point")
    x_axis = Axis(*_spread(min(xs), max(xs), 0.0), LEFT, WIDTH - RIGHT)
    y_axis, levels = _y_axis(panel, ys)
    parts = [
        f'<svg class="panel" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(panel.title)}">',
        *_frame(x_axis, y_axis, panel),
        *(_level(y_axis, i, level) for i, level in levels),
        *(_series(x_axis, y_axis, series) for series in panel.series),
        "</svg>",
    ]
    return "".join(parts)


def is_shown(panel: Panel, level: Level) -> bool:
    """Whether a level is near enough to the data to be drawn: one far off would press the curve flat."""
    ys = [y for series in panel.series for y in series.y]
    low, high = min(ys), max(ys)
    reach = 1.5 * (high - low) if high > low else max(1.0, abs(high))
    return low - reach <= level.y <= high + reach


def _y_axis(panel: Panel, ys: list[float]) -> tuple[Axis, list[tuple[int, Level]]]:
    low, high = min(ys), max(ys)
    shown = [(i, level) for i, level in enumerate(panel.levels) if is_shown(panel, level)]
    low, high = min([low, *(level.y for _, level in shown)]), max([high, *(level.y for _, level in shown)])
    if panel.log:
        low = max(low, high * 1e-5)
        low, high = (low / 1.2, high * 1.2) if high > low else (low / 2.0, high * 2.0)
        return Axis(low, high, HEIGHT - BOTTOM, TOP, log=True), shown
    low, high = _spread(0.0 if panel.from_zero else low, high, 0.06)
    if panel.from_zero:
        low = 0.0
    return Axis(low, high, HEIGHT - BOTTOM, TOP), shown


def _spread(low: float, high: float, share: float) -> tuple[float, float]:
    """The range and a share of it more on each side; where it is a point, a range around it."""
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
        reach = 0.5 * abs(low) or 0.5
        return low - reach, high + reach
    return low - share * (high - low), high + share * (high - low)


def _frame(x_axis: Axis, y_axis: Axis, panel: Panel) -> list[str]:
    """Grid, ticks and the names of the axes."""
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for value, text in y_axis.labels():
        y = y_axis.pixel(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>')
        parts.append(tick_text(LEFT - 5, y + 3.5, text, "end"))
    for value, text in x_axis.labels():
        x = x_axis.pixel(value)
        parts.append(f'<path class="axis" d="M{x:.1f} {bottom}v4"/>')
        # A label in the middle of the last tick would hang over the edge.
        last = x > right - 8
        parts.append(tick_text(WIDTH - 1 if last else x, bottom + 15, text, "end" if last else "middle"))
    parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{right}"/>')
    parts.append(f'<text class="label" x="{right}" y="{HEIGHT - 4}" text-anchor="end">{escape(panel.x_label)}</text>')
    parts.append(f'<text class="label" x="2" y="11">{escape(panel.y_label)}</text>')
    return parts


def _level(y_axis: Axis, index: int, level: Level) -> str:
    return f'<path class="level level{index + 1}" d="M{LEFT} {y_axis.pixel(level.y):.1f}H{WIDTH - RIGHT}"/>'


def _series(x_axis: Axis, y_axis: Axis, series: Series) -> str:
    # On a logarithmic axis 0 lies below all and is drawn at the edge, like all that is too small.
    points = [(x_axis.pixel(x), y_axis.pixel(y)) for x, y in zip(series.x, series.y, strict=True)]
    if series.kind == "dots" or len(points) == 1:
        places = dict.fromkeys((round(x), round(y)) for x, y in points)  # what falls on one pixel is one dot
        dots = "".join(f"M{x} {y}h0" for x, y in places)
        return f'<path class="{"dots" if series.kind == "dots" else "dot"} s{series.style}" d="{dots}"/>'
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in thin(points))
    return f'<path class="line s{series.style}" d="M{path}"/>'


def thin(points: Sequence[Point]) -> list[Point]:
    """Of the points in each column of pixels the first, the lowest, the highest and the last: it looks the same."""
    kept: list[Point] = []
    column: list[Point] = []
    for point in [*points, (math.inf, 0.0)]:
        if column and (math.isinf(point[0]) or int(point[0]) != int(column[0][0])):
            ends = {0, len(column) - 1}
            ends |= {min(range(len(column)), key=lambda i: column[i][1])}
            ends |= {max(range(len(column)), key=lambda i: column[i][1])}
            kept += [column[i] for i in sorted(ends)]
            column = []
        column.append(point)
    return kept


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of each value and the window - 1 before it; fewer at the beginning."""
    means, total = [], 0.0
    for i, value in enumerate(values):
        total += value - (values[i - window] if i >= window else 0.0)
        means.append(total / min(i + 1, window))
    return means
