"""The record that the panel is drawn from, by hand."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mow.engine.progress import Phase, Progress
from mow.engine.trainer import Trainer
from mow.methods.base import Phase as Declared
from mow.methods.base import Update

PHASES = (
    Declared("prefill", 10, "random"),
    Declared("warm-up", updates=(Update("world_model", 1, 2, 0, count=55),)),
    Declared("joint", 45, "agent", updates=(Update("world_model", 1, 2, 0, every=1),)),
)


def progress_at(phase: str, *, step: int, updates: int, grouped: bool = True) -> Progress:
    """Of a run of two tasks whose phase began a minute ago at 10 of 55 units."""
    scores = {"tiny:goal": SimpleNamespace(mean=lambda: 0.41), "dummy:count": SimpleNamespace(mean=lambda: None)}
    index = [declared.name for declared in PHASES].index(phase)
    run: Any = SimpleNamespace(
        phase=Phase(phase, 10, 55, time.monotonic() - 60.0, PHASES[index].unit),
        phase_index=index,
        config=SimpleNamespace(preset="quickstart", total_steps=80),
        step=step,
        updates=updates,
        counts={"world_model": updates},
        tasks=[*scores],
        learner=SimpleNamespace(phases=PHASES, device=torch.device("cpu"), groups=[0, 1] if grouped else None),
        logger=SimpleNamespace(folder=Path("runs/a"), seconds=99.0, frame_skip=4),
        collector=SimpleNamespace(scores=scores, restarts=2),
        watch=SimpleNamespace(so_far={"agent": 3.0}),
        recent={task: score.mean() for task, score in scores.items()},
        _split={},
        _restarts=0,
        last_loss=[7.0, 8.0],
        score=0.5,
        best_score=0.6,
        left_out=1,
    )
    return Trainer.progress(run)


def test_time_left_goes_by_what_this_phase_has_done() -> None:
    steps = progress_at("joint", step=25, updates=999)  # 15 of its units in 60 s, 30 to go
    assert (steps.done, steps.frames) == (25, 100)
    assert steps.eta == pytest.approx(120.0, abs=1.0)
    updates = progress_at("warm-up", step=999, updates=40)  # 30 in 60 s, 15 to go
    assert updates.done == 40
    assert updates.eta == pytest.approx(30.0, abs=1.0)
    assert progress_at("joint", step=10, updates=0).eta is None, "nothing is done yet"


def test_tasks_and_what_went_wrong() -> None:
    found = progress_at("joint", step=25, updates=5)
    goal, count = found.tasks
    assert (goal.name, goal.module, goal.loss, goal.recent) == ("tiny:goal", 0, 7.0, 0.41)
    assert goal.references is not None
    low, high = goal.references
    assert goal.score == pytest.approx((0.41 - low) / (high - low))
    assert (count.module, count.score) == (1, None)
    assert (found.restarts, found.left_out, found.best, found.split) == (2, 1, 0.6, {"agent": 3.0})
    assert [task.module for task in progress_at("joint", step=25, updates=5, grouped=False).tasks] == [None] * 2
