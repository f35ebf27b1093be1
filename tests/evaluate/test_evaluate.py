"""Trained runs, played and scored by the command."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Discrete
from PIL import Image

from mow import train
from mow.envs.base import EnvFailure
from mow.envs.vector import SerialVectorEnv
from mow.evaluate.__main__ import main, read_arguments
from mow.methods.registry import read_config
from mow.runs.restore import find_run, newest_checkpoint
from mow.system.file_names import file_name
from tests.envs.test_gymnasium_envs import Walk
from tests.test_train import DUMMY

TASKS = ("dummy:count-0", "dummy:slide", "tiny:catch", "dummy:count-1")


def trained(folder, seed):
    tasks = ["--tasks", *TASKS, "--clustering.method", "random", "--clustering.num-modules", "2"]
    settings = ["--seed", str(seed), "--evaluation-episodes", "0", "--folder", str(folder)]
    assert train.main(["quickstart", *DUMMY, *tasks, *settings]) == 0
    return folder


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Two runs of seconds, with their tasks sorted by cluster."""
    root = tmp_path_factory.mktemp("evaluate")
    folders = [trained(root / f"seed-{seed}", seed) for seed in (2, 3)]
    # This order is not its own inverse, so that a mix-up of the two directions would show below.
    sorted_tasks = torch.load(newest_checkpoint(folders[0]), weights_only=True)["tasks"]
    assert sorted_tasks == [TASKS[0], TASKS[3], TASKS[1], TASKS[2]]
    return folders


@pytest.fixture
def copied(seeds, tmp_path):
    return shutil.copytree(seeds[0], tmp_path / "run")


