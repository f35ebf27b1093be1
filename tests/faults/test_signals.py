"""A signal ends a run in order; a second one ends it at once, and what it saved before is whole."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from mow.envs.vector import make_vector
from mow.replay import ReplayBuffer, load
from mow.runs.checkpoint import load_checkpoint
from mow.runs.paths import checkpoints
from mow.runs.signals import StopSwitch
from tests.test_train import DUMMY


def _default_handlers() -> None:
    """For a child: a background job ignores SIGINT, nohup SIGHUP, and children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def started(folder: Path, until: str, *flags: str) -> "subprocess.Popen[str]":
    """A training in a process of its own that has printed a line that begins with `until`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mow.train", "quickstart", *DUMMY, "--folder", str(folder), "--total-steps", "4000",
         *flags],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=_default_handlers,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(until):
            break
    return process


# Forks, so that torch is loaded once; in a process of its own, because pytest's may hold locks of other threads.
PROGRAM = """
    import json, os, signal, sys
    import torch
    import mow.engine.trainer, mow.methods.mow.learner
    from mow import train
    torch.set_num_threads(1)

    def ended(folder, until, every, numbers):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.dup2(write, 1), os.dup2(write, 2)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            sys.stdout = sys.stderr = open(1, "w", buffering=1, closefd=False)
            code = train.main([*flags, "--folder", folder, "--checkpoint-every", str(every)])
            sys.stdout.flush()
            os._exit(code)
        os.close(write)
        with open(read) as lines:
            next(line for line in lines if line.startswith(until))
            for number in numbers:
                os.kill(child, number)
            printed = lines.read()
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), printed

    flags, cases = json.loads(sys.stdin.read())
    print(json.dumps([ended(*case) for case in cases]))
"""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, int, str]]:
    """Folder, exit code and what was printed after the signal: of a run per signal, and of one that got two signals."""
    root = tmp_path_factory.mktemp("signals")
    cases: list[tuple[Any, ...]] = [(str(root / number.name), "joint training", 1000, [number]) for number in SIGNALS]
    # Both are noted before the run looks: two of the same number would count as one.
    cases.append((str(root / "two"), "checkpoint: ", 10, [signal.SIGINT, signal.SIGTERM]))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        input=json.dumps([["quickstart", *DUMMY, "--total-steps", "4000"], cases]),
        capture_output=True, text=True, check=False, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return {Path(case[0]).name: (Path(case[0]), *one) for case, one in zip(cases, found, strict=True)}


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_run_in_order(ended: dict[str, tuple[Path, int, str]], number: signal.Signals) -> None:
    folder, code, said = ended[number.name]
    assert code == 0, said
    (path,) = checkpoints(folder)
    step = int(path.stem.removeprefix("step_"))
    assert f"stopped at step {step:,}; checkpoint: {path}" in said
    assert f"to go on: python -m mow.train --resume {folder}" in said
    assert load_checkpoint(path, torch.device("cpu"))["step"] == step


def test_a_doubled_sigterm_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `timeout` sends it, to the process and to its group; a later one ends the process."""
    now, ended = [0.0], list[int]()
    monkeypatch.setattr("mow.runs.signals.time.monotonic", lambda: now[0])
    monkeypatch.setattr("mow.runs.signals.signal.raise_signal", ended.append)
    with StopSwitch() as switch:
        for now[0], requested in ((1.0, True), (1.1, True), (2.2, True)):
            assert not ended
            switch._note(signal.SIGTERM, None)
            assert switch.requested is requested
    assert ended == [signal.SIGTERM]


def test_a_second_signal_ends_it_at_once_and_the_last_save_is_whole(ended: dict[str, tuple[Path, int, str]]) -> None:
    folder, code, said = ended["two"]
    assert code in (-signal.SIGINT, -signal.SIGTERM), said
    assert "stopped at step" not in said
    newest = load_checkpoint(checkpoints(folder)[-1], torch.device("cpu"))
    with make_vector(("dummy:count-0", "dummy:slide"), seed=0, num_workers=0, options={}) as envs:
        layout = envs.layout
    replay = ReplayBuffer(2, 4000, (64, 64, 3), layout.size, seed=0)
    assert load(folder / "replay", replay, num_steps=newest["step"]) == newest["step"]
