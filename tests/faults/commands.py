"""All commands that read a run folder, to be given one that is broken: one line, exit code 2, nothing changed."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import mow
from mow import train
from mow.evaluate import __main__ as evaluate
from mow.evaluate import film
from mow.inference import export
from mow.report import __main__ as report


def _load(words: list[str]) -> int:
    try:
        mow.load(words[0], device="cpu")
    except ValueError as error:
        print(f"mow.load: {error}", file=sys.stderr)
        return 2
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": lambda words: train.main(["--resume", *words]),
    "load": _load,
    "evaluate": lambda words: evaluate.main([*words, "--episodes", "1", "--device", "cpu"]),
    "film": lambda words: film.main([*words, "--steps", "4", "--device", "cpu"]),
    "export": export.main,
    "report": lambda words: report.main([*words, "--device", "cpu"]),
}


def code_of(command: str, *words: str | Path) -> int:
    try:
        return COMMANDS[command]([str(word) for word in words])
    except SystemExit as ended:
        return int(str(ended.code))


def answered(capsys: pytest.CaptureFixture[str], command: str, *words: str | Path) -> str:
    """The one line that a command refuses a run with."""
    capsys.readouterr()
    code = code_of(command, *words)
    said = capsys.readouterr().err
    assert code == 2, f"{command}: {said}"
    assert said.startswith((f"mow.{command}: ", f"mow {command}: ")), said
    assert said.count("\n") == 1, said
    return said


def contents(folder: Path) -> dict[Path, bytes | None]:
    """Every file and folder, but for the lock, which any run that tries to go on may leave."""
    return {
        path: path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.name != "lock"
    }
