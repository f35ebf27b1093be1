"""A number lands on the pixel where it must."""

import re

import pytest

from mow.report.charts import (
    MINUS,
    Axis,
    Level,
    Panel,
    Series,
    digits,
    draw,
    is_shown,
    round_ticks,
    running_mean,
    thin,
    tick_labels,
)


def panel(*series: Series, **changes: object) -> Panel:
    return Panel("a task", "steps", "return", series, **changes)


def paths(svg: str, kind: str) -> list[list[tuple[float, float]]]:
    """Points of all paths of a class."""
    found = re.findall(rf'<path class="{kind}" d="([^"]*)"', svg)
    return [[(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", path)] for path in found]


def test_an_axis_by_hand():
    axis = Axis(0.0, 10.0, 46.0, 310.0)
    assert [axis.pixel(value) for value in (0.0, 5.0, 10.0)] == [46.0, 178.0, 310.0]
    assert axis.pixel(-3.0) == 46.0  # what lies outside lies on the edge
    assert axis.pixel(11.0) == 310.0
    upwards = Axis(-1.0, 1.0, 150.0, 20.0)
    assert upwards.pixel(0.5) == pytest.approx(52.5)


def test_a_logarithmic_axis_by_hand():
    axis = Axis(0.01, 100.0, 100.0, 0.0, log=True)
    assert [axis.pixel(value) for value in (0.01, 1.0, 10.0)] == pytest.approx([100.0, 50.0, 25.0])
    assert axis.pixel(0.0) == 100.0
    assert axis.ticks() == pytest.approx([0.01, 0.1, 1.0, 10.0, 100.0])
    # No two powers of ten: their parts.
    assert Axis(1.5, 9.0, 0.0, 1.0, log=True).ticks() == [2.0, 5.0]
    assert Axis(2.2, 4.8, 0.0, 1.0, log=True).ticks() == [2.5, 3.0, 3.5, 4.0, 4.5]  # no 1, 2 or 5 in it


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 7000.0, [0.0, 2000.0, 4000.0, 6000.0]),
        (-1.0, 1.0, [-1.0, -0.5, 0.0, 0.5, 1.0]),
        (0.11, 0.29, [0.15, 0.2, 0.25]),
        (1050.0, 1400.0, [1100.0, 1200.0, 1300.0, 1400.0]),
    ],
)
def test_ticks_are_round(low, high, ticks):
    assert round_ticks(low, high) == pytest.approx(ticks)


def test_a_line_lands_where_it_must():
    (line,) = paths(draw(panel(Series("mean", (0.0, 5.0, 10.0), (0.0, 1.0, 0.5), 1))), "line s1")
    # x: 46 to 310. y: 156 up to 20 for -0.06 to 1.06.
    height = 136.0 / 1.12
    want = [(46.0, 156.0 - 0.06 * height), (178.0, 156.0 - 1.06 * height), (310.0, 156.0 - 0.56 * height)]
    assert [x for x, _ in line] == [x for x, _ in want]
    assert [y for _, y in line] == pytest.approx([y for _, y in want], abs=0.05)


def test_a_level_stretches_the_axis_unless_it_is_far_off():
    curve = Series("mean", (0.0, 10.0), (0.0, 1.0), 1)
    near, far = panel(curve, levels=(Level("expert", 2.0),)), panel(curve, levels=(Level("expert", 3.0),))
    assert is_shown(near, near.levels[0])
    assert not is_shown(far, far.levels[0])
    (y,) = re.findall(r'level level1" d="M46 ([\d.]+)H310', draw(near))
    assert float(y) == pytest.approx(156.0 - 136.0 * 2.12 / 2.24, abs=0.05)
    assert "level1" not in draw(far)
    assert paths(draw(far), "line s1")[0][1][1] == pytest.approx(156.0 - 136.0 * 1.06 / 1.12, abs=0.05)


def test_from_zero():
    (line,) = paths(draw(panel(Series("rate", (0.0, 1.0), (5.0, 10.0), 1), from_zero=True)), "line s1")
    assert line[0][1] == pytest.approx(156.0 - 136.0 * 5.0 / 10.6, abs=0.05)


def test_on_a_logarithmic_panel_what_is_tiny_lies_on_the_edge():
    svg = draw(panel(Series("loss", (0.0, 1.0, 2.0), (1000.0, 1e-4, 0.0), 2), log=True))
    (line,) = paths(svg, "line s2")
    assert line[1][1] == line[2][1] == 156.0
    assert line[0][1] > 20.0


def test_dots_on_one_pixel_are_one_dot():
    svg = draw(panel(Series("episode", (0.0, 1e-4, 10.0), (0.0, 0.0, 1.0), 6, "dots")))
    assert len(paths(svg, "dots s6")[0]) == 2


def test_a_point_and_a_constant_are_drawn_too():
    (dot,) = paths(draw(panel(Series("mean", (3.0,), (2.0,), 1))), "dot s1")
    assert dot == [(178.0, 88.0)]  # in the middle of a range around it
    (line,) = paths(draw(panel(Series("mean", (0.0, 1.0), (0.0, 0.0), 1))), "line s1")
    assert {y for _, y in line} == {88.0}
    with pytest.raises(ValueError, match="a chart needs a point"):
        draw(panel(Series("mean", (), (), 1)))


def test_thin_keeps_what_can_be_seen():
    column = [(1.0, 5.0), (1.1, 9.0), (1.2, 4.0), (1.3, 1.0), (1.4, 6.0), (1.5, 5.0)]
    assert thin([(0.5, 0.0), *column, (2.0, 3.0)]) == [
        (0.5, 0.0), (1.0, 5.0), (1.1, 9.0), (1.3, 1.0), (1.5, 5.0), (2.0, 3.0),
    ]  # fmt: skip
    assert len(thin([(i / 1000.0, float(i % 7)) for i in range(10_000)])) <= 40


def test_a_running_mean_by_hand():
    assert running_mean([1.0, 3.0, 8.0, 1.0], 2) == [1.0, 2.0, 5.5, 4.5]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), (float("nan"), "-"), (0.0, "0.00"), (-0.778, "-0.78"), (9.6933, "9.69"),
        (9.9999999, "10.0"), (13.84, "13.8"), (99.96, "100"), (999.7, "1,000"),
        (227.8, "228"), (69571.3, "69,571"), (0.0621, "0.062"), (0.00011, "1.1e-4"),
    ],
)  # fmt: skip
def test_digits(value, text):
    assert digits(value) == text.replace("-", MINUS if text != "-" else "-")


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0.3 - 0.1 - 0.2, 500.0, 2000.0, 1.5e6], ["0", "500", "2k", "1.5M"]),
        ([-0.5, 0.05, 1e-5], ["-0.5", "0.05", "1e-5"]),
        ([1.3685, 1.369, 1.3695], ["1.3685", "1.369", "1.3695"]),
        ([100_010.0, 100_020.0], ["100.01k", "100.02k"]),
    ],
)
def test_tick_labels(values, texts):
    assert tick_labels(values) == [text.replace("-", MINUS) for text in texts]


def test_names_are_escaped():
    svg = draw(Panel('"><script>', "<b>", "&", (Series("x", (0.0,), (1.0,), 1),)))
    assert "<script>" not in svg
    assert "<b>" not in svg
    assert "&lt;b&gt;" in svg
