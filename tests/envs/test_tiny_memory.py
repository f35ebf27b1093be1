"""Bounce and chase: rewards by hand, what pictures show and what they do not, experts that use what is hidden."""

import numpy as np
import pytest

from mow.envs.measured import measure, random_policy
from mow.envs.suites import reference_returns
from mow.envs.tiny import TASKS, expert_action, make
from mow.envs.tiny_memory import PUSHES, Bounce, Chase, fly, nearer, walk

LEFT, STAY, RIGHT = 0, 1, 2
NONE, UP, DOWN, _, EAST = range(len(PUSHES))
BALL, PADDLE = (250, 250, 250), (90, 220, 120)
WALKER, PURSUER = (250, 240, 120), (130, 10, 20)


def opened(task):
    env = task(seed=0)
    env.reset()
    return env


def corner(frame, colour):
    """(top, left) of the pixels of exactly this colour."""
    rows, columns = np.nonzero((frame == colour).all(axis=-1))
    return int(rows.min()), int(columns.min())


def test_bounce_by_hand():
    env = opened(Bounce)
    env.ball, env.velocity, env.paddle = (5, 6), (1, 1), 5
    assert env.step(RIGHT)[1:4] == (0.0, False, False)
    assert (env.ball, env.velocity, env.paddle) == ((6, 7), (1, 1), 6)
    assert env.step(STAY)[1:4] == (1.0, False, False)  # it turns round at the wall and lands on the paddle
    assert (env.ball, env.velocity) == ((7, 6), (1, -1))
    assert env.step(LEFT)[1:4] == (0.0, False, False)  # up from the floor
    assert (env.ball, env.velocity) == ((6, 5), (-1, -1))
    env.ball, env.velocity, env.paddle = (6, 3), (1, -1), 2
    assert env.step(RIGHT)[1:4] == (-1.0, False, False)
    env.ball, env.velocity = (1, 3), (-1, 1)
    env.step(STAY)
    assert (env.ball, env.velocity) == ((2, 4), (1, 1))  # below the ceiling


def test_a_ball_comes_down_every_twelve_steps_and_elsewhere():
    ball, velocity, columns, steps = (7, 2), (1, 1), [], []
    for step in range(1, 85):
        ball, velocity = fly(ball, velocity)
        if ball[0] == 7:
            columns.append(ball[1])
            steps.append(step)
    assert steps == [12 * n for n in range(1, 8)]
    assert len(set(columns)) > 3


def test_chase_by_hand():
    env = opened(Chase)
    env.walker, env.velocity, env.pursuer, env.moves_next = (0, 0), (0, 1), (0, 4), False
    assert env.step(NONE)[1:4] == (0.0, False, False)  # it goes on to the right, the pursuer waits three cells away
    assert (env.walker, env.velocity, env.pursuer) == ((0, 1), (0, 1), (0, 4))
    assert env.step(DOWN)[1:4] == (0.1, False, False)  # now it comes, diagonally
    assert (env.walker, env.velocity, env.pursuer) == ((1, 2), (1, 1), (1, 3))
    env.walker, env.velocity = (0, 7), (-1, 1)
    assert env.step(EAST)[1:4] == (0.0, False, False)  # the corner takes both parts of its velocity
    assert (env.walker, env.velocity) == ((0, 7), (0, 0))
    env.walker, env.velocity, env.pursuer, env.moves_next = (3, 3), (0, 1), (3, 5), True
    assert env.step(NONE)[1:4] == (0.0, True, False)


def test_pushes_add_up_to_one_cell_a_step():
    assert walk((3, 3), (0, 1), PUSHES[EAST]) == ((3, 4), (0, 1))
    assert walk((3, 3), (0, -1), PUSHES[EAST]) == ((3, 3), (0, 0))
    assert walk((3, 3), (1, 1), PUSHES[UP]) == ((3, 4), (0, 1))
    assert nearer((3, 3), (5, 3)) == (4, 3)


def test_pictures_show_where_things_are_and_not_where_they_go():
    """Every hidden state gives the same picture and, for one action or another, a next picture of its own."""
    bounce, chase = opened(Bounce), opened(Chase)
    bounce.ball, bounce.paddle, pictures, followers = (4, 3), 6, set(), set()
    for velocity in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        bounce.ball, bounce.velocity = (4, 3), velocity
        frame = bounce.draw()
        assert (corner(frame, BALL), corner(frame, PADDLE)) == ((33, 25), (56, 48))
        pictures.add(frame.tobytes())
        followers.add(bounce.step(STAY)[0].tobytes())
    assert (len(pictures), len(followers)) == (1, 4)
    pictures, followers = set(), set()
    for moves_next in (True, False):
        for velocity in ((0, 0), (0, 1), (-1, 0)):
            chase.walker, chase.velocity, chase.pursuer, chase.moves_next = (4, 2), velocity, (1, 6), moves_next
            frame = chase.draw()
            assert (corner(frame, WALKER), corner(frame, PURSUER)) == ((32, 16), (10, 50))
            pictures.add(frame.tobytes())
            followers.add(chase.step(NONE)[0].tobytes())
    assert (len(pictures), len(followers)) == (1, 6)


@pytest.mark.parametrize(("name", "limit"), [("bounce", 48), ("chase", 40)])
def test_the_time_limit_truncates(name, limit):
    env = make(name, seed=3)
    for _ in range(2):
        env.reset()
        ends = [env.step(expert_action(env))[2:4] for _ in range(limit)]
        assert ends == [(False, False)] * (limit - 1) + [(False, True)]


def test_what_is_hidden_is_worth_much():
    """A paddle that follows the ball it sees does badly, and the expert of chase where it takes the walker to stand."""

    def follow(env):
        return 1 + int(np.sign(env.ball[1] - env.paddle))

    def standing_still(env):
        velocity, env.velocity = env.velocity, (0, 0)
        action = expert_action(env)
        env.velocity = velocity
        return action

    for name, policy in (("bounce", follow), ("chase", standing_still)):
        random, expert = reference_returns(f"tiny:{name}")
        score = measure(make(name, seed=0), policy, episodes=50).mean()
        assert score < random + 0.2 * (expert - random)


@pytest.mark.parametrize("name", ["bounce", "chase"])
def test_a_state_goes_on_as_it_would_have(name):
    env, act = make(name, seed=0), random_policy(1)
    env.reset()
    env.step(act(env))
    kept = env.state_dict()
    other = TASKS[name](seed=5)
    other.reset()
    other.load_state_dict(kept)
    for _ in range(60):
        action = act(env)
        ours, theirs = env.step(action), other.step(action)
        assert np.array_equal(ours[0], theirs[0])
        assert ours[1:] == theirs[1:]
        if ours[2] or ours[3]:
            assert np.array_equal(env.reset()[0], other.reset()[0])
