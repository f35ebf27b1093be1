"""mow envs: what it lists, what it draws, what it refuses."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from mow import envs
from mow.envs.__main__ import frame_after, listing, main, protocols
from mow.envs.task_sets import TINY5

needs_opencv = pytest.mark.skipif(find_spec("cv2") is None, reason="draws with OpenCV")


def test_it_lists_suites_tasks_and_sets_and_loads_no_simulator() -> None:
    code = """
import sys
from mow.envs.__main__ import main
assert main([]) == 0
assert not {"torch", "gymnasium", "ale_py", "cv2", "mujoco", "PIL"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = listing()
    assert done.stdout.strip() == text
    for name in (*envs.task_names(), *envs.SUITES, *envs.SETS):
        assert name in text, name
    assert "tiny:pole    2 discrete actions, at most 100 steps" in text
    assert "atari26 (26): atari:Alien" in text
    assert max(map(len, text.splitlines())) <= 120


def test_a_missing_simulator_has_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mow.envs.__main__.find_spec", lambda name: None if name == "ale_py" else object())
    lines = listing().splitlines()
    assert f"atari: not installed, ale_py missing: {envs.SUITES['atari'].remedy}" in lines
    assert "tiny: installed" in lines


def test_every_suite_has_its_protocol(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--protocol"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows == protocols().splitlines()
    assert len({row.count("|") for row in rows}) == 1
    assert any(row.startswith("| action repeat | 4 frames") for row in rows)


@needs_opencv
def test_the_sheet_shows_every_task_under_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import cv2

    out = tmp_path / "out.png"
    assert main(["--preview", "tiny5", "dummy:count", "tiny:goal", str(out), "--steps", "3", "--seed", "1"]) == 0
    assert capsys.readouterr().out == f"6 tasks after 3 random steps: {out}\n"
    sheet = cv2.imread(str(out))[..., ::-1]
    where = []
    for task in (*TINY5, "dummy:count"):
        frame = frame_after(task, num_steps=3, seed=1).repeat(2, axis=0).repeat(2, axis=1)
        windows = np.lib.stride_tricks.sliding_window_view(sheet[..., 0], frame.shape[:2])
        corners = [tuple(at) for at in np.argwhere((windows[..., 0, :] == frame[0, :, 0]).all(axis=-1)).tolist()]
        (found,) = [(y, x) for y, x in corners if np.array_equal(sheet[y : y + 128, x : x + 128], frame)]
        where.append(found)
        title = sheet[found[0] - 16 : found[0], found[1] : found[1] + 128]
        assert (title < 128).any(), f"no title above {task}"
    assert where == sorted(where)  # in the order of the names, row by row


@needs_opencv
def test_a_black_picture_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mow.envs.dummy.draw_counter", lambda *_: np.zeros((64, 64, 3), np.uint8))
    assert main(["--preview", "dummy:count", str(tmp_path / "out.png")]) == 0
    assert "dummy:count shows nothing but one colour after 60 steps\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--preview", "atari27", "OUT.png"], "unknown task 'atari27' (suites: atari, "),
        (["--preview", "atari:Pnog", "OUT.png"], "did you mean atari:Pong, "),
        (["--preview", "OUT.png"], "--preview needs names and then a .png in an existing folder"),
        (["--preview", "tiny5"], "--preview needs names and then a .png"),
        (["--preview", "tiny5", "nowhere/out.png"], "--preview needs names and then a .png in an existing folder"),
        (["--preview", "tiny5", "OUT.jpg"], "--preview needs names and then a .png"),
        (["--steps", "-1"], "--steps must be 0 or more, got -1"),
        (["--seed", "x"], "invalid int value: 'x'; --help lists the arguments"),
        (["atari"], "unrecognized arguments: atari; --help lists the arguments"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert main([word.replace("OUT", str(tmp_path / "out")) for word in arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("mow envs: ")
    assert says in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
