"""The command, from arguments to run folder."""

import dataclasses
import errno
import json
import logging
import re
import time
from pathlib import Path

import pytest
import torch

from mow.engine.assemble import free_folder
from mow.engine.device import num_workers
from mow.methods.mow.presets import quickstart
from mow.system import threads
from mow.train import main

DUMMY = [
    "--tasks", "dummy:count-0", "dummy:slide", "--total-steps", "20", "--log-every", "5", "--model.width", "16",
    "--model.num-heads", "2", "--model.feedforward", "16", "--model.perception.channels", "2", "2", "2", "2",
    "--model.perception.groups", "4", "--model.perception.classes", "4", "--model.perception.latent", "dense",
    "--model.prior", "dense", "--batch.length", "4", "--batch.num-sequences", "1", "--schedule.acting-context", "3",
    "--imagination.num-sequences", "2", "--imagination.horizon", "2", "--clustering.num-batches", "2",
    "--clustering.restarts", "2", "--actor-critic.rollout-parts", "2",
    "--schedule.agent-every", "2", "--device", "cpu", "--no-report",
]  # fmt: skip


def test_a_run_leaves_its_folder(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["quickstart", *DUMMY, "--folder", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "done in" in said
    assert "dummy:slide" in said
    assert re.search(r"^step 20/20 \| frames 20 \| .* updates/s \| ETA .* \| loss .* \| return count-0 .*", said, re.M)
    assert not {"╭", "\x1b"} & {*said}, "a pipe gets lines"
    config = json.loads((folder / "config.json").read_text())
    assert config["tasks"] == ["dummy:count-0", "dummy:slide"]
    assert config["model"]["perception"]["channels"] == [2, 2, 2, 2]
    versions = json.loads((folder / "versions.json").read_text())
    for key in ("mow", "git_commit", "torch", "numpy", "gpu", "extension", "protocol"):
        assert key in versions
    assert list((folder / "checkpoints").glob("step_*.pt"))
    assert list(folder.glob("events.out.tfevents.*"))
    assert (folder / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--device", "tpu9"], "unknown device 'tpu9'"),
        (["--device", "mps"], "not supported"),
        (["--device", "cuda:77"], "no cuda:77 here"),
        (["--env.action-set", "half"], "minimal"),
        (["--tasks", "atari:Pnog"], "atari:Pong"),
    ],
)
def test_a_mistake_is_one_line_exit_2_and_no_folder(arguments, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["quickstart", *arguments])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert says in error
    assert list(tmp_path.iterdir()) == []


def test_a_used_folder_is_refused(tmp_path, capsys):
    (tmp_path / "old").write_text("a run")
    with pytest.raises(SystemExit) as stopped:
        main(["quickstart", *DUMMY, "--folder", str(tmp_path)])
    assert stopped.value.code == 2
    assert "is not empty" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["old"]


def test_a_missing_simulator_names_the_remedy(tmp_path, capsys, monkeypatch):
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mow.envs.atari", raising=False)
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(SystemExit) as stopped:
        main(["atari4", "--device", "cpu", "--env.num-workers", "0"])
    assert stopped.value.code == 2
    assert "pip install" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_console_hears_what_the_package_chose(tmp_path, capsys):
    logger = logging.getLogger("mow")
    before = logger.level, list(logger.handlers)
    assert main(["quickstart", *DUMMY, "--evaluation-episodes", "0", "--folder", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert said.count("replay store: raw (raw frames take 0.00 GB once full, ") == 1
    assert "replay (raw): 20 of 20 steps of 2 tasks in 0.00 GB, 0.00 GB once full" in said
    assert (logger.level, logger.handlers) == before


def test_frames_that_cannot_be_packed_are_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mow.replay.packed.why_not_packed", lambda: "no liblz4: `apt install liblz4-1`")
    with pytest.raises(SystemExit) as stopped:
        main(["quickstart", *DUMMY, "--replay.store", "packed", "--folder", str(tmp_path / "run")])
    assert stopped.value.code == 2
    assert "cannot be made here: no liblz4: `apt install liblz4-1`" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_replay_is_what_the_flags_say(tmp_path, monkeypatch, capsys):
    made = {}

    def record(*_, **options):
        made.update(options)
        raise ImportError("seen enough")

    monkeypatch.setattr("mow.replay.ReplayBuffer", record)
    flags = ["--replay.draw", "recent", "--replay.store", "packed", "--replay.disk", "there", "--seed", "3"]
    with pytest.raises(SystemExit):
        main(["quickstart", *DUMMY, *flags, "--folder", str(tmp_path / "run")])
    assert capsys.readouterr().err == "mow.train: seen enough\n"
    device = made.pop("device")
    assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert made == {"seed": 3, "draw": "recent", "store": "packed", "disk": Path("there"), "extra": {},
                    "frame_dtype": "uint8"}  # fmt: skip


def test_a_disk_that_takes_no_frames_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    disk = ["--replay.store", "packed", "--replay.disk", str(tmp_path / "file")]
    with pytest.raises(SystemExit) as stopped:
        main(["quickstart", *DUMMY, *disk, "--folder", str(tmp_path / "run")])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "name a folder that can be written to" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_disk_that_is_full_later_is_one_line(tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "packed frames cannot be moved there: free some space", "/disk")

    monkeypatch.setattr("mow.replay.ReplayBuffer.add", full)
    assert main(["quickstart", *DUMMY, "--folder", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    said_by_us = "[Errno 28] packed frames cannot be moved there: free some space: '/disk'"
    assert said == f"mow.train: {said_by_us}; no checkpoint was saved\n"


def test_workers_follow_the_spare_cores(monkeypatch):
    from tests.small import run_config

    for cores, want in ((1, 0), (2, 0), (3, 2), (16, 3)):
        monkeypatch.setattr(threads, "available_cores", lambda n=cores: n)
        assert num_workers(run_config()) == want


def test_broken_numbers_end_with_one_line(tmp_path, capsys, monkeypatch):
    from mow.engine.trainer import Trainer

    def broken(_self):
        raise FloatingPointError("loss/reward/dummy:slide became nan near step 9")

    monkeypatch.setattr(Trainer, "train", broken)
    assert main(["quickstart", *DUMMY, "--folder", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert error == "mow.train: loss/reward/dummy:slide became nan near step 9\n"


def test_a_page_to_look_at_is_written_last(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["quickstart", *DUMMY, "--report", "--folder", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"look: {folder / 'report.html'}"
    page = (folder / "report.html").read_text()
    assert "finished: 20 steps" in page
    assert "data:image/png" in page  # films


def test_scores_are_written_when_asked(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["quickstart", *DUMMY, "--folder", str(folder), "--evaluation-episodes", "2"]) == 0
    said = capsys.readouterr().out
    assert "normalised" in said
    scores = json.loads((folder / "scores.json").read_text())
    assert len(scores["tasks"]["dummy:slide"]["returns"]) == 2
    assert scores["env_steps_per_task"] == 20


def test_seeds_that_start_in_the_same_second_have_folders_of_their_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form: "20270101-120000")
    folders = [str(free_folder(dataclasses.replace(quickstart(), seed=seed))) for seed in (0, 1)]
    assert folders == [f"runs/quickstart-20270101-120000-seed{seed}" for seed in (0, 1)]
