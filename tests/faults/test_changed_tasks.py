"""Tasks that are no longer what they were when a checkpoint was written: refused by everything that restores it."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from mow.envs.dummy import CountingEnv
from tests.faults.commands import COMMANDS, answered, code_of, contents
from tests.faults.runs import copied


def changed(patch: pytest.MonkeyPatch, task: str, **fields: Any) -> None:
    """From here on a task has other properties."""
    make = CountingEnv.__init__

    def remade(self: CountingEnv, name: str, **how: Any) -> None:
        make(self, name, **how)
        if self.task.name == task:
            self.task = dataclasses.replace(self.task, **fields)

    patch.setattr(CountingEnv, "__init__", remade)


@pytest.fixture(scope="module")
def run(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, with an export of it."""
    folder = copied(finished, tmp_path_factory.mktemp("changed") / "run")
    assert code_of("export", folder) == 0
    return folder


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("number", "legal"), [(2, (True,) * 2), (4, (True,) * 4)], ids=["fewer actions", "as many as another task"]
)
def test_another_number_of_actions(
    run: Path, command: str, number: int, legal: tuple[bool, ...], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Of count-0, which had three beside a task with four: with four, all shapes are as before."""
    changed(monkeypatch, "dummy:count-0", num_actions=number, legal=legal)
    before = contents(run)
    places: list[str | Path] = [run] if command != "export" else [run, "--out", run / "other"]
    assert f"(dummy:count-0: num_actions 3 -> {number})" in answered(capsys, command, *places)
    assert contents(run) == before


@pytest.mark.parametrize("command", ["load", "evaluate", "film"])
def test_so_do_exported_weights(
    run: Path, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(monkeypatch, "dummy:count-0", num_actions=4, legal=(True,) * 4)
    assert "model.safetensors was written with other tasks (dummy:count-0: num_actions 3 -> 4)" in answered(
        capsys, command, run / "export"
    )


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"legal": (True, True, False)}, "dummy:count-0: legal [0, 1, 2] -> [0, 1]"),
        ({"frame_skip": 4}, "dummy:count-0: frame_skip 1 -> 4"),
        ({"protocol": "other"}, "dummy:count-0: protocol 'counting' -> 'other'"),
        ({"discrete": False}, "dummy:count-0: discrete True -> False"),
    ],
)
def test_every_other_property(
    run: Path, fields: dict[str, Any], line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(monkeypatch, "dummy:count-0", **fields)
    before = contents(run)
    assert f"was written with other tasks ({line}): install the simulators" in answered(capsys, "train", run)
    assert contents(run) == before
