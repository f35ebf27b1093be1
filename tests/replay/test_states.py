"""Replay of states: float32 numbers in place of frames, drawn, saved and renumbered as everything else."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mow.replay import Prefetcher, ReplayBuffer, Request, load, save

TASKS, CAPACITY, SIZE = 3, 24, 4


def buffer(**changes: object) -> ReplayBuffer:
    return ReplayBuffer(TASKS, CAPACITY, (SIZE,), 2, **{"frame_dtype": "float32", "seed": 5, **changes})


def state(step: int) -> np.ndarray:
    """[K, D]: task, step, and a number that no byte holds."""
    numbers = [[task, step, np.pi * step - task, 0.0] for task in range(TASKS)]
    return np.array(numbers, np.float32)


def add(replay: ReplayBuffer, first: int, num_steps: int) -> ReplayBuffer:
    no = np.zeros(TASKS, np.bool_)
    for step in range(first, first + num_steps):
        shown = state(step)[replay.rows]
        replay.add(shown, np.zeros((TASKS, 2), np.float32), shown[:, 1].copy(), no, no, no, no)
    return replay


def test_windows_hold_the_states_that_were_added() -> None:
    replay = add(buffer(), 0, CAPACITY + 7)
    batch = replay.sample(5, 6, counter=1, stream=0)
    assert batch.frame.dtype == torch.float32
    assert batch.frame.shape == (TASKS, 5, 6, SIZE)
    assert torch.equal(batch.frame[..., 1], batch.reward)
    assert batch.reward.min() >= 7
    wanted = torch.from_numpy(np.stack([state(int(step))[1] for step in batch.reward[1, 0]]))
    assert torch.equal(batch.frame[1, 0], wanted)
    with Prefetcher(replay, depth=1) as prefetch:
        assert torch.equal(prefetch.next(Request(5, 6, 1, 0)).frame, batch.frame)


def test_a_save_goes_on_with_the_same_bytes(tmp_path: Path) -> None:
    """Two saves, the second after the ring has wrapped and the tasks were renumbered, and ends in an open block."""
    replay = add(buffer(), 0, 11)
    save(replay, tmp_path)
    replay.reorder([2, 0, 1])
    add(replay, 11, CAPACITY)
    save(replay, tmp_path)
    other = buffer()
    assert load(tmp_path, other) == 11 + CAPACITY
    for one in (replay, other):
        add(one, 11 + CAPACITY, 3)
    for counter in range(4):
        one, same = (each.sample(4, 8, counter=counter, stream=2) for each in (replay, other))
        for name, tensor in one.tensors().items():
            assert torch.equal(tensor, same.tensors()[name]), name
    assert one.frame[:, 0, 0, 0].tolist() == [2, 0, 1]
    with pytest.raises(ValueError, match=r"frame_shape \[4\] there and \[5\] here"):
        load(tmp_path, ReplayBuffer(TASKS, CAPACITY, (5,), 2, frame_dtype="float32", seed=5))


@pytest.mark.parametrize("changes", [{"store": "packed"}, {"store": "gpu"}, {"disk": Path("d")}])
def test_states_are_neither_packed_nor_elsewhere(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"states stay in main memory as they are, got store .*: use store 'auto'"):
        buffer(**changes)


def test_a_step_that_is_no_state_is_refused() -> None:
    replay, no = buffer(), np.zeros(TASKS, np.bool_)
    rest = (np.zeros((TASKS, 2), np.float32), np.zeros(TASKS, np.float32), no, no, no, no)
    broken = state(0)
    broken[1, 2] = np.inf
    for shown, says in (
        (broken, r"frame of task 1: expected finite numbers, got \[1.0, 0.0, inf, 0.0\]"),
        (state(0).astype(np.float64), r"expected float32 \[3, 4\], got float64 \[3, 4\]"),
        (state(0)[:, :3], r"expected float32 \[3, 4\], got float32 \[3, 3\]"),
    ):
        with pytest.raises(ValueError, match=says):
            replay.add(shown, *rest)
    assert replay.num_steps == 0
