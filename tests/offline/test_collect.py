"""mow collect: what is recorded, by whom, the same for any number of workers; what cannot be recorded is one line."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mow import collect as command
from mow import train
from mow.envs.base import ActionLayout, TaskSpec
from mow.envs.guarded import GuardedEnv
from mow.errors import UsageError
from mow.methods.base import ActorOutput
from mow.methods.registry import MODULES
from mow.offline.behaviours import Behaviour, behaviours, make_policy
from mow.offline.collect import collect, no_runs
from mow.offline.files import read_episodes, read_manifest
from mow.offline.store import OfflineStore

TASKS = ("vec:lq", "vec:reach")
REACH = TaskSpec("vec:reach", False, 2, (True, True), 1, "states", 4)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_any_number_of_workers_and_of_calls_writes_the_same_bytes(tmp_path: Path) -> None:
    collect(TASKS, tmp_path / "here", 8, "mixed", seed=3)
    collect(TASKS, tmp_path / "workers", 8, "mixed", seed=3, workers=2)
    for _ in range(2):
        collect(TASKS, tmp_path / "twice", 4, "mixed", seed=3)
    collect(TASKS, tmp_path / "other", 8, "mixed", seed=4)
    expected = content(tmp_path / "here")
    assert content(tmp_path / "workers") == expected
    twice = content(tmp_path / "twice")
    assert twice["vec-reach.rows"] == expected["vec-reach.rows"]
    assert twice["vec-lq.episodes"] == expected["vec-lq.episodes"]
    assert content(tmp_path / "other")["vec-reach.rows"] != expected["vec-reach.rows"]


def test_recorded_actions_lead_to_the_recorded_rows(tmp_path: Path) -> None:
    (task,) = collect(["vec:reach"], tmp_path, 3, "scripted", noise=[0.5])
    store = OfflineStore.open(tmp_path, ["vec:reach"])
    first = 0
    for record in store.episodes[0]:
        rows = store.files[0][first : first + record["steps"] + 1]
        first += len(rows)
        env = GuardedEnv("vec:reach", seed=9, options={"obs": "state"})
        state, _ = env.reset(seed=int(record["seed"]))
        flags = []
        for row in rows[:-1]:
            assert np.array_equal(state, row[:4])
            state, reward, terminated, _, info = env.step(row[4:6])
            assert (np.float32(reward), terminated) == (row[6], bool(row[7]))
            flags.append(info["success"])
        assert np.array_equal(rows[-1], [*state, 0, 0, 0, 0])
        assert (record["success"], record["final_success"]) == (any(flags), flags[-1])
        assert record["episode_return"] == pytest.approx(rows[:, 6].sum(dtype=np.float64), abs=1e-9)
    assert first == task.rows


def test_mixed_data_is_three_fifths_scripted_with_noise(tmp_path: Path) -> None:
    (task,) = collect(["vec:reach"], tmp_path, 30, "mixed")
    index = read_episodes(tmp_path, task)
    scripted = index["behaviour"] == task.behaviours.index("scripted")
    assert scripted.sum() == 18
    assert {float(level): int((index["noise"][scripted] == level).sum()) for level in np.unique(index["noise"])} == {
        0.0: 0, 0.5: 6, 1.0: 6, 2.0: 6,
    }  # fmt: skip
    assert index["success"][index["noise"] == 0.5].mean() >= 0.9
    assert task.references


def test_experts_succeed_without_noise(tmp_path: Path) -> None:
    (task,) = collect(["vec:reach"], tmp_path, 10, "scripted")
    assert task.success is not None
    assert task.success >= 0.9


def test_policies_by_hand() -> None:
    state, normal = np.zeros(4, np.float32), np.random.default_rng(5)
    first, second = normal.standard_normal(2), normal.standard_normal(2)
    wander = make_policy(Behaviour("ou"), REACH, np.random.default_rng(5), no_runs)
    assert wander(state).tolist() == (0.3 * first).clip(-1, 1).astype(np.float32).tolist()
    assert wander(state) == pytest.approx((0.85 * 0.3 * first + 0.3 * second).clip(-1, 1), abs=1e-6)
    noisy = make_policy(Behaviour("scripted", 2.0), REACH, np.random.default_rng(5), no_runs)
    goal = np.array([0.0, 0.0, 0.05, -0.05], np.float32)  # the expert moves by 0.5 and -0.5
    assert noisy(goal) == pytest.approx((np.array([0.5, -0.5]) + 2.0 * first).clip(-1, 1), abs=1e-6)
    assert np.abs(noisy(goal)).max() <= 1.0
    uniform = make_policy(Behaviour("random", 9.0), REACH, np.random.default_rng(5), no_runs)
    assert np.std([uniform(state) for _ in range(1000)]) == pytest.approx(3**-0.5, abs=0.03)


def test_every_policy_has_every_noise_equally_often() -> None:
    assert behaviours("random,scripted", [1.0, 2.0]) == (
        Behaviour("random"), Behaviour("scripted", 1.0), Behaviour("random"), Behaviour("scripted", 2.0),
    )  # fmt: skip
    pattern = behaviours("mixed")
    assert [pattern.count(Behaviour("scripted", level, or_ou=True)) for level in (0.5, 1.0, 2.0)] == [3, 3, 3]
    assert len(pattern) == 15


class _Turning:
    """An actor of two tasks whose action tells the step of the episode and the sum of the state."""

    def __init__(self) -> None:
        self.steps = 0

    def act(self, frame: torch.Tensor, is_first: torch.Tensor) -> ActorOutput:
        assert frame.shape == (2, 4)
        assert bool(is_first.all()) == (self.steps == 0)
        return ActorOutput(torch.stack([frame.sum(dim=1), torch.full((2,), self.steps / 100)], dim=1).clamp(-1, 1))

    def record(self, action: torch.Tensor) -> None:
        self.steps += 1

    def reseed(self, seed: int) -> None:
        self.seed = seed


def test_a_trained_run_plays_its_own_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    specs = TaskSpec("vec:lq", False, 1, (True,), 1, "states", 2), REACH
    learner = _Turning()
    monkeypatch.setattr(learner, "actor", _Turning, raising=False)
    monkeypatch.setattr(command, "_restored", lambda run: (learner, specs, ActionLayout.from_tasks(specs)))
    policy = command.open_run("runs/a", "vec:reach", 7)
    state = np.array([0.5, 0.25, 0.0, -0.5], np.float32)
    assert [policy(state).tolist() for _ in range(2)] == [[0.25, 0.0], pytest.approx([0.25, 0.01])]
    assert command.open_run("runs/a", "vec:lq", 7)(state[:2]).tolist() == [0.75]
    assert learner.seed == 7
    with pytest.raises(UsageError, match="does not play vec:button: it plays vec:lq, vec:reach"):
        command.open_run("runs/a", "vec:button", 7)
    (task,) = collect(["vec:reach"], tmp_path, 2, "run:runs/a@best", open_run=command.open_run)
    assert task.behaviour == "run:runs/a@best"


def test_a_killed_collector_leaves_episodes_that_are_read_and_continued(tmp_path: Path) -> None:
    words = ["vec:pendulum", "--policy", "random", "--episodes", "100000", "--out", str(tmp_path / "data")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    process = subprocess.Popen([sys.executable, "-m", "mow", "collect", *words], env=environment)
    while not (tmp_path / "data/manifest.json").exists():
        time.sleep(0.05)
        assert process.poll() is None
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    held = OfflineStore.open(tmp_path / "data", ["vec:pendulum"]).tasks[0].episodes
    assert held > 0
    collect(["vec:pendulum"], tmp_path / "data", 5, "random")
    collect(["vec:pendulum"], tmp_path / "plain", held + 5, "random")
    assert content(tmp_path / "data") == content(tmp_path / "plain")


def test_what_was_recorded_before_an_error_is_kept(tmp_path: Path) -> None:
    def stop(job: tuple[str, int]) -> None:
        if job[1] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(["vec:lq"], tmp_path, 50, "random", progress=stop)
    assert read_manifest(tmp_path)["vec:lq"].episodes == 3


WRONG = {
    "a discrete task": (["gym:CartPole-v1"], "gym:CartPole-v1 has discrete actions: only continuous tasks are"),
    "no states": (["tiny:catch"], "has no state observations"),
    "no expert": (["gym:Pendulum-v1", "--policy", "scripted"], "no scripted expert: collect it with --policy random"),
    "unknown policy": (["vec:lq", "--policy", "clever"], "unknown policy 'clever': take random, ou, scripted"),
    "no run": (["vec:lq", "--policy", "run:nowhere"], "nowhere is no run: name a run folder"),
    "unknown task": (["vec:lqq"], "unknown task 'vec:lqq'"),
    "noise below 0": (["vec:lq", "--noise", "-1"], "--noise must be 0 or more"),
    "noise in words": (["vec:lq", "--noise", "much"], "--noise must be numbers separated by commas"),
    "time limit": (["vec:lq", "--time-limit", "5"], "vec:lq takes no --time-limit"),
    "no task": ([], "name the tasks to record"),
    "no episodes": (["vec:lq", "--episodes", "0"], "--episodes must be 1 or more"),
    "unknown source": (["--from", "hdf5:x"], "--from takes minari:ID"),
}


@pytest.mark.parametrize("words", WRONG.values(), ids=WRONG)
def test_what_cannot_be_recorded_is_one_line(
    words: tuple[list[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([*words[0], "--out", str(tmp_path / "data")]) == 2
    error = capsys.readouterr().err
    assert words[1] in error
    assert error.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert command.main(["vec:lq", "--episodes", "1", "--out", str(tmp_path / "file/data")]) == 2
    assert "cannot make" in capsys.readouterr().err


def test_a_worker_that_dies_is_one_line(tmp_path: Path) -> None:
    def kill_a_worker(job: tuple[str, int]) -> None:
        for process in multiprocessing.active_children():
            process.kill()

    with pytest.raises(UsageError, match=r"a worker has died.*fewer --workers"):
        collect(["vec:reach"], tmp_path, 100, "random", workers=2, progress=kill_a_worker)
    assert 0 < read_manifest(tmp_path)["vec:reach"].episodes < 100


def test_experts_of_metaworld_succeed_without_noise(tmp_path: Path) -> None:
    pytest.importorskip("metaworld")
    options = {"metaworld_repeat": 2, "time_limit": 100}
    (task,) = collect(["metaworld:reach-v3"], tmp_path, 10, "scripted", options=options)
    assert (task.rows, task.state_size, task.action_size) == (1010, 39, 4)
    assert task.final_success is not None
    assert task.final_success >= 0.9


def test_tasks_are_added_to_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path), "--episodes", "1"]
    assert command.main(["vec:lq", *out]) == 0
    printed, before = capsys.readouterr().out, content(tmp_path)
    assert "vec:lq: 1 episodes, 101 rows (100% of all), state 2, action 1" in printed
    assert "scripted with noise 0.5" in printed
    assert command.main(["vec:reach", *out]) == 0
    assert [*read_manifest(tmp_path)] == ["vec:lq", "vec:reach"]
    after = content(tmp_path)
    assert all(after[name] == data for name, data in before.items() if name != "manifest.json")
    capsys.readouterr()
    assert command.main(["--from", "minari:a-v0", "--out", str(tmp_path)]) == 2
    assert "name a new folder" in capsys.readouterr().err
    assert content(tmp_path) == after


def test_mixed_explores_where_a_task_has_no_expert() -> None:
    pattern = behaviours("mixed")
    assert {each.of("gym:Pendulum-v1").policy for each in pattern} == {"ou", "random"}
    assert {each.of("vec:lq").policy for each in pattern} == {"scripted", "random"}


def test_a_run_that_was_trained_on_states_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODULES, "toy_states", "tests.methods.toy_states")
    assert train.main(["toy_states", "--folder", str(tmp_path / "run")]) == 0
    for name in ("one", "two"):
        words = ["vec:pendulum", "vec:lq", "--policy", f"run:{tmp_path}/run@step_00000100.pt,random", "--episodes", "2"]
        assert command.main([*words, "--out", str(tmp_path / name)]) == 0
    assert content(tmp_path / "one") == content(tmp_path / "two")
    held = read_manifest(tmp_path / "one")["vec:pendulum"]
    assert held.behaviours == (f"run:{tmp_path}/run@step_00000100.pt", "random")
