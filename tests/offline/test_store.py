"""Folder of recorded episodes: what is read is what was recorded; a kill, damage and misuse lose nothing."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mow.envs.base import TaskSpec
from mow.errors import UsageError
from mow.offline.files import Writer, read_manifest, stored_task
from mow.offline.store import OfflineStore
from tests.offline.recorded import NARROW, WIDE, episode, record

NAMES = [WIDE.name, NARROW.name]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    record(tmp_path / "data", {WIDE: [4, 1, 6], NARROW: [3, 5]})
    return tmp_path / "data"


def test_windows_hold_the_recorded_numbers(folder: Path) -> None:
    store = OfflineStore.open(folder, NAMES)
    batch = store.sample(500, 3, counter=0, stream=0)
    assert [*batch.frame.shape] == [2, 500, 3, 3]
    assert [*batch.action.shape] == [2, 500, 3, 2]
    for k, task in enumerate((WIDE, NARROW)):
        size = task.state_size
        first = batch.frame[k, :, :1, :1]  # [B, 1, 1] 1000 number + 10 row
        row = first + 10 * torch.arange(3)[:, None]  # [B, L, 1]
        assert torch.equal(batch.frame[k, :, :, :size], row + torch.arange(size))
        assert (batch.frame[k, :, :, size:] == 0).all()
        last = batch.is_last[k]
        assert torch.equal(batch.reward[k], torch.where(last, 0.0, -row[..., 0] - 5.0))
        assert torch.equal(batch.action[k, ..., 0], torch.where(last, 0.0, -row[..., 0]))
        assert (batch.action[k, ..., task.action_size :] == 0).all()
        steps = torch.tensor([4, 1, 6] if k == 0 else [3, 5])[(row[..., 0] // 1000).long()]
        place = row[..., 0] % 1000 / 10
        assert torch.equal(last, place == steps)
        assert torch.equal(batch.truncated[k], place == steps - 1)
    assert batch.is_first[:, :, 0].all()
    assert not batch.is_first[:, :, 1:].any()
    assert not batch.terminated.any()
    assert batch.is_last.any()


def test_an_end_by_the_task_is_terminated(tmp_path: Path) -> None:
    record(tmp_path, {NARROW: [2]}, terminated=True)
    batch = OfflineStore.open(tmp_path, [NARROW.name]).sample(1, 3, counter=0, stream=0)
    assert batch.terminated.tolist() == [[[False, True, False]]]
    assert not batch.truncated.any()
    assert batch.is_last.tolist() == [[[False, False, True]]]


def test_windows_of_one_row_reach_every_observation(folder: Path) -> None:
    frame = OfflineStore.open(folder, [WIDE.name]).sample(2000, 1, counter=0, stream=0).frame
    expected = {1000 * number + 10 * row for number, n in enumerate([4, 1, 6]) for row in range(n + 1)}
    assert set(frame[0, :, 0, 0].tolist()) == expected


def test_the_name_of_a_draw_decides(folder: Path) -> None:
    stores = [OfflineStore.open(folder, NAMES, seed=seed) for seed in (1, 1, 2)]
    draws = [store.sample(20, 2, counter=c, stream=s).frame
             for store, c, s in zip([*stores, stores[0], stores[0]], [5, 5, 5, 6, 5], [7, 7, 7, 7, 8], strict=True)]
    assert [torch.equal(draws[0], other) for other in draws[1:]] == [True, False, False, False]


def test_reorder_moves_tasks_and_sizes(folder: Path) -> None:
    store, swapped = (OfflineStore.open(folder, NAMES) for _ in range(2))
    swapped.reorder([1, 0])
    assert [task.name for task in swapped.tasks] == NAMES[::-1]
    other = OfflineStore.open(folder, NAMES[::-1])
    a, b = (each.sample(50, 2, counter=3, stream=1) for each in (swapped, other))
    assert all(torch.equal(x, y) for x, y in zip(a.tensors().values(), b.tensors().values(), strict=True))
    swapped.reorder([1, 0])
    assert torch.equal(swapped.sample(9, 2, counter=0, stream=0).frame, store.sample(9, 2, counter=0, stream=0).frame)
    with pytest.raises(ValueError, match="order must name"):
        store.reorder([0, 0])


def test_draws_by_size_follow_the_number_of_windows(folder: Path) -> None:
    store = OfflineStore.open(folder, NAMES)
    store.reorder([1, 0])
    batch, task = store.sample_by_size(9000, 2, counter=0, stream=0)
    # 8 windows of 2 rows in narrow, 11 in wide: 3789 expected of 9000, with a standard deviation of 47.
    assert abs(int((task == 0).sum()) - 9000 * 8 / 19) < 4 * 47
    assert (batch.frame[0, task == 0][:, :, 2] == 0).all()
    assert (batch.frame[0, task == 1][:, :, 2] > 0).all()
    assert torch.equal(batch.is_last[0, :, 1], batch.action[0, :, 1, 0].eq(0))


def test_short_episodes_are_never_drawn_and_logged_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = OfflineStore.open(folder, [WIDE.name])
    for counter in range(3):
        frame = store.sample(200, 4, counter=counter, stream=0).frame
        assert not ((frame // 1000) == 1).any()
    assert caplog.messages == ["vec:wide: 1 of 3 episodes have fewer than 4 rows and are never drawn"]
    with pytest.raises(UsageError, match=r"3 of 3 episodes have fewer than 9 rows.*shorten"):
        store.sample(1, 9, counter=0, stream=0)


def test_rows_are_mapped_and_not_copied(folder: Path) -> None:
    store = OfflineStore.open(folder, [NARROW.name], check=False)
    with open(folder / "vec-narrow.rows", "r+b") as file:
        file.write(np.full(3, 77.0, np.float32).tobytes())  # state and action of the first row
    assert 77.0 in store.sample(200, 1, counter=0, stream=0).frame
    assert not store.files[0].flags.writeable


def test_what_a_folder_tells(folder: Path) -> None:
    wide, narrow = OfflineStore.open(folder, NAMES).tasks
    assert (wide.episodes, wide.rows, wide.state_size, wide.action_size) == (3, 14, 3, 2)
    assert wide.returns == (-12180.0, (-80.0 - 1005.0 - 12180.0) / 3, -80.0)
    assert (wide.success, wide.final_success) == (2 / 3, 0.0)
    assert narrow.behaviour == "random"
    assert os.path.getsize(folder / "vec-wide.rows") == 14 * (3 + 2 + 2) * 4
    held = OfflineStore.open(folder, NAMES)
    before = held.identity()
    writer = Writer(folder, [WIDE, NARROW])
    writer.append(WIDE.name, [episode(WIDE, 2, 3)])
    writer.close()
    assert held.identity() == before
    assert OfflineStore.open(folder, NAMES).identity() != before
    assert OfflineStore.open(folder, NAMES).identity() == OfflineStore.open(folder, NAMES[::-1]).identity()


def test_one_append_of_many_is_many_appends_of_one(tmp_path: Path) -> None:
    record(tmp_path / "a", {NARROW: [3, 5, 2]})
    writer = Writer(tmp_path / "b", [NARROW])
    writer.append(NARROW.name, [episode(NARROW, n, i) for i, n in enumerate([3, 5, 2])])
    writer.close()
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_killed_process_loses_only_what_it_had_not_appended(tmp_path: Path) -> None:
    code = f"""
        import os, signal
        from pathlib import Path
        from mow.offline import files
        from tests.offline.recorded import NARROW, episode
        writer = files.Writer(Path({str(tmp_path / 'data')!r}), [NARROW])
        for number in range(3):
            writer.append(NARROW.name, [episode(NARROW, 4, number)])
        files.write_whole = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # rows are written, the manifest is not
        writer.append(NARROW.name, [episode(NARROW, 4, 99)])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False, env=os.environ | {
        "PYTHONPATH": str(Path(__file__).resolve().parents[2])})  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    store = OfflineStore.open(tmp_path / "data", [NARROW.name])
    assert store.tasks[0].episodes == 3
    assert os.path.getsize(tmp_path / "data/vec-narrow.rows") == 4 * 5 * NARROW.width * 4  # the open one is behind them
    writer = Writer(tmp_path / "data", [NARROW])
    writer.append(NARROW.name, [episode(NARROW, 2, 3)])
    writer.close()
    record(tmp_path / "plain", {NARROW: [4, 4, 4, 2]})
    for path in (tmp_path / "plain").iterdir():
        assert path.read_bytes() == (tmp_path / "data" / path.name).read_bytes()


