"""The final frame of an episode, shown for one step whose action is ignored (make_vector, final_frames)."""

import json

import pytest

from mow.envs.base import EnvStep
from mow.envs.dummy import read_counter
from mow.envs.vector import VectorEnv, make_vector
from tests.envs.test_vector import BOTH, TASKS, assert_same, played

FLAGS = ("is_first", "is_last", "terminated", "truncated", "life_lost")


def final(num_workers: int = 0, max_restarts: int = 0, **options: object) -> VectorEnv:
    return make_vector(
        TASKS, seed=1, num_workers=num_workers, options=options, max_restarts=max_restarts, final_frames=True
    )


def lengths(steps: list[EnvStep], k: int) -> list[int]:
    return [episode.length for step in steps for episode in step.finished if episode.index == k]


@BOTH
def test_an_end_shows_its_frame_and_the_step_after_it_opens_the_next_episode(num_workers: int) -> None:
    with final(num_workers) as env:
        env.reset()
        steps = played(env, 60)
    for k in range(5):
        at, episode, ends, total = 0, 0, 0, 0.0
        for before, step in zip([None, *steps], steps, strict=False):
            flags = {name: bool(getattr(step, name)[k]) for name in FLAGS}
            if before is not None and before.is_last[k]:  # the action was chosen at the final frame
                at, episode, total = 0, episode + 1, 0.0
                assert flags == {name: name == "is_first" for name in FLAGS}
                assert step.reward[k] == 0.0
                assert k not in [one.index for one in step.finished]
            else:
                at, total = at + 1, total + float(step.reward[k])
                assert not flags["is_first"]
                assert flags["is_last"] == (flags["terminated"] or flags["truncated"])
                found = [one for one in step.finished if one.index == k]
                assert bool(found) == flags["is_last"]
                for one in found:
                    assert (one.length, one.episode_return) == (at, total)
                    ends += 1
            assert read_counter(step.frame[k])[1:] == (episode, at)
        assert ends >= 4


def test_episodes_are_those_of_a_run_without_final_frames() -> None:
    with final() as env, make_vector(TASKS, seed=1, num_workers=0, options={}) as other:
        env.reset()
        other.reset()
        with_frames, without = played(env, 80), played(other, 60)
    assert not any(step.is_last.any() for step in without)
    for k in range(5):
        count = min(len(lengths(with_frames, k)), len(lengths(without, k)))
        assert count >= 4
        assert lengths(with_frames, k)[:count] == lengths(without, k)[:count]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_it_goes_on_from_every_step(num_workers: int) -> None:
    """Some task shows a final frame at some of these steps."""
    with final() as env:
        env.reset()
        steps = played(env, 30)
    moments = [t for t, step in enumerate(steps) if step.is_last.any()][:2] if num_workers else range(6, 16)
    for moment in moments:
        with final() as env:
            env.reset()
            played(env, moment + 1)
            kept = json.loads(json.dumps(env.state_dict()))
            expected = played(env, 15)
        with final(num_workers) as env:
            assert env.load_state_dict(kept) == {}
            for one, other in zip(expected, played(env, 15), strict=True):
                assert_same(one, other)


def test_a_simulator_without_a_state_loses_nothing_at_a_final_frame() -> None:
    with final() as env:
        env.reset()
        while not (step := played(env, 1)[0]).is_last[0]:
            pass
        kept = env.state_dict()
        after = played(env, 1)[0]
    kept["tasks"]["0"]["env"] = None
    with final() as env:
        assert 0 not in env.load_state_dict(kept)
        again = played(env, 1)[0]
    assert again.is_first[0]
    assert not step.is_first[0]
    assert read_counter(again.frame[0])[2] == read_counter(after.frame[0])[2] == 0


@BOTH
def test_a_lost_step_has_no_final_frame(num_workers: int) -> None:
    with final(num_workers, max_restarts=3, fail_at=20) as env:
        env.reset()
        steps = [step for step in played(env, 60) if step.restarts]
    for step in steps:
        lost = [name for restart in step.restarts for name in restart.tasks]
        for k in (TASKS.index(name) for name in lost if TASKS.count(name) == 1):
            assert (step.is_first[k], step.is_last[k], step.truncated[k]) == (True, False, True)
            assert read_counter(step.frame[k])[1:] == (0, 0)
    assert sum(len(step.restarts) for step in steps) >= 5
