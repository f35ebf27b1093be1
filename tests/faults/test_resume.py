"""A run that is stopped and goes on ends as the one that was never stopped, to the bit."""

import dataclasses
import gc
import importlib.util
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

import mow
from mow import train
from mow.cli.resume import find_resumption
from mow.config import ReplayConfig
from mow.engine.trainer import Trainer
from mow.methods.mow.config_model import WorldModelConfig
from mow.replay.packed import why_not_packed
from mow.runs import checkpoint
from mow.runs import provenance as origin
from mow.runs.checkpoint import load_checkpoint
from mow.runs.paths import checkpoint_path, checkpoints
from mow.runs.signals import Stopped, StopSwitch
from tests.faults.runs import (
    assert_equal,
    assert_same_end,
    copied,
    gone_on,
    lines,
    refused,
    stopped,
    to_the_end,
)
from tests.small import ARRIVAL, MODEL, run_config

needs_packed = pytest.mark.skipif(why_not_packed() != "", reason=why_not_packed() or "frames can be packed")
ATARI = all(importlib.util.find_spec(name) for name in ("gymnasium", "ale_py", "cv2"))


# In turn: while it acts at random, at the last random step, twice in the warm-up, after grouping, between two updates,
# after a checkpoint of its own, at the last step but one.
@pytest.mark.parametrize("moment", [2, 9, 10, 11, 13, 15, 20, 33])
def test_stopped_anywhere_it_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, straight: Trainer, moment: int
) -> None:
    stopped(run_config(), tmp_path / "run", moment, monkeypatch)
    assert_same_end(gone_on(tmp_path / "run"), straight)


REPLAYS = [
    ReplayConfig(store="raw", prefetch=0),
    ReplayConfig(store="raw", prefetch=4),
    pytest.param(ReplayConfig(store="packed", prefetch=1), marks=needs_packed),
]


