"""How a run ends that is trained, or that breaks by a mistake of ours: what is said, what is left, the exit code."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mow import train
from mow.engine import evaluator, scoring
from mow.engine.trainer import Trainer
from mow.envs.base import EnvFailure
from mow.errors import UsageError
from mow.evaluate import __main__ as evaluate
from mow.runs.paths import checkpoint_path
from tests.test_train import DUMMY

SCORED = ["quickstart", *DUMMY, "--evaluation-episodes", "50"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_it_scores(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It comes in the third step of all tasks, and no fourth is played."""
    folder, steps = tmp_path / "a run", []
    play = evaluator.evaluate
    default = signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def evaluated(learner: Any, envs: Any, **how: Any) -> Any:
        step = envs.step

        def counted(action: Any) -> Any:
            steps.append(1)
            if len(steps) == 3:
                os.kill(os.getpid(), number)
            return step(action)

        envs.step = counted
        return play(learner, envs, **how)

    monkeypatch.setattr(scoring, "evaluate", evaluated)
    try:
        assert train.main([*SCORED, "--folder", str(folder)]) == 0
    finally:
        signal.signal(number, default)
    said = capsys.readouterr().out
    assert len(steps) == 3
    assert "stopped while scoring (0 of 100 episodes, 3 steps); " in said
    assert f"training is complete: {checkpoint_path(folder, 20)}\nto score it later: " in said
    assert f"to score it later: mow evaluate '{folder}'\n" in said
    assert not (folder / "scores.json").exists()
    assert evaluate.main([str(folder), "--episodes", "1", "--device", "cpu"]) == 0


def test_scoring_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluator.ScoringProgress, "SECONDS", 0.0)
    assert train.main(["quickstart", *DUMMY, "--evaluation-episodes", "1", "--folder", str(tmp_path / "run")]) == 0
    assert " of 2 episodes, " in capsys.readouterr().out


def fails(error: BaseException) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> None:
        raise error

    return call


def test_simulators_that_cannot_be_made_for_scoring_are_not_a_run_that_cannot_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, make = tmp_path / "run", scoring.environments

    def made(config: Any, *how: Any, **more: Any) -> Any:
        if more["seed"] == 1:
            raise UsageError("no more of these")
        return make(config, *how, **more)

    monkeypatch.setattr(scoring, "environments", made)
    assert train.main([*SCORED, "--folder", str(folder)]) == 1
    said = capsys.readouterr()
    assert f"not scored; training is complete: {checkpoint_path(folder, 20)}" in said.out
    assert said.err == "mow.train: no more of these\n"


@pytest.mark.parametrize(
    "error",
    [UsageError("no cv2"), EnvFailure("a task fails"), RuntimeError("a bug"), OSError(28, "full"), KeyboardInterrupt()],
    ids=lambda error: type(error).__name__,
)
def test_a_report_that_fails_leaves_a_run_that_is_done(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    monkeypatch.setattr("mow.report.__main__.write_report", fails(error))
    assert train.main(["quickstart", *DUMMY, "--report", "--evaluation-episodes", "0", "--folder", str(folder)]) == 0
    said = capsys.readouterr()
    last = said.out.splitlines()[-1]
    assert last == f"no report ({str(error) or 'KeyboardInterrupt'}): mow report {folder} makes it later"
    assert said.err == ""
    kept = not isinstance(error, UsageError | KeyboardInterrupt)
    assert (folder / "failure.txt").exists() == kept


@pytest.mark.parametrize(
    "error",
    [ZeroDivisionError("of ours"), OSError(5, "Input/output error", "disk"), MemoryError("too large"),
     FloatingPointError("loss became nan"), KeyError("x\ny")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_what_the_user_cannot_mend_leaves_its_traceback(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    monkeypatch.setattr(Trainer, "train", fails(error))
    assert train.main(["quickstart", *DUMMY, "--folder", str(folder)]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("mow.train: ")
    text = (folder / "failure.txt").read_text()
    assert "Traceback (most recent call last)" in text
    assert f"{type(error).__name__}: " in text
    assert f"command: {sys.orig_argv[0]}" in text
    assert "please report it" in text
    assert '"total_steps": 20' in text  # the config
    assert '"cpu_threads"' in text  # versions.json
    ours = isinstance(error, ZeroDivisionError | KeyError)
    assert (f"a mistake of mow, please report it (traceback: {folder / 'failure.txt'})" in said) == ours


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_without_a_folder_the_traceback_is_in_a_temporary_file(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(train, "parse", fails(ZeroDivisionError("of ours")))
    monkeypatch.setattr(evaluate, "find_run", fails(ZeroDivisionError("of ours")))
    main = {"train": train.main, "evaluate": evaluate.main}[command]
    assert main([str(tmp_path)]) == 1
    (path,) = tmp_path.iterdir()
    said = f"ZeroDivisionError: of ours: a mistake of mow, please report it (traceback: {path})"
    assert capsys.readouterr().err == f"{'mow.train' if command == 'train' else f'mow {command}'}: {said}\n"
    assert "Traceback" in path.read_text()