def test_one_run(copied, capsys):
    assert main([str(copied), "--episodes", "3", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    content = json.loads((copied / "evaluation.json").read_text())
    assert list(content["tasks"]) == list(TASKS)  # in the order of the config, not in that of the clusters
    assert (content["episodes"], content["seed"]) == (3, 1000)
    (run,) = content["runs"]
    assert (run["step"], run["seed"], run["preset"]) == (20, 2, "quickstart")
    for task in TASKS:
        played = run["tasks"][task]
        assert len(played["returns"]) == len(played["lengths"]) == len(played["successes"]) == 3
        assert len(played["final_successes"]) == 3
        assert content["tasks"][task]["value"] == pytest.approx(np.mean(played["returns"]))
    # Only some tasks know success, and only catch has references.
    assert content["tasks"]["dummy:slide"]["success"] is not None
    assert content["tasks"]["dummy:count-0"]["success"] is None
    assert content["aggregates"]["mean"] == {"value": content["tasks"]["tiny:catch"]["normalised"], "interval": None}
    markdown = (copied / "evaluation.md").read_text()
    assert "| dummy:slide |" in markdown
    assert "no intervals" in markdown
    for line in (row.split()[0] for row in said.splitlines() if row.startswith(("dummy", "tiny"))):
        assert line in TASKS


def test_the_same_episodes_alone_and_together(seeds, tmp_path):
    assert main([str(seeds[1]), "--episodes", "2", "--out", str(tmp_path / "alone")]) == 0
    assert main([*map(str, seeds), "--episodes", "2", "--out", str(tmp_path / "both")]) == 0
    alone = json.loads((tmp_path / "alone" / "evaluation.json").read_text())
    both = json.loads((tmp_path / "both" / "evaluation.json").read_text())
    assert both["runs"][1] == alone["runs"][0]
    assert both["runs"][0]["tasks"] != both["runs"][1]["tasks"]
    low, high = both["aggregates"]["mean"]["interval"]
    assert low <= both["aggregates"]["mean"]["value"] <= high
    assert "| return of run | 1 | 2 |" in (tmp_path / "both" / "evaluation.md").read_text()
    assert main([str(seeds[1]), "--episodes", "2", "--seed", "9", "--out", str(tmp_path / "other")]) == 0
    other = json.loads((tmp_path / "other" / "evaluation.json").read_text())
    assert other["runs"][0]["tasks"] != alone["runs"][0]["tasks"]


def test_by_default_several_are_written_beside_them(seeds):
    assert main([*map(str, seeds), "--episodes", "1"]) == 0
    assert (seeds[0].parent / "evaluation.json").exists()
    assert not (seeds[0] / "evaluation.json").exists()


def test_videos(copied):
    assert main([str(copied), "--episodes", "3", "--video", "2"]) == 0
    played = json.loads((copied / "evaluation.json").read_text())["runs"][0]["tasks"]
    names = ("dummy-count-0", "dummy-count-1", "dummy-slide", "tiny-catch")
    assert sorted(path.name for path in (copied / "videos").iterdir()) == [
        f"{name}-{number}.gif" for name in names for number in (1, 2)
    ]
    with Image.open(copied / "videos" / "dummy-count-0-2.gif") as film:
        assert film.n_frames == played["dummy:count-0"]["lengths"][1]


def test_a_task_with_a_slash_in_its_name_is_filmed(tmp_path):
    task = "gym:Slashed/Walk-v0"
    gymnasium.register(task.removeprefix("gym:"), Walk, max_episode_steps=6, kwargs={"actions": Discrete(2)})
    try:
        folder = ["--folder", str(tmp_path / "run")]
        assert train.main(["quickstart", *DUMMY, "--tasks", task, "--evaluation-episodes", "0", *folder]) == 0
        assert main([str(tmp_path / "run"), "--episodes", "1", "--video", "1"]) == 0
    finally:
        del gymnasium.registry[task.removeprefix("gym:")]
    assert [path.name for path in (tmp_path / "run" / "videos").iterdir()] == [f"{file_name(task)}-1.gif"]


def mistake(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("mow evaluate: ")
    return error.removeprefix("mow evaluate: ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--episodes", "0"], "--episodes must be 1 or more, got 0"),
        (["--episodes", "x"], "argument --episodes: invalid int value: 'x'"),
        (["--episodes", "2", "--video", "3"], "--video must be 0 to --episodes 2, got 3"),
        (["--seed", "-1"], "--seed must be 0 or more, got -1"),
        (["--seed", "2"], "--seed 2 is that of"),
        (["--device", "tpu9"], "unknown device 'tpu9'"),
        (["--device", "cuda:77"], "no cuda:77 here"),
        (["--episode", "3"], "unrecognized arguments: --episode 3"),
        (["nowhere"], "nowhere is no run: name a run folder"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(arguments, says, seeds, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    before = sorted(seeds[0].rglob("*"))
    assert mistake(capsys, seeds[0], *arguments).startswith(says)
    assert sorted(seeds[0].rglob("*")) == before
    assert list(tmp_path.iterdir()) == []


def test_folders_that_are_no_run(capsys, copied, tmp_path):
    assert "config.json cannot be read (No such file" in mistake(capsys, tmp_path)
    assert "is no run: name a run folder" in mistake(capsys, copied / "config.json")
    shutil.rmtree(copied / "checkpoints")
    assert "has no checkpoints/step_*.pt: let the run write one" in mistake(capsys, copied)
    assert "the following arguments are required: RUN" in mistake(capsys)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_checkpoint_is_told_before_anything_is_played(share, seeds, copied, capsys, tmp_path):
    path = newest_checkpoint(copied)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    said = mistake(capsys, seeds[1], copied, "--out", tmp_path / "out")
    assert f"{path} is damaged or cut short, or not a checkpoint of this version" in said
    assert not (tmp_path / "out").exists()


def test_an_older_checkpoint_can_be_named(copied):
    newest = newest_checkpoint(copied)
    older = newest.with_name("step_00000003.pt")
    shutil.copy(newest, older)
    newest.write_bytes(b"")
    assert find_run(older).checkpoint == older
    assert main([str(older), "--episodes", "1"]) == 0
    content = json.loads((copied / "evaluation.json").read_text())
    assert content["runs"][0]["checkpoint"] == str(older)


def rewritten(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return read_config(path)


def test_runs_that_do_not_go_together(seeds, copied, capsys):
    assert "is named twice: a run counts once" in mistake(capsys, seeds[0], seeds[0])
    rewritten(copied, tasks=[*TASKS[:3], "tiny:pole"])
    said = mistake(capsys, seeds[1], copied)
    assert "has other tasks (dummy:count-0, dummy:slide, tiny:catch, tiny:pole) than" in said
    assert "evaluate them one by one" in said
    rewritten(copied, tasks=list(TASKS), env={"protocol": "storm"})
    assert "has another protocol or action set than" in mistake(capsys, seeds[1], copied)


def test_runs_that_are_no_seeds_of_one_method_are_remarked_on(seeds, copied):
    config = rewritten(copied, log_every=7, seed=3)
    rewritten(copied, actor_critic={**dataclasses.asdict(config.actor_critic), "entropy": 0.5})
    assert main([str(seeds[1]), str(copied), "--episodes", "1", "--out", str(copied)]) == 0
    text = (copied / "evaluation.md").read_text()
    assert "they differ in actor_critic.entropy\n" in text


def test_a_place_that_cannot_be_written(copied, capsys):
    said = mistake(capsys, copied, "--episodes", "1", "--out", copied / "config.json")
    assert "name another place with --out" in said


def test_scoring_loads_no_package_that_draws(copied, monkeypatch):
    for package in ("matplotlib", "PIL"):
        monkeypatch.setitem(sys.modules, package, None)
    assert main([str(copied), "--episodes", "1"]) == 0


def test_long_play_says_how_far_it_is(copied, capsys, monkeypatch):
    monkeypatch.setattr("mow.engine.evaluator.ScoringProgress.SECONDS", 0.0)
    assert main([str(copied), "--episodes", "1"]) == 0
    said = capsys.readouterr().out
    assert "1 of 4 episodes, " in said
    assert "5 of 4" not in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_play_before_the_next_step(number, copied, capsys, monkeypatch):
    steps = []
    step = SerialVectorEnv.step

    def signalled(self, action):
        steps.append(len(steps))
        if len(steps) == 5:
            signal.raise_signal(number)
        return step(self, action)

    monkeypatch.setattr("mow.evaluate.video.FilmedEnvs.step", lambda self, action: signalled(self._envs, action))
    assert main([str(copied), "--episodes", "50"]) == 130
    assert len(steps) == 5
    said = capsys.readouterr().out
    assert "stopped after 0 of 200 episodes, 5 steps: no scores are written" in said
    assert not (copied / "evaluation.json").exists()


def test_play_that_reaches_its_limit_says_so(copied, capsys, monkeypatch):
    monkeypatch.setattr("mow.evaluate.__main__._LONGEST_EPISODE", 4)
    assert main([str(copied), "--episodes", "1"]) == 0
    assert "stopped at the limit of 4 steps with 0 of 4 episodes" in capsys.readouterr().out


def test_a_simulator_that_fails_for_good_is_a_line_and_exit_1(copied, capsys, monkeypatch):
    def fail(*_, **__):
        raise EnvFailure("tiny:catch: the simulator fails")

    monkeypatch.setattr("mow.engine.evaluator.evaluate", fail)
    assert main([str(copied), "--episodes", "1"]) == 1
    assert capsys.readouterr().err == "mow evaluate: tiny:catch: the simulator fails\n"


def test_an_interruption_is_quiet(copied, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("mow.evaluate.__main__.run", interrupted)
    assert main([str(copied)]) == 130


def test_help_and_mistakes_load_no_torch():
    with pytest.raises(SystemExit) as stopped:
        read_arguments(["--help"])
    assert stopped.value.code == 0
    program = """if True:
        import sys
        from mow.evaluate.__main__ import main
        assert main(["nowhere"]) == 2
        assert "torch" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", program], check=True)


