"""Simulators and windows of some tasks are those that they have among all."""

from pathlib import Path

import numpy as np
import pytest

from mow.envs.vector import make_vector
from mow.replay import ReplayBuffer, load_tasks, save

TASKS = ("tiny:catch", "tiny:goal", "tiny:dodge", "tiny:pole")


@pytest.mark.parametrize("workers", [0, 1])
def test_rollouts_depend_on_the_place_among_all(workers: int) -> None:
    frames = []
    for places, own in ((range(4), slice(1, 3)), ((1, 2), slice(None))):
        made = make_vector([TASKS[k] for k in places], seed=3, num_workers=workers, options={}, places=places)
        with made as envs:
            shown = [envs.reset()[0][own]]
            rng = np.random.default_rng(0)
            for _ in range(30):
                action = np.zeros((len(envs.specs), envs.layout.size), np.float32)
                action[:, rng.integers(2)] = 1.0
                shown.append(envs.step(action).frame[own])
        frames.append(np.stack(shown))
    assert np.array_equal(*frames)


def filled(tasks: list[int], store: str) -> ReplayBuffer:
    """29 steps of which the last 20 are held, each frame and reward made from task and step."""
    buffer = ReplayBuffer(len(tasks), 20, (64, 64, 3), 2, seed=5, store=store)
    buffer.places, buffer.num_drawn = slice(tasks[0], tasks[-1] + 1), 4
    flags = np.zeros(len(tasks), np.bool_)
    for step in range(29):
        values = np.array([10 * task + step for task in tasks])
        frame = np.broadcast_to(values[:, None, None, None], (len(tasks), 64, 64, 3)).astype(np.uint8)
        buffer.add(frame, np.zeros((len(tasks), 2), np.float32), values.astype(np.float32), flags, flags, flags, flags)
    return buffer


def test_windows_depend_on_the_place_among_all() -> None:
    every, own = (filled(tasks, "raw").sample(3, 4, counter=7, stream=1) for tasks in ([0, 1, 2, 3], [1, 2]))
    assert all(every.tensors()[name][1:3].equal(rows) for name, rows in own.tensors().items())


@pytest.mark.parametrize("stores", [("raw", "packed"), ("packed", "raw")])
def test_replay_of_two_folders_in_one_buffer(stores: tuple[str, str], tmp_path: Path) -> None:
    for name, tasks in (("low", [0, 1]), ("high", [2, 3])):
        save(filled(tasks, stores[0]), tmp_path / name)
    buffer = ReplayBuffer(2, 20, (64, 64, 3), 2, seed=5, store=stores[1])
    buffer.places, buffer.num_drawn = slice(1, 3), 4
    load_tasks([(tmp_path / "low", 1), (tmp_path / "high", 0)], buffer, num_steps=29)
    expected, found = (each.sample(3, 4, counter=7, stream=1) for each in (filled([1, 2], "raw"), buffer))
    assert all(rows.equal(found.tensors()[name]) for name, rows in expected.tensors().items())
