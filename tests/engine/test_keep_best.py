"""The checkpoint with the best recent returns outlives the newest ones."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import mow
from mow.cli.resume import find_resumption
from mow.engine import state as run_state
from mow.engine.scores import recent_score
from mow.engine.trainer import Trainer
from mow.evaluate.__main__ import main as evaluate
from mow.runs import checkpoint
from mow.runs.checkpoint import keep_as_best, load_checkpoint, read_best, save_checkpoint
from mow.runs.paths import best_path, checkpoint_path, checkpoints
from mow.train import run as train
from tests.small import run_config

CPU = torch.device("cpu")


def test_the_score_by_hand() -> None:
    pong, boxing = (0.0 + 20.7) / 35.3, (6.1 - 0.1) / 12.0
    assert recent_score({"atari:Pong": 0.0, "atari:Boxing": 6.1}) == pytest.approx((pong + boxing) / 2)
    assert recent_score({"atari:Pong": 0.0, "atari:Boxing": None}) is None
    assert recent_score({"atari:Pong": 0.0, "dummy:count-0": None}) == pytest.approx(pong)  # has no references
    assert recent_score({"dummy:count-0": 3.0, "dummy:count-1": 5.0}) == 4.0


@pytest.mark.parametrize("links", [True, False])
def test_a_second_name_outlives_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    if not links:
        monkeypatch.setattr(checkpoint.os, "link", refuse)
    for step in (1, 2, 3):
        save_checkpoint(checkpoint_path(tmp_path, step), {"step": step})
        if step != 3:
            keep_as_best(checkpoint_path(tmp_path, step), float(step))
        checkpoint.prune(tmp_path, 1)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_00000003.pt"]
    assert load_checkpoint(best_path(tmp_path), CPU)["step"] == 2
    names = sorted(path.name for path in best_path(tmp_path).parent.iterdir())
    assert names == ["best.json", "best.pt", "step_00000003.pt"]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores that rise, fall and rise again, by step: saves come at 18, 26 and 32."""
    monkeypatch.setattr(Trainer, "score", property(lambda self: {18: 0.5, 26: 0.25}.get(self.step, 0.125)))


@pytest.mark.usefixtures("told")
def test_the_best_is_kept_and_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert train(run_config(folder=str(folder), keep_checkpoints=1)) is not None
    assert load_checkpoint(best_path(folder), CPU)["step"] == 18
    assert f"best so far: mean recent score 0.500, kept in {best_path(folder)}" in capsys.readouterr().out
    assert [mow.load(folder, checkpoint=which, device="cpu").step for which in ("best", "newest")] == [18, 32]
    out = ["--episodes", "1", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert evaluate([str(folder), "--checkpoint", "best", *out]) == 0
    assert "18 environment steps per task" in (tmp_path / "out" / "evaluation.md").read_text()
    with pytest.raises(ValueError, match="checkpoint must be newest or best, got 'last'"):
        mow.load(folder, checkpoint="last")


@pytest.mark.usefixtures("told")
def test_a_run_that_goes_on_knows_its_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert train(run_config(folder=str(folder))) is not None  # keeps the checkpoints of 26 and 32
    for best in (18, None):
        if best is None:  # as if the one at 32 had been the best
            best_path(folder).with_suffix(".json").write_text('{"step": 32, "score": 0.75}')
        resumption = find_resumption(["--resume", str(checkpoint_path(folder, 26))])
        capsys.readouterr()
        session = train(resumption.config, resumption)
        said = capsys.readouterr().out
        assert session is not None
        moved = folder / "checkpoints" / "superseded" / "best-2.pt"  # number 1 is another checkpoint
        assert (f"moved: {best_path(folder)} to {moved}, it is ahead of this one" in said) == (best is None)
        assert session.best_score == (0.5 if best else 0.125)
    assert json.loads(moved.with_suffix(".json").read_text())["score"] == 0.75


def test_none_is_kept_where_that_is_asked(tmp_path: Path) -> None:
    config = dataclasses.replace(run_config(), folder=str(tmp_path / "run"), keep_best=False)
    assert train(config) is not None
    assert not best_path(tmp_path / "run").exists()
    with pytest.raises(ValueError, match=r"has no checkpoints/best\.pt: every task must end an episode"):
        mow.load(tmp_path / "run", checkpoint="best")


@pytest.mark.parametrize("torn", ["{", "[]", "{}", None])
def test_a_best_without_its_score_is_none(tmp_path: Path, torn: str | None) -> None:
    save_checkpoint(checkpoint_path(tmp_path, 1), {"step": 1})
    keep_as_best(checkpoint_path(tmp_path, 1), 0.5)
    assert read_best(tmp_path) == (1, 0.5)
    path = best_path(tmp_path).with_suffix(".json")
    path.unlink()
    if torn is not None:
        path.write_text(torn)
    assert read_best(tmp_path) is None
    best_path(tmp_path).unlink()
    assert read_best(tmp_path) is None


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize("deed", ["keep_as_best", "prune"])
def test_a_checkpoint_counts_whatever_comes_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], deed: str
) -> None:
    """A full disk that does not take best.pt, or does not let go of old checkpoints."""
    folder = tmp_path / "run"

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_state, deed, full)
    session = train(run_config(folder=str(folder), keep_checkpoints=1))
    assert session is not None
    said = capsys.readouterr().out
    assert "no checkpoint was written" not in said
    kept = [path.name for path in checkpoints(folder)]
    assert " is written, but older ones could not be deleted, or best.pt not replaced ([Errno 28] No space" in said
    if deed == "keep_as_best":
        assert kept == ["step_00000032.pt"]  # pruned all the same
        assert session.best_score is None
    else:
        assert kept == ["step_00000018.pt", "step_00000026.pt", "step_00000032.pt"]


def test_what_is_not_kept_leaves_the_best_before_and_no_debris(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, to: Path) -> None:
        to.write_bytes(path.read_bytes()[:10])
        raise OSError(28, "No space left on device")

    for step in (1, 2):
        save_checkpoint(checkpoint_path(tmp_path, step), {"step": step})
    keep_as_best(checkpoint_path(tmp_path, 1), 0.5)
    monkeypatch.setattr(checkpoint, "link_or_copy", full)
    with pytest.raises(OSError, match="No space"):
        keep_as_best(checkpoint_path(tmp_path, 2), 0.75)
    assert read_best(tmp_path) == (1, 0.5)
    assert not list(best_path(tmp_path).parent.glob("*.partial"))
