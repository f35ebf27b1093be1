"""The layout of encoded actions, and what a TaskSpec accepts."""

import dataclasses
import json

import numpy as np
import pytest

from mow.envs.base import ActionLayout, TaskSpec, spec_differences


def spec(name: str, discrete: bool, legal: tuple[bool, ...]) -> TaskSpec:
    return TaskSpec(name, discrete, len(legal), legal, frame_skip=1, protocol="test")


THREE = spec("test:three", True, (True, False, True))
TWO = spec("test:two", True, (True, True))
BOX = spec("test:box", False, (True, True))
LINE = spec("test:line", False, (True,))


def test_layout_by_hand() -> None:
    layout = ActionLayout.from_tasks([TWO, BOX, THREE, LINE])
    assert (layout.num_discrete, layout.num_continuous, layout.size) == (3, 2, 5)
    assert layout.discrete.tolist() == [True, False, True, False]
    assert layout.discrete_mask.tolist() == [
        [True, True, False],
        [False, False, False],
        [True, False, True],
        [False, False, False],
    ]
    assert layout.continuous_mask.tolist() == [[False, False], [True, True], [False, False], [True, False]]


def test_decode_by_hand() -> None:
    layout = ActionLayout.from_tasks([TWO, BOX, THREE, LINE])
    assert layout.decode(0, np.array([0, 1, 0, 0, 0], np.float32)) == 1
    assert layout.decode(2, np.array([0, 0, 1, 0, 0], np.float32)) == 2
    box = layout.decode(1, np.array([0, 0, 0, -0.25, 1], np.float32))
    assert isinstance(box, np.ndarray)
    assert box.dtype == np.float32
    assert box.tolist() == [-0.25, 1.0]
    line = layout.decode(3, np.array([0, 0, 0, 0.5, 0], np.float32))
    assert isinstance(line, np.ndarray)
    assert line.tolist() == [0.5]


@pytest.mark.parametrize(
    ("k", "vector", "message"),
    [
        (2, [0, 1, 0, 0, 0], "action 1 is illegal"),
        (0, [0, 0, 1, 0, 0], "action 2 is illegal"),
        (0, [0, 0, 0, 0, 0], "one marked action"),
        (0, [1, 1, 0, 0, 0], "one marked action"),
        (0, [np.nan, np.nan, np.nan, 0, 0], "one marked action"),
        (1, [0, 0, 0, 1.5, 0], r"lie in \[-1, 1\]"),
        (1, [0, 0, 0, np.nan, 0], r"lie in \[-1, 1\]"),
        (0, [1, 0], "has shape"),
    ],
)
def test_decode_refuses(k: int, vector: list[float], message: str) -> None:
    layout = ActionLayout.from_tasks([TWO, BOX, THREE, LINE])
    with pytest.raises(ValueError, match=message):
        layout.decode(k, np.array(vector, np.float32))


def test_random_is_legal_and_uniform() -> None:
    layout = ActionLayout.from_tasks([TWO, BOX, THREE, LINE])
    rng = np.random.default_rng(0)
    draws = np.stack([layout.random(rng) for _ in range(2000)])  # [2000, 4, 5]
    assert draws.dtype == np.float32
    for k in range(4):
        for draw in draws[:50]:
            layout.decode(k, draw[k])
    # A fair share of 2000 draws over 2 actions has a standard deviation of 0.011; 0.05 is over four of them.
    assert np.allclose(draws[:, 0].mean(axis=0), [0.5, 0.5, 0, 0, 0], atol=0.05)
    assert np.allclose(draws[:, 2].mean(axis=0), [0.5, 0, 0.5, 0, 0], atol=0.05)
    # The mean of 2000 uniform draws on [-1, 1] has a standard deviation of 0.013, their spread is 0.577.
    assert np.allclose(draws[:, 1].mean(axis=0), 0.0, atol=0.06)
    assert np.allclose(draws[:, 1, 3:].std(axis=0), 0.577, atol=0.03)
    assert (draws[:, 3, 4] == 0).all()


def test_layouts_of_one_kind_have_no_other_block() -> None:
    rng = np.random.default_rng(0)
    assert ActionLayout.from_tasks([TWO]).random(rng).shape == (1, 2)
    assert ActionLayout.from_tasks([BOX, LINE]).random(rng).shape == (2, 2)


def test_specs_refuse_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="expected 3 bools"):
        TaskSpec("test:short", True, 3, (True, True), 1, "test")
    with pytest.raises(ValueError, match="one True or more"):
        spec("test:none", True, (False, False))
    with pytest.raises(ValueError, match="all True if continuous"):
        spec("test:hole", False, (True, False))
    with pytest.raises(ValueError, match="got none"):
        ActionLayout.from_tasks([])


def test_specs_go_through_json() -> None:
    for one in (THREE, BOX):
        assert TaskSpec(**json.loads(json.dumps(dataclasses.asdict(one)))) == one


def test_differences_of_specs_name_task_field_and_both_values() -> None:
    assert spec_differences([TWO, BOX, THREE], [THREE, TWO, BOX]) == ()
    cases = {
        "test:two: num_actions 2 -> 3": [spec("test:two", True, (True,) * 3), BOX],
        "test:two: legal [0, 1] -> [0]": [spec("test:two", True, (True, False)), BOX],
        "test:two: discrete True -> False": [spec("test:two", False, (True, True)), BOX],
        "test:box: frame_skip 1 -> 4": [TWO, dataclasses.replace(BOX, frame_skip=4)],
        "test:box: protocol 'test' -> 'other'": [TWO, dataclasses.replace(BOX, protocol="other")],
        "test:box: missing now": [TWO],
        "test:line: added": [TWO, BOX, LINE],
    }
    for line, now in cases.items():
        assert spec_differences([TWO, BOX], now) == (line,)
