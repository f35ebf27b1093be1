"""The suite "tiny": rewards by hand, pictures that tell the state, ends, stated returns, gymnasium's view."""

import math
from itertools import combinations

import numpy as np
import pytest

from mow.envs.base import Action, Frame
from mow.envs.measured import EPISODES, measure, random_policy
from mow.envs.suites import SUITES
from mow.envs.task_sets import TINY7
from mow.envs.tiny import TASKS, expert_action, main, make
from mow.envs.tiny_tasks import MOVES, Catch, Dodge, Goal, Pole, Slide, TinyEnv, paint_upright, push_cart

NAMES = [name.removeprefix("tiny:") for name in TINY7]
PADDLE, BLOCK = (230, 230, 230), (250, 220, 40)  # of "catch"
GOAL, WALKER = (30, 150, 40), (40, 60, 220)
FALLING, AGENT = (255, 140, 30), (60, 230, 240)  # of "dodge"
LEFT, STAY, RIGHT = 0, 1, 2


def opened(task: type[TinyEnv]) -> TinyEnv:
    env = task(seed=0)
    env.reset()
    return env


def corner(frame: Frame, colour: tuple[int, int, int]) -> tuple[int, int]:
    """(top, left) of the pixels of exactly this colour."""
    rows, columns = np.nonzero((frame == colour).all(axis=-1))
    return int(rows.min()), int(columns.min())


def centre(line: np.ndarray, background: tuple[int, int, int]) -> float:
    """Where the mean of what is not background lies in a row of pixels [64, 3], soft edges by their share."""
    share = np.abs(line.astype(float) - background).sum(axis=-1)  # [64]
    return float((share * (np.arange(64) + 0.5)).sum() / share.sum())


def test_catch_by_hand() -> None:
    env = opened(Catch)
    assert isinstance(env, Catch)
    env.column, env.paddle = 6, 3  # three to the right and stay: caught
    rewards = [env.step(action)[1:4] for action in (RIGHT, RIGHT, STAY, RIGHT, STAY, STAY, STAY)]
    assert rewards == [(0.0, False, False)] * 6 + [(1.0, True, False)]
    env.reset()
    env.column, env.paddle = 0, 1  # the wall holds it at column 0, then it leaves
    rewards = [env.step(action)[1:4] for action in (LEFT, LEFT, LEFT, LEFT, LEFT, LEFT, RIGHT)]
    assert rewards == [(0.0, False, False)] * 6 + [(-1.0, True, False)]
    assert env.paddle == 1


def test_goal_by_hand() -> None:
    env = opened(Goal)
    assert isinstance(env, Goal)
    env.walker, env.goal = (1, 0), (0, 1)
    up, down, left, right = range(4)
    assert MOVES[down] == (1, 0)
    signals = [env.step(action)[1:] for action in (left, down, up, up, right)]  # the first bumps into the wall
    assert signals == [(-0.02, False, False, {"success": False})] * 4 + [(0.98, True, False, {"success": True})]
    assert env.walker == (0, 1)


def test_dodge_by_hand() -> None:
    env = opened(Dodge)
    assert isinstance(env, Dodge)
    env.blocks[:] = False
    env.blocks[5, [2, 3]] = True
    env.agent = 2
    assert env.step(LEFT)[1:4] == (0.1, False, False)
    assert env.step(STAY)[1:4] == (0.1, False, False)  # the pair lands beside it
    assert np.flatnonzero(env.blocks[7]).tolist() == [2, 3]
    assert env.step(RIGHT)[1:4] == (0.1, False, False)  # what has landed is gone
    env.blocks[6, 1] = True
    assert env.step(LEFT)[1:4] == (0.0, True, False)


def test_dodge_sends_a_pair_every_second_step() -> None:
    env = opened(Dodge)
    assert isinstance(env, Dodge)
    counts = [int(env.blocks[0].sum())]
    for _ in range(6):  # the first pair lands in step 7
        env.step(STAY)
        counts.append(int(env.blocks[0].sum()))
    assert counts == [2, 0, 2, 0, 2, 0, 2]


def test_pole_by_hand() -> None:
    env = opened(Pole)
    assert isinstance(env, Pole)
    # Upright and at rest: temp = 10 / 1.1, a'' = -temp / (0.5 * (4/3 - 0.1/1.1)) = -14.634, x'' = temp + 0.665 = 9.756.
    env.state = (0.0, 0.0, 0.0, 0.0)
    once = push_cart(env.state, 10.0)
    assert once == pytest.approx((0.0, 0.19512, 0.0, -0.29268), abs=1e-5)  # worked to five decimals
    _, reward, terminated, truncated, _ = env.step(1)
    assert (reward, terminated, truncated) == (0.1, False, False)
    assert env.state == push_cart(once, 10.0)  # two pushes per step
    # It falls: beyond 12 degrees (0.2094 rad), or off the track at 2.4 m, either way.
    for state in ((0.0, 0.0, 0.205, 0.5), (0.0, 0.0, -0.205, -0.5), (2.395, 1.0, 0.0, 0.0), (-2.395, -1.0, 0.0, 0.0)):
        env.reset()
        env.state = state
        assert env.step(1)[1:4] == (0.1, True, False)


