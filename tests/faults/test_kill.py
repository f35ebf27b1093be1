"""kill -9 at random moments: a resumed run ends as one that was never killed, and repeats at most one interval."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from mow.engine.trainer import Trainer
from mow.runs.checkpoint import load_checkpoint
from mow.runs.paths import checkpoints
from tests.faults.runs import assert_equal, lines
from tests.small import run_config

# Of `run_config`, which is saved nearly as often as it steps: about half of the kills fall into a save.
EVERY = 2

# Forks, so that torch is loaded once; in a process of its own, because pytest's may hold locks of other threads.
PROGRAM = """
    import json, mmap, os, random, shutil, signal, sys, time
    from pathlib import Path
    import torch
    from mow import train
    from mow.cli.resume import find_resumption
    from mow.runs.paths import checkpoints
    from mow.runs.checkpoint import load_checkpoint
    from mow.engine.trainer import Trainer
    from tests.small import run_config
    folder, every, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    earliest, latest = float(sys.argv[5]), float(sys.argv[6])
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    draw, reached = random.Random(seed), mmap.mmap(-1, 8)
    config = run_config(folder=str(folder), checkpoint_every=every)
    told = Trainer._store_step

    def step(self):
        told(self)
        reached[:8] = self.step.to_bytes(8, "little")

    def work():
        sys.stdout = open(os.devnull, "w")
        Trainer._store_step = step
        if checkpoints(folder):
            resumption = find_resumption(["--resume", str(folder)])
            return train.run(resumption.config, resumption)
        shutil.rmtree(folder, ignore_errors=True)  # killed before its first checkpoint: it starts again
        return train.run(config)

    def begun():
        child = os.fork()
        if child == 0:
            os._exit(0 if work() is not None else 1)
        return child

    child, found = begun(), []
    while len(found) < kills:
        time.sleep(draw.uniform(earliest, latest))
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            assert os.waitstatus_to_exitcode(status) == 0
            shutil.rmtree(folder)
            reached[:8] = bytes(8)
        else:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            newest = [load_checkpoint(path, torch.device("cpu"))["step"] for path in checkpoints(folder)[-1:]]
            found.append((int.from_bytes(reached[:8], "little"), *newest))
        child = begun()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    print(json.dumps(found))
"""


def killed(folder: Path, kills: int, seed: int, seconds: tuple[float, float]) -> list[list[int]]:
    """Kill a run at moments between `seconds` after its start, and resume it.

    Returns: for each kill the step that the run had reached, and that of its newest checkpoint if it had one.
    """
    words = [str(word) for word in (folder, EVERY, kills, seed, *seconds)]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), *words],
        capture_output=True, text=True, check=False, timeout=1200, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: list[list[int]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("kills", "share"), [(3, (0.4, 0.9)), pytest.param(50, (0.0, 1.0), marks=pytest.mark.slow)], ids=["3", "50"]
)
def test_killed_at_random_moments_it_ends_the_same(
    tmp_path: Path, straight: Trainer, kills: int, share: tuple[float, float]
) -> None:
    """At a share of the time that a whole run takes: the first kills fall behind the first checkpoint."""
    folder = tmp_path / "run"
    whole = float(json.loads((straight.logger.folder / "metrics.jsonl").read_text().splitlines()[-1])["seconds"])
    found = killed(folder, kills, kills, (share[0] * whole, share[1] * whole))
    assert len(found) == kills
    lost = [kill[0] - kill[1] for kill in found if len(kill) == 2]
    assert lost, "no kill came after the first checkpoint"
    assert all(0 <= steps <= EVERY for steps in lost), found
    assert lines(folder) == lines(straight.logger.folder)
    newest = load_checkpoint(checkpoints(folder)[-1], torch.device("cpu"))
    assert newest["step"] == run_config().total_steps
    assert_equal(newest["learner"], straight.learner.state_dict())


