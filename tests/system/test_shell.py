"""Paths as they are typed, and printed commands: pasted into a shell, they reach the program as they were meant."""

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mow.cli.parse import parse
from mow.cli.resume import find_resumption
from mow.envs.__main__ import main as envs_main
from mow.errors import UsageError
from mow.evaluate import __main__ as evaluate
from mow.evaluate import ablate, film
from mow.evaluate.ablation_grid import plan, train_command
from mow.inference import export
from mow.methods.mow.presets import quickstart
from mow.report import __main__ as report
from mow.runs.paths import resume_command, resume_hint
from mow.system.shell import command, typed_path
from mow.train import main
from tests.test_train import DUMMY

NAMES = ["plain", "it's a \"run\"", "-flag", "--folder", "$HOME `x` \\ !", "größe", "*", ""]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("name", NAMES)
def test_a_shell_reads_a_command_as_it_was_meant(name: str) -> None:
    read = subprocess.run(["bash", "-c", command("printf", "%s", name)], check=True, capture_output=True, text=True)
    assert read.stdout == name


def test_a_path_is_never_taken_for_a_flag() -> None:
    assert command("tool", Path("-x/y")) == "tool ./-x/y"
    assert command("tool", "--flag", Path("a b")) == "tool --flag 'a b'"


def test_home_is_expanded(home: Path) -> None:
    assert typed_path("~/x") == home / "x"
    assert typed_path("./~/x") == Path("./~/x")


def test_every_path_of_every_command_is_expanded(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = parse(["quickstart", "--folder=~/x", "--replay.store", "packed", "--replay.disk=~/frames"])
    assert (config.folder, config.replay.disk) == (str(home / "x"), str(home / "frames"))
    home.mkdir()
    there = home / "run"
    there.mkdir()
    readers: list[tuple[Callable[[list[str]], object], list[str]]] = [
        (evaluate.read_arguments, ["~/run", "--out=~/run"]),
        (film.read_arguments, ["~/run", "--out=~/film.png", "--checkpoint=~/run"]),
        (report.read_arguments, ["~/run", "--out=~/page.html", "--checkpoint=~/run"]),
        (export.read_arguments, ["~/run", "--out=~/run"]),
        (lambda words: ablate._read_arguments(words)[0], ["--folder=~/run"]),
    ]
    for read, words in readers:
        paths = [
            value for found in vars(read(words)).values() for value in (found if isinstance(found, list) else [found])
            if isinstance(value, Path)
        ]  # fmt: skip
        assert len(paths) == len(words)
        for path in paths:
            assert home in path.parents
    with pytest.raises(UsageError, match=f"{re.escape(str(there))} has no checkpoints"):
        find_resumption(["--resume", "~/run"])
    assert envs_main(["--preview", "tiny:catch", "~/sheet.png", "--steps", "1"]) == 0
    assert (home / "sheet.png").exists()
    assert capsys.readouterr().err == ""



@pytest.mark.parametrize("name", ["it's a \"run\" of ö", "-flag"])
def test_commands_that_a_run_prints_go_on_with_it(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["quickstart", *DUMMY, f"--folder={name}", "--total-steps", "14"]) == 0
    said = capsys.readouterr().out
    words = shlex.split(said[said.index("tensorboard --logdir") :].splitlines()[0])
    assert Path(words[2]) == Path(name)
    for line in (resume_command(Path(name)), resume_hint(Path(name)).partition(" goes on from ")[0]):
        python, m, module, *arguments = shlex.split(line)
        assert (python, m, module) == ("python", "-m", "mow.train")
        assert find_resumption(arguments).folder == Path(name)


def test_a_grid_hands_its_folder_to_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (job,) = plan(quickstart(), ["mow"], 1, Path("-grid of mine"))
    config = parse(train_command(job)[3:])
    assert Path(config.folder) == job.folder == Path("-grid of mine/mow/seed-0")
    path = job.folder / "checkpoints" / "step_00000001.pt"
    path.parent.mkdir(parents=True)
    path.touch()
    assert Path(train_command(job)[4]) == job.folder
    assert not train_command(job)[4].startswith("-")
