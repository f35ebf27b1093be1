"""A disk that does not take what it is given: said, borne for a while, and nothing that was saved is lost."""

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch

from mow.cli.resume import find_resumption
from mow.engine.trainer import Trainer
from mow.runs import checkpoint
from mow.runs.checkpoint import load_checkpoint, save_checkpoint
from mow.runs.paths import checkpoints
from mow.train import main
from tests.faults.runs import assert_same_end, gone_on, stopped, to_the_end
from tests.small import run_config
from tests.test_train import DUMMY

REFUSALS = [errno.ENOSPC, errno.EACCES, errno.EIO]


def refusing(which: Callable[[int], bool], number: int, patch: pytest.MonkeyPatch) -> None:
    """Writes of checkpoints fail half-way, those whose turn `which` names."""
    save, calls = torch.save, 0

    def half(content: Mapping[str, object], file: object) -> None:
        nonlocal calls
        calls += 1
        save(content, file)
        if which(calls):
            raise OSError(number, os.strerror(number), "checkpoints")

    patch.setattr(checkpoint.torch, "save", half)


@pytest.mark.parametrize("number", REFUSALS)
def test_two_failures_are_borne_and_change_nothing(
    tmp_path: Path, straight: Trainer, number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Checkpoints come at steps 18, 26 and 32; the first two are not taken."""
    refusing(lambda call: call < 3, number, monkeypatch)
    run = to_the_end(run_config(), tmp_path / "run")
    said = capsys.readouterr().out
    assert said.count(f"no checkpoint was written ([Errno {number}] {os.strerror(number)}: 'checkpoints')") == 2
    assert "the run goes on, the one before stays: free some space" in said
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["best.json", "best.pt", "step_00000032.pt"]
    assert_same_end(run, straight)


def test_the_third_failure_in_a_row_ends_it_and_the_last_checkpoint_still_has_its_replay(
    tmp_path: Path, straight: Trainer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        refusing(lambda call: call > 1, errno.ENOSPC, patch)
        with pytest.raises(OSError, match="No space left on device: 'checkpoints': free some space; python -m"):
            to_the_end(run_config(checkpoint_every=4), folder)
    assert capsys.readouterr().out.count("no checkpoint was written") == 2
    (path,) = checkpoints(folder)
    assert load_checkpoint(path, torch.device("cpu"))["step"] == 14
    # Saved as often as the other run, from here on.
    assert gone_on(folder, "--checkpoint-every", "8").step == straight.step


def test_a_disk_that_takes_no_checkpoint_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refusing(lambda _: True, errno.ENOSPC, monkeypatch)
    assert main(["quickstart", *DUMMY, "--folder", str(tmp_path / "run"), "--checkpoint-every", "3"]) == 1
    said = "mow.train: [Errno 28] No space left on device: 'checkpoints': free some space; no checkpoint was saved\n"
    assert capsys.readouterr().err == said


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small disk")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"no small disk can be mounted here: {made.stderr.decode()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before_and_no_debris(small_disk: Path) -> None:
    """What torch itself says of it is an error about its archive, and not that the disk is full."""
    path = small_disk / "last.pt"
    save_checkpoint(path, {"step": 1})
    with pytest.raises(OSError, match="No space left on device"):
        save_checkpoint(path, {"weight": torch.zeros(2_000_000), "step": 2})
    assert [file.name for file in small_disk.iterdir()] == ["last.pt"]
    assert load_checkpoint(path, torch.device("cpu"))["step"] == 1


def test_a_disk_that_is_really_full(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], straight: Trainer
) -> None:
    """It fills up after the first checkpoint, down to the last byte; with room again the run goes on."""
    folder, filler, save = small_disk / "run", small_disk / "filler", Trainer.save

    def fill(self: Trainer) -> Path:
        path = save(self)
        with open(filler, "wb", buffering=0) as file:
            while True:
                try:
                    file.write(bytes(4096))
                except OSError:
                    return path

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", fill)
        code = main(["--resume", str(prepared(folder))])
    said = capsys.readouterr()
    assert code == 1
    assert said.err.startswith("mow.train: ")
    assert "No space left on device" in said.err
    assert f"free some space; python -m mow.train --resume {folder} goes on from {checkpoints(folder)[-1]}" in said.err
    assert said.err.count("\n") == 1
    assert said.out.count("TensorBoard's curves are not written any more: [Errno 28] No space left on device") <= 1
    filler.unlink()
    assert_same_end(gone_on(folder), straight)


def prepared(folder: Path) -> Path:
    """A run that was stopped before its first checkpoint of its own."""
    with pytest.MonkeyPatch.context() as patch:
        stopped(run_config(), folder, 14, patch)
    assert find_resumption(["--resume", str(folder)]).changes == ()
    assert len(checkpoints(folder)) == 1
    return folder
