"""A vector of tasks that goes on where another stopped: same bytes, whatever the number of workers."""

import json

import numpy as np
import pytest

from mow.envs.dummy import read_counter
from mow.envs.vector import make_vector
from tests.envs.test_vector import TASKS, assert_same, played


@pytest.mark.parametrize(("before", "after"), [(0, 0), (0, 2), (2, 1)])
def test_it_goes_on_in_the_same_order_with_the_same_bytes(before: int, after: int) -> None:
    with make_vector(TASKS, seed=1, num_workers=before, options={}) as env:
        env.reset()
        played(env, 20)
        env.reorder([3, 1, 4, 0, 2])
        played(env, 5)
        kept = json.loads(json.dumps(env.state_dict()))
        expected, specs = played(env, 40), env.specs
    with make_vector(TASKS, seed=1, num_workers=after, options={}) as env:
        assert env.load_state_dict(kept) == {}
        assert env.specs == specs
        for one, other in zip(expected, played(env, 40), strict=True):
            assert_same(one, other)


def test_a_simulator_that_cannot_go_on_opens_a_new_episode() -> None:
    with make_vector(TASKS, seed=1, num_workers=0, options={}) as env:
        env.reset()
        env.reorder([3, 1, 4, 0, 2])
        played(env, 4)
        kept = env.state_dict()
    for state in kept["tasks"].values():
        state["env"] = None  # as an environment that is not Resumable leaves it
    with make_vector(TASKS, seed=1, num_workers=0, options={}) as env:
        first = env.load_state_dict(kept)
        assert [*first] == [0, 1, 2, 3, 4]
        variants = [read_counter(frame)[0] for frame in first.values()]
        assert variants == [5, 9, 3, 3, 0]
        assert [read_counter(frame)[2] for frame in first.values()] == [0] * 5
        step = played(env, 1)[0]
        assert [read_counter(frame)[2] for frame in step.frame] == [1] * 5
        assert not np.any(step.is_first)
