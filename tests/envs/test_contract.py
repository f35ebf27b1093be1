"""What every environment promises, whatever its suite. A new suite is done when its tasks pass here."""

import json
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec

import numpy as np
import pytest

from mow.envs import SUITES, make, task_names
from mow.envs.base import FRAME_SHAPE, Action, ActionLayout, Env, Resumable
from mow.envs.vector import VectorEnv, make_vector
from mow.envs.vector_group import derived_seed


def needs(*modules: str) -> pytest.MarkDecorator:
    missing = [name for name in modules if not find_spec(name)]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


BUILT_IN = [name for name in task_names() if name.startswith(("dummy:", "tiny:"))]
# A short time limit, so that its handling is seen within a few steps; no game is over in so few.
SHORT = {"time_limit": 25}
STORM = {"protocol": "storm", "action_set": "full", **SHORT}
ATARI = [("atari:Pong", SHORT), ("atari:Breakout", SHORT), ("atari:MsPacman", STORM)]
# Shorter still, as a picture of a robot takes a CPU ten times as long as one of a game.
BRIEF = {"time_limit": 8}
METAWORLD = [("metaworld:reach-v3", BRIEF), ("metaworld:basketball-v3", {"metaworld_repeat": 2, **BRIEF})]
STATE = {"obs": "state"}
VEC = [(f"vec:{name}", STATE) for name in ("lq", "button", "reach", "pendulum")]
STATE_METAWORLD = [("metaworld:button-press-v3", {**STATE, **BRIEF})]
STATE_DMC = [("dmc:walker-walk", {**STATE, **BRIEF})]
STATE_GYM = [("gym:Pendulum-v1", STATE)]
DMC = [("dmc:reacher-easy", BRIEF), ("dmc:cartpole-swingup", {"dmc_repeat": 1, **BRIEF})]
CASES = [
    *(pytest.param((name, {}), id=name) for name in BUILT_IN),
    *(pytest.param(case, id=case[0], marks=needs("gymnasium", "ale_py", "cv2")) for case in ATARI),
    *(pytest.param(case, id=case[0], marks=needs("metaworld", "mujoco")) for case in (*METAWORLD, *STATE_METAWORLD)),
    *(pytest.param(case, id=case[0], marks=needs("dm_control", "mujoco")) for case in (*DMC, *STATE_DMC)),
    *(pytest.param(case, id=case[0]) for case in VEC),
    *(pytest.param(case, id=case[0], marks=needs("gymnasium", "cv2")) for case in STATE_GYM),
]
needs_pygame = pytest.mark.skipif(find_spec("pygame") is None, reason="gym:CartPole-v1 draws with pygame: extra gym")
CASES.append(pytest.param(("gym:CartPole-v1", {}), id="gym:CartPole-v1", marks=needs_pygame))


# One environment for all tests of a case, made when the first asks for it: each opens an episode of its own.
@pytest.fixture(params=CASES, scope="module")
def case(request: pytest.FixtureRequest) -> tuple[str, Mapping[str, object]]:
    chosen: tuple[str, Mapping[str, object]] = request.param
    return chosen


@pytest.fixture(scope="module")
def env(case: tuple[str, Mapping[str, object]]) -> Iterator[Env]:
    made = make(case[0], seed=11, options=case[1])
    yield made
    made.close()


def random_actions(env: Env, seed: int) -> Iterator[Action]:
    layout = ActionLayout.from_tasks([env.task])
    rng = np.random.default_rng(seed)
    while True:
        yield layout.decode(0, layout.random(rng)[0])


def check_frame(frame: np.ndarray, state_size: int | None = None) -> None:
    assert isinstance(frame, np.ndarray)
    if state_size is not None:
        assert frame.dtype == np.float32
        assert frame.shape == (state_size,)
        assert np.isfinite(frame).all()
        return
    assert frame.dtype == np.uint8
    assert frame.shape == FRAME_SHAPE
    assert frame.max() > frame.min()  # shows something


def test_the_spec_names_the_task(case: tuple[str, Mapping[str, object]], env: Env) -> None:
    assert env.task.name == case[0]
    assert env.task.frame_skip >= 1
    assert env.task.protocol
    assert (env.task.state_size is None) == ("obs" not in case[1])


def test_reset_and_step_are_those_of_gymnasium(env: Env) -> None:
    frame, info = env.reset(seed=1)
    check_frame(frame, env.task.state_size)
    assert isinstance(info, Mapping)
    for _, action in zip(range(6), random_actions(env, seed=0), strict=False):
        frame, reward, terminated, truncated, info = env.step(action)
        check_frame(frame, env.task.state_size)
        assert type(reward) is float
        assert np.isfinite(reward)
        assert type(terminated) is bool
        assert type(truncated) is bool
        assert type(info.get("life_lost", False)) is bool
        assert type(info.get("success", False)) is bool
        if terminated or truncated:
            break


def test_frames_are_the_readers_own(env: Env) -> None:
    first, _ = env.reset(seed=1)
    kept = first.copy()
    for _, action in zip(range(6), random_actions(env, seed=0), strict=False):
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            break
    assert np.array_equal(first, kept)


def test_same_seed_and_actions_give_the_same_rollout(case: tuple[str, Mapping[str, object]]) -> None:
    traces = []
    num_steps = 20 if "time_limit" in case[1] else 40  # less of simulators, whose pictures are never the same
    for _ in range(2):
        env = make(case[0], seed=5, options=case[1])
        trace: list[tuple[object, ...]] = [(env.reset(seed=9)[0].tobytes(),)]
        for _, action in zip(range(num_steps), random_actions(env, seed=2), strict=False):
            frame, reward, terminated, truncated, info = env.step(action)
            trace.append((frame.tobytes(), reward, terminated, truncated, info))
            if terminated or truncated:
                trace.append((env.reset()[0].tobytes(),))
        traces.append(trace)
        env.close()
    assert traces[0] == traces[1]
    assert len({entry[0] for entry in traces[0]}) > 10  # a rollout, not a still


