"""Minari: what goes out comes back, what plain Minari calls wrote is read. Needs minari[hdf5]."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mow import collect as command
from mow.errors import UsageError
from mow.offline.files import Writer, read_episodes, read_manifest
from mow.offline.minari_data import read_minari, write_minari
from mow.offline.store import OfflineStore
from tests.offline.recorded import NARROW, WIDE, episode

pytest.importorskip("h5py", reason="minari[hdf5] is not installed")
minari: Any = pytest.importorskip("minari", reason="minari[hdf5] is not installed")

IDS = ("vec/wide/test-v0", "vec/narrow/test-v0")


@pytest.fixture(autouse=True)
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the datasets of this machine."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two tasks, two behaviours, both kinds of end, with and without success."""
    scale, names = np.float32(1 / 10_000), (replace(WIDE, references=(-1.0, 2.5)), NARROW)
    writer = Writer(tmp_path / "data", names)
    for task in names:
        for number, steps in enumerate([4, 1, 6]):
            one = episode(task, steps, number, terminated=number == 1)
            one = replace(one, state=one.state * scale, action=one.action * scale, reward=one.reward * scale)
            if number == 2:
                one = replace(one, behaviour="scripted", noise=0.5)
            if task is NARROW:
                one = replace(one, success=None, final_success=None)
            writer.append(task.name, [one])
    writer.close()
    return tmp_path / "data"


def test_a_round_trip_changes_no_byte(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mow.offline.minari_data.EPISODES_AT_ONCE", 2)
    assert write_minari(folder, "test") == IDS
    read_minari(IDS, tmp_path / "back")
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "back" / path.name).read_bytes()


def test_minari_reads_what_was_written(folder: Path) -> None:
    write_minari(folder, "test")
    dataset = minari.load_dataset("vec/wide/test-v0")
    assert (dataset.total_episodes, dataset.total_steps) == (3, 11)
    assert dataset.action_space.shape == (2,)
    rows, first = OfflineStore.open(folder, ["vec:wide"]).files[0], 0
    for number, each in enumerate(dataset.iterate_episodes()):
        n = len(each.rewards)
        assert each.observations.dtype == each.actions.dtype == each.rewards.dtype == np.float32
        assert np.array_equal(each.observations, rows[first : first + n + 1, :3])
        assert np.array_equal(each.actions, rows[first : first + n, 3:5])
        assert np.array_equal(each.rewards, rows[first : first + n, 5])
        assert each.terminations.tolist() == [False] * (n - 1) + [number == 1]
        assert each.truncations.tolist() == [False] * (n - 1) + [number != 1]
        first += n + 1


def write_plainly(identity: str, **changes: Any) -> None:
    from gymnasium.spaces import Box
    from minari.data_collector import EpisodeBuffer

    buffers = [EpisodeBuffer(
        observations=np.full((4, 2), 0.5), actions=np.array([[0.0, 3.0], [10.0, 5.0], [5.0, 4.0]]),
        rewards=[1.0, 2.0, 4.0], terminations=[False] * 3, truncations=[False, False, True],
        infos={"success": np.array([0, 1, 1, last])},
    ) for last in (0, 1)]  # fmt: skip
    spaces = {"observation_space": Box(-1.0, 1.0, (2,), np.float64),
              "action_space": Box(np.array([0.0, 3.0]), np.array([10.0, 5.0]), dtype=np.float64)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        minari.create_dataset_from_buffers(identity, buffers, data_format="hdf5", **{**spaces, **changes})


def test_a_dataset_of_others_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_plainly("others/push-v2")
    assert command.main(["--from", "minari:others/push-v2", "--out", str(tmp_path / "out")]) == 0
    assert "minari:others/push-v2: 2 episodes, 8 rows (100% of all), state 2, action 2" in capsys.readouterr().out
    (task,) = read_manifest(tmp_path / "out").values()
    assert (task.returns, task.success, task.final_success) == ((7.0, 7.0, 7.0), 1.0, 0.5)
    rows = OfflineStore.open(tmp_path / "out", [task.name]).files[0]
    assert rows[:4].tolist() == [
        [0.5, 0.5, -1.0, -1.0, 1.0, 0.0], [0.5, 0.5, 1.0, 1.0, 2.0, 0.0], [0.5, 0.5, 0.0, 0.0, 4.0, 0.0],
        [0.5, 0.5, 0.0, 0.0, 0.0, 0.0],
    ]  # fmt: skip
    assert read_episodes(tmp_path / "out", task)["behaviour"].tolist() == [0, 0]


def test_what_cannot_be_read_or_written_is_one_line(folder: Path, tmp_path: Path) -> None:
    from gymnasium.spaces import Box

    with pytest.raises(UsageError, match=r"Minari: .*nowhere-v0"):
        read_minari(["nowhere-v0"], tmp_path / "out")
    write_plainly("others/free-v0", action_space=Box(-np.inf, np.inf, (2,), np.float64))
    with pytest.raises(UsageError, match="actions without bounds"):
        read_minari(["others/free-v0"], tmp_path / "out")
    write_plainly("others/grid-v0", observation_space=Box(-1.0, 1.0, (2, 1), np.float64))
    with pytest.raises(UsageError, match="only vectors of floats are read"):
        read_minari(["others/grid-v0"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    write_minari(folder, "test")
    with pytest.raises(UsageError, match=r"Minari: .*vec/wide/test-v0"):
        write_minari(folder, "test")


def test_the_command_writes_datasets(tmp_path: Path, datasets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["vec:lq", "--episodes", "2", "--policy", "random", "--out", str(tmp_path / "out"), "--to-minari", "small"]
    assert command.main(words) == 0
    assert "written: vec/lq/small-v0" in capsys.readouterr().out
    assert command.main(["--out", str(tmp_path / "out"), "--to-minari", "again"]) == 0
    assert minari.load_dataset("vec/lq/again-v0").total_steps == 200
