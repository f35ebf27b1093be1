"""Chunks as TD-MPC2 publishes them, made here: they are read, and no code in them is run."""

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from mow import collect as command
from mow.errors import UsageError
from mow.offline.files import read_episodes
from mow.offline.store import OfflineStore
from mow.offline.tdmpc2_data import TASKS, read_chunk, read_tdmpc2

REACH = TASKS.index(next(task for task in TASKS if task.name == "metaworld:reach-v3"))


def chunk(*tasks: int, steps: int = 5) -> dict[str, torch.Tensor]:
    """An episode of each task: observation 100 e + t, action -(e + t) / 100, reward t, NaN in the filler of row 0."""
    e, t = torch.meshgrid(torch.arange(len(tasks)), torch.arange(steps), indexing="ij")
    obs, action = torch.zeros(len(tasks), steps, 39), torch.zeros(len(tasks), steps, 6)
    for i, index in enumerate(tasks):
        held = TASKS[index] if index < len(TASKS) else TASKS[0]
        obs[i, :, : held.state_size] = (100.0 * e + t)[i, :, None]
        action[i, :, : held.action_size] = -(e + t)[i, :, None] / 100
    reward = t.float()
    action[:, 0] = reward[:, 0] = float("nan")
    task = torch.tensor(tasks, dtype=torch.int32)[:, None].expand(-1, steps).contiguous()
    return {"obs": obs, "action": action, "reward": reward, "task": task}


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type:
    """A class with the name of TensorDict, while files are written; it is gone when they are read."""

    class TensorDict:
        def __init__(self, source: dict[str, Any]) -> None:
            self._tensordict, self.batch_size = source, torch.Size([6, 5])

    TensorDict.__module__, TensorDict.__qualname__ = "tensordict.tensordict", "TensorDict"
    inner = ModuleType("tensordict.tensordict")
    inner.TensorDict = TensorDict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensordict", ModuleType("tensordict"))
    monkeypatch.setitem(sys.modules, "tensordict.tensordict", inner)
    return TensorDict


