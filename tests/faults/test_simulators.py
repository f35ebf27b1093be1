"""Simulators that misbehave in many ways, with workers and without: made anew and counted, or no matter at all."""

import os
import random
import re
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gymnasium", reason="the simulators of these tests are gymnasium's")
pytest.importorskip("cv2", reason="the suite gym needs OpenCV")

import mow
from mow.config import EnvConfig
from mow.envs.base import EnvStep
from mow.envs.vector import VectorEnv, WorkerVectorEnv, make_vector
from mow.evaluate import __main__ as evaluate
from mow.evaluate import film
from mow.inference import export
from tests.envs.test_vector import assert_same, played
from tests.faults.runs import assert_equal, gone_on, refused, stopped, to_the_end
from tests.faults.simulators import (
    BAD_PICTURES,
    BAD_STEPS,
    FAILS_AT,
    LENGTH,
    ODD_PICTURES,
    ODD_STEPS,
    RUDE,
    task,
)
from tests.small import run_config

BOTH = pytest.mark.parametrize("num_workers", [0, 2])
FAILING = (*BAD_STEPS, *BAD_PICTURES)
HARMLESS = (*ODD_STEPS, *ODD_PICTURES, *RUDE)


def made(kinds: tuple[str, ...], num_workers: int, **more: Any) -> VectorEnv:
    tasks = [task(kind) for kind in kinds]
    return make_vector(tasks, seed=3, num_workers=num_workers, options={}, **{"max_restarts": 3, **more})


# While it runs ------------------------------------------------------------------------------------------------------


