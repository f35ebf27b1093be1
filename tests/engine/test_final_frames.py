"""What the collector makes of final frames: rows of replay that say what was seen and that nothing was done."""

import numpy as np
import pytest

from mow.engine.collector import Collector
from mow.envs.dummy import read_counter
from mow.envs.vector import SerialVectorEnv
from mow.replay import ReplayBuffer

TASKS, STEPS = ("dummy:count-0", "dummy:count-1", "dummy:slide"), 60


def collected(**options: object) -> tuple[ReplayBuffer, np.ndarray]:
    """Random steps with final frames, the tasks in another order after the first 20; frames [R, STEPS, 64, 64, 3]."""
    with SerialVectorEnv(TASKS, seed=1, options=options, max_restarts=9, final_frames=True) as envs:
        replay = ReplayBuffer(3, STEPS, (64, 64, 3), envs.layout.size, seed=0)
        collector = Collector(envs, replay, seed=0)
        for step in range(STEPS):
            if step == 20:
                collector.reorder((2, 0, 1))
            collector.begin_random_step()
            collector.end_step()
    frames = np.empty((3, 1, STEPS, 64, 64, 3), np.uint8)
    replay.store.gather(np.arange(3), np.zeros((3, 1), np.int64), STEPS, frames)
    return replay, frames[:, 0]


def test_a_final_frame_is_a_row_without_action_reward_or_end():
    replay, frames = collected()
    rows, seen = replay.columns, 0
    for r in range(3):
        before = (-1, 0)
        for t in range(STEPS):
            _, episode, step = read_counter(frames[r, t])
            first, last, ends = (bool(rows[n][r, t]) for n in ("is_first", "is_last", "terminated"))
            cut = bool(rows["truncated"][r, t])
            assert (episode, step) == ((before[0] + 1, 0) if first else (before[0], before[1] + 1))
            before = episode, step
            if last:
                seen += 1
                assert not rows["action"][r, t].any()
                assert (rows["reward"][r, t], ends, cut, first) == (0.0, False, False, False)
                assert rows["truncated"][r, t - 1] or rows["terminated"][r, t - 1]
                assert t + 1 == STEPS or rows["is_first"][r, t + 1]
            else:
                assert rows["action"][r, t].any()
                # Variant 0 loses a life in the step that leads to frame 4, which is no end.
                life = r == 0 and step == 3
                assert t + 1 == STEPS or bool(rows["is_last"][r, t + 1]) == ((ends and not life) or cut)
    assert seen >= 10


@pytest.mark.parametrize("fail_at", [11, 16])
def test_a_lost_simulator_leaves_whole_episodes(fail_at):
    """Each fails that many steps after it was made, in a step or in the reset behind a final frame."""
    replay, frames = collected(fail_at=fail_at)
    rows = replay.columns
    assert rows["is_last"].any(axis=1).all()
    for r in range(3):
        for t in range(1, STEPS):
            (_, episode, step), (_, last_episode, last_step) = (read_counter(frames[r, i]) for i in (t, t - 1))
            if rows["is_first"][r, t]:
                assert step == 0
            else:
                assert (episode, step) == (last_episode, last_step + 1)
                assert not rows["is_last"][r, t - 1]
            if rows["is_last"][r, t]:
                assert not rows["action"][r, t].any()
                assert rows["terminated"][r, t - 1] or rows["truncated"][r, t - 1]
