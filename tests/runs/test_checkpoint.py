"""Written whole or not at all; nothing but tensors and plain values is read."""

import os
from pathlib import Path

import pytest
import torch

from mow.runs import checkpoint
from mow.runs.checkpoint import load_checkpoint, prune, save_checkpoint
from mow.runs.paths import checkpoint_path, checkpoints

CPU = torch.device("cpu")


class Disk(OSError):
    """A full or broken disk."""


class Foreign:
    """Code that a checkpoint must not bring along."""


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run" / "last.pt"
    weight, rng = torch.randn(3, 2), torch.tensor([5, 6])
    save_checkpoint(path, {"model": {"weight": weight}, "rng": rng, "step": 7, "order": (1, 0), "x": None})
    got = load_checkpoint(path, CPU)
    assert torch.equal(got["model"]["weight"], weight)
    assert torch.equal(got["rng"], rng)
    assert (got["step"], got["order"], got["x"]) == (7, (1, 0), None)
    assert [p.name for p in path.parent.iterdir()] == ["last.pt"], "nothing temporary is left"


def test_a_new_checkpoint_replaces_the_old(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    for step in (1, 2):
        save_checkpoint(path, {"step": step})
    assert load_checkpoint(path, CPU)["step"] == 2


@pytest.mark.parametrize("broken", ["fsync", "write"])
def test_a_crash_before_the_rename_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 1})

    def crash(*_: object) -> None:
        raise Disk

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync") if broken == "fsync" else (torch, "save")), crash)
        with pytest.raises(Disk):
            save_checkpoint(path, {"step": 2})
    assert load_checkpoint(path, CPU)["step"] == 1
    save_checkpoint(path, {"step": 3})  # over the debris
    assert load_checkpoint(path, CPU)["step"] == 3


@pytest.mark.parametrize("error", [OSError("full"), ValueError("of another run"), KeyboardInterrupt(), MemoryError()])
def test_after_any_error_no_temporary_file_is_left(tmp_path: Path, error: BaseException) -> None:
    """The replay that is saved with a checkpoint refuses the folder of another run with a ValueError."""
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 1})

    def fails() -> None:
        raise error

    with pytest.raises(type(error)):
        save_checkpoint(path, {"step": 2}, once_written=fails)
    assert list(tmp_path.iterdir()) == [path]
    assert load_checkpoint(path, CPU)["step"] == 1


@pytest.mark.parametrize("said", [RuntimeError("unexpected pos 64"), SystemError("returned a result with an error")])
def test_of_two_failures_of_a_write_the_first_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Exception
) -> None:
    """torch goes on to close its archive, and complains of that."""

    def fails(*_: object) -> None:
        try:
            raise Disk("full")
        except Disk as error:
            raise said from error

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(Disk, match="full"):
        save_checkpoint(tmp_path / "last.pt", {"step": 2})
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_on_the_disk_before_it_takes_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def spy_fsync(descriptor: int) -> None:
        events.append("folder" if Path(f"/proc/self/fd/{descriptor}").resolve() == tmp_path.resolve() else "file")
        fsync(descriptor)

    def spy_replace(self: Path, target: Path) -> Path:
        events.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(Path, "replace", spy_replace)
    save_checkpoint(tmp_path / "last.pt", {})
    assert events == ["file", "rename", "folder"]


def test_a_pickled_object_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"object": Foreign()})
    with pytest.raises(ValueError, match=r"last\.pt holds more than tensors and plain values, of which nothing"):
        load_checkpoint(path, CPU)


@pytest.mark.parametrize("num_bytes", [0, 10, -1, -31, -32])
def test_a_cut_file_is_named(tmp_path: Path, num_bytes: int) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 1})
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(ValueError, match=r"last\.pt is damaged or cut short"):
        load_checkpoint(path, CPU)


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """torch.load itself reads a flipped weight without a word."""
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"weight": torch.ones(3)})
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"last\.pt is damaged or cut short"):
            load_checkpoint(path, CPU)


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 900, 12_000_000):
        save_checkpoint(checkpoint_path(tmp_path, step), {"step": step})
    names = [path.name for path in checkpoints(tmp_path)]
    assert names == ["step_00000005.pt", "step_00000010.pt", "step_00000900.pt", "step_12000000.pt"]
    prune(tmp_path, 9)
    assert [path.name for path in checkpoints(tmp_path)] == names
    prune(tmp_path, 2)
    assert [path.name for path in checkpoints(tmp_path)] == names[2:]


@pytest.mark.parametrize("found", [0, 99, None])
def test_another_format_is_named(tmp_path: Path, found: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    monkeypatch.setattr(checkpoint, "FORMAT", found)
    save_checkpoint(path, {"step": 1})
    monkeypatch.undo()
    with pytest.raises(ValueError, match=f"last.pt has format {found}, this version reads {checkpoint.FORMAT}: use"):
        load_checkpoint(path, CPU)


def test_another_format_comes_with_the_version_that_wrote_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint_path(tmp_path, 1)
    path.parent.mkdir(exist_ok=True)
    (tmp_path / "versions.json").write_text('{"mow": "0.0.9", "git_commit": "abc"}')
    monkeypatch.setattr(checkpoint, "FORMAT", 7)
    save_checkpoint(path, {"step": 1})
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"use the mow that wrote it \(mow 0\.0\.9, commit abc\)$"):
        load_checkpoint(path, CPU)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "last.pt", CPU)
