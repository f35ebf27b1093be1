"""The DeepMind Control Suite through our environments."""

from importlib.util import find_spec

import numpy as np
import pytest

from mow.envs import make
from mow.envs.mujoco_render import Renderer, prepare
from mow.envs.task_sets import DMC, DMC18

if not find_spec("dm_control"):
    pytest.skip("needs dm_control: pip install -e '.[dmc]'", allow_module_level=True)

prepare()  # dm_control draws itself in a test below, and could not, were it loaded first for states
import dm_control.suite  # noqa: E402, F401


def test_the_tasks_are_those_of_the_suite() -> None:
    make("dmc:walker-walk", seed=0, options={}).close()
    from dm_control import suite

    known = [f"dmc:{domain}-{task}" for domain, task in suite.ALL_TASKS]
    assert [name for name in known if not name.startswith("dmc:lqr")] == list(DMC)
    assert set(DMC18) <= {f"dmc:{domain}-{task}" for domain, task in suite.BENCHMARKING}


@pytest.mark.parametrize("task", ["dmc:walker-walk", "dmc:quadruped-fetch"])
def test_the_full_picture_is_that_of_dm_control(task: str) -> None:
    env = make(task, seed=0, options={"render": "full"})
    frame, _ = env.reset(seed=1)
    camera = 2 if "quadruped" in task else 0
    assert np.array_equal(frame, env._sim.physics.render(64, 64, camera_id=camera))
    env.close()


@pytest.mark.parametrize(
    ("task", "sizes"),
    [("walker-walk", (24, 6)), ("finger-turn_easy", (12, 2)), ("hopper-hop", (15, 4)), ("pendulum-swingup", (3, 1))],
)
def test_a_state_holds_the_values_in_their_own_order(task: str, sizes: tuple[int, int]) -> None:
    env = make(f"dmc:{task}", seed=0, options={"obs": "state"})
    assert (env.task.state_size, env.task.num_actions) == sizes
    state, _ = env.reset(seed=1)
    values = env._sim.task.get_observation(env._sim.physics).values()
    assert np.array_equal(state, np.concatenate([np.ravel(value) for value in values]).astype(np.float32))
    other, _ = env.reset(seed=1)
    assert np.array_equal(state, other)
    env.close()


def test_an_action_is_held_for_two_steps() -> None:
    once, twice = (make("dmc:walker-walk", seed=0, options=options) for options in ({"dmc_repeat": 1}, {}))
    for env in (once, twice):
        env.reset(seed=1)
    action = np.linspace(-1.0, 1.0, 6, dtype=np.float32)
    for _ in range(5):
        steps = [once.step(action) for _ in range(2)]
        frame, reward, *_ = twice.step(action)
        assert np.array_equal(frame, steps[1][0])
        assert reward == steps[0][1] + steps[1][1]
        assert 0.0 <= reward <= 2.0
    assert twice.task.frame_skip == 2
    for env in (once, twice):
        env.close()


def test_the_horizon_is_1000_steps_of_the_simulator() -> None:
    env = make("dmc:cartpole-balance", seed=0, options={"dmc_repeat": 400})
    for episode in range(2):
        env.reset(seed=episode)
        ends = [env.step(np.zeros(1, np.float32))[2:4] for _ in range(3)]  # 400, 400 and 200
        assert ends == [(False, False)] * 2 + [(False, True)]
    env.close()


def test_actions_span_what_the_motors_take() -> None:
    """A quadruped's motors have limits other than 1."""
    env = make("dmc:quadruped-walk", seed=0, options={})
    bounds = env._sim.action_spec()
    assert not np.all(bounds.maximum == 1.0)
    env.reset(seed=1)
    for sign, limit in ((1.0, bounds.maximum), (-1.0, bounds.minimum)):
        env.step(np.full(12, sign, np.float32))
        assert np.allclose(env._data.ctrl, limit)
    env.close()


def test_terrain_is_drawn_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hills are drawn anew in every episode: of the model, and of what the GL context holds of it."""
    first, second, again = (make("dmc:quadruped-escape", seed=0, options={}) for _ in range(3))
    hills = first.reset(seed=1)[0]
    second.reset(seed=2)
    assert np.array_equal(second.reset(seed=1)[0], hills)
    monkeypatch.setattr(Renderer, "renew_terrain", lambda self: None)
    again.reset(seed=2)
    assert not np.array_equal(again.reset(seed=1)[0], hills), "or this test could not fail"
    for env in (first, second, again):
        env.close()
