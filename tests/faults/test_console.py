"""Whoever looks on is gone: a run saves what it has and ends, whatever it was saying."""

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mow.runs.checkpoint import load_checkpoint
from mow.runs.paths import checkpoints
from tests.faults.test_signals import started
from tests.test_train import DUMMY


def saved(folder: Path) -> int:
    """The step that the run in `folder` has saved."""
    (path,) = checkpoints(folder)
    return int(load_checkpoint(path, torch.device("cpu"))["step"])


@pytest.mark.parametrize("flags", [("--plain",), ("--env.num-workers", "1")], ids=["lines", "a panel, and a worker"])
def test_a_run_whose_terminal_is_closed_saves(tmp_path: Path, flags: tuple[str, ...]) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "mow.train", "quickstart", *DUMMY, "--folder", str(folder), *flags]
    child, screen = pty.fork()  # the child leads a session of its own, so closing its terminal hangs it up
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.environ |= {"OMP_NUM_THREADS": "1", "TERM": "xterm"}
        os.execv(sys.executable, [*command, "--total-steps", "4000", "--checkpoint-every", "1000"])
    said = b""
    while b"joint training" not in said:
        said += os.read(screen, 65536)
    os.close(screen)
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        assert time.monotonic() < deadline, "it goes on"
        time.sleep(0.1)
    assert os.waitstatus_to_exitcode(ended[1]) == 0
    assert 0 < saved(folder) < 4000


def test_a_run_whose_pipe_nobody_reads_saves(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process: subprocess.Popen[str] = started(folder, "joint training", "--checkpoint-every", "1000")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert 0 < saved(folder) < 4000


@pytest.mark.parametrize(
    ("streams", "said"),
    [
        (">&- 2>&- <&-", ""),
        ("> /dev/full", "the output takes no more (No space left on device): lines are lost, all else goes on\n"),
    ],
)
def test_a_run_whose_output_cannot_be_written_trains(tmp_path: Path, streams: str, said: str) -> None:
    folder = tmp_path / "run"
    command = shlex.join([sys.executable, "-m", "mow.train", "quickstart", *DUMMY, "--folder", str(folder)])
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(["bash", "-c", f"{command} {streams}"], capture_output=True, text=True, env=env)
    assert (done.returncode, done.stderr) == (0, said)
    assert saved(folder) == 20
    assert [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_in_a_restricted_encoding_trains(tmp_path: Path) -> None:
    folder = tmp_path / "gr\xf6\xdfe"
    command = [sys.executable, "-m", "mow.train", "quickstart", *DUMMY, "--folder", str(folder)]
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, env=env)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"gr\\xf6\\xdfe" in done.stdout
    assert saved(folder) == 20