def test_episodes_end_once_and_start_anew(case: tuple[str, Mapping[str, object]], env: Env) -> None:
    actions = random_actions(env, seed=0)
    for _ in range(3):
        env.reset()
        terminated = truncated = False
        length = 0
        while not (terminated or truncated):
            _, _, terminated, truncated, _ = env.step(next(actions))
            length += 1
            assert length <= 200  # the longest time limit of these cases, that of the pendulums
        assert terminated != truncated
        if env.task.name.startswith(("atari:", "metaworld:", "dmc:")):
            assert truncated  # by the time limit, which is not an end of the game
            assert length == case[1]["time_limit"]
        with pytest.raises(RuntimeError, match="call reset"):
            env.step(next(actions))


def test_an_end_shows_the_next_episode_and_its_seed_is_another(case: tuple[str, Mapping[str, object]]) -> None:
    """Stepped as training does, beside the same environment by hand: the frame after an end opens the next episode."""
    name, options = case
    shown = set()
    with make_vector([name], seed=4, num_workers=0, options=options) as envs:
        alone = make(name, seed=derived_seed(4, 0), options=options)
        frame, _ = envs.reset()
        layout = envs.layout
        for episode in range(3):
            expected, _ = alone.reset(seed=derived_seed(4, 0, episode))
            assert np.array_equal(frame[0], expected)
            actions, ended = random_actions(alone, seed=1), False
            while not ended:
                action = next(actions)
                last, reward, terminated, truncated, _ = alone.step(action)
                step = envs.step(encoded(layout, action))
                ended = terminated or truncated
                assert (step.terminated[0], step.truncated[0], step.is_first[0]) == (terminated, truncated, ended)
                assert step.reward[0] == np.float32(reward)
                assert ended or np.array_equal(step.frame[0], last)
            check_frame(last, alone.task.state_size)  # the end itself can be seen by who steps the environment alone
            assert [finished.task for finished in step.finished] == [name]
            shown.add(last.tobytes())
            frame = step.frame
        alone.close()
    # The same actions, other ends; but for what opens all episodes alike, as it is meant to.
    assert len(shown) > 1 or options == STORM


def test_it_goes_on_from_the_final_frame_of_an_episode(case: tuple[str, Mapping[str, object]]) -> None:
    """What a simulator tells of itself once its episode is over opens the same next episode in another one."""
    name, options = case

    def opened() -> VectorEnv:
        return make_vector([name], seed=4, num_workers=0, options=options, final_frames=True)

    with opened() as envs:
        envs.reset()
        alone = make(name, seed=0, options=options)
        actions = random_actions(alone, seed=1)
        alone.close()
        step = envs.step(encoded(envs.layout, next(actions)))
        while not step.is_last[0]:
            step = envs.step(encoded(envs.layout, next(actions)))
        kept = json.loads(json.dumps(envs.state_dict()))
        chosen = [encoded(envs.layout, next(actions)) for _ in range(3)]
        expected = [envs.step(action) for action in chosen]
        assert expected[0].is_first[0]
    with opened() as envs:
        assert envs.load_state_dict(kept) == {}
        for action, wanted in zip(chosen, expected, strict=True):
            assert np.array_equal(envs.step(action).frame, wanted.frame)


def encoded(layout: ActionLayout, action: Action) -> np.ndarray:
    vector = np.zeros((1, layout.size), np.float32)
    if isinstance(action, int):
        vector[0, action] = 1.0
    else:
        vector[0] = action
    return vector


@pytest.mark.parametrize(
    ("task", "module", "remedy"),
    [
        ("atari:Pong", "ale_py", "pip install gymnasium ale-py"),
        ("metaworld:reach-v3", "metaworld", r"pip install -e '\.\[metaworld\]'"),
        ("dmc:walker-walk", "dm_control", r"pip install -e '\.\[dmc\]'"),
    ],
)
def test_a_missing_simulator_names_the_remedy(
    task: str, module: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, SUITES[task.split(":")[0]].module, raising=False)
    with pytest.raises(ImportError, match=f"{task}.*{remedy}") as caught:
        make(task, seed=0, options={})
    assert "\n" not in str(caught.value)


def test_an_environment_goes_on_from_its_state(case: tuple[str, Mapping[str, object]], env: Env) -> None:
    """Half-way through the second episode, through JSON, into one that was made with another seed and has played."""
    if case[0].startswith(("metaworld:", "dmc:", "gym:")):
        assert not isinstance(env, Resumable)
        return
    assert isinstance(env, Resumable)
    env.reset(seed=5)
    actions = random_actions(env, 3)
    while not any(env.step(next(actions))[2:4]):
        pass
    env.reset(seed=6)
    for _ in range(3):
        env.step(next(actions))
    other = make(case[0], seed=12, options=case[1])
    other.reset(seed=7)
    other.step(next(actions))
    assert isinstance(other, Resumable)
    other.load_state_dict(json.loads(json.dumps(env.state_dict())))
    for episode in range(3):
        while True:
            action = next(actions)
            (frame, *rest), (same, *equal) = env.step(action), other.step(action)
            assert np.array_equal(frame, same)
            assert rest == equal
            if rest[1] or rest[2]:
                break
        seed = None if episode == 0 else episode
        assert np.array_equal(env.reset(seed=seed)[0], other.reset(seed=seed)[0])
    other.close()
