"""A whole run whose simulators are killed, raise, and raise for good: what it learns from, says, saves."""

import dataclasses
import json
import multiprocessing
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mow import train
from mow.config import EnvConfig
from mow.engine.trainer import Trainer
from mow.envs.dummy import CountingEnv, read_counter
from mow.envs.vector import SerialVectorEnv
from mow.methods.mow.learner import Learner
from mow.methods.registry import read_config
from mow.runs.paths import checkpoints
from mow.runs.signals import StopSwitch
from mow.train import main
from tests.faults.runs import assert_same_end, gone_on, stopped, to_the_end
from tests.small import run_config
from tests.test_train import DUMMY


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def check_stored(run: Trainer, lost: list[tuple[str, int]]) -> None:
    """Check that (task, step) of `lost` are truncated with reward 0, and that an episode begins after each.

    Everything else that is stored is what the dummy answers to that action at that frame, and frames follow each other
    unless an episode begins.
    """
    replay, layout = run.collector.replay, run.collector.envs.layout
    columns, frames = replay.columns, np.empty((len(run.tasks), 1, run.step, 64, 64, 3), np.uint8)
    replay.store.gather(replay.rows, np.zeros((len(run.tasks), 1), np.int64), run.step, frames)
    for k, (task, row) in enumerate(zip(run.tasks, replay.rows, strict=True)):
        before: tuple[int, int] | None = None
        for t in range(run.step):
            _, episode, at = read_counter(frames[k, 0, t])
            reward, is_first, truncated = (columns[name][row, t] for name in ("reward", "is_first", "truncated"))
            assert bool(is_first) == (at == 0)
            if not is_first:
                assert (episode, at - 1) == before, (task, t)
            alone = CountingEnv(task.split(":")[1], seed=0)
            alone.reset()
            alone._step = at
            alone._length = 99
            expected = 0.0 if (task, t) in lost else alone.step(layout.decode(k, columns["action"][row, t]))[1]
            assert reward == expected, (task, t)
            assert truncated or (task, t) not in lost
            before = None if truncated else (episode, at)


def test_a_worker_that_is_killed_costs_an_episode_of_its_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once while it acts at random, once while it trains."""
    calls = 0

    def check(_: StopSwitch) -> None:
        nonlocal calls
        calls += 1
        if calls in (4, 30):
            worker = next(process for process in multiprocessing.active_children() if process.name == "envs-0")
            assert worker.pid
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()

    monkeypatch.setattr(StopSwitch, "check", check)
    config = run_config(total_steps=48, env=EnvConfig(num_workers=2), folder=str(tmp_path / "run"))
    run = train.run(config)
    assert run is not None
    assert run.step == 48
    told = [row for row in rows(tmp_path / "run") if "restart" in row]
    lost = ["dummy:count-0", "dummy:slide"]  # the first worker's
    reason = "its worker died with exit code -9"
    assert [row["restart"] for row in told] == 2 * [{"tasks": lost, "reason": reason, "traceback": ""}]
    check_stored(run, [(task, row["step"] - 1) for row in told for task in lost])
    assert run.collector.restarts == 4
    counts = [row["envs/restarts"] for row in rows(tmp_path / "run") if "envs/restarts" in row]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (2, 4)
    said = capsys.readouterr().out
    assert said.count(f"dummy:count-0, dummy:slide: {reason}; a new episode begins") == 2


def test_simulators_that_raise_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same run in this process and with workers."""
    make = SerialVectorEnv.__init__

    def failing(self: SerialVectorEnv, *args: Any, **how: Any) -> None:
        make(self, *args, **(how | {"options": {"fail_at": 20}}))

    monkeypatch.setattr(SerialVectorEnv, "__init__", failing)
    run = train.run(run_config(total_steps=64, env=EnvConfig(num_workers=0), folder=str(tmp_path / "run")))
    assert run is not None
    told = [row for row in rows(tmp_path / "run") if "restart" in row]
    assert len(told) >= 8
    check_stored(run, [(task, row["step"] - 1) for row in told for task in row["restart"]["tasks"]])
    assert all("as set" in row["restart"]["traceback"] for row in told)


def test_stopped_between_restarts_it_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulators in their second life, with seeds of their own, go on, and fail again where they would have."""
    make = SerialVectorEnv.__init__

    def failing(self: SerialVectorEnv, *args: Any, **how: Any) -> None:
        make(self, *args, **(how | {"options": {"fail_at": 9}}))

    monkeypatch.setattr(SerialVectorEnv, "__init__", failing)
    config = run_config(env=EnvConfig(num_workers=0, max_restarts=100))
    straight = to_the_end(config, tmp_path / "straight")
    assert straight.collector.restarts > 6
    stopped(config, tmp_path / "run", 22, monkeypatch)
    assert_same_end(gone_on(tmp_path / "run"), straight)


@pytest.mark.parametrize("at", [5, 60])  # while it acts at random; while it trains
def test_a_simulator_that_fails_for_good_stops_the_run_which_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], at: int
) -> None:
    folder, step, calls = tmp_path / "run", CountingEnv.step, [0]

    def broken(self: CountingEnv, action: Any) -> Any:
        calls[0] += 1
        if calls[0] > at and not self.task.discrete:
            raise OSError("the joystick is gone")
        return step(self, action)

    flags = [*DUMMY, "--total-steps", "60", "--env.num-workers", "0", "--env.max-restarts", "2"]
    flags += ["--evaluation-episodes", "0", "--schedule.world-model-every", "1"]
    with monkeypatch.context() as patched:
        patched.setattr(CountingEnv, "step", broken)
        assert main(["quickstart", *flags, "--folder", str(folder)]) == 1
    said = capsys.readouterr()
    line = "dummy:slide failed 3 times in a row, with no finished episode between: OSError: the joystick is gone"
    last = re.escape(f"mow.train: {line} (seed 0, simulator 3, action [") + r"[-\d. ]+\]\)"
    assert re.fullmatch(last, said.err.splitlines()[-1])
    assert "Traceback" in said.err
    assert "Traceback" in (folder / "failure.txt").read_text()
    (path,) = checkpoints(folder)
    assert f"checkpoint: {path}" in said.out
    assert f"python -m mow.train --resume {folder}" in said.out

    # Mended: it goes on to its end, with as many updates as it would have made.
    updates: list[int] = []
    train_once = Learner.update_world_model
    monkeypatch.setattr(Learner, "update_world_model", lambda *a: updates.append(a[0].updates) or train_once(*a))
    assert main(["--resume", str(folder)]) == 0
    said = capsys.readouterr()
    assert said.out.count("its simulator cannot be put back where it was, a new episode begins") == 2
    planned = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert planned["updates"] == updates[-1] + 1 == read_config(folder / "config.json").world_model_updates


def test_the_limits_are_checked() -> None:
    for wrong in ({"max_restarts": -1}, {"timeout_s": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            dataclasses.replace(EnvConfig(), **wrong)