@pytest.fixture
def source(tmp_path: Path, stand_in: type, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mt80").mkdir()
    for number, tasks in enumerate([(0, 29, REACH), (REACH, 0, REACH)]):
        torch.save(stand_in(chunk(*tasks)), tmp_path / f"mt80/chunk_{number}.pt")
    monkeypatch.delitem(sys.modules, "tensordict.tensordict")
    monkeypatch.setitem(sys.modules, "tensordict", None)  # not installed
    return tmp_path / "mt80"


def test_tasks_have_the_names_of_ours_and_the_sizes_of_their_bodies() -> None:
    assert len({task.name for task in TASKS}) == 80
    sizes = {TASKS[i].name: (TASKS[i].state_size, TASKS[i].action_size) for i in (0, 9, 12, 14, 26, 29, 30, 65, 79)}
    assert sizes == {
        "dmc:walker-stand": (24, 6), "dmc:cartpole-balance_sparse": (5, 1), "dmc:ball_in_cup-catch": (8, 2),
        "dmc:finger-turn_easy": (12, 2), "dmc:reacher-three-easy": (8, 3), "dmc:pendulum-spin": (3, 1),
        "metaworld:assembly-v3": (39, 4), "metaworld:reach-v3": (39, 4), "metaworld:hand-insert-v3": (39, 4),
    }  # fmt: skip


def test_arrival_rows_become_departure_rows_without_the_filler(source: Path, tmp_path: Path) -> None:
    tasks = read_tdmpc2(source, tmp_path / "out")
    assert {task.name: task.episodes for task in tasks} == {
        "dmc:walker-stand": 2, "dmc:pendulum-spin": 1, "metaworld:reach-v3": 3,
    }  # fmt: skip
    store = OfflineStore.open(tmp_path / "out", ["metaworld:reach-v3", "dmc:pendulum-spin"])
    reach, pendulum = store.files
    assert ([*reach.shape], [*pendulum.shape]) == ([15, 45], [5, 6])
    episodes = (pendulum, 1, 3, 1), (reach[:5], 2, 39, 4), (reach[5:10], 0, 39, 4), (reach[10:], 2, 39, 4)
    for rows, e, size, used in episodes:
        for t in range(5):
            action = [-np.float32(e + t + 1) / np.float32(100)] * used if t < 4 else [0.0] * used
            assert rows[t].tolist() == [*[100.0 * e + t] * size, *action, t + 1.0 if t < 4 else 0.0, 0.0]
    assert read_episodes(tmp_path / "out", store.tasks[0])["episode_return"].tolist() == [10.0] * 3


@pytest.mark.parametrize("steps", [501, 101])
def test_both_lengths_of_episodes_are_read(steps: int, tmp_path: Path) -> None:
    torch.save(chunk(3, REACH, steps=steps), tmp_path / "chunk_0.pt")
    tasks = read_tdmpc2(tmp_path, tmp_path / "out", ["dmc:cheetah-run"])
    assert [(task.name, task.rows) for task in tasks] == [("dmc:cheetah-run", steps)]


def test_a_real_tensordict_is_read(tmp_path: Path) -> None:
    tensordict: Any = pytest.importorskip("tensordict")
    torch.save(tensordict.TensorDict(chunk(0, 1), batch_size=[2, 5]), tmp_path / "chunk_0.pt")
    read = read_chunk(tmp_path / "chunk_0.pt")
    expected = chunk(0, 1)
    assert all(torch.equal(read[name].nan_to_num(7), expected[name].nan_to_num(7)) for name in expected)


class Crafted:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


class Nested(Crafted):
    def __reduce__(self) -> tuple[Any, ...]:
        return torch.load, (str(self.path),)


@pytest.mark.parametrize("kind", [Crafted, Nested])
def test_code_in_a_file_is_not_run(kind: type[Crafted], tmp_path: Path) -> None:
    torch.save({**chunk(0), "more": kind(tmp_path / "ran")}, tmp_path / "chunk_0.pt")
    with pytest.raises(UsageError, match=r"is not read: it names (posix.system|torch.serialization.load), ") as got:
        read_chunk(tmp_path / "chunk_0.pt")
    assert "\n" not in str(got.value)
    assert not (tmp_path / "ran").exists()


def broken(kind: str) -> Any:
    held = chunk(0, REACH)
    if kind == "unknown task":
        return chunk(0, 80)
    if kind == "two tasks":
        held["task"][0, 3] = 1
    elif kind == "no task":
        del held["task"]
    elif kind == "other type":
        held["obs"] = held["obs"].double()
    elif kind == "other shape":
        held["reward"] = held["reward"][:, :-1]
    elif kind == "padding":
        held["obs"][0, 2, 30] = 0.5
    else:
        held["obs"][1, 4, 30] = float("nan")
    return held


@pytest.mark.parametrize(
    ("kind", "words"),
    [("unknown task", "has task 80, known are 0 to 79"), ("two tasks", "an episode of several tasks"),
     ("no task", "holds no tensors named obs, action, reward, task"), ("other type", "torch.float64"),
     ("other shape", r"reward torch.float32 \[2, 4\]"), ("padding", "zeros must follow"),
     ("not finite", "metaworld:reach-v3, episode 0: step 4 holds a number that is not finite")],
)  # fmt: skip
def test_other_content_is_one_line(kind: str, words: str, tmp_path: Path) -> None:
    torch.save(broken(kind), tmp_path / "chunk_0.pt")
    with pytest.raises(UsageError, match=words) as got:
        read_tdmpc2(tmp_path, tmp_path / "out")
    assert "\n" not in str(got.value)


def test_other_files_and_tasks_are_one_line(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert command.main(["dmc:walker-run", "--from", f"tdmpc2:{source}", *out]) == 2
    assert "holds nothing of dmc:walker-run: it holds dmc:walker-stand, " in capsys.readouterr().err
    assert command.main(["--from", f"tdmpc2:{tmp_path}", *out]) == 2
    assert "holds no chunk_*.pt" in capsys.readouterr().err
    (source / "chunk_1.pt").write_bytes(b"PK nothing")
    assert command.main(["--from", f"tdmpc2:{source}", *out]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()
