"""Environments of gymnasium as tasks: pictures, actions, limits, and what cannot be one."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium", reason="the suite gym needs gymnasium")
pytest.importorskip("cv2", reason="the suite gym needs OpenCV")

from mow.cli import parse as command_line  # noqa: E402
from mow.envs import check_task, make  # noqa: E402
from mow.envs.base import ActionLayout, Env  # noqa: E402
from mow.envs.vector import make_vector  # noqa: E402
from mow.errors import UsageError  # noqa: E402
from tests.envs.test_contract import random_actions  # noqa: E402

spaces = gymnasium.spaces
needs_pygame = pytest.mark.skipif(find_spec("pygame") is None, reason="classic control draws with pygame (extra gym)")
needs_mujoco = pytest.mark.skipif(find_spec("mujoco") is None, reason="needs mujoco (extra metaworld or dmc)")
needs_minigrid = pytest.mark.skipif(find_spec("minigrid") is None, reason="needs minigrid (extra minigrid)")


class Walk(gymnasium.Env):
    """A marker on a line of 16 places, drawn in 128 x 256; remembers the actions that it was given."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - as gymnasium has it

    def __init__(self, render_mode: str, actions: spaces.Space) -> None:
        self.observation_space, self.action_space, self.render_mode = spaces.Discrete(16), actions, render_mode
        self.given: list[Any] = []

    def reset(self, *, seed: int | None = None, options: object = None) -> tuple[int, dict]:
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(16))
        return self.place, {}

    def step(self, action: Any) -> tuple[int, np.float64, np.bool_, bool, dict]:
        assert self.action_space.contains(action), action
        self.given.append(action)
        self.place = (self.place + int(self.np_random.integers(3)) + 1) % 16
        return self.place, np.float64(self.place), np.bool_(self.place == 15), False, {"is_success": self.place == 15}

    def render(self) -> np.ndarray:
        picture = np.full((128, 256, 3), 10, np.uint8)
        picture[:, 16 * self.place : 16 * self.place + 16] = 200
        return picture


class Dark(Walk):
    metadata = {"render_modes": ["human"]}  # noqa: RUF012


