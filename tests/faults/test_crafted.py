"""Files that bring code along: refused by every command that reads them, and nothing of them is run."""

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mow
from mow import train
from mow.evaluate import __main__ as evaluate
from mow.evaluate import film
from mow.inference import export
from mow.runs import checkpoint
from mow.runs.checkpoint import save_checkpoint
from mow.runs.paths import checkpoints
from tests.faults.runs import copied


class Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def sealed(path: Path, content: bytes) -> None:
    """As a checkpoint of this version, whatever it holds: its checksum is right."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.torch, "save", lambda _, file: file.write(content))
        save_checkpoint(path, {})


@pytest.fixture(params=["torch.save", "pickle", "zip"])
def crafted(request: pytest.FixtureRequest, finished: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A run whose newest checkpoint is planted, and the marker that must not appear."""
    folder, marker = copied(finished, tmp_path / "run"), tmp_path / "marker"
    newest, bomb = checkpoints(folder)[-1], Planted(marker)
    if request.param == "torch.save":
        save_checkpoint(newest, {"step": 32, "learner": bomb})
    elif request.param == "pickle":
        sealed(newest, pickle.dumps(bomb, protocol=2))
    else:
        archive = tmp_path / "archive"
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("archive/data.pkl", pickle.dumps(bomb, protocol=2))
            file.writestr("archive/version", "3\n")
        sealed(newest, archive.read_bytes())
    return folder, marker


COMMANDS = {"train": train.main, "evaluate": evaluate.main, "film": film.main, "export": export.main}
FLAGS = {"film": ("--steps", "4")}  # its world model is small


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_what_a_checkpoint_brings(
    crafted: tuple[Path, Path], command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, marker = crafted
    try:
        code = COMMANDS[command]([*(["--resume"] if command == "train" else []), str(folder), *FLAGS.get(command, ())])
    except SystemExit as ended:
        code = int(str(ended.code))
    said = capsys.readouterr().err
    assert code == 2, said
    assert said.count("\n") == 1
    assert f"{checkpoints(folder)[-1]} holds more than tensors and plain values, of which nothing was run" in said
    assert not marker.exists()


def test_nor_does_load(crafted: tuple[Path, Path]) -> None:
    folder, marker = crafted
    with pytest.raises(ValueError, match="of which nothing was run: do not trust it"):
        mow.load(folder, device="cpu")
    assert not marker.exists()


@pytest.mark.parametrize("file", ["config.json", "replay"])
def test_no_other_file_of_a_run_is_unpickled(
    finished: Path, tmp_path: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, marker = copied(finished, tmp_path / "run"), tmp_path / "marker"
    for path in (folder / "replay").glob("manifest*") if file == "replay" else [folder / file]:
        path.write_bytes(pickle.dumps(Planted(marker)))
    with pytest.raises(SystemExit, match="2"):
        train.main(["--resume", str(folder)])
    assert capsys.readouterr().err.count("\n") == 1
    assert not marker.exists()


def test_the_plant_works(tmp_path: Path) -> None:
    """What reads pickles does run it; else the tests above would prove nothing."""
    save_checkpoint(tmp_path / "a.pt", {"learner": Planted(tmp_path / "marker")})
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert (tmp_path / "marker").exists()
