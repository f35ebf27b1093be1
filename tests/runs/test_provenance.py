"""The commit in versions.json, whatever state git is in; its runs train."""

import json
import logging
import os
import re
import subprocess
from pathlib import Path

import pytest

from mow.runs import provenance as origin
from mow.runs.provenance import _git_commit
from mow.train import main
from tests.test_train import DUMMY

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in a checkout, and an empty PATH before the test puts a git there."""
    (tmp_path / "src" / "mow").mkdir(parents=True)
    (tmp_path / "src" / ".git").mkdir()
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(origin, "__file__", str(tmp_path / "src" / "mow" / "runs" / "provenance.py"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


def git(checkout: Path, script: str, *, mode: int = 0o755) -> None:
    path = checkout / "bin" / "git"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(mode)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (None, "No such file or directory"),
        ("echo 'fatal: detected dubious ownership in repository' >&2; exit 128", "exit status 128"),
        ("exec /bin/sleep 60", "timed out"),
    ],
)
def test_a_git_that_cannot_tell(
    checkout: Path, script: str | None, why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if script is not None:
        git(checkout, script)
    monkeypatch.setattr(origin, "_GIT_SECONDS", 0.5)
    assert _git_commit() is None
    (record,) = caplog.records
    assert record.message.startswith("versions.json names no commit, git fails: ")
    assert why in record.message
    assert "\n" not in record.message


def test_a_git_that_may_not_be_run(checkout: Path, caplog: pytest.LogCaptureFixture) -> None:
    git(checkout, "exit 0", mode=0o644)
    assert _git_commit() is None
    assert "Permission denied" in caplog.text


@pytest.mark.parametrize("said", [COMMIT, f"{COMMIT}-dirty"])
def test_a_commit(checkout: Path, said: str, caplog: pytest.LogCaptureFixture) -> None:
    git(checkout, f"echo {said}")
    with caplog.at_level(logging.INFO):
        assert _git_commit() == said
    assert not caplog.records


def test_an_installed_package_has_none_and_git_is_not_run(checkout: Path, caplog: pytest.LogCaptureFixture) -> None:
    (checkout / "src" / ".git").rmdir()
    assert _git_commit() is None
    assert not caplog.records


def test_a_real_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("other",):
        run = ["git", "-C", str(tmp_path / name), "-c", "user.name=x", "-c", "user.email=x@y"]
        (tmp_path / name / "mow").mkdir(parents=True)
        subprocess.run([*run, "init", "-q"], check=True)
        subprocess.run([*run, "commit", "-q", "--allow-empty", "-m", name], check=True)
        subprocess.run([*run, "tag", "-a", "v1", "-m", "v1"], check=True)
    head = subprocess.run([*run, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    monkeypatch.setattr(origin, "__file__", str(tmp_path / "other" / "mow" / "runs" / "provenance.py"))
    assert _git_commit() == head


def test_a_run_in_a_checkout_without_git_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a folder that the failure of an earlier version has left does not refuse it."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text("{}\n")
    monkeypatch.setattr(origin, "__file__", str(tmp_path / "mow" / "runs" / "provenance.py"))
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", os.devnull)
    assert main(["quickstart", *DUMMY, "--folder", str(folder)]) == 0
    said = capsys.readouterr().out
    assert f"{folder} holds a run that ended before its first step: this one takes its place" in said
    assert re.search("^versions.json names no commit, git fails: ", said, re.MULTILINE)
    assert json.loads((folder / "versions.json").read_text())["git_commit"] is None