def test_pole_moves_as_gymnasium_s() -> None:
    gymnasium = pytest.importorskip("gymnasium")
    theirs = gymnasium.make("CartPole-v1").unwrapped
    theirs.reset(seed=0)
    state = tuple(float(entry) for entry in theirs.state)
    assert len(state) == 4
    for push in np.random.default_rng(0).integers(2, size=15).tolist():
        theirs.step(push)
        state = push_cart(state, 10.0 if push else -10.0)
        # The same float64 equations in another order: some units in the last place, grown over 15 steps.
        assert np.allclose(state, np.asarray(theirs.state, float), rtol=0.0, atol=1e-12)
    theirs.close()


def test_slide_by_hand() -> None:
    env = opened(Slide)
    assert isinstance(env, Slide)
    env.block, env.marker = -0.9, -0.5
    for push, block, reward in ((1.0, -0.6, 0.8), (0.5, -0.45, 0.9), (-1.0, -0.75, 0.5), (-1.0, -1.0, 0.0)):
        got = env.step(np.array([push], np.float32))
        assert got[1] == pytest.approx(reward, abs=1e-12)  # 0.3 is no float64: some units in the last place
        assert env.block == pytest.approx(block, abs=1e-12)
    assert not any(got[2:4])
    env.marker = 0.9
    assert env.step(np.zeros(1, np.float32))[1] == 0.0  # not below 0, however far


@pytest.mark.parametrize(
    ("name", "stay", "limit", "total"),
    [("goal", 0, 25, -0.5), ("dodge", None, 40, 4.0), ("pole", None, 100, 10.0), ("slide", np.zeros(1), 15, 15.0)],
)
def test_the_time_limit_truncates(name: str, stay: Action | None, limit: int, total: float) -> None:
    env = make(name, seed=0)
    for _ in range(2):  # the count begins anew
        env.reset()
        if isinstance(env, Goal):
            env.walker, env.goal = (0, 0), (5, 5)  # going up for ever
        if isinstance(env, Slide):
            env.block = env.marker
        steps = [env.step(expert_action(env) if stay is None else stay) for _ in range(limit)]
        assert [(terminated, truncated) for _, _, terminated, truncated, _ in steps] == [(False, False)] * (
            limit - 1
        ) + [(False, True)]
        assert sum(reward for _, reward, *_ in steps) == pytest.approx(total, abs=1e-9)  # sum of up to 100 floats
        with pytest.raises(RuntimeError, match="call reset"):
            env.step(0)


def test_reaching_the_goal_in_the_last_step_is_no_truncation() -> None:
    env = opened(Goal)
    assert isinstance(env, Goal)
    env.walker, env.goal = (0, 0), (5, 5)
    for _ in range(24):
        env.step(0)
    env.goal = (0, 1)
    assert env.step(3)[1:4] == (0.98, True, False)


def test_pictures_of_the_grids_tell_the_state() -> None:
    for seed in range(20):
        catch, goal, dodge = Catch(seed=seed), Goal(seed=seed), Dodge(seed=seed)
        for env in (catch, goal, dodge):
            frame, _ = env.reset()
            act = random_policy(seed)
            for _ in range(6):
                if isinstance(env, Catch):
                    assert corner(frame, PADDLE) == (56, 8 * env.paddle)
                    assert corner(frame, BLOCK) == (8 * env.row + 1, 8 * env.column + 1)
                elif isinstance(env, Goal):
                    assert corner(frame, GOAL) == (2 + 10 * env.goal[0], 2 + 10 * env.goal[1])
                    assert corner(frame, WALKER) == (4 + 10 * env.walker[0], 4 + 10 * env.walker[1])
                elif isinstance(env, Dodge):
                    assert np.array_equal((frame[::8, ::8] == FALLING).all(axis=-1), env.blocks)
                    assert corner(frame, AGENT) == (57, 8 * env.agent + 1)
                frame, _, terminated, truncated, _ = env.step(act(env))
                if terminated or truncated:
                    frame, _ = env.reset()


