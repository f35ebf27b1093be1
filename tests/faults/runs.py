"""Runs of some seconds that the fault tests stop, kill and compare."""

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mow import train
from mow.cli.resume import find_resumption
from mow.engine.trainer import Trainer
from mow.methods.mow.config import MowConfig
from mow.runs.signals import Stopped, StopSwitch
from mow.train import main


def to_the_end(config: MowConfig, folder: Path) -> Trainer:
    run = train.run(dataclasses.replace(config, folder=str(folder)))
    assert run is not None
    return run


def stopped(config: MowConfig, folder: Path, moment: int, patch: pytest.MonkeyPatch) -> None:
    """Trainer until the `moment`-th time that it could be saved."""
    calls = 0

    def check(_: StopSwitch) -> None:
        nonlocal calls
        calls += 1
        if calls == moment:
            raise Stopped

    with patch.context() as patched:
        patched.setattr(StopSwitch, "check", check)
        assert train.run(dataclasses.replace(config, folder=str(folder))) is None


def gone_on(folder: Path, *flags: str) -> Trainer:
    resumption = find_resumption(["--resume", str(folder), *flags])
    run = train.run(resumption.config, resumption)
    assert run is not None
    return run


def lines(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the clock."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clocks = ("seconds", "time/")
    return [{name: value for name, value in row.items() if not name.startswith(clocks)} for row in rows]


def leaves(state: object, path: str = "") -> dict[str, object]:
    """Every tensor and plain value of nested dicts and lists, by its place."""
    if isinstance(state, dict):
        return {k: v for name, part in state.items() for k, v in leaves(part, f"{path}.{name}").items()}
    if isinstance(state, list | tuple):
        return {k: v for i, part in enumerate(state) for k, v in leaves(part, f"{path}[{i}]").items()}
    return {path: state}


def assert_equal(one: object, other: object) -> None:
    first, second = leaves(one), leaves(other)
    assert first.keys() == second.keys()
    for place, value in first.items():
        same = torch.equal(value, second[place]) if isinstance(value, torch.Tensor) else value == second[place]
        assert same or (value != value and second[place] != second[place]), place  # or both are no number


def assert_same_end(one: Trainer, other: Trainer) -> None:
    """What they learnt, what they hold, what they would do next, what they wrote."""
    assert (one.step, one.counts, one.tasks) == (other.step, other.counts, other.tasks)
    assert_equal(one.learner.state_dict(), other.learner.state_dict())
    assert one.collector.rng.bit_generator.state == other.collector.rng.bit_generator.state
    assert np.array_equal(one.collector.frame, other.collector.frame)
    for counter in range(3):
        batches = [run.collector.replay.sample(4, 6, counter=counter, stream=9) for run in (one, other)]
        assert_equal(*(batch.tensors() for batch in batches))
    assert_equal(one.actor.state_dict(), other.actor.state_dict())
    assert lines(one.logger.folder) == lines(other.logger.folder)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def copied(finished: Path, folder: Path) -> Path:
    subprocess.run(["cp", "-r", finished, folder], check=True)
    return folder