@pytest.mark.parametrize("replay", REPLAYS)
def test_with_other_stores_and_depths_it_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, straight: Trainer, replay: ReplayConfig
) -> None:
    """Stopped twice, and with flags that may change."""
    stopped(run_config(replay=replay), tmp_path / "run", 14, monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(StopSwitch, "check", later(7))
        resumption = find_resumption(["--resume", str(tmp_path / "run"), "--replay.prefetch", "3"])
        assert train.run(resumption.config, resumption) is None
    assert_same_end(gone_on(tmp_path / "run", "--replay.store", "raw", "--log-every", "4"), straight)


def later(moment: int) -> Callable[[StopSwitch], None]:
    left = [moment]

    def check(_: StopSwitch) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Stopped

    return check


def test_dropout_and_workers_end_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own random stream goes on too; what workers hold comes back from them, into this process."""
    model: WorldModelConfig = dataclasses.replace(MODEL, dropout=0.3)
    config = run_config(model=model)
    one = to_the_end(config, tmp_path / "straight")
    workers = dataclasses.replace(config, env=dataclasses.replace(config.env, num_workers=2))
    stopped(workers, tmp_path / "run", 16, monkeypatch)
    assert_same_end(gone_on(tmp_path / "run", "--env.num-workers", "0"), one)


@pytest.mark.parametrize("moment", [13, 16, 17, 18, 19, 20])
def test_with_final_frames_it_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arrival: Trainer, moment: int
) -> None:
    """At some of these steps a task shows the final frame of its episode."""
    stopped(run_config(model=ARRIVAL), tmp_path / "run", moment, monkeypatch)
    ended = gone_on(tmp_path / "run")
    assert_same_end(ended, arrival)
    assert ended.collector.replay.columns["is_last"].any()


@pytest.fixture(scope="module")
def arrival(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    return to_the_end(run_config(model=ARRIVAL), tmp_path_factory.mktemp("arrival") / "run")


@pytest.mark.slow
def test_with_two_threads_it_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        one = to_the_end(run_config(), tmp_path / "straight")
        stopped(run_config(), tmp_path / "run", 17, monkeypatch)
        assert_same_end(gone_on(tmp_path / "run"), one)
    finally:
        torch.set_num_threads(before)


def test_a_batch_that_was_drawn_steps_ago_is_drawn_as_of_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An update every third step, a rollout every fifth: at each of these stops the buffer has gone on since."""
    schedule = dataclasses.replace(run_config().schedule, world_model_every=3, agent_every=5)
    config = run_config(schedule=schedule)
    one = to_the_end(config, tmp_path / "straight")
    for moment in (20, 23):
        stopped(config, tmp_path / str(moment), moment, monkeypatch)
        assert_same_end(gone_on(tmp_path / str(moment)), one)


@pytest.mark.skipif(not ATARI, reason="needs gymnasium, ale-py and OpenCV")
def test_atari_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_config(tasks=("atari:Pong", "atari:Breakout"))
    one = to_the_end(config, tmp_path / "straight")
    stopped(config, tmp_path / "run", 17, monkeypatch)
    assert_same_end(gone_on(tmp_path / "run"), one)


def test_a_seed_is_the_same_run_and_another_is_another(tmp_path: Path, straight: Trainer) -> None:
    assert_same_end(to_the_end(run_config(), tmp_path / "again"), straight)
    other = to_the_end(run_config(seed=1), tmp_path / "other")
    assert lines(tmp_path / "other") != lines(straight.logger.folder)
    assert other.step == straight.step


def test_it_goes_on_from_an_earlier_checkpoint_and_the_later_one_is_moved_aside(
    tmp_path: Path, straight: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    to_the_end(run_config(), folder)
    early, late = checkpoints(folder)
    assert_same_end(gone_on(early), straight)
    said = capsys.readouterr().out
    assert f"going on from {early}" in said
    aside = folder / "checkpoints" / "superseded" / late.name
    assert f"moved: {late} to {aside}, it is ahead of this one" in said
    assert "their replay stays until the next checkpoint is written" in said
    assert checkpoints(folder) == [early, late]  # written again
    assert_equal(load_checkpoint(aside, torch.device("cpu"))["learner"], straight.learner.state_dict())
    assert_equal(load_checkpoint(late, torch.device("cpu"))["learner"], straight.learner.state_dict())


def test_it_goes_on_from_an_earlier_checkpoint_as_often_as_it_is_killed(
    tmp_path: Path, straight: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed each time between the replay of the later checkpoint and the checkpoint itself."""
    folder = tmp_path / "run"
    to_the_end(run_config(), folder)
    early = checkpoints(folder)[0]

    class Killed(BaseException):
        """Nothing of a killed process gets to handle it."""

    def killed(*_: object) -> None:
        raise Killed

    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", once_it_is(checkpoint_path(folder, 32).with_suffix(".partial"), killed))
            with pytest.raises(Killed):
                gone_on(early)
    assert checkpoints(folder) == [early]
    assert_same_end(gone_on(early), straight)


def test_a_checkpoint_that_was_moved_aside_can_be_used(
    tmp_path: Path,
    finished: Path,
    straight: Trainer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Until the next checkpoint is written a run can go on from it, and it can be loaded ever after."""
    folder = copied(finished, tmp_path / "run")
    early, late = checkpoints(folder)
    aside = folder / "checkpoints" / "superseded" / late.name
    killed_at_once(early, monkeypatch)
    assert checkpoints(folder) == [early]
    assert mow.load(aside, device="cpu").step == 32
    copy = copied(folder, tmp_path / "copy")
    other = gone_on(copy / "checkpoints" / "superseded" / late.name)
    assert "metrics.jsonl ends before this checkpoint" in capsys.readouterr().out  # it was cut off
    assert other.step == straight.step
    assert_equal(other.learner.state_dict(), straight.learner.state_dict())
    assert_same_end(gone_on(folder), straight)
    assert aside.exists()


def killed_at_once(path: Path, patch: pytest.MonkeyPatch) -> None:
    """Killed before its first step, so that nothing is saved."""

    class Killed(BaseException):
        pass

    def killed(_: Trainer) -> None:
        raise Killed

    with patch.context() as patched:
        patched.setattr(Trainer, "train", killed)
        with pytest.raises(Killed):
            gone_on(path)


def test_its_curves_show_no_point_twice(
    tmp_path: Path, finished: Path, straight: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped twice and once gone back, TensorBoard shows what it shows of a run that was never stopped."""
    folder = tmp_path / "run"
    stopped(run_config(), folder, 20, monkeypatch)
    gone_on(folder)
    gone_on(checkpoints(folder)[0])
    shown, expected = (points(where) for where in (folder, straight.logger.folder))
    assert shown == expected
    assert len(shown) > 20
    assert all(len(steps) == len({*steps}) for name, steps in shown.items() if not name.startswith("episode_"))


def points(folder: Path) -> dict[str, list[int]]:
    """The steps of every curve."""
    board = EventAccumulator(str(folder)).Reload()
    names = [name for name in board.Tags()["scalars"] if not name.startswith("time/")]
    return {name: [event.step for event in board.Scalars(name)] for name in names}


def test_nothing_of_the_checkpoint_stays_in_memory(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it ever on the device: it is read to the CPU, and what learns takes copies."""
    folder = copied(finished, tmp_path / "run")
    left: list[weakref.ref[torch.Tensor]] = []
    load, train_on, devices = checkpoint.load_checkpoint, Trainer.train, []

    def loaded(path: Path, device: torch.device) -> dict[str, Any]:
        devices.append(device.type)
        content = load(path, device)
        learner = content["learner"]
        kept = (*learner["world_model"].values(), *learner["agent"].values())
        left.extend(weakref.ref(tensor) for tensor in kept)
        return content

    def trained(run: Trainer) -> None:
        gc.collect()
        assert len(left) > 50
        assert not [ref for ref in left if ref() is not None]
        train_on(run)

    monkeypatch.setattr(checkpoint, "load_checkpoint", loaded)
    monkeypatch.setattr(Trainer, "train", trained)
    gone_on(folder)
    assert devices == ["cpu"]


def test_other_versions_are_said_and_kept(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(finished, tmp_path / "run")
    now = {**origin.library_versions(), "gymnasium": "0.1", "torch": "99.0"}
    monkeypatch.setattr(origin, "library_versions", lambda: now)
    gone_on(folder)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("versions: ")]
    content = json.loads((folder / "versions.json").read_text())
    assert said == [f"versions: {name}: {content[name]} -> {now[name]}" for name in ("torch", "gymnasium")]
    assert [(entry["step"], entry["torch"]) for entry in content["resumed"]] == [(32, "99.0")]


def once_it_is(wanted: Path, instead: Callable[..., None]) -> Callable[[Path, Path], Path]:
    replace = Path.replace

    def call(path: Path, target: Path) -> Path:
        if path == wanted:
            instead()
        return replace(path, target)

    return call


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path, straight: Trainer) -> None:
    to_the_end(run_config(), tmp_path / "run")
    assert_same_end(gone_on(tmp_path / "run"), straight)


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume"], "--resume needs a run folder"),
        (["--resume", "--seed", "1"], "--resume needs a run folder"),
        (["--resume", "nowhere"], "nowhere is no run folder: name one that mow.train wrote"),
        (["--resume", "nowhere/step_1.pt"], "nowhere/step_1.pt is no run folder: name one that mow.train wrote, or a"),
        (["quickstart", "--resume", "RUN"], "a run goes on with its own preset, got 'quickstart' beside --resume"),
        (["--resume", "RUN", "--seed", "1"], "a run that goes on cannot change seed: 0 -> 1: start a new one"),
        (["--resume", "RUN", "--total-steps", "64", "--batch.length", "5"],
         "cannot change batch.length: 6 -> 5; total_steps: 32 -> 64: start a new one, or change only checkpoint_every"),
        (["--resume", "RUN", "--folder", "elsewhere"], "a run that goes on cannot change folder: "),
        (["--resume", "RUN", "--tasks", "dummy:count-0"], "a run that goes on cannot change tasks: "),
        (["--resume", "RUN", "--sead", "1"], "unknown field --sead: did you mean --seed"),
    ],
)
def test_what_cannot_go_on_is_one_line(
    finished: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in refused(capsys, *(str(finished) if word == "RUN" else word for word in arguments))


@pytest.mark.parametrize("harm", ["cut", "flip", "empty"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_offered(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], straight: Trainer, harm: str
) -> None:
    folder = copied(finished, tmp_path / "run")
    early, late = checkpoints(folder)
    content = bytearray(late.read_bytes())
    content[len(content) // 2] ^= 1
    late.write_bytes({"cut": content[:-100], "flip": content, "empty": b""}[harm])
    said = refused(capsys, "--resume", str(folder))
    assert f"{late} is damaged or cut short" in said
    assert f"an earlier one: python -m mow.train --resume {early}" in said
    assert_same_end(gone_on(early), straight)


def test_a_damaged_replay_is_named_and_nothing_is_cut_off(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(finished, tmp_path / "run")
    file = min((folder / "replay").glob("blocks-*"))
    file.write_bytes(file.read_bytes()[:-1])
    early = checkpoints(folder)[0]
    before = (folder / "metrics.jsonl").read_bytes()
    said = refused(capsys, "--resume", str(early))
    assert f"{file} is damaged" in said
    assert (folder / "metrics.jsonl").read_bytes() == before
    assert len(checkpoints(folder)) == 2


def test_what_may_change_is_said(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone_on(copied(finished, tmp_path / "run"), "--log-every", "3", "--replay.prefetch", "1")
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("changed: ")] == [
        "changed: log_every: 4 -> 3", "changed: replay.prefetch: 2 -> 1",
    ]  # fmt: skip


def test_an_edited_config_is_noticed(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied(finished, tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    config["batch"]["num_sequences"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    said = refused(capsys, "--resume", str(folder))
    assert "was written with another config (batch.num_sequences: 2 -> 3): put config.json back as it was" in said


def test_a_run_without_a_checkpoint_cannot_go_on(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(finished, tmp_path / "run")
    for path in checkpoints(folder):
        path.unlink()
    assert "has no checkpoints/step_*.pt: it stopped before the first; start it again" in refused(
        capsys, "--resume", str(folder)
    )


def test_two_runs_never_share_a_folder(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import fcntl

    folder = copied(finished, tmp_path / "run")
    with open(folder / "lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        said = refused(capsys, "--resume", str(folder))
    assert f"another process trains in {folder}: wait for it, or give another --folder" in said