def test_the_last_picture_shows_what_met() -> None:
    catch, goal, dodge = opened(Catch), opened(Goal), opened(Dodge)
    assert isinstance(catch, Catch)
    catch.row, catch.column, catch.paddle = 6, 4, 4
    frame = catch.step(STAY)[0]
    assert (corner(frame, PADDLE), corner(frame, BLOCK)) == ((56, 32), (57, 33))
    assert isinstance(goal, Goal)
    goal.walker, goal.goal = (2, 2), (2, 3)
    frame = goal.step(3)[0]
    assert (corner(frame, GOAL), corner(frame, WALKER)) == ((22, 32), (24, 34))
    assert [int((frame == colour).all(axis=-1).sum()) for colour in (GOAL, WALKER)] == [64, 36]  # 10^2 - 6^2, 6^2
    assert isinstance(dodge, Dodge)
    dodge.blocks[6, 5], dodge.agent = True, 5
    frame = dodge.step(STAY)[0]
    assert tuple(frame[56, 40]) == FALLING
    assert corner(frame, AGENT) == (57, 41)


def test_a_strip_by_hand() -> None:
    frame = np.zeros((64, 64, 3), np.uint8)
    paint_upright(frame, slice(2, 4), 10.25, 6, (201, 100, 0))  # from 7.25 to 13.25
    line = [[151, 75, 0], *[[201, 100, 0]] * 5, [50, 25, 0]]  # three quarters of a pixel, rounded, and a quarter
    assert frame[2, 7:14].tolist() == frame[3, 7:14].tolist() == line
    assert not frame[:2].any()
    assert not frame[4:].any()
    assert not frame[2, :7].any()
    assert not frame[2, 14:].any()
    for outside in (-70.0, -4.0, 68.0, 300.0):
        paint_upright(frame, slice(10, 12), outside, 6, (201, 100, 0))
    assert not frame[10:12].any()


@pytest.mark.parametrize("state", [(0.0, 0.0, 0.0, 0.0), (1.3, 0.0, 0.1, 0.0), (-2.3, 0.0, -0.05, 0.0)])
def test_the_picture_of_the_pole_tells_position_and_angle(state: tuple[float, float, float, float]) -> None:
    env = opened(Pole)
    assert isinstance(env, Pole)
    env.state = state  # at rest, so that the faint twin hides behind the pole
    frame = env.draw()
    cart = centre(frame[52], (165, 210, 245))
    top, bottom = centre(frame[10], (165, 210, 245)), centre(frame[46], (165, 210, 245))
    # Colours are rounded to whole numbers: an edge pixel is off by half of one in 100, a centre by less than 0.02.
    assert cart == pytest.approx(32 + 9 * state[0], abs=0.02)
    # 36 rows of the 40 that the pole is high; the twin shines through the soft edges, which are symmetric.
    assert top - bottom == pytest.approx(90 * state[2] * 36 / 40, abs=0.04)


def test_the_faint_twin_tells_speeds() -> None:
    env = opened(Pole)
    assert isinstance(env, Pole)
    rims = {}
    for turn in (-1.0, 0.0, 1.0):
        env.state = (0.0, 0.0, 0.0, turn)
        rims[turn] = centre(env.draw()[8], (165, 210, 245)) - 32
    assert rims[0.0] == pytest.approx(0.0, abs=0.02)  # as above
    assert rims[-1.0] > 3  # swinging left, it was right of here
    assert rims[1.0] == pytest.approx(-rims[-1.0], abs=0.04)
    pictures = set()
    for speed in (-0.5, -0.25, 0.0, 0.25, 0.5):
        env.state = (0.0, speed, 0.0, 0.0)
        pictures.add(env.draw().tobytes())
    assert len(pictures) == 5


def test_the_picture_of_slide_tells_both_places() -> None:
    env = Slide(seed=0)
    for _ in range(20):
        frame, _ = env.reset()
        # Rounded colours, as for the pole.
        assert centre(frame[20], (25, 110, 75)) == pytest.approx(32 + 26 * env.marker, abs=0.02)
        assert centre(frame[50], (25, 110, 75)) == pytest.approx(32 + 26 * env.block, abs=0.02)


def test_tasks_look_different() -> None:
    means = {}
    for name in NAMES:
        env, act = make(name, seed=0), random_policy(0)
        frames = [env.reset()[0]]
        for _ in range(5):
            frames.append(env.step(act(env))[0])
            env.reset()
        means[name] = np.mean(frames, axis=(0, 1, 2))  # [3]
    for one, other in combinations(NAMES, 2):
        # A fifth of the range in one channel or more; shapes cover too little to bring two backgrounds together.
        assert np.abs(means[one] - means[other]).max() > 50, (one, other)


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_alone_decides(name: str) -> None:
    def trace(seed: int) -> list[tuple[object, ...]]:
        env, act = make(name, seed=99), random_policy(3)
        seen: list[tuple[object, ...]] = [(env.reset(seed=seed)[0].tobytes(),)]
        for _ in range(60):
            frame, reward, terminated, truncated, _ = env.step(act(env))
            seen.append((frame.tobytes(), reward, terminated, truncated))
            if terminated or truncated:
                seen.append((env.reset()[0].tobytes(),))
        return seen

    assert trace(5) == trace(5)
    assert trace(5) != trace(6)
    starts = {make(name, seed=seed).reset()[0].tobytes() for seed in range(20)}
    # 20 draws of 32 or more pictures hold 5 different ones but less than once in a million times.
    assert len(starts) > 5


