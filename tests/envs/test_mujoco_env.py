"""Robots go on exactly where they were, also where the simulator keeps part of its state outside of MuJoCo."""

import json
from importlib.util import find_spec

import numpy as np
import pytest

if not (find_spec("metaworld") and find_spec("dm_control")):
    pytest.skip("robots need metaworld and dm_control: pip install -e '.[metaworld,dmc]'", allow_module_level=True)

from mow.envs import make
from mow.envs.task_sets import DMC, MT50
from mow.envs.vector import make_vector

# Positions that follow a body and a site; a target and terrain that are part of the model.
QUICK = (
    "metaworld:bin-picking-v3",
    "metaworld:basketball-v3",
    "dmc:manipulator-bring_peg",
    "dmc:quadruped-escape",
)


def check_resume(task: str, *, steps: int) -> None:
    """Amid the second episode, through JSON, into an environment of another seed that has played; and on."""
    options = {"time_limit": steps}
    one, other = (make(task, seed=seed, options=options) for seed in (3, 4))
    rng = np.random.default_rng(0)

    def action() -> np.ndarray:
        return rng.uniform(-1.0, 1.0, one.task.num_actions).astype(np.float32)

    for seed in (5, 6):
        one.reset(seed=seed)
        for _ in range(steps // 2):
            one.step(action())
    other.reset(seed=9)
    other.step(action())
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for episode in range(2):
        truncated = False
        while not truncated:
            taken = action()
            (frame, *rest), (same, *equal) = one.step(taken), other.step(taken)
            assert np.array_equal(frame, same), (task, episode)
            assert rest == equal, (task, episode)
            truncated = rest[2]
        assert np.array_equal(one.reset()[0], other.reset()[0]), (task, episode)
    for env in (one, other):
        env.close()


@pytest.mark.parametrize("task", QUICK)
def test_a_robot_goes_on_where_it_was(task: str) -> None:
    check_resume(task, steps=8)


def test_workers_show_the_same_as_this_process_which_has_drawn_before() -> None:
    """Two suites in two processes, started beside a GL context that they must not inherit."""
    tasks = ("metaworld:reach-v3", "dmc:walker-walk", "tiny:catch")
    shown = []
    for workers in (0, 2):
        with make_vector(tasks, seed=1, num_workers=workers, options={"time_limit": 4}) as envs:
            rng = np.random.default_rng(0)
            frames = [envs.reset()[0]]
            frames += [envs.step(envs.layout.random(rng)).frame for _ in range(6)]
            shown.append(np.stack(frames))  # [7, 3, 64, 64, 3]
    assert np.array_equal(*shown)


@pytest.mark.slow
@pytest.mark.parametrize("task", [*MT50, *DMC])
def test_all_robots_go_on_where_they_were(task: str) -> None:
    check_resume(task, steps=60)
