"""Weights & Biases, offline: what metrics.jsonl has arrives there, and without wandb the remedy is said."""

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mow.runs.paths import checkpoints
from mow.runs.wandb import WandbMirror
from mow.train import main
from tests.test_train import DUMMY


class Recorded:
    """What wandb.init gives."""

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []
        self.finished = False

    def log(self, numbers: dict[str, Any]) -> None:
        self.logged.append(numbers)

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> tuple[Recorded, dict[str, Any]]:
    run, options = Recorded(), {}

    def init(**given: Any) -> Recorded:
        options.update(given)
        return run

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Settings=lambda **given: given))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return run, options


def test_a_run_is_mirrored(tmp_path: Path, recorded: tuple[Recorded, dict[str, Any]]) -> None:
    run, options = recorded
    folder = tmp_path / "run"
    assert main(["quickstart", *DUMMY, "--wandb", "--folder", str(folder)]) == 0
    assert (options["mode"], options["dir"], options["id"]) == ("offline", str(folder), "run")
    assert options["config"]["total_steps"] == 20
    assert any("dummy:slide/episode_return" in numbers for numbers in run.logged)
    assert any("loss/world_model/dummy:slide" in numbers for numbers in run.logged)
    assert all("step" in numbers for numbers in run.logged)
    assert len(run.logged) == len((folder / "metrics.jsonl").read_text().splitlines())
    assert run.finished


def test_a_run_that_goes_on_sends_no_line_twice(tmp_path: Path, recorded: tuple[Recorded, dict[str, Any]]) -> None:
    run, _ = recorded
    folder = tmp_path / "run"
    assert main(["quickstart", *DUMMY, "--wandb", "--checkpoint-every", "8", "--folder", str(folder)]) == 0
    whole = list(run.logged)
    (folder / "wandb").mkdir()  # which the real one makes
    assert main(["--resume", str(checkpoints(folder)[0])]) == 0
    assert [numbers["step"] for numbers in run.logged] == [numbers["step"] for numbers in whole]


def test_online_is_asked_for_by_its_variable(
    tmp_path: Path, recorded: tuple[Recorded, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    assert WandbMirror(tmp_path, {}).notice == f"wandb: online, in {tmp_path / 'wandb'}"
    assert recorded[1]["mode"] == "online"


def test_without_wandb_the_remedy_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SystemExit, match="2"):
        main(["quickstart", *DUMMY, "--wandb", "--folder", str(tmp_path / "run")])
    said = capsys.readouterr().err
    assert 'pip install -e ".[wandb]"' in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_real_one_writes_a_run_offline(tmp_path: Path) -> None:
    """In a process of its own: wandb keeps threads and a service of its own."""
    if importlib.util.find_spec("wandb") is None:
        pytest.skip("wandb is not installed")
    program = f"""
        from pathlib import Path
        from mow.runs.wandb import WandbMirror
        mirror = WandbMirror(Path({str(tmp_path)!r}), {{"seed": 0}})
        mirror.write({{"step": 1, "task": "dummy:slide", "episode_return": 2.0}})
        mirror.close()
    """
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=120, env=environment,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
