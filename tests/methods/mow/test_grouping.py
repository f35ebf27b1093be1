"""Tasks whose look and dynamics are planted, crossed: modules hold what sees and draws, so groups follow the look."""

import dataclasses

import numpy as np
import pytest
import torch

from mow.batch import TransitionBatch
from mow.methods.mow.clustering import Grouping
from mow.methods.mow.config import ClusteringConfig, OptimConfig
from mow.methods.mow.learner import Learner
from mow.nn.policy import ActionMask
from tests.methods.mow.test_clustering import agreement
from tests.small import LOCAL, run_config

NUM_TASKS, CELL = 8, 8
LOOK = np.arange(NUM_TASKS) % 2  # light on dark, or dark on light
DYNAMICS = np.arange(NUM_TASKS) // 2 % 2  # a square moves down, or to the right
# Of ground and square, by look.
COLOURS = np.array([[[30, 30, 60], [250, 200, 60]], [[230, 210, 200], [40, 90, 30]]], np.uint8)


def moving_squares(seed: int, num_sequences: int = 1, length: int = 4) -> TransitionBatch:
    rng = np.random.default_rng(seed)
    shape = (NUM_TASKS, num_sequences, length)
    frame = np.broadcast_to(COLOURS[LOOK, 0][:, None, None, None, None], (*shape, 64, 64, 3)).copy()
    for task in range(NUM_TASKS):
        for sequence in range(num_sequences):
            row, column = rng.integers(8, size=2)
            for t in range(length):
                rows, columns = (slice(CELL * at, CELL * (at + 1)) for at in (row, column))
                frame[task, sequence, t, rows, columns] = COLOURS[LOOK[task], 1]
                row, column = (row + (DYNAMICS[task] == 0)) % 8, (column + (DYNAMICS[task] == 1)) % 8
    first = torch.zeros(shape, dtype=torch.bool)
    first[:, :, 0] = True
    action = torch.from_numpy(np.eye(4, dtype=np.float32)[rng.integers(4, size=shape)])
    never = torch.zeros(shape, dtype=torch.bool)
    return TransitionBatch(torch.from_numpy(frame), action, torch.zeros(shape), never, never, first, never)


def after_warm_up(scaling: str, seed: int, updates: int = 12) -> Grouping:
    config = run_config(
        tasks=tuple(f"planted:{k}" for k in range(NUM_TASKS)),
        model=dataclasses.replace(LOCAL, perception=dataclasses.replace(LOCAL.perception, norm="group")),
        clustering=ClusteringConfig(num_modules=2, num_batches=3, scaling=scaling),
        optim=OptimConfig(world_model_lr=1e-3),
        seed=seed,
    )
    torch.manual_seed(seed)
    mask = ActionMask(torch.ones(NUM_TASKS, 4, dtype=torch.bool), torch.zeros(NUM_TASKS, 0, dtype=torch.bool))
    learner = Learner(config, mask, torch.device("cpu"))
    for update in range(updates):
        learner.update_world_model(moving_squares(update))
    return learner.group(moving_squares(10_000 + i) for i in range(3))


@pytest.mark.parametrize("seed", range(2))
def test_groups_follow_the_look_and_not_the_dynamics(seed: int) -> None:
    grouping = after_warm_up("per_tensor", seed)
    assert agreement(grouping, LOOK.tolist()) > 0.8
    assert max(grouping.shares.values()) < 0.2
    assert sum(grouping.shares.values()) == pytest.approx(1.0)
