"""Shades, frames and branches lie where they must; so do the frames of a film."""

import base64
import re

import cv2
import numpy as np
import pytest

from mow.report.charts import MINUS
from mow.report.data import Film
from mow.report.film import column_x, draw_film, picture
from mow.report.matrix import CELL, ROW, heat_map, outline, similarity_map, tree

# Two tasks alike and, in between, one that is not.
COSINE = np.array([[1.0, -0.5, 0.9], [-0.5, 1.0, -0.3], [0.9, -0.3, 1.0]])


def cells(svg):
    """(x, y, class, opacity, title) of every cell."""
    found = re.findall(
        r'<rect class="cell (\w+)" x="([\d.]+)" y="([\d.]+)"[^>]*fill-opacity:([\d.]+)"><title>([^<]*)<', svg
    )
    return [(float(x), float(y), kind, float(opacity), title) for kind, x, y, opacity, title in found]


def test_a_heat_map():
    share = np.array([[0.0, 1.0, 0.0], [0.25, 0.0, 0.75]])
    svg = heat_map(["a", "b"], ["0", "1", "2"], share, column_name="expert", marks=[0, 1])
    found = cells(svg)
    assert [opacity for _, _, _, opacity, _ in found] == [0.0, 1.0, 0.0, 0.25, 0.0, 0.75]
    assert found[5][4] == "b, expert 2: 0.75"
    (x0, y0), (x5, y5) = found[0][:2], found[5][:2]
    assert (x5 - x0, y5 - y0) == (2 * CELL, ROW)
    # Blank cells have no number.
    assert re.findall(r'text-anchor="middle">([\d.]+)</text>', svg) == ["0", "1", "2", "1.00", "0.25", "0.75"]
    assert re.findall(r">(m\d)<", svg) == ["m0", "m1"]


def test_a_tree_by_hand():
    order, links = tree(COSINE)
    assert set(order[:2]) == {0, 2} or set(order[1:]) == {0, 2}
    heights = sorted(float(height.max()) for _, height in links)
    # 1 - 0.9, then the mean of 1.5 and 1.3.
    assert heights == pytest.approx([0.1, 1.4])
    (pair,) = (x for x, height in links if height.max() < 1.0)
    assert sorted({order[int(x)] for x in pair}) == [0, 2]
    with pytest.raises(ValueError, match="needs two tasks"):
        tree(np.ones((1, 1)))


def test_a_similarity_map_is_in_the_order_of_the_leaves():
    svg = similarity_map(["a", "b", "c"], [0, 1, 0], COSINE)
    order, _ = tree(COSINE)
    names = ["a", "b", "c"]
    found = cells(svg)
    for place, (x, y, kind, opacity, title) in enumerate(found):
        i, j = divmod(place, 3)
        value = COSINE[order[i], order[j]]
        assert title == f"{names[order[i]]}, {names[order[j]]}: {value:.2f}"
        assert (kind, opacity) == ("above" if value >= 0 else "below", abs(value))
        assert (x - found[0][0], y - found[0][1]) == (j * CELL, i * CELL)
    assert re.findall(r">(\d [abc])<", svg) == [f"{n + 1} {names[k]}" for n, k in enumerate(order)]


def test_an_outline_by_hand():
    # Modules 0, 0, 1: a square of two by two and one of one by one: 8 + 4 sides.
    sides = re.findall(r"M([\d.]+) ([\d.]+)([hv])10", outline([0, 0, 1], 100, 200, 10))
    assert len(sides) == 12
    assert ("100", "200", "h") in sides
    assert ("120", "220", "v") in sides
    assert ("110", "210", "h") not in sides


def test_many_tasks_have_no_numbers_in_cells_and_no_overlapping_column_names():
    rng = np.random.default_rng(0)
    unit = rng.normal(size=(50, 8))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    svg = similarity_map([f"task {k}" for k in range(50)], [k % 5 for k in range(50)], unit @ unit.T)
    assert len(cells(svg)) == 2500
    assert f"{MINUS}0." not in re.sub(r"<title>[^<]*</title>", "", svg)


def test_columns_by_hand():
    assert [column_x(column, 2) for column in range(4)] == [0, 68, 146, 214]


def test_a_picture_of_frames():
    frames = np.zeros((3, 64, 64, 3), np.uint8)
    frames[0, :, :, 0], frames[2, :, :, 2] = 200, 100
    data = picture(frames, np.array([True, False, True]), 1)
    row = cv2.imdecode(
        np.frombuffer(base64.b64decode(data.removeprefix("data:image/png;base64,")), np.uint8), cv2.IMREAD_UNCHANGED
    )
    assert row.shape == (64, column_x(2, 1) + 64, 4)
    assert row[10, 0].tolist() == [0, 0, 200, 255]  # blue, green, red, opacity
    assert row[10, column_x(1, 1) + 5].tolist() == [0, 0, 0, 0]
    assert row[63, column_x(2, 1)].tolist() == [100, 0, 0, 255]
    assert row[10, 64].tolist() == [0, 0, 0, 0]


def film(**errors):
    return Film("data:,", "data:,", 4, 2, (3,), (), errors, 8)


def test_errors_stand_below_their_columns():
    svg = draw_film("a", film(imagined=(0.1, 0.2), repeated=(0.0, float("nan"))))
    (line,) = re.findall(r'<path class="line s2" d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', svg)
    first, last = float(line[0]), float(line[2])
    steps = dict(re.findall(r'<text class="tick" x="([\d.]+)" y="14.0" text-anchor="middle">([^<]+)<', svg))
    assert steps[f"{first:.1f}"] == "1"
    assert steps[f"{last:.1f}"] == "2"
    # Twice the error is twice as high above 0.
    (zero,) = re.findall(r'<path class="dot s4" d="M[\d.]+ ([\d.]+)h0"', svg)
    assert float(zero) - float(line[3]) == pytest.approx(2 * (float(zero) - float(line[1])), abs=0.2)
    assert svg.count('class="end"') == 1


def test_a_film_without_an_imagined_frame_says_so():
    assert "ended before the first imagined step" in draw_film("a", film(imagined=(float("nan"),)))