def test_whatever_a_step_does_it_is_made_anew_said_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Each fails at its 15th step, is made anew, and fails again at the 15th step after that."""
    told: list[list[EnvStep]] = []
    for num_workers in (0, 2):
        caplog.clear()
        with made(FAILING, num_workers) as envs:
            envs.reset()
            told.append(played(envs, 2 * FAILS_AT + 2))
        for k, kind in enumerate(FAILING):
            lost = [any(task(kind) in one.tasks for one in step.restarts) for step in told[-1]]
            assert [number for number, one in enumerate(lost, 1) if one] == [FAILS_AT, 2 * FAILS_AT], kind
            assert [bool(step.truncated[k]) for step in told[-1]] == lost, kind
            assert sum(task(kind) in message for message in caplog.messages) == 2, kind
            ended = [number for number, step in enumerate(told[-1], 1) for one in step.finished if one.index == k]
            assert ended[:2] == [LENGTH, 2 * LENGTH], kind
    for here, there in zip(*told, strict=True):
        assert_same(here, there)
        assert np.isfinite(here.reward).all()
        said = [sorted((restart.tasks, restart.reason) for restart in step.restarts) for step in (here, there)]
        assert said[0] == said[1]


def test_the_reasons_are_words_that_help() -> None:
    kinds = ("Exit", "Huge", "FourValues", "InfoNone", "TerminatedText", "ManyLines", "Grey")
    with made(kinds, 0) as envs:
        envs.reset()
        reasons = [restart.reason for restart in played(envs, FAILS_AT)[-1].restarts]
    name = {kind: f"ValueError: {task(kind)}: expected" for kind in kinds}
    assert reasons[0] == "SystemExit"
    assert reasons[1] == f"{name['Huge']} a finite number within float32 as reward, got 1e+39"
    assert reasons[2].startswith(f"{name['FourValues']} (observation, reward, terminated, truncated, info), got (")
    assert reasons[3:] == [
        f"{name['InfoNone']} a dict as info, got None",
        f"{name['TerminatedText']} a bool as terminated, got 'no'",
        "RuntimeError: first",
        f"{name['Grey']} render() to give uint8, or floats in [0, 1], [height, width, 3 or 4], got uint8 [128, 192]",
    ]


@pytest.mark.parametrize("kind", ["Died", "Segfault"])
def test_a_simulator_that_ends_its_process_is_made_anew(kind: str) -> None:
    with made((kind, "Plain"), 2) as envs:
        envs.reset()
        steps = played(envs, FAILS_AT + 3)
    (restart,) = [restart for step in steps for restart in step.restarts]
    assert restart.tasks == (task(kind),)
    assert "its worker died with exit code" in restart.reason


def test_a_ctrl_c_of_the_user_is_none_of_the_simulators_failures() -> None:
    with made(("CtrlC",), 0) as envs:
        envs.reset()
        with pytest.raises(KeyboardInterrupt):
            played(envs, FAILS_AT)


@BOTH
def test_odd_answers_and_rude_simulators_change_nothing(num_workers: int) -> None:
    with made(("Plain",) * len(HARMLESS), 0) as plain, made(HARMLESS, num_workers) as envs:
        assert np.array_equal(plain.reset()[0], envs.reset()[0])
        for expected, step in zip(played(plain, 20), played(envs, 20), strict=True):
            assert step.restarts == ()
            for name in ("frame", "is_first", "reward", "terminated", "truncated"):
                same = getattr(step, name) == getattr(expected, name)
                wrong = [kind for kind, one in zip(HARMLESS, same, strict=True) if not one.all()]
                assert wrong == [], name


def process_state() -> dict[str, object]:
    return {
        "folder": os.getcwd(),
        "streams": (sys.stdout, sys.stderr),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
    }


def test_rude_simulators_leave_the_process_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = process_state()
    envs = made(tuple(RUDE), 0)
    assert process_state() == before
    envs.reset()
    for _ in range(2 * LENGTH + 1):
        envs.step(envs.layout.random(np.random.default_rng(0)))
        assert process_state() == before
    envs.close()
    assert process_state() == before
    said = capsys.readouterr()
    assert "printed by" in said.err
    assert said.out == ""
    random.seed(0)


@BOTH
def test_close_that_raises_is_logged_and_nothing_else(num_workers: int, caplog: pytest.LogCaptureFixture) -> None:
    envs = made(("FailsToClose", "Plain"), num_workers)
    envs.close()
    envs.close()
    if num_workers == 0:  # workers say it themselves
        line = f"{task('FailsToClose')}: its simulator does not close: RuntimeError: it is stuck"
        assert caplog.messages == [line]


WORST = (task("Worst"), "dummy:count-0")  # see _everywhere


def test_a_run_of_the_worst_of_them_is_the_same_with_workers_and_without(tmp_path: Path) -> None:
    runs = []
    for num_workers in (0, 2):
        config = run_config(tasks=WORST, total_steps=24, env=EnvConfig(num_workers=num_workers))
        runs.append(to_the_end(config, tmp_path / str(num_workers)))
        assert runs[-1].collector.restarts == 1
    assert_equal(*(run.learner.state_dict() for run in runs))


def test_it_is_resumed_scored_filmed_exported_and_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    stopped(run_config(tasks=WORST, total_steps=24, env=EnvConfig(num_workers=0)), folder, 19, monkeypatch)
    gone_on(folder)
    before = process_state()
    assert evaluate.main([str(folder), "--episodes", "1", "--device", "cpu"]) == 0
    assert film.main([str(folder), "--windows", "1", "--context", "1", "--steps", "2", "--device", "cpu"]) == 0
    assert export.main([str(folder), "--out", str(tmp_path / "out")]) == 0
    frame, _ = mow.load(tmp_path / "out", device="cpu").imagine(WORST[0]).reset(seed=1)
    assert frame.shape == (64, 64, 3)
    assert process_state() == before
    assert "printed by" not in capsys.readouterr().out


# At the start ---------------------------------------------------------------------------------------------------------

STARTS = {
    "NoRenderMode": "TypeError: .*render_mode.*",
    "FailsToReset": "OSError: no licence.*",
    "RuntimeErrorFirst": "RuntimeError: no licence.*",
    "SystemExitFirst": "SystemExit: no licence.*",
    "MemoryErrorFirst": "MemoryError: no licence.*",
    "ImportErrorFirst": ".*cannot load its simulator.*no licence.*",
    **{f"{kind}First": r"expected render\(\) to give .*" for kind in BAD_PICTURES},
}


def test_what_does_not_start_is_one_line_with_workers_and_without() -> None:
    for kind, says in STARTS.items():
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the line is looked at below
            made((kind,), 0)
        line = str(caught.value)
        assert "\n" not in line
        assert re.search(f"{re.escape(task(kind))}.*{says}", line), line
    for kind in ("NoRenderMode", "FailsToReset", "SystemExitFirst", "ImportErrorFirst", "GreyFirst"):
        lines = set()
        for num_workers in (0, 1):
            with pytest.raises(ValueError) as caught:  # noqa: PT011 - the lines are compared
                made((kind,), num_workers)
            lines.add(str(caught.value))
        assert len(lines) == 1


@BOTH
@pytest.mark.parametrize("kind", ["FailsToReset", "GreyFirst"])
def test_before_a_folder_exists(
    num_workers: int, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--tasks", task(kind), "--env.num-workers", str(num_workers), "--folder", str(tmp_path / "run")]
    assert task(kind) in refused(capsys, "quickstart", *flags)
    assert not (tmp_path / "run").exists()


def test_those_that_were_made_before_are_closed(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="no licence"):
        made(("FailsToClose", "Plain", "FailsToReset"), 0)
    assert [message for message in caplog.messages if "does not close" in message]


def test_a_worker_that_dies_at_the_start_is_one_line() -> None:
    with pytest.raises(ValueError, match="its worker died with exit code 3") as caught:
        made(("Plain", "DiesFirst"), 1)
    assert str(caught.value).startswith(f"{task('DiesFirst')}: ")


# How long it may take ------------------------------------------------------------------------------------------------


def test_the_time_limit_is_for_each_call_of_each_simulator() -> None:
    """Two resets of 0.3 s in one worker, with half a second for each call."""
    with made(("Slow",) * 2, 1) as envs:
        assert isinstance(envs, WorkerVectorEnv)
        envs.reset()
        envs._timeout_s = 0.5
        envs.reset()
