"""Files that are torn, of another program, or no files at all, wherever a command opens one: one line, exit code 2."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mow.engine.trainer import Trainer
from mow.inference import export
from mow.report import __main__ as report
from mow.runs import checkpoint
from mow.runs.checkpoint import load_checkpoint, save_checkpoint
from mow.runs.paths import checkpoints
from tests.faults.commands import COMMANDS, answered, code_of, contents
from tests.faults.runs import copied

CPU = torch.device("cpu")

# What a file may hold that should be JSON of a run: cut off, zeros after a crash, or of somebody else.
TEXTS = {
    "empty": b"",
    "cut": b'{"tasks": ["dummy:co',
    "zeros": bytes(512),
    "null": b"null",
    "number": b"5",
    "text": b'"text"',
    "list": b'["a", {"b": 1}]',
    "other": b'{"model_type": "bert", "runs": 5, "tasks": 5, "protocol": [], "resumed": 5, "step": "x"}',
    "entries": b'{"runs": [5], "tasks": {"dummy:slide": 5}, "protocol": {"a": []}, "resumed": [5]}',
    "bytes": b"\xff\xfe\x00\x01",
    "deep": b"[" * 100_000,
    "digits": b'{"seed": ' + b"9" * 5000 + b"}",
    "large": b'{"tasks": {"dummy:slide": {"returns": [1' + b"0" * 400 + b']}}, "seed": 1' + b"0" * 400 + b"}",
}
PLACES = ("folder", "loop", "absent")  # a folder in its place, a link that leads to itself (no permission, to root)


def spoil(path: Path, how: str) -> None:
    """Put something else in the place of a file."""
    path.unlink(missing_ok=True)
    if how in TEXTS:
        path.write_bytes(TEXTS[how])
    elif how == "folder":
        path.mkdir()
    elif how == "loop":
        path.symlink_to(path.name)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return copied(finished, tmp_path / "run")


@pytest.mark.parametrize("how", [*TEXTS, *PLACES])
def test_the_config(run: Path, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(run / "config.json", how)
    before = contents(run)
    for command in COMMANDS:
        assert str(run / "config.json") in answered(capsys, command, run)
    assert contents(run) == before


def test_values_of_the_config_that_fit_their_type_and_nothing_else(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = json.loads((run / "config.json").read_text())
    changes: list[dict[str, Any]] = [
        {"tasks": []}, {"tasks": ["nowhere:x"]}, {"tasks": [5]}, {"total_steps": 0}, {"total_steps": True},
        {"loss": {**whole["loss"], "reward": 10**400}}, {"loss": []}, {"batch": {"length": None}},
    ]  # fmt: skip
    for change in changes:
        (run / "config.json").write_text(json.dumps({**whole, **change}))
        for command in COMMANDS:
            answered(capsys, command, run)


def sealed(path: Path, content: object) -> None:
    """A checkpoint of this format, whatever it holds."""
    save = torch.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.torch, "save", lambda _, file: save(content, file))
        save_checkpoint(path, {})


FOREIGN: dict[str, Callable[[Path], object]] = {
    "of another program": lambda path: torch.save({"state_dict": {"weight": torch.ones(2)}, "epoch": 3}, path),
    "of another format": lambda path: sealed(path, {"format": 99}),
    "a list": lambda path: sealed(path, [1, 2]),
    "a tensor": lambda path: sealed(path, torch.ones(2)),
    "with nothing in it": lambda path: save_checkpoint(path, {}),
    "with one number": lambda path: save_checkpoint(path, {"step": 32}),
    "with names alone": lambda path: save_checkpoint(path, dict.fromkeys(("step", "tasks", "learner", "config"))),
    "with wrong kinds": lambda path: save_checkpoint(
        path, {"step": "x", "tasks": 5, "learner": [], "config": "[]", "specs": 5}
    ),
    "a folder": lambda path: path.mkdir(),
    "a loop": lambda path: path.symlink_to(path.name),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_checkpoint(run: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoints(run)[-1]
    path.unlink()
    FOREIGN[what](path)
    before = contents(run)
    for command in COMMANDS:
        assert str(path) in answered(capsys, command, run)
    assert contents(run) == before


class Accepted(BaseException):
    """The run would train now."""


@pytest.fixture
def not_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(_: Trainer) -> None:
        raise Accepted

    monkeypatch.setattr(Trainer, "train", train)


def states(whole: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The content of a checkpoint with one entry left out or of another kind, at the top and in what learns."""
    for name in whole:
        yield name, {key: value for key, value in whole.items() if key != name}
        yield name, {**whole, name: {"x": torch.ones(1)}}
    for name in whole["learner"]:
        yield name, {**whole, "learner": {key: value for key, value in whole["learner"].items() if key != name}}


