"""What the panel is told of a run, by hand."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mow.engine.progress import Phase, PhaseName, progress_of


def run_at(phase: PhaseName, *, step: int, updates: int, grouped: bool = True) -> Any:
    """A run of two tasks whose phase began a minute ago at 10 of 55 units."""
    scores = {"tiny:goal": SimpleNamespace(mean=lambda: 0.41), "dummy:count": SimpleNamespace(mean=lambda: None)}
    return SimpleNamespace(
        phase=Phase(phase, 10, 55, time.monotonic() - 60.0),
        config=SimpleNamespace(preset="quickstart", total_steps=80),
        step=step,
        tasks=[*scores],
        learner=SimpleNamespace(
            updates=updates,
            device=torch.device("cpu"),
            grouping="found" if grouped else None,
            world_model=SimpleNamespace(module_of_task=[0, 1]),
        ),
        logger=SimpleNamespace(folder=Path("runs/a"), seconds=99.0, frame_skip=4),
        collector=SimpleNamespace(scores=scores, restarts=2),
        watch=SimpleNamespace(so_far={"agent": 3.0}),
        split={},
        last_loss=[7.0, 8.0],
        score=0.5,
        best_score=0.6,
        left_out=1,
    )


def test_time_left_goes_by_what_this_phase_has_done() -> None:
    steps = progress_of(run_at("joint", step=25, updates=999))  # 15 of its units in 60 s, 30 to go
    assert (steps.done, steps.frames) == (25, 100)
    assert steps.eta == pytest.approx(120.0, abs=1.0)
    updates = progress_of(run_at("warm-up", step=999, updates=40))  # 30 in 60 s, 15 to go
    assert updates.done == 40
    assert updates.eta == pytest.approx(30.0, abs=1.0)
    assert progress_of(run_at("joint", step=10, updates=0)).eta is None, "nothing is done yet"


def test_tasks_and_what_went_wrong() -> None:
    found = progress_of(run_at("joint", step=25, updates=5))
    goal, count = found.tasks
    assert (goal.name, goal.module, goal.loss, goal.recent) == ("tiny:goal", 0, 7.0, 0.41)
    assert goal.references is not None
    low, high = goal.references
    assert goal.score == pytest.approx((0.41 - low) / (high - low))
    assert (count.module, count.score) == (1, None)
    assert (found.restarts, found.left_out, found.best, found.split) == (2, 1, 0.6, {"agent": 3.0})
    assert [task.module for task in progress_of(run_at("joint", step=25, updates=5, grouped=False)).tasks] == [None] * 2
