"""Cells, frames and branches of the matrices lie where they must."""

import re

import numpy as np
import pytest

from mow.report.charts import MINUS, heat_map, similarity_map, tree
from tests.report.test_charts import paths, texts

# Two tasks alike and, in between, one that is not.
COSINE = np.array([[1.0, -0.5, 0.9], [-0.5, 1.0, -0.3], [0.9, -0.3, 1.0]])


def cells(svg):
    """(x, y, colour, opacity) of every cell."""
    found = re.findall(r'd="M ([\d.]+) ([\d.]+) [^"]*" style="fill: ([^"]*); stroke: var\(--rule\)', svg)
    fill = re.compile(r"(?:var\(--(?P<colour>\w+)\)(?:; fill-opacity: (?P<opacity>[\d.]+))?|none)")
    return [
        (float(x), float(y), m["colour"], float(m["opacity"] or bool(m["colour"])))
        for x, y, m in ((x, y, fill.fullmatch(text)) for x, y, text in found)
    ]


def test_a_heat_map():
    share = np.array([[0.0, 1.0, 0.0], [0.25, 0.0, 0.75]])
    svg = heat_map(["a  m0", "b  m1"], ["0", "1", "2"], share, x_label="expert", title="use")
    assert 'class="matrix" viewBox="0 0 ' in svg
    assert 'aria-label="use"' in svg
    found = cells(svg)
    assert [opacity for _, _, _, opacity in found] == [0.0, 1.0, 0.0, 0.25, 0.0, 0.75]
    (x0, y0), (x5, y5) = found[0][:2], found[5][:2]
    assert (x5 - x0, y5 - y0) == (2 * 40, 26)
    # Blank cells have no number.
    assert texts(svg) == ["0", "1", "2", "a  m0", "b  m1", "1.00", "0.25", "0.75", "expert"]


def test_a_tree_by_hand():
    order, x, height = tree(COSINE)
    assert set(order[:2]) == {0, 2} or set(order[1:]) == {0, 2}
    # 1 - 0.9, then the mean of 1.5 and 1.3.
    assert sorted(height.max(axis=1)) == pytest.approx([0.1, 1.4])
    pair = x[height.max(axis=1).argmin()]
    assert sorted({order[int(place)] for place in pair}) == [0, 2]
    with pytest.raises(ValueError, match="needs two tasks"):
        tree(np.ones((1, 1)))


def test_a_similarity_map_is_in_the_order_of_the_leaves():
    svg = similarity_map(["a", "b", "c"], [0, 1, 0], COSINE)
    order, _, _ = tree(COSINE)
    found = cells(svg)
    ordered = COSINE[np.ix_(order, order)]
    assert [opacity for *_, opacity in found] == np.abs(ordered).ravel().tolist()
    assert [colour for _, _, colour, _ in found] == ["above" if v >= 0 else "below" for v in ordered.flat]
    for place, (x, y, _, _) in enumerate(found):
        i, j = divmod(place, 3)
        assert (x - found[0][0], y - found[0][1]) == (j * 40, i * 40)
    rows = [f"{n + 1} {'abc'[k]}  m{[0, 1, 0][k]}" for n, k in enumerate(order)]
    assert texts(svg)[:6] == ["1", "2", "3", *rows]
    assert f"{MINUS}0.50" in texts(svg)
    assert "1.40" in texts(svg)  # the highest link


def test_modules_are_framed():
    # Modules 0, 0, 1 in some order: a square of two by two and one of one by one, 8 + 4 sides.
    lines = paths(similarity_map(["a", "b", "c"], [0, 1, 0], COSINE), "ink")
    assert len(lines) == 12
    assert all(abs(x0 - x1) + abs(y0 - y1) == 40 for (x0, y0), (x1, y1) in lines)


def test_many_tasks_have_no_numbers_in_cells_and_no_overlapping_column_names():
    rng = np.random.default_rng(0)
    unit = rng.normal(size=(30, 8))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    svg = similarity_map([f"task {k}" for k in range(30)], [k % 5 for k in range(30)], unit @ unit.T)
    assert len(cells(svg)) == 900
    assert f"{MINUS}0." not in svg
    assert texts(heat_map(["a"], [str(k) for k in range(100, 130)], np.ones((1, 30)), x_label="x", title="x"))[:15] == [
        str(k) for k in range(100, 130, 2)
    ]
