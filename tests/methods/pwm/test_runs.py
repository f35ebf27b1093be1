"""Runs of pwm from recorded episodes: train, resume, score, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from mow import train
from mow.cli.command import main
from mow.engine.trainer import Trainer
from mow.offline.collect import collect
from mow.runs.checkpoint import load_checkpoint
from mow.runs.paths import checkpoints
from mow.runs.signals import Stopped

SMALL = [
    "--tasks", "vec:lq", "vec:reach", "--model.width", "16", "--model.latent-size", "16", "--batch.num-sequences", "2",
    "--batch.horizon", "4", "--policy.starts", "4", "--policy.horizon", "2", "--policy.width", "16",
    "--schedule.pretrain-updates", "6", "--schedule.policy-updates", "4", "--checkpoint-every", "4", "--log-every", "2",
    "--keep-checkpoints", "9", "--insight-every", "3", "--evaluation-episodes", "2", "--evaluation-copies", "2",
    "--no-report",
]  # fmt: skip


CPU = torch.device("cpu")


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    learner = load_checkpoint(checkpoint, CPU)["learner"]
    return {f"{part}.{name}": tensor for part in ("world_model", "actors", "critics")
            for name, tensor in learner[part].items()}  # fmt: skip


def same(one: Path, other: Path) -> bool:
    first, second = weights_of(one), weights_of(other)
    return all(torch.equal(first[name], second[name]) for name in first)


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The only line of a command that ends with 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        train.main(words)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_a_run_collects_pretrains_extracts_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert train.main(["pwm_vec", *SMALL, "--collect-episodes", "2", "--folder", str(folder)]) == 0
    assert [path.name for path in checkpoints(folder)] == [f"step_{n:08d}.pt" for n in (4, 6, 8, 10)]
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["updates"] for record in records] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert {"loss/world_model/vec:lq", "insight/rank/vec:reach"} <= records[3].keys() | records[2].keys()
    assert "loss/critic/vec:reach" in records[-1]
    scores = json.loads((folder / "scores.json").read_text())
    assert len(scores["tasks"]["vec:reach"]["returns"]) == 2
    assert json.loads((folder / "config.json").read_text())["total_steps"] == 0
    last = checkpoints(folder)[-1]
    for number in (4, 8):  # in the middle of the world model's updates, and of the policies'
        middle = folder / "checkpoints" / f"step_{number:08d}.pt"
        kept = tmp_path / f"last-{number}.pt"
        shutil.copy(last, kept)
        assert train.main(["--resume", str(middle)]) == 0
        assert same(last, kept)
    assert main(["evaluate", str(folder), "--episodes", "1", "--device", "cpu"]) == 0
    new = tmp_path / "new"
    monkeypatch.setattr("mow.extract._TIMED", 0.01)
    words = [str(folder), "--folder", str(new), "--policy.lam", "0", "--seed", "3", "--minutes", "0.001"]
    assert main(["extract", *words]) == 0
    config = json.loads((new / "config.json").read_text())
    assert config["schedule"]["policy_updates"] == load_checkpoint(checkpoints(new)[-1], CPU)["counts"]["policy"] > 0
    first, second = weights_of(last), weights_of(checkpoints(new)[-1])
    moved = {name.split(".")[0] for name in first if not torch.equal(first[name], second[name])}
    assert moved == {"actors", "critics"}
    assert json.loads((new / "source.json").read_text())["world_model"] == str(last)
    for mistake, says in ((["--model.width", "8"], "the model of a world model cannot be changed"),
                          (["--minutes", "x"], "--minutes needs a number")):  # fmt: skip
        capsys.readouterr()
        assert main(["extract", str(folder), *mistake]) == 2
        assert says in capsys.readouterr().err
    collect(["vec:lq", "vec:reach"], folder / "data", 1, "random")
    assert "holds other episodes than the run was trained on" in refused(["--resume", str(folder)], capsys)


def test_episodes_of_a_run_that_was_stopped_are_collected_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["pwm_vec", *SMALL, "--collect-episodes", "2"]
    assert train.main([*words, "--folder", str(tmp_path / "whole")]) == 0
    folder, calls = tmp_path / "run", []

    def stop() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Stopped

    made = Trainer.__init__
    with monkeypatch.context() as patch:
        patch.setattr(
            Trainer, "__init__", lambda self, *args, check_stop, **more: made(self, *args, check_stop=stop, **more)
        )
        assert train.main([*words, "--folder", str(folder)]) == 0
    assert [path.name for path in checkpoints(folder)] == ["step_00000000.pt"]
    assert train.main(["--resume", str(folder)]) == 0
    assert same(checkpoints(folder)[-1], checkpoints(tmp_path / "whole")[-1])


def test_a_named_folder_of_episodes_is_learnt_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, other = tmp_path / "data", tmp_path / "other"
    collect(["vec:lq", "vec:reach"], data, 2, "random")
    collect(["vec:lq", "vec:reach"], other, 2, "random", seed=1)
    folder = tmp_path / "run"
    words = ["pwm", *SMALL, "--data", str(data), "--folder", str(folder)]
    assert train.main(words) == 0
    assert not (folder / "data").exists()
    middle = folder / "checkpoints" / "step_00000004.pt"
    error = refused(["--resume", str(middle), "--data", str(other)], capsys)
    assert "holds other episodes than the run was trained on" in error
    data.rename(tmp_path / "moved")
    assert str(data) in refused(["--resume", str(middle)], capsys)
    assert train.main(["--resume", str(middle), "--data", str(tmp_path / "moved")]) == 0


def test_a_smaller_model_learns_from_a_larger_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    large, small = tmp_path / "large", tmp_path / "small"
    assert train.main(["pwm_vec", *SMALL, "--collect-episodes", "2", "--folder", str(large)]) == 0
    assert main(["distill", str(large), "--model.width", "8", "--model.latent-size", "8", "--folder", str(small)]) == 0
    config = json.loads((small / "config.json").read_text())
    assert config["distill"]["alpha"] == 0.4
    assert config["distill"]["teacher"]["width"] == 16
    state = load_checkpoint(checkpoints(small)[0], CPU)["learner"]
    held = load_checkpoint(checkpoints(large)[-1], CPU)["learner"]["world_model"]
    assert all(torch.equal(state["teacher"][name], held[name]) for name in held)
    assert state["world_model"]["encoder.0.0.weight"].shape[0] == 8
    records = [json.loads(line) for line in (small / "metrics.jsonl").read_text().splitlines()]
    assert records[0]["loss/distillation/vec:lq"] < 1e-6, "both heads start at zero; the teacher's has hardly moved"
    kept = tmp_path / "last.pt"
    shutil.copy(checkpoints(small)[-1], kept)
    assert train.main(["--resume", str(checkpoints(small)[0])]) == 0
    assert same(checkpoints(small)[-1], kept)


def test_a_dry_run_makes_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train.main(["pwm_vec", "--dry-run"]) == 0
    assert "replay: none, windows are read from the files of recorded episodes" in capsys.readouterr().out
    assert train.main(["pwm", "--tasks", "vec:lq", "--dry-run"]) == 0
    assert "replay: raw" in capsys.readouterr().out
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["pwm_vec", "--distill.alpha", "0.4"], "distill.alpha needs a larger model: use mow distill RUN"),
        (["pwm", "--env.obs", "frame"], "pwm learns from states, got env.obs frame: leave it out"),
        (["pwm", "--tasks", "tiny:slide"], "task 'tiny:slide' has no state observations"),
        (["pwm_vec", "--data", "nowhere"], "nowhere"),
        (["pwm", "--total-steps", "10"], "total_steps must exceed the prefill of 1000 steps"),
        (["pwm_vec", "--policy.betas", "0.7", "1.5"], "betas must lie in [0, 1), got (0.7, 1.5)"),
        (["pwm_vec", "--model.latent-size", "12"], "latent_size must be a multiple of 8, got 12"),
    ],
)
def test_mistakes_end_in_one_line_and_leave_no_folder(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in refused(words, capsys)
    assert [*tmp_path.iterdir()] == []
