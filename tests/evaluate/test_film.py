"""The command, from a run folder to picture and numbers."""

import json
import shutil
import signal
import sys

import cv2
import numpy as np
import pytest
import torch

from mow import train
from mow.envs.dummy import read_counter
from mow.envs.vector import SerialVectorEnv
from mow.evaluate.film import main, read_arguments, summary, table
from mow.evaluate.film_strip import COLUMN, ROW, Film, draw_film, strip
from mow.evaluate.held_out import HeldOutWindows
from mow.evaluate.open_loop import OpenLoopErrors, OpenLoopPrediction, predict_open_loop
from mow.methods.mow.presets import quickstart
from mow.runs.checkpoint import save_checkpoint
from mow.runs.restore import newest_checkpoint
from tests.small import transitions
from tests.test_train import DUMMY

TASKS = ("dummy:slide", "dummy:count-0", "dummy:count-1", "dummy:count-2")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run of seconds whose learner has sorted its tasks."""
    folder = tmp_path_factory.mktemp("film") / "run"
    tasks = ["--clustering.method", "random", "--clustering.num-modules", "2", "--tasks", *TASKS]
    settings = ["--seed", "2", "--evaluation-episodes", "0"]
    assert train.main(["quickstart", *DUMMY, *tasks, *settings, "--folder", str(folder)]) == 0
    return folder


@pytest.fixture
def copied(run_folder, tmp_path):
    return shutil.copytree(run_folder, tmp_path / "run")


@pytest.fixture(scope="module")
def filmed(run_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "strips.png"
    assert main([str(run_folder), "--out", str(out), "--windows", "3", "--device", "cpu"]) == 0
    return out


def content(run_folder):
    return torch.load(newest_checkpoint(run_folder), weights_only=True)


def test_the_learner_of_this_run_has_sorted_its_tasks(run_folder):
    # This order is not its own inverse, so that a mix-up of the two directions would show below.
    assert content(run_folder)["learner"]["grouping"]["order"] == [0, 3, 1, 2]
    assert content(run_folder)["tasks"] == [TASKS[0], TASKS[3], TASKS[1], TASKS[2]]


def test_the_picture_holds_the_real_frames(run_folder, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("mow.evaluate.film_strip.strip", lambda *how: drawn.append(strip(*how)) or drawn[-1])
    assert main([str(run_folder), "--out", str(tmp_path / "a.png"), "--windows", "3", "--device", "cpu"]) == 0
    for (picture, _), variant in zip(drawn, (9, 0, 1, 2), strict=True):  # in the order of the config
        lengths, ends = [], []
        assert picture.shape == (2 * ROW, 18 * COLUMN, 3)
        for column in range(18):
            x = column * COLUMN
            if (picture[66:70, x : x + 64] == (205, 30, 30)).all():
                ends.append(column)
            frame = picture[:64, x : x + 64]
            if (frame == 255).all():
                assert (picture[ROW : ROW + 64, x : x + 64] == 255).all()
                continue
            shown_variant, _, step = read_counter(frame)
            assert (shown_variant, step) == (variant, column)
            lengths.append(column)
        # Episodes of the counting environment last 7 to 13 steps; the strip goes from the first frame to the final one.
        assert lengths == list(range(len(lengths)))
        assert 8 <= len(lengths) <= 14
        # Even variants lose a life in the step to frame 4 and terminate; odd ones are cut by a time limit.
        assert ends == ([] if variant % 2 else [4, len(lengths) - 1])


def test_the_numbers_beside_it(filmed, run_folder, capsys):
    numbers = json.loads(filmed.with_suffix(".json").read_text())
    assert list(numbers["tasks"]) == list(TASKS)
    assert numbers["step"] == 20
    assert numbers["checkpoint"].endswith("step_00000020.pt")
    assert {name: numbers[name] for name in ("policy", "context", "steps", "windows", "seed")} == {
        "policy": "agent", "context": 2, "steps": 16, "windows": 3, "seed": 1000,
    }  # fmt: skip
    for task, found in numbers["tasks"].items():
        assert list(found["ahead"]) == ["1", "4", "8", "16"]
        assert found["ahead"]["1"]["windows"] == found["ahead"]["4"]["windows"] == 3
        # No episode has 18 frames.
        assert found["ahead"]["16"] == {"imagined": None, "reconstructed": None, "repeated": None, "windows": 0}
        assert found["ahead"]["1"]["imagined"] > 0
        # The longest window's ending is one of the imagined steps; even variants and lost lives terminate.
        assert (found["real_terminations"] > 0) == (task in ("dummy:count-0", "dummy:count-2"))
        # Three whole episodes: all their steps but the one before the first imagined one.
        assert 3 * 6 <= found["steps"] <= 3 * 12
        assert 0 <= found["termination_agreement"] <= 1
    # One step of counting changes few blocks and the repeated frame's error grows with them: never 0.
    assert all(found["ahead"]["1"]["repeated"] > 0 for found in numbers["tasks"].values())


def test_the_same_command_gives_the_same_film(filmed, run_folder, tmp_path, capsys):
    out = tmp_path / "again.png"
    before = {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()}
    assert main([str(run_folder), "--out", str(out), "--windows", "3"]) == 0
    assert out.read_bytes() == filmed.read_bytes()
    assert out.with_suffix(".json").read_text() == filmed.with_suffix(".json").read_text()
    assert {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()} == before
    said = capsys.readouterr().out
    assert "steps ahead" in said
    assert f"film: {out}" in said


def test_it_draws_as_cold_as_the_run_imagined(copied, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "mow.evaluate.film_strip.predict_open_loop", lambda *_, **how: asked.append(how) or predict_open_loop(*_, **how)
    )
    assert main([str(copied), "--steps", "1", "--windows", "1"]) == 0
    assert asked == [{"temperature": quickstart().imagination.temperature}]
    assert asked[0]["temperature"] != 1.0


def test_by_default_it_lies_in_the_run_folder(copied):
    assert main([str(copied), "--policy", "random", "--context", "1", "--steps", "3", "--windows", "1"]) == 0
    assert list(json.loads((copied / "film.json").read_text())["tasks"]["dummy:slide"]["ahead"]) == ["1", "3"]
    assert cv2.imread(str(copied / "film.png")) is not None


def test_another_checkpoint_and_the_newest(copied):
    (path,) = (copied / "checkpoints").glob("step_*.pt")
    older = path.with_name("step_00000003.pt")
    state = torch.load(path, weights_only=True)
    save_checkpoint(older, {**state, "step": 3})
    assert newest_checkpoint(copied) == path
    assert main([str(copied), "--checkpoint", str(older), "--steps", "2", "--windows", "1"]) == 0
    assert json.loads((copied / "film.json").read_text())["step"] == 3


def mistake(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("mow film: ")
    return error.removeprefix("mow film: ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--steps", "63"], "--context 2 and --steps 63 exceed the model's 64 positions: take at most 64 together"),
        (["--steps", "0"], "--steps must be 1 or more, got 0"),
        (["--context", "0"], "--context must be 1 or more, got 0"),
        (["--windows", "x"], "argument --windows: invalid int value: 'x'"),
        (["--seed", "-1"], "--seed must be 0 or more, got -1"),
        (["--seed", "2"], "--seed 2 is that of the run"),
        (["--policy", "expert"], "argument --policy: invalid choice: 'expert'"),
        (["--step", "3"], "unrecognized arguments: --step 3"),
        (["--device", "cuda:77"], "no cuda:77 here"),
        (["--device", "tpu9"], "unknown device 'tpu9'"),
        (["--checkpoint", "nowhere.pt"], "nowhere.pt cannot be read (No such file or directory): name another"),
        (
            ["--context", "14", "--windows", "1"],
            "dummy:slide, dummy:count-2, dummy:count-0, dummy:count-1: expected 1 windows of 15 steps or more",
        ),
        (["--out", "nowhere/film.png"], "--out nowhere/film.png must be a .png in an existing folder"),
        (["--out", "film.jpg"], "--out film.jpg must be a .png"),
        (["--out", "config.png"], "--out config.png must be a .png in an existing folder and not config"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(arguments, says, run_folder, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert mistake(capsys, run_folder, *arguments).startswith(says)
    assert list(tmp_path.iterdir()) == []


def test_folders_that_are_no_run(capsys, copied, tmp_path):
    assert mistake(capsys, tmp_path / "gone").startswith(f"no folder {tmp_path / 'gone'}: name a run folder")
    assert "config.json cannot be read (No such file" in mistake(capsys, tmp_path)
    shutil.rmtree(copied / "checkpoints")
    assert "has no checkpoints/step_*.pt" in mistake(capsys, copied)
    assert "the following arguments are required: RUN_FOLDER" in mistake(capsys)


def test_a_broken_checkpoint(capsys, copied):
    path = newest_checkpoint(copied)
    path.write_bytes(path.read_bytes()[:-1])
    assert f"{path} is damaged or cut short, or not a checkpoint of this version" in mistake(capsys, copied)


def test_checkpoints_of_something_else(capsys, copied, monkeypatch):
    path = newest_checkpoint(copied)
    state = torch.load(path, weights_only=True)
    with monkeypatch.context() as patch:
        patch.setattr("mow.runs.checkpoint.FORMAT", 99)
        save_checkpoint(path, state)
    assert "has format 99, this version reads 9" in mistake(capsys, copied)
    learner = dict(state["learner"])
    del learner["agent"]
    save_checkpoint(path, {**state, "learner": learner})
    assert "does not fit the run's config.json (KeyError)" in mistake(capsys, copied)
    save_checkpoint(path, state)
    config = json.loads((copied / "config.json").read_text())
    config["model"]["width"] = 32
    (copied / "config.json").write_text(json.dumps(config))
    assert "does not fit the run's config.json (RuntimeError)" in mistake(capsys, copied)


def test_a_missing_simulator_names_the_remedy(capsys, copied, monkeypatch):
    monkeypatch.delitem(sys.modules, "mow.envs.atari", raising=False)
    monkeypatch.setitem(sys.modules, "ale_py", None)
    config = json.loads((copied / "config.json").read_text())
    config["tasks"] = ["atari:Pong", *config["tasks"][1:]]
    (copied / "config.json").write_text(json.dumps(config))
    assert "pip install" in mistake(capsys, copied)


def test_a_run_that_was_stopped_before_its_tasks_were_grouped(tmp_path, monkeypatch):
    from mow.methods.mow.learner import Learner
    from mow.runs.signals import Stopped

    def stop(*_):
        raise Stopped

    monkeypatch.setattr(Learner, "group", stop)
    folder = tmp_path / "run"
    assert train.main(["quickstart", *DUMMY, "--folder", str(folder)]) == 0
    assert content(folder)["learner"]["grouping"] is None
    assert main([str(folder), "--steps", "2", "--windows", "1"]) == 0


def test_help_lists_the_arguments(capsys):
    with pytest.raises(SystemExit) as stopped:
        read_arguments(["--help"])
    assert stopped.value.code == 0
    assert "--windows" in capsys.readouterr().out


NO_ERRORS = OpenLoopErrors(*(torch.zeros(0) for _ in range(6)))


def film(batch, length, prediction, reconstruction=None, errors=NO_ERRORS):
    return Film(HeldOutWindows(batch, torch.tensor([length])), prediction, reconstruction, errors)


def cell(picture, row, column):
    return picture[row * ROW : row * ROW + 64, column * COLUMN : column * COLUMN + 64]


def marked(picture, row):
    """Columns with a red bar below them; the others have none of it."""
    bars = picture[row * ROW + 66 : row * ROW + 70].reshape(4, -1, COLUMN, 3)[:, :, :64].swapaxes(0, 1)
    red = (bars == (205, 30, 30)).all(axis=-1)
    assert (red.all(axis=(1, 2)) == red.any(axis=(1, 2))).all()
    return red.all(axis=(1, 2)).nonzero()[0].tolist()


def test_a_strip_by_hand():
    batch = transitions(1, 3, 4)
    batch.terminated[:] = False
    batch.terminated[0, 1, 2] = True
    prediction = OpenLoopPrediction(
        frame=torch.tensor([0.0, 0.2, 1.5]).view(1, 1, 3, 1, 1, 1).expand(1, 3, 3, 64, 64, 3),
        reward=torch.zeros(1, 3, 3),
        terminated=torch.tensor([False, True, False]).expand(1, 3, 3),
    )
    reconstruction = torch.full((1, 3, 4, 64, 64, 3), 0.4)
    picture, taken = strip(film(batch, [2, 3, 3], prediction, reconstruction), 0)
    # The second window is the first of the longest; its third and last step ends it, which leads to a fourth column.
    assert (picture.shape, taken) == ((2 * ROW, 4 * COLUMN, 3), 4)
    for column in range(3):
        assert (cell(picture, 0, column) == batch.frame[0, 1, column].numpy()).all()
    # Behind one column of context; the reconstruction there, then imagination, rounded.
    assert [cell(picture, 1, column).max() for column in range(3)] == [102, 0, 51]
    assert (cell(picture, 0, 3) == 255).all()
    assert (cell(picture, 1, 3) == 255).all()
    assert (marked(picture, 0), marked(picture, 1)) == ([3], [2])


def test_an_end_imagined_behind_the_end_is_not_marked():
    prediction = OpenLoopPrediction(
        torch.zeros(1, 1, 3, 64, 64, 3), torch.zeros(1, 1, 3), torch.ones(1, 1, 3, dtype=torch.bool)
    )
    picture, taken = strip(film(transitions(1, 1, 4), [2], prediction, torch.zeros(1, 1, 4, 64, 64, 3)), 0)
    # Frames 0 and 1, then the step that ended the episode.
    assert (taken, marked(picture, 1)) == (3, [1, 2])


def test_every_pixel_is_in_the_picture():
    prediction = OpenLoopPrediction(
        torch.rand(2, 1, 2, 64, 64, 3), torch.zeros(2, 1, 2), torch.zeros(2, 1, 2, dtype=torch.bool)
    )
    whole = Film(HeldOutWindows(transitions(2, 1, 4), torch.tensor([[4], [3]])), prediction,
                 torch.rand(2, 1, 4, 64, 64, 3), NO_ERRORS)  # fmt: skip
    png = draw_film(whole, [(1, "tiny:$goal$"), (0, "tiny:catch")], ("a title",))
    assert png == draw_film(whole, [(1, "tiny:$goal$"), (0, "tiny:catch")], ("a title",)), "same bytes"
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    for k in range(2):
        frame = cell(strip(whole, k)[0], 1, 1).repeat(2, axis=0).repeat(2, axis=1)
        places = zip(*(picture == frame[0, 0]).all(axis=-1).nonzero(), strict=True)
        assert any((picture[y : y + 128, x : x + 128] == frame).all() for y, x in places if y + 128 <= len(picture))


def test_a_summary_by_hand():
    nan = float("nan")
    batch = transitions(1, 2, 3)
    batch.terminated[:] = torch.tensor([[[False, True, True], [True, True, False]]])
    errors = OpenLoopErrors(
        imagined=torch.tensor([[[0.25, 0.5], [0.75, nan]]]),
        reconstructed=torch.tensor([[[0.1, 0.2], [0.3, nan]]]),
        repeated=torch.tensor([[[1.0, 2.0], [3.0, nan]]]),
        reward=torch.tensor([[[1.0, 2.0], [6.0, nan]]]),
        no_reward=torch.tensor([[[0.0, 2.0], [1.0, nan]]]),
        agrees=torch.tensor([[[1.0, 0.0], [1.0, nan]]]),
    )
    prediction = OpenLoopPrediction(torch.zeros(0), torch.zeros(1, 2, 2), torch.tensor([[[True, False], [True, True]]]))
    found = summary(film(batch, [3, 1], prediction, errors=errors), 0)
    # 1e-6: float32.
    assert found["ahead"]["1"] == pytest.approx(
        {"imagined": 0.5, "reconstructed": 0.2, "repeated": 2.0, "windows": 2}, abs=1e-6
    )
    assert found["ahead"]["2"] == pytest.approx(
        {"imagined": 0.5, "reconstructed": 0.2, "repeated": 2.0, "windows": 1}, abs=1e-6
    )
    assert (found["reward_error"], found["no_reward_error"]) == (3.0, 1.0)
    assert found["termination_agreement"] == pytest.approx(2 / 3)
    # Of the three steps that were taken; the ends behind the episode's end count nowhere.
    assert (found["steps"], found["real_terminations"], found["imagined_terminations"]) == (3, 2, 2)
    lines = table({"tiny:catch": found}).splitlines()
    assert lines[2].split() == ["tiny:catch", "1", "0.50000", "0.20000", "2.00000", "2"]
    assert lines[-1].split() == ["tiny:catch", "3.00000", "1.00000", "0.66667", "3", "2", "2"]


def test_nothing_alive_is_a_dash():
    errors = OpenLoopErrors(*(torch.full((1, 1, 1), float("nan")) for _ in range(6)))
    prediction = OpenLoopPrediction(torch.zeros(0), torch.zeros(1, 1, 1), torch.ones(1, 1, 1, dtype=torch.bool))
    found = summary(film(transitions(1, 1, 2), [0], prediction, errors=errors), 0)
    assert found["ahead"]["1"]["imagined"] is None
    assert (found["steps"], found["imagined_terminations"]) == (0, 0)
    lines = table({"tiny:catch": found}).splitlines()
    assert lines[2].split() == ["tiny:catch", "1", "-", "-", "-", "0"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_play(number, copied, capsys, monkeypatch):
    step = SerialVectorEnv.step

    def signalled(self, action):
        signal.raise_signal(number)
        return step(self, action)

    monkeypatch.setattr(SerialVectorEnv, "step", signalled)
    assert main([str(copied), "--device", "cpu"]) == 130
    assert "no film is written" in capsys.readouterr().out
    assert not (copied / "film.png").exists()
