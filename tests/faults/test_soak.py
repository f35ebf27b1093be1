"""Hours in minutes: a run that takes thousands of steps takes no more memory, files or threads than at its start.

MOW_SOAK_MINUTES=30 (the default) for the whole of it.
"""

import dataclasses
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mow import replay
from mow.engine.trainer import Trainer
from tests.faults.runs import to_the_end
from tests.small import run_config

MINUTES = float(os.environ.get("MOW_SOAK_MINUTES", "30"))
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Enough(Exception):
    """The time is over."""


def looked_at() -> tuple[float, float, int, int]:
    """Minutes, MB of memory, open files, threads."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return time.monotonic() / 60, pages * _PAGE / 1e6, len(os.listdir("/proc/self/fd")), threading.active_count()


@pytest.mark.slow
def test_nothing_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves, episodes, updates, rollouts and progress lines all the time; the replay is full early on."""
    seen, save = [], Trainer.save

    def look(self: Trainer) -> Path:
        path = save(self)
        seen.append(looked_at())
        if seen[-1][0] - seen[0][0] > MINUTES:
            raise Enough
        return path

    monkeypatch.setattr(Trainer, "save", look)
    buffer = replay.ReplayBuffer
    # As large as the run is long, it would grow all the time, and should.
    monkeypatch.setattr(replay, "ReplayBuffer", lambda tasks, _, *args, **named: buffer(tasks, 200, *args, **named))
    schedule = dataclasses.replace(run_config().schedule, prefill_steps=0, warmup_updates=0)
    config = run_config(total_steps=10_000_000, checkpoint_every=50, log_every=25, schedule=schedule)
    with pytest.raises(Enough):
        to_the_end(config, tmp_path / "run")
    settled = np.array(seen[len(seen) // 5 :])
    slope = np.polyfit(settled[:, 0], settled[:, 1], 1)[0]
    print(f"{len(seen)} saves in {MINUTES} minutes, {settled[-1, 1]:.0f} MB, {slope:+.2f} MB per minute")
    assert slope < 1.0, f"{slope:.2f} MB per minute"
    assert len(set(settled[:, 2])) == 1, "files are left open"
    assert len(set(settled[:, 3])) == 1, "threads are left running"
