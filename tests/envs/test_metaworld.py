"""Meta-World through our environments: what is seen, what counts as success, what the options change."""

import json
from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import pytest

from mow.envs import make
from mow.envs.base import Frame
from mow.envs.vector import make_vector
from mow.task_sets import MT10, MT50

if not (find_spec("metaworld") and find_spec("mujoco")):
    pytest.skip("Meta-World needs metaworld: pip install -e '.[metaworld]'", allow_module_level=True)

REACH = "metaworld:reach-v3"


@pytest.fixture
def reach() -> Iterator:
    env = make(REACH, seed=0, options={})
    yield env
    env.close()


def scripted_success(task: str, episodes: int) -> float:
    """Share of episodes in which the simulator's own policy succeeds at any step, through our wrapper."""
    from metaworld.policies import ENV_POLICY_MAP

    policy = ENV_POLICY_MAP[task.removeprefix("metaworld:")]()
    env = make(task, seed=0, options={})
    successes = 0
    for episode in range(episodes):
        env.reset(seed=episode)
        ended = success = False
        while not (ended or success):
            action = np.clip(policy.get_action(env.state), -1.0, 1.0).astype(np.float32)
            _, _, _, ended, info = env.step(action)
            success = info["success"]
        successes += success
    env.close()
    return successes / episodes


def test_the_tasks_are_those_of_the_simulator() -> None:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS, MT10_V3

    assert [task.removeprefix("metaworld:") for task in MT50] == list(ALL_V3_ENVIRONMENTS)
    assert [task.removeprefix("metaworld:") for task in MT10] == list(MT10_V3)


@pytest.mark.parametrize("task", ["metaworld:reach-v3", "metaworld:drawer-close-v3", "metaworld:window-open-v3"])
def test_scripted_policies_succeed(task: str) -> None:
    assert scripted_success(task, episodes=2) == 1.0


@pytest.mark.slow
def test_scripted_policies_solve_all_tasks() -> None:
    """Prints what each task scores: run with -s to see."""
    scores = {}
    for task in MT50:
        scores[task] = scripted_success(task, episodes=5)
        print(f"{task:<44}{scores[task]:.2f}", flush=True)
    print(f"mean {np.mean(list(scores.values())):.3f}")
    assert np.mean(list(scores.values())) >= 0.95
    assert min(scores.values()) > 0.0


def still(env) -> Frame:
    """A picture from which the arm is far away: the first of an episode."""
    frame, _ = env.reset(seed=3)
    return frame


def test_the_picture_is_the_right_way_up(reach) -> None:
    """The table is below: the wall behind it is lighter than its top, which fills the lower half."""
    frame = still(reach).astype(float)
    corners = frame[-8:, :8].mean(), frame[-8:, -8:].mean()
    assert max(corners) - min(corners) < 40
    wood = frame[40:, 20:44].mean(axis=(0, 1))
    assert wood[0] > wood[2] + 20, "the table top is of wood: more red than blue"