def test_goal_and_walker_never_start_together() -> None:
    env = Goal(seed=0)
    starts = []
    for _ in range(2000):  # 36 * 35 pairs; 2000 draws without the rule would hold about 55 that are equal
        env.reset()
        starts.append((env.walker, env.goal))
    assert all(walker != goal for walker, goal in starts)
    assert {walker for walker, _ in starts} == {goal for _, goal in starts} == {divmod(i, 6) for i in range(36)}


@pytest.mark.parametrize("kind", ["random", "expert"])
@pytest.mark.parametrize("name", NAMES)
def test_policies_reach_the_stated_returns(name: str, kind: str) -> None:
    stated = SUITES["tiny"].references[f"tiny:{name}"][kind == "expert"]
    policy = random_policy(17) if kind == "random" else expert_action
    returns = measure(make(name, seed=23), policy, episodes=200)  # other draws than those of the constants
    # Both means are samples; 4 standard errors of their difference, and the constants' rounding to 3 decimals.
    tolerance = 4 * returns.std(ddof=1) * math.sqrt(1 / 200 + 1 / EPISODES) + 0.0005 + 1e-9
    assert abs(returns.mean() - stated) <= tolerance


def test_the_table_tells_a_wrong_constant(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    references = SUITES["tiny"].references
    for task in TINY7[1:]:
        monkeypatch.delitem(references, task)
    assert main() == 0  # the constants of catch, measured again
    assert "tiny:catch    random" in capsys.readouterr().out
    monkeypatch.setitem(references, "tiny:catch", (-0.77, 1.0))
    assert main() == 1
    assert "tiny:catch, random: measured -0.778, stated -0.77" in capsys.readouterr().err


def test_misuse_is_told() -> None:
    with pytest.raises(RuntimeError, match="tiny:goal: no episode is running: call reset"):
        make("goal", seed=0).step(0)
    for name in ("catch", "goal", "dodge", "pole", "bounce", "chase"):
        env = make(name, seed=0)
        env.reset()
        for action in (-1, env.task.num_actions):
            with pytest.raises(ValueError, match=f"tiny:{name}: got action {action}"):
                env.step(action)
        assert env.num_steps == 0  # and nothing happened
        env.close()
        with pytest.raises(RuntimeError, match="call reset"):
            env.step(0)
    slide = make("slide", seed=0)
    slide.reset()
    for push in ([1.01], [np.nan], [0.0, 0.0], 0.0):
        with pytest.raises(ValueError, match=r"expected 1 entries in \[-1, 1\]"):
            slide.step(np.array(push, np.float32))
    with pytest.raises(TypeError, match="no expert for object"):
        expert_action(object())


@pytest.mark.parametrize("name", NAMES)
def test_gymnasium_accepts_them(name: str) -> None:
    gymnasium = pytest.importorskip("gymnasium")
    from gymnasium.utils.env_checker import check_env

    from mow.envs.tiny_gymnasium import GymnasiumEnv

    env = GymnasiumEnv(f"tiny:{name}")
    assert env.observation_space == gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    if TASKS[name].DISCRETE:
        assert env.action_space == gymnasium.spaces.Discrete(TASKS[name].NUM_ACTIONS)
    else:
        assert env.action_space == gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    check_env(env, skip_render_check=True)
    with pytest.raises(ValueError, match=r"got (action )?-1(\.0)?, expected"):
        env.step(-1)
    with pytest.raises(ValueError, match="takes no options"):
        env.reset(options={"speed": 3})
    env.close()


def test_gymnasium_sees_legal_actions_and_fresh_episodes() -> None:
    pytest.importorskip("gymnasium")
    from mow.envs.tiny_gymnasium import GymnasiumEnv

    masked = GymnasiumEnv("dummy:count-3")  # 3 actions, the last of them illegal; right is 3 mod 2 = 1 at step 0
    assert masked.action_space.n == 2
    masked.reset(seed=0)
    assert masked.step(1)[1] == 1.0
    env = GymnasiumEnv("tiny:slide")
    starts = [env.reset(seed=3)[0].tobytes(), *(env.reset()[0].tobytes() for _ in range(5))]
    assert len(set(starts)) == 6  # continuous draws never repeat
    # Without a seed the operating system gives one: that two of 2^31 are equal happens once in a thousand million runs.
    assert GymnasiumEnv("tiny:slide").reset()[0].tobytes() != GymnasiumEnv("tiny:slide").reset()[0].tobytes()
    assert [env.reset(seed=3)[0].tobytes(), *(env.reset()[0].tobytes() for _ in range(5))] == starts