# What a run goes on without, or what means nothing to it.
OPTIONAL = {"restarts", "last_loss", "format", "specs", "tasks", "cuda_rng", "data", "rank_rng"}


@pytest.mark.usefixtures("not_trained")
def test_no_entry_of_a_checkpoint_is_taken_on_trust(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checksum is right, its content is not: refused before anything in the folder is changed."""
    path = checkpoints(run)[0]
    before = contents(run)
    for name, state in states(load_checkpoint(path, CPU)):
        if name in OPTIONAL:
            continue
        monkeypatch.setattr(checkpoint, "load_checkpoint", lambda *_, state=state: state)
        assert answered(capsys, "train", path)
        assert contents(run) == before, name


def exported(run: Path) -> Path:
    assert code_of("export", run) == 0
    return run / "export"


def rewritten(path: Path, **metadata: str) -> None:
    """The same weights with other metadata."""
    save_file(load_file(path), path, metadata=metadata)


WEIGHTS: dict[str, Callable[[Path], object]] = {
    "of another program": lambda path: rewritten(path, format="pt"),
    "without ours": lambda path: rewritten(path, mow_format="2"),
    "torn": lambda path: rewritten(path, mow_format="2", mow="{"),
    "a list": lambda path: rewritten(path, mow_format="2", mow="[]"),
    "no digest": lambda path: rewritten(path, mow_format="2", mow="{}"),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "empty": lambda path: path.write_bytes(b""),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a loop": lambda path: (path.unlink(), path.symlink_to(path.name)),
}


def test_exported_weights(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = exported(run)
    for what, harm in WEIGHTS.items():
        copy = run.parent / what
        shutil.copytree(folder, copy)
        harm(copy / "model.safetensors")
        for command in ("load", "evaluate", "film"):
            answered(capsys, command, copy)


@pytest.mark.parametrize("file", ["scores.json", "evaluation.json", "versions.json"])
def test_what_an_export_describes(run: Path, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A model card is written with what can be read, or nothing is written."""
    for how in (*TEXTS, "folder", "loop"):
        spoil(run / file, how)
        capsys.readouterr()
        code = code_of("export", run)
        said = capsys.readouterr().err
        if how == "large" and code == 0:  # a number that the card does not show
            shutil.rmtree(run / "export")
        else:
            assert (code, said.count("\n")) == (2, 1), (how, said)
            assert "move scores.json, evaluation.json or versions.json away" in said
            assert not (run / "export").exists()
        (shutil.rmtree if how == "folder" else Path.unlink)(run / file)
    assert export.main([str(run)]) == 0


@pytest.mark.parametrize("file", ["scores.json", "versions.json", "metrics.jsonl"])
def test_what_a_report_shows(run: Path, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The page stands without it."""
    for how in (*TEXTS, *PLACES):
        spoil(run / file, how)
        assert report.main([str(run), "--windows", "0"]) == 0, (how, capsys.readouterr().err)
        if how != "absent":
            (shutil.rmtree if how == "folder" else Path.unlink)(run / file)


def test_lines_of_the_log(run: Path) -> None:
    """Whole lines of JSON with values of other kinds."""
    lines = [
        {"step": 1, "updates": "many", "seconds": [], "frames": {}}, {"step": 10**400}, {"step": 2, "task": 5},
        {"step": 3, "task": "dummy:slide", "episode_return": "x"}, {"step": 4, "loss": 10**400},
    ]  # fmt: skip
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert report.main([str(run), "--windows", "0"]) == 0


@pytest.mark.usefixtures("not_trained")
@pytest.mark.parametrize("file", ["versions.json", "scores.json", "metrics.jsonl", "lock", "replay", "checkpoints"])
def test_the_rest_of_a_run_that_goes_on(run: Path, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Either it goes on, or one line says why not."""
    accepted = []
    for how in ("cut", "folder", "loop"):
        folder = copied(run, run.parent / f"with {how}")
        if (folder / file).is_dir():
            shutil.rmtree(folder / file)
        spoil(folder / file, how)
        capsys.readouterr()
        try:
            code = code_of("train", folder)
        except Accepted:
            accepted.append(how)
            continue
        said = capsys.readouterr().err
        assert code in (1, 2)
        assert said.count("\n") == 1, said
    assert set(accepted) >= {"versions.json": {"cut"}, "scores.json": {"cut", "folder", "loop"}}.get(file, set())


@pytest.mark.parametrize("place", ["x" * 300, "loop", "file", "file/below", "a.pt"])
def test_the_run_itself(tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    (tmp_path / "a.pt").mkdir()
    for command in COMMANDS:
        answered(capsys, command, tmp_path / place)
