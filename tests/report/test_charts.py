"""Panels as they stand in the page: points, ticks, colours."""

import re
import subprocess
import sys

import numpy as np
import pytest

from mow.report.charts import MINUS, Level, Panel, Series, digits, draw, is_shown

# Of the axes in a panel, CSS pixels.
LEFT, RIGHT, TOP, BOTTOM = 46, 310, 20, 156


def panel(*series, **changes):
    return Panel("a task", "steps", "return", series, **changes)


def paths(svg, colour):
    """Points of all paths of a colour."""
    found = re.findall(rf'<path d="([^"]*)" style="[^"]*stroke: var\(--{colour}\)', svg)
    return [[(float(x), float(y)) for x, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path)] for path in found]


def texts(svg):
    return re.findall(r"<text [^>]*>([^<]*)</text>", svg)


def test_a_line_lands_where_it_must():
    (line,) = paths(draw(panel(Series((0.0, 5.0, 10.0), (0.0, 1.0, 0.5)))), "s1")
    # The y axis runs from -0.06 to 1.06.
    height = (BOTTOM - TOP) / 1.12
    want = [(LEFT, BOTTOM - 0.06 * height), (178, BOTTOM - 1.06 * height), (RIGHT, BOTTOM - 0.56 * height)]
    assert np.array(line) == pytest.approx(np.array(want), abs=0.1)  # paths are written with one decimal


def test_a_level_stretches_the_axis_unless_it_is_far_off():
    curve = Series((0.0, 10.0), (0.0, 1.0))
    near, far = panel(curve, levels=(Level("expert", 2.0),)), panel(curve, levels=(Level("expert", 3.0),))
    assert is_shown(near, near.levels[0])
    assert not is_shown(far, far.levels[0])
    (level,) = [line for line in paths(draw(near), "soft") if line[0][1] == line[1][1] < BOTTOM]
    assert level[0][1] == pytest.approx(BOTTOM - (BOTTOM - TOP) * 2.12 / 2.24, abs=0.1)
    assert paths(draw(far), "s1")[0][1][1] == pytest.approx(BOTTOM - (BOTTOM - TOP) * 1.06 / 1.12, abs=0.1)
    assert "stroke-dasharray" not in draw(far)


def test_styles_differ_in_colour_and_dashes():
    curves = [Series((0.0, 1.0), (float(i), i + 1.0), f"s{i}") for i in range(1, 6)]
    svg = draw(panel(*curves))
    dashes = [re.search(rf'style="([^"]*)stroke: var\(--s{i}\)', svg)[1] for i in range(1, 6)]
    assert len(set(dashes)) == 5


def test_from_zero():
    (line,) = paths(draw(panel(Series((0.0, 1.0), (5.0, 10.0)), from_zero=True)), "s1")
    high = 10.0 + 0.06 * 5.0  # the margin is a share of the data's range
    assert line[0][1] == pytest.approx(BOTTOM - (BOTTOM - TOP) * 5.0 / high, abs=0.1)


def test_on_a_logarithmic_panel_what_is_tiny_is_drawn_at_the_floor():
    svg = draw(panel(Series((0.0, 1.0, 2.0, 3.0), (1000.0, 1e-4, 0.0, 0.01), "s2"), log=True))
    (line,) = paths(svg, "s2")
    assert TOP < line[0][1] < line[1][1] == line[2][1] == line[3][1] < BOTTOM
    assert {"1k", "0.1"} & set(texts(svg))
    assert len(texts(draw(panel(Series((0.0, 1.0), (2.2, 4.8)), log=True)))) >= 6  # ticks though no power of ten


@pytest.mark.parametrize("number", [10, 3000])
def test_dots_on_one_pixel_are_one_dot(number):
    x = np.arange(number, dtype=float)
    (dots,) = paths(draw(panel(Series(x, x % 7, "dots"), Series(x, x % 7))), "s6")
    assert len(dots) == 2 * len({(round(300 * a / x[-1]), round(50 * (a % 7))) for a in x})
    assert dots[::2] == dots[1::2]  # each a line of length 0
    assert (dots[0][0], dots[-1][0]) == (LEFT, RIGHT)


