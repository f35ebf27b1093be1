"""Charts of a report: what is drawn, and how it stands in the page."""

import base64
import re
import subprocess
import sys

import numpy as np
import pytest

from mow.report.charts import STYLES, Series, _tick, chart, curves, image, legend, matrix, similarity_matrix
from mow.report.html import digits

# Two tasks alike and, in between, one that is not.
COSINE = np.array([[1.0, -0.5, 0.9], [-0.5, 1.0, -0.3], [0.9, -0.3, 1.0]])


def drawn(*series, **how):
    (axes,) = curves("steps", "return", series, **how).axes
    return axes


def svg_of(html):
    (data,) = re.findall(r'<img class="chart" src="data:image/svg\+xml;base64,([^"]*)"', html)
    return base64.b64decode(data).decode()


def test_curves_and_points_are_the_numbers():
    axes = drawn(Series((0.0, 5.0, 10.0), (0.0, 1.0, 0.5)), Series((1.0, 2.0), (3.0, 4.0), "dots"))
    line, dots = axes.lines
    assert line.get_xydata().tolist() == [[0.0, 0.0], [5.0, 1.0], [10.0, 0.5]]
    assert dots.get_xydata().tolist() == [[1.0, 3.0], [2.0, 4.0]]
    assert (line.get_linestyle(), dots.get_linestyle(), dots.get_marker()) == ("-", "None", ".")
    assert drawn(Series((3.0,), (2.0,))).lines[0].get_marker() == ".", "a point has no line"
    assert (axes.get_xlabel(), axes.get_title("left")) == ("steps", "return")


def test_a_level_is_drawn_unless_it_is_far_off():
    curve = Series((0.0, 10.0), (0.0, 1.0))
    assert [line.get_ydata()[0] for line in drawn(curve, levels=(2.0, -1.0)).lines[1:]] == [2.0, -1.0]
    assert len(drawn(curve, levels=(3.0,)).lines) == 1


def test_styles_differ_in_colour_or_dashes():
    assert len({STYLES[f"s{i}"] for i in range(1, 7)}) == 6
    assert legend([("s2", "a < b")]) == (
        '<ul class="legend"><li><i style="border-top: 3px dashed #d55e00"></i>a &lt; b</li></ul>'
    )


def test_axes_from_zero_and_logarithmic_ones():
    assert drawn(Series((0.0, 1.0), (5.0, 10.0)), from_zero=True).get_ylim()[0] == 0.0
    axes = drawn(Series((0.0, 1.0, 2.0, 3.0), (1000.0, 1e-4, 0.0, 0.02)), log=True)
    assert axes.get_yscale() == "log"
    assert axes.lines[0].get_ydata() == pytest.approx([1000.0, 0.01, 0.01, 0.02]), "what is tiny is drawn at the floor"


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("y", [(-1.7e308, 1.7e308), (1e300, 1e300), (1e-300, 2e-300), (5.0, 5.0 + 1e-12), (0, 5e-324)])
def test_any_finite_numbers_are_drawn(y, log):
    assert "<path" in svg_of(chart("a", "x", "y", [Series((0.0, 1.0), y)], log=log))


@pytest.mark.parametrize("series", [[], [Series((), ())]])
def test_a_chart_needs_a_point(series):
    with pytest.raises(ValueError, match="a chart of y needs a point"):
        curves("x", "y", series)
    with pytest.raises(ValueError, match="needs a point"):
        curves("x", "y", [Series((0.0,), (0.0,))], log=True)


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (-0.5, "-0.5"), (0.05, "0.05"), (2000.0, "2k"), (1.5e6, "1.5M"), (800.0, "800")]
)
def test_ticks_are_short(value, text):
    assert _tick(value).replace("\N{MINUS SIGN}", "-") == text


def test_a_chart_stands_in_the_page_under_its_name():
    html = chart('"><script>', "steps", "<b>", [Series((0.0, 1.0), (1.0, 2.0))], "last: 2")
    assert "<script>" not in html
    assert 'alt="&quot;&gt;&lt;script&gt;: &lt;b&gt; over steps"' in html
    assert '<p class="note">last: 2</p>' in html
    assert html == chart('"><script>', "steps", "<b>", [Series((0.0, 1.0), (1.0, 2.0))], "last: 2"), "same bytes"


def test_thousands_of_points_are_pixels():
    x = np.arange(5000.0)
    assert len(chart("a", "x", "y", [Series(x, x % 7, "dots")])) < 60_000


def cells_of(axes):
    """[rows, columns] of the drawn matrix, and the texts in its cells."""
    (mesh,) = axes.collections
    return mesh.get_array(), [text.get_text() for text in axes.texts]


def test_a_matrix_by_hand():
    share = np.array([[0.0, 1.0, 0.0], [0.25, 0.0, 0.75]])
    (axes,) = matrix(["a  m0", "$b$  m1"], ["0", "1", "2"], share).axes
    value, texts = cells_of(axes)
    assert (value == share).all()
    assert texts == ["1.00", "0.25", "0.75"], "blank cells have no number"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a  m0", "$b$  m1"]
    assert axes.yaxis_inverted()
    assert "$b$" in svg_of(image(matrix(["$b$"], ["0"], np.ones((1, 1))), "x")), "no mathematics in names"


def test_a_similarity_matrix_is_in_the_order_of_the_leaves():
    axes, tree = similarity_matrix(["a", "b", "c"], COSINE).axes
    order = [label.get_text()[2:] for label in axes.get_yticklabels()]
    assert "".join(order) in ("acb", "cab", "bac", "bca"), "the two that are alike stand side by side"
    at = ["abc".index(name) for name in order]
    assert (cells_of(axes)[0] == COSINE[np.ix_(at, at)]).all()
    # 1 - 0.9, then the mean of 1.5 and 1.3.
    heights = sorted(np.max([path.vertices[:, 1].max() for path in c.get_paths()]) for c in tree.collections)
    assert heights[-1] == pytest.approx(1.4)


def test_many_tasks_have_no_numbers_in_their_cells():
    unit = np.random.default_rng(0).normal(size=(30, 8))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    value, texts = cells_of(similarity_matrix([f"task {k}" for k in range(30)], unit @ unit.T).axes[0])
    assert (value.size, texts) == (900, [])


def test_matplotlib_is_loaded_with_the_first_chart():
    code = "import sys, mow.report.__main__, mow.train; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), (float("nan"), "-"), (0.0, "0.00"), (-0.778, "-0.78"), (9.6933, "9.69"), (13.84, "13.84"),
        (99.96, "100"), (227.8, "228"), (69571.3, "69,571"), (0.0621, "0.062"), (0.00011, "0.00011"), (3, "3"),
    ],
)  # fmt: skip
def test_digits(value, text):
    assert digits(value) == text