class Sensed(Walk):
    """Observed by other spaces; draws nothing."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, actions: spaces.Space, space: spaces.Space, render_mode: None = None) -> None:
        super().__init__("", actions)
        self.observation_space = space

    def reset(self, **given: Any) -> tuple[Any, dict]:
        super().reset(**given)
        return self.sensed(), {}

    def step(self, action: Any) -> tuple[Any, ...]:
        return self.sensed(), *super().step(action)[1:]

    def sensed(self) -> Any:
        by_key = {"place": np.array([[self.place, 0.5]]), "end": np.array(15.0)}
        return by_key if isinstance(self.observation_space, spaces.Dict) else np.array([self.place, -1])


KINDS = {
    "Walk": (Walk, spaces.Discrete(3, start=-1)),
    "Push": (Walk, spaces.Box(np.array([[-2, 0]], np.float32), np.array([[2, 10]], np.float32))),
    "Many": (Walk, spaces.MultiDiscrete([3, 4])),
    "Free": (Walk, spaces.Box(-np.inf, np.inf, (2,))),
    "Dark": (Dark, spaces.Discrete(3)),
}
LINE, ROW, POINT = spaces.Box(-1, 16, (2,), np.int64), spaces.Box(0, 16, (1, 2)), spaces.Box(0, 16, ())
SENSED = {
    "Line": LINE, "Parts": spaces.Dict([("place", ROW), ("end", POINT)]),
    "Grid": ROW, "Mixed": spaces.Dict(place=LINE, end=spaces.Discrete(3)), "Wide": spaces.Box(0, 1, (4000,)),
}  # fmt: skip


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    for name, (kind, actions) in KINDS.items():
        gymnasium.register(f"Here/{name}-v0", kind, max_episode_steps=12, kwargs={"actions": actions})
    for name, space in SENSED.items():
        more = {"actions": spaces.Discrete(3), "space": space}
        gymnasium.register(f"Here/{name}-v0", Sensed, max_episode_steps=12, kwargs=more)
    yield
    for name in (*KINDS, *SENSED):
        del gymnasium.registry[f"Here/{name}-v0"]


def test_the_picture_is_what_it_draws_averaged() -> None:
    env = make("gym:Here/Walk-v0", seed=0, options={})
    frame, _ = env.reset(seed=3)
    (lit,) = np.unique(np.flatnonzero((frame == 200).all(axis=(0, 2))) // 4)  # 256 pixels became 64: four per place
    assert frame.shape == (64, 64, 3)
    assert sorted(np.unique(frame)) == [10, 200]
    _, reward, *_ = env.step(0)
    assert type(reward) is float
    place = int(reward)
    assert (place - lit) % 16 in (1, 2, 3)
    assert env.task.protocol == "gymnasium, drawn 256x128"


@pytest.mark.parametrize(("name", "rest"), [("Line", [-1]), ("Parts", [0.5, 15])])
def test_a_state_is_its_own_observation_flattened(name: str, rest: list[float]) -> None:
    env = make(f"gym:Here/{name}-v0", seed=0, options={"obs": "state"})
    assert env.task.state_size == 1 + len(rest)
    assert env.task.protocol == "gymnasium, states"
    state, _ = env.reset(seed=3)
    assert state.dtype == np.float32
    assert state[1:].tolist() == rest
    later = env.step(0)[0]
    assert later[0] == state[0], "it shows where the marker was before the step"
    assert env.step(0)[0][0] != state[0]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Walk", r"gym:Here/Walk-v0 has no state: its observations are Discrete\(16\), expected a 1-D Box or a"),
        ("Grid", "has no state: its observations are Box"),
        ("Mixed", "has no state: its observations are Dict"),
        ("Wide", "a state has 1 to 3072 numbers, got 4000: take its frames"),
    ],
)
def test_other_observations_are_no_state(name: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        make_vector([f"gym:Here/{name}-v0"], seed=0, num_workers=0, options={"obs": "state"})
    assert "\n" not in str(caught.value)


@needs_mujoco
def test_a_robot_of_gymnasium_is_observed_without_being_drawn() -> None:
    env: Any = make("gym:Hopper-v5", seed=0, options={"obs": "state"})
    assert env.task.state_size == 11
    assert env.reset(seed=1)[0].shape == (11,)
    assert env._renderer is None


def test_actions_are_those_of_the_space() -> None:
    walk: Any = make("gym:Here/Walk-v0", seed=0, options={})
    assert (walk.task.discrete, walk.task.num_actions) == (True, 3)
    walk.reset()
    for index in range(3):
        walk.step(index)
    assert walk._env.unwrapped.given == [-1, 0, 1]
    push: Any = make("gym:Here/Push-v0", seed=0, options={})
    assert (push.task.discrete, push.task.num_actions) == (False, 2)
    push.reset()
    for action in ([-1, -1], [1, 1], [0, 0.5]):
        push.step(np.array(action, np.float32))
    given = push._env.unwrapped.given
    assert np.array_equal(given, [[[-2, 0]], [[2, 10]], [[0, 7.5]]])
    assert given[0].dtype == np.float32


def test_limits_truncate_and_success_is_told() -> None:
    env = make("gym:Here/Walk-v0", seed=0, options={})
    ends = set()
    for seed in range(30):
        env.reset(seed=seed)
        length, over = 0, False
        while not over:
            _, reward, terminated, truncated, info = env.step(1)
            length, over = length + 1, terminated or truncated
            assert (type(terminated), type(truncated), type(info["success"])) == (bool, bool, bool)
            assert info["success"] == (reward == 15) == terminated
            assert truncated == (length == 12 and not terminated)
        ends.add(terminated)
        with pytest.raises(RuntimeError, match="call reset first"):
            env.step(1)
    assert ends == {True, False}


def playing(name: str) -> Env:
    env = make(name, seed=11, options={})
    env.reset(seed=5)
    return env


@pytest.mark.parametrize(
    "name",
    [
        "gym:Here/Walk-v0",
        "gym:Here/Push-v0",
        pytest.param("gym:CartPole-v1", marks=needs_pygame),
        pytest.param("gym:Hopper-v5", marks=needs_mujoco),
        pytest.param("gym:Pendulum-v1", marks=needs_pygame),
        pytest.param("gym:MiniGrid-Empty-Random-5x5-v0", marks=needs_minigrid),
        pytest.param("gym:minigrid:MiniGrid-Empty-5x5-v0", marks=needs_minigrid),
    ],
)
def test_it_repeats_itself(name: str) -> None:
    check_task(name)
    env, twin = playing(name), playing(name)
    assert env.task.name == name
    actions = random_actions(env, seed=2)
    pictures = set()
    for number in range(40):
        action = next(actions)
        (frame, *rest), (same, *equal) = env.step(action), twin.step(action)
        assert np.array_equal(frame, same)
        assert rest == equal
        pictures.add(frame.tobytes())
        if rest[1] or rest[2]:
            again = None if number % 2 else number  # with a seed, and going on without
            assert np.array_equal(env.reset(seed=again)[0], twin.reset(seed=again)[0])
    assert len(pictures) > 3


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Here/Wlak-v0", "unknown task .*Did you mean: `Walk`"),
        ("CartPole-v9", "unknown task .*CartPole"),
        ("Here/Many-v0", r"cannot be laid out beside other tasks: its actions are MultiDiscrete\(\[3 4\]\), expected"),
        ("Here/Free-v0", r"its actions are Box\(-inf, inf, \(2,\), float32\), expected Discrete or a Box"),
        ("Here/Dark-v0", r"gym:Here/Dark-v0 does not draw itself \(render modes: human\)"),
    ],
)
def test_what_cannot_be_a_task_is_one_line(name: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        make(f"gym:{name}", seed=0, options={})
    assert "\n" not in str(caught.value)


def test_a_package_that_is_missing_is_named() -> None:
    with pytest.raises(ImportError, match=r"nowhere_at_all:Bar-v0' needs the package nowhere_at_all .*pip install"):
        check_task("gym:nowhere_at_all:Bar-v0")
    for task, says in (("gym:nowhere_at_all:Bar-v0", "needs the package"), ("gym:Here/Wlak-v0", "unknown task")):
        with pytest.raises(UsageError, match=says):
            command_line.parse(["--tasks", task])


def test_it_mixes_with_other_suites() -> None:
    tasks = ("gym:Here/Push-v0", "tiny:goal", "gym:Here/Walk-v0")
    with make_vector(tasks, seed=0, num_workers=0, options={}) as env:
        assert isinstance(env.layout, ActionLayout)
        assert env.layout.size == 4 + 2
        env.reset()
        rng = np.random.default_rng(0)
        for _ in range(30):
            step = env.step(env.layout.random(rng))
        assert step.frame.shape == (3, 64, 64, 3)