@pytest.mark.parametrize(("what", "value"), [("state", np.nan), ("action", np.inf), ("reward", -np.inf)])
def test_numbers_that_are_not_finite_are_not_appended(folder: Path, what: str, value: float) -> None:
    bad, before = episode(NARROW, 3, 9), (folder / "manifest.json").read_bytes()
    getattr(bad, what)[1] = value
    writer = Writer(folder, [WIDE, NARROW])
    with pytest.raises(ValueError, match="vec:narrow, episode 3: step 1 holds a number that is not finite"):
        writer.append(NARROW.name, [episode(NARROW, 3, 8), bad])
    assert (folder / "manifest.json").read_bytes() == before


def test_an_observation_of_another_size_is_not_appended(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"vec:narrow, episode 2: .*has changed its size"):
        Writer(folder, [WIDE, NARROW]).append(NARROW.name, [episode(WIDE, 3, 9)])


def damage(folder: Path, kind: str) -> None:
    rows, index, manifest = (folder / name for name in ("vec-narrow.rows", "vec-narrow.episodes", "manifest.json"))
    content = bytearray(rows.read_bytes())
    if kind == "cut":
        rows.write_bytes(content[:-4])
    elif kind == "gone":
        rows.unlink()
    elif kind == "bit":
        content[5] ^= 1
        rows.write_bytes(content)
    elif kind == "nan":  # recorded so by another program: even the checksum fits
        content[8:12] = np.float32(np.nan).tobytes()
        rows.write_bytes(content)
        held = json.loads(manifest.read_text())
        held["tasks"][1]["rows_crc32"] = zlib.crc32(content)
        held["crc32"] = zlib.crc32(json.dumps(held["tasks"], sort_keys=True).encode())
        manifest.write_text(json.dumps(held))
    elif kind == "index":
        index.write_bytes(index.read_bytes()[:-1])
    elif kind == "manifest":
        manifest.write_text(manifest.read_text().replace('"episodes": 2', '"episodes": 1'))
    elif kind == "json":
        manifest.write_text("{")
    else:
        manifest.write_text('{"version": 9, "crc32": 0, "tasks": []}')