def test_a_long_curve_is_thinned():
    x = np.arange(20_000.0)
    (line,) = paths(draw(panel(Series(x, x % 7))), "s1")
    assert len(line) < 4000
    assert {y for _, y in line} >= {min(y for _, y in line), max(y for _, y in line)}


def test_a_point_and_a_constant_are_drawn_too():
    (dot,) = paths(draw(panel(Series((3.0,), (2.0,)))), "s1")
    assert dot == [(178.0, 88.0)] * 2  # in the middle of a range around it
    (line,) = paths(draw(panel(Series((0.0, 1.0), (0.0, 0.0)))), "s1")
    assert {y for _, y in line} == {88.0}
    with pytest.raises(ValueError, match="a chart needs a point"):
        draw(panel(Series((), ())))


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("y", [(-1.7e308, 1.7e308), (1e300, 1e300), (1e-300, 2e-300), (5.0, 5.0 + 1e-12), (0, 5e-324)])
def test_any_finite_numbers_are_drawn(y, log):
    (line,) = paths(draw(panel(Series((0.0, 1.0), y), log=log)), "s1")
    assert [x for x, _ in line] == [LEFT, RIGHT]


@pytest.mark.parametrize(
    ("y", "ticks"),
    [
        ((0.0, 7000.0), ["0", "2k", "4k", "6k"]),
        ((-1.0, 1.0), [f"{MINUS}1", f"{MINUS}0.5", "0", "0.5", "1"]),
        ((0.11, 0.29), ["0.1", "0.15", "0.2", "0.25", "0.3"]),
        ((1.5e6, 3e6), ["1.5M", "2M", "2.5M", "3M"]),
        ((100_010.0, 100_020.0), ["100.01k", "100.015k", "100.02k"]),
    ],
)
def test_ticks_are_round_and_short(y, ticks):
    assert texts(draw(panel(Series((0.0, 1.0), y))))[-1 - len(ticks) : -1] == ticks


def test_a_chart_has_a_name_a_size_and_no_addresses():
    svg = draw(panel(Series((0.0, 1.0), (0.0, 1.0))))
    assert svg.startswith('<svg class="panel" viewBox="0 0 320 190" role="img" aria-label="a task: return over steps">')
    assert not re.search(r"https?:|url\(|font-family|#0000", svg)
    assert texts(svg)[-1] == "return"
    assert "steps" in texts(svg)


def test_the_same_panel_gives_the_same_bytes():
    one = panel(Series((0.0, 1.0, 2.0), (0.0, 1.0, 4.0)), levels=(Level("expert", 2.0),))
    assert draw(one) == draw(one)
    assert re.findall(r'id="([^"]*)"', draw(one)) == re.findall(r'<use xlink:href="#([^"]*)" x="46"', draw(one))


def test_names_are_escaped_and_no_mathematics():
    svg = draw(Panel('"><script>', "$x^2$", "<b> & $", (Series((0.0,), (1.0,)),)))
    assert "<script>" not in svg
    assert texts(svg)[-1] == "&lt;b&gt; &amp; $"
    assert "$x^2$" in texts(svg)


def test_matplotlib_is_loaded_with_the_first_chart():
    code = "import sys, mow.report.__main__, mow.train; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), (float("nan"), "-"), (0.0, "0.00"), (-0.778, "-0.78"), (9.6933, "9.69"),
        (9.9999999, "10.0"), (13.84, "13.8"), (99.96, "100"), (999.7, "1,000"),
        (227.8, "228"), (69571.3, "69,571"), (0.0621, "0.062"), (0.00011, "0.00011"),
    ],
)  # fmt: skip
def test_digits(value, text):
    assert digits(value) == text.replace("-", MINUS if text != "-" else "-")
