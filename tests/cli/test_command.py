"""The command `mow`: it leads to every command, and answers the rest in one line."""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mow import __version__
from mow.cli.command import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "doctor":  # takes no arguments
        assert callable(importlib.import_module(COMMANDS[name][0]).main)
        return
    try:
        code = main([name, "--help"])
    except SystemExit as end:  # argparse and tyro
        code = end.code
    assert code in (0, None)
    assert "usage: " in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_the_list_has_a_line_for_each(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    said = capsys.readouterr().out
    assert all(f"  {name}" in said and line in said for name, (_, line) in COMMANDS.items())
    assert max(map(len, said.splitlines())) <= 80


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mow {__version__}\n"


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == "mow: unknown command 'trian': did you mean train, extract?\n"


def test_the_list_needs_no_torch() -> None:
    code = "import sys; from mow.cli.command import main; main([]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True).returncode == 0


def test_the_console_script_is_this_command() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"mow": "mow.cli.command:main"}