@pytest.mark.parametrize(
    ("kind", "words"),
    [("cut", "rows is cut by 4 bytes"), ("gone", "rows is cut by 200 bytes"), ("bit", "rows is damaged"),
     ("nan", "rows is not finite"), ("index", "episodes is damaged or cut"), ("manifest", "json is damaged"),
     ("json", "json is damaged"), ("version", "version 9")],
)  # fmt: skip
def test_damage_is_one_line(folder: Path, kind: str, words: str) -> None:
    damage(folder, kind)
    with pytest.raises(UsageError, match=words) as caught:
        OfflineStore.open(folder, NAMES)
    assert "\n" not in str(caught.value)
    if kind not in ("bit", "nan"):  # whose cause a Writer, which reads no rows, cannot see
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        with pytest.raises(UsageError, match=words):
            Writer(folder, [WIDE, NARROW])
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_row_that_is_not_finite_is_refused_when_drawn(folder: Path) -> None:
    damage(folder, "nan")
    with pytest.raises(UsageError, match="holds a row that is not finite"):
        OfflineStore.open(folder, NAMES, check=False).sample(200, 1, counter=0, stream=0)
    damage(folder, "cut")
    with pytest.raises(UsageError, match="rows is cut"):
        OfflineStore.open(folder, NAMES, check=False)


def spec(size: int | None, actions: int, *, discrete: bool = False) -> TaskSpec:
    return TaskSpec(NARROW.name, discrete, actions, (True,) * actions, 1, "states", size)


def test_other_tasks_and_bodies_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no episode of 'vec:narow': did you mean vec:narrow"):
        OfflineStore.open(folder, ["vec:narow"])
    with pytest.raises(UsageError, match="holds no recorded episodes: make some with mow collect"):
        OfflineStore.open(tmp_path / "nowhere", NAMES)
    store = OfflineStore.open(folder, NAMES)
    store.check_specs([spec(2, 1)])
    with pytest.raises(UsageError, match="2 state and 1 action numbers, the run has 4 and 1"):
        store.check_specs([spec(4, 1)])
    with pytest.raises(UsageError, match="opened without vec:narrow"):
        OfflineStore.open(folder, [WIDE.name]).check_specs([spec(2, 1)])
    with pytest.raises(UsageError, match="holds vec:wide with state_size 3, now it is 4"):
        Writer(folder, [replace(WIDE, state_size=4), NARROW])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").touch()
    with pytest.raises(UsageError, match="holds other files"):
        Writer(tmp_path / "mine", [NARROW])


def test_tasks_that_cannot_be_recorded_are_refused() -> None:
    with pytest.raises(UsageError, match="discrete actions"):
        stored_task(spec(None, 3, discrete=True))
    with pytest.raises(UsageError, match="no state observations"):
        stored_task(spec(None, 1))


def test_two_processes_do_not_append_to_one_folder(folder: Path) -> None:
    first, second, third = (Writer(folder, [WIDE, NARROW]) for _ in range(3))
    first.append(NARROW.name, [episode(NARROW, 2, 2)])
    with pytest.raises(UsageError, match="another process appends"):
        second.append(NARROW.name, [episode(NARROW, 2, 2)])
    first.close()
    with pytest.raises(UsageError, match=r"has appended to .* meanwhile"):
        third.append(NARROW.name, [episode(NARROW, 2, 2)])
    assert read_manifest(folder)[NARROW.name].episodes == 3
