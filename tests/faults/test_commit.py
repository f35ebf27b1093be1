"""A save of a whole run, killed before every single thing that it does to the disk."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch

from mow.engine.trainer import Trainer
from mow.methods.mow.config import MowConfig
from mow.replay import ReplayBuffer, load
from mow.runs import checkpoint
from mow.runs.checkpoint import load_checkpoint
from mow.runs.paths import checkpoints
from tests.engine.test_trainer import wire
from tests.replay.test_segments import Disk, Killed
from tests.small import run_config


def saved_step(run: Trainer, config: MowConfig) -> int:
    """Of the newest checkpoint, once it and the replay that goes with it have been read."""
    folder = run.logger.folder
    step = int(load_checkpoint(checkpoints(folder)[-1], torch.device("cpu"))["step"])
    replay = ReplayBuffer(len(config.tasks), config.total_steps, (64, 64, 3), run.collector.envs.layout.size, seed=0)
    assert load(folder / "replay", replay, num_steps=step) == step
    return step


def half_or_whole(disk: Disk) -> Callable[[object, BinaryIO], None]:
    """torch.save, hundreds of writes, as one deed."""
    whole = torch.save

    def save(content: object, file: BinaryIO) -> None:
        memory = io.BytesIO()
        whole(content, memory)
        if disk.step():
            file.write(memory.getvalue()[: memory.tell() // 2])
            file.flush()
            raise disk.error
        file.write(memory.getvalue())

    return save


def test_killed_at_every_single_deed_of_a_save(tmp_path: Path) -> None:
    """The old checkpoint or the new one, each with its replay; and the save after it goes through the debris."""
    config = run_config()
    run, *_ = wire(config, tmp_path / "run")
    run.train()
    collector, flags = run.collector, np.zeros(3, np.bool_)
    action, nothing = np.zeros((3, collector.envs.layout.size), np.float32), (np.zeros(3, np.float32), flags, flags)
    before, outcomes = run.step, []
    for deed in range(1000):
        for _ in range(8):  # a whole block, so that every save does as much as the one before
            collector.replay.add(collector.frame, action, *nothing, collector.is_first, collector.is_last)
            run.step += 1
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, deed=deed, error=Killed())
            patch.setattr(checkpoint.torch, "save", half_or_whole(disk))
            with contextlib.suppress(Killed):
                run.save()
        if not disk.failed:
            break
        now = saved_step(run, config)
        assert now in (before, run.step), deed
        outcomes.append(now == run.step)
        run.save()
        before = saved_step(run, config)
        assert before == run.step
    assert deed > 20
    assert outcomes[0] is False  # the first deed decides nothing
    assert outcomes[-1] is True  # the last ones only delete what is old
    run.prefetch.close()
    run.logger.close()
