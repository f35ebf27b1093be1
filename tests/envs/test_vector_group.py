"""Seeds of slots and episodes, and what a group of environments writes into its array."""

import numpy as np

from mow.envs import make
from mow.envs.dummy import read_counter
from mow.envs.vector_group import TaskGroup, derived_seed, record_of


def test_seeds_differ_by_run_slot_and_episode() -> None:
    seeds = {derived_seed(run, slot, episode) for run in range(5) for slot in range(10) for episode in range(10)}
    seeds |= {derived_seed(run, slot) for run in range(5) for slot in range(10)}
    assert len(seeds) == 550  # two of 550 draws of 32 bits agree with probability 4e-5; these do not
    assert derived_seed(3, 1, 4) == derived_seed(3, 1, 4)


def test_a_group_leaves_other_slots_alone() -> None:
    board = np.zeros(4, record_of({}))
    group = TaskGroup({1: "dummy:count-1", 3: "dummy:count-3"}, board, seed=0, options={})
    assert {slot: spec.name for slot, spec in group.build().items()} == {1: "dummy:count-1", 3: "dummy:count-3"}
    group.reset()
    assert board["is_first"].tolist() == [False, True, False, True]
    # Right in count-1, wrong in count-3, where the first right one is 1.
    assert group.step({1: 1, 3: 0}) == ([], [])
    assert board["reward"].tolist() == [0.0, 1.0, 0.0, 0.0]
    assert read_counter(board["frame"][1]) == (1, 0, 1)
    assert read_counter(board["frame"][3]) == (3, 0, 1)
    assert not board["frame"][[0, 2]].any()
    assert not board["busy"].any()


def test_each_episode_gets_its_derived_seed() -> None:
    board = np.zeros(1, record_of({}))
    group = TaskGroup({0: "dummy:count"}, board, seed=4, options={})
    group.build()
    group.reset()
    lengths: list[int] = []
    while len(lengths) < 5:
        lengths += [length for _, _, length, *_ in group.step({0: 0})[0]]
    expected = []
    for episode in range(5):
        env = make("dummy:count", seed=0, options={})
        env.reset(seed=derived_seed(4, 0, episode))
        expected.append(next(step for step in range(1, 14) if any(env.step(0)[2:4])))
    assert lengths == expected
