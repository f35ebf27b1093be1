"""A signal ends a run in order; a second one ends it at once, and what it saved before is whole."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mow.envs.vector import make_vector
from mow.replay import ReplayBuffer, load
from mow.runs.checkpoint import load_checkpoint
from mow.runs.paths import checkpoints
from tests.test_train import DUMMY


def _hear() -> None:
    """A background job ignores SIGINT, and what nohup started SIGHUP; their children would too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def started(folder: Path, until: str, *flags: str) -> "subprocess.Popen[str]":
    """A training in a process of its own, which has said a line that begins with `until`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mow.train", "quickstart", *DUMMY, "--folder", str(folder), "--total-steps", "4000",
         *flags],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=_hear,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(until):
            break
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_a_run_in_order(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "run"
    process = started(folder, "joint training", "--checkpoint-every", "1000")
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    (path,) = checkpoints(folder)
    step = int(path.stem.removeprefix("step_"))
    assert f"stopped at step {step:,}; checkpoint: {path}" in said
    assert f"to go on: python -m mow.train --resume {folder}" in said
    assert load_checkpoint(path, torch.device("cpu"))["step"] == step


def test_a_second_signal_ends_it_at_once_and_the_last_save_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = started(folder, "checkpoint: ", "--checkpoint-every", "10")
    # Both are noted before the run looks: two of the same number would count as one.
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=30)
    assert process.returncode in (-signal.SIGINT, -signal.SIGTERM), said
    assert "stopped at step" not in said
    newest = load_checkpoint(checkpoints(folder)[-1], torch.device("cpu"))
    with make_vector(("dummy:count-0", "dummy:slide"), seed=0, num_workers=0, options={}) as envs:
        layout = envs.layout
    replay = ReplayBuffer(2, 4000, (64, 64, 3), layout.size, seed=0)
    assert load(folder / "replay", replay, num_steps=newest["step"]) == newest["step"]
