"""Too little memory: refused at the start with numbers and flags; later one line that says what is left."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mow.estimate import memory
from mow.estimate.memory import least_memory
from mow.estimate.plan import make_plan
from mow.methods.mow.learner import Learner
from mow.runs.paths import checkpoints
from mow.train import main
from tests.faults.runs import gone_on
from tests.small import action_mask, run_config
from tests.test_train import DUMMY

MASK = action_mask()


def test_replay_by_hand() -> None:
    """Three tasks of 32 steps: frames, six actions, a reward and three flags each."""
    raw, beside = 3 * 32 * 12_288, 3 * 32 * (4 * 6 + 4 + 3)
    enough = 2 * raw
    replay = run_config().replay
    for store, disk, free, expected in (
        ("raw", "", enough, raw + beside),
        ("auto", "", enough, raw + beside),
        ("packed", "", enough, raw // 20 + beside),
        ("packed", "there", 0, beside),
    ):
        config = run_config(replay=type(replay)(store=store, disk=disk))  # type: ignore[arg-type]
        assert least_memory(config, make_plan(config, MASK, bf16=False), 6, free)[0].num_bytes == expected


def test_the_device_holds_what_the_plan_says_less_what_it_may_be_wrong_by() -> None:
    config = run_config()
    planned = make_plan(config, MASK, bf16=False)
    weights, update = least_memory(config, planned, 6, 0)[1]
    assert weights.num_bytes == planned.fixed
    assert (update.name, update.num_bytes) == ("a batch", round(0.85 * planned.activations.peak))


def refused(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["quickstart", *DUMMY, *flags])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize(
    ("flags", "largest", "remedy"),
    [
        (["--replay.store", "raw"], "replay 2.46", "change --replay.store packed, --replay.disk FOLDER, --total-steps"),
        (["--batch.num-sequences", "100000"], "a batch ", "change --batch.num-sequences, --batch.length, --opt"),
        (["--imagination.num-sequences", "10000000"], "a rollout ", "change --imagination.num-sequences, --imaginati"),
        (["--model.width", "8192"], "weights, gradients, optimisers ", "change a smaller preset (quickstart), --model"),
    ],
)
def test_what_cannot_fit_is_refused_and_what_to_change_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    flags: list[str], largest: str, remedy: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(memory, "free_memory", lambda: 1_000_000_000)
    said = refused(capsys, *flags, "--total-steps", "100000", "--folder", str(tmp_path / "run"))
    assert "this run needs at least " in said
    assert largest in said
    assert "1.00 GB is free" in said
    assert remedy in said
    assert not (tmp_path / "run").exists()


def test_a_run_under_a_cap_is_refused_with_numbers_and_flags(tmp_path: Path) -> None:
    """ulimit -v: 100 GB of frames where 12 GB of addresses are allowed."""
    flags = [*DUMMY, "--folder", str(tmp_path / "run"), "--total-steps", "4000000", "--replay.store", "raw"]
    done = subprocess.run(
        [sys.executable, "-m", "mow.train", "quickstart", *flags], capture_output=True, text=True, check=False,
        timeout=60, env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (12 * 10**9, 12 * 10**9)),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "mow.train: this run needs at least 98." in done.stderr
    assert "GB is free: change --replay.store packed, --replay.disk FOLDER" in done.stderr
    assert done.stderr.count("\n") == 1


def asks_for_too_much() -> object:
    return torch.empty(2**46, dtype=torch.uint8)  # 70 TB: the allocator itself refuses


def numpy_does() -> object:
    raise MemoryError


def the_gpu_has_no_more() -> object:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation")


@pytest.mark.parametrize(
    ("failing", "says"),
    [
        (asks_for_too_much, "out of memory on cpu ("),
        (numpy_does, "out of memory on cpu (MemoryError): start again with a smaller --batch.num-sequences"),
        (the_gpu_has_no_more, "out of memory on cpu (CUDA out of memory. Tried to allocate 2.00 GiB.): start again"),
    ],
)
def test_running_out_later_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    failing: Callable[[], object], says: str,
) -> None:  # fmt: skip
    """After the first checkpoint, from which the run goes on once there is memory again."""
    folder, update = tmp_path / "run", Learner.update_agent

    def fails(self: Learner, *arguments: object, **named: object) -> object:
        if checkpoints(folder):
            failing()
        return update(self, *arguments, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "update_agent", fails)
        code = main(["quickstart", *DUMMY, "--folder", str(folder), "--checkpoint-every", "5"])
    said = capsys.readouterr().err
    assert code == 1
    assert said.count("\n") == 1
    assert says in said
    assert f"python -m mow.train --resume {folder} goes on from {checkpoints(folder)[-1]}" in said
    assert gone_on(folder).step == 20


def test_other_errors_are_left_as_they_are(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="of another kind"),
        memory.explain_out_of_memory(tmp_path, torch.device("cpu")),
    ):
        raise RuntimeError("of another kind")
