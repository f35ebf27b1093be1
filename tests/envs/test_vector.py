"""K tasks stepped as one: ends of episodes, order, equality of both kinds."""

import os
import sys

import numpy as np
import pytest

from mow.envs.base import EnvStep
from mow.envs.dummy import read_counter
from mow.envs.vector import SerialVectorEnv, VectorEnv, WorkerVectorEnv, make_vector

TASKS = ("dummy:count-3", "dummy:slide", "dummy:count-0", "dummy:count-5", "dummy:count-3")

BOTH = pytest.mark.parametrize("num_workers", [0, 2])


def played(env: VectorEnv, num_steps: int, seed: int = 0) -> list[EnvStep]:
    rng = np.random.default_rng(seed)
    return [env.step(env.layout.random(rng)) for _ in range(num_steps)]


def assert_same(one: EnvStep, other: EnvStep) -> None:
    for name in ("frame", "is_first", "is_last", "reward", "terminated", "truncated", "life_lost"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    assert one.finished == other.finished


@BOTH
def test_one_step_by_hand(num_workers: int) -> None:
    with make_vector(("dummy:count-1", "dummy:slide"), seed=0, num_workers=num_workers, options={}) as env:
        assert [spec.name for spec in env.specs] == ["dummy:count-1", "dummy:slide"]
        assert env.layout.size == 4 + 2
        frame, is_first = env.reset()
        assert [read_counter(picture) for picture in frame] == [(1, 0, 0), (9, 0, 0)]
        assert is_first.tolist() == [True, True]
        # At step 0 action 1 is right in count-1, and (0.5, 0.5) is the middle of what is right in slide.
        step = env.step(np.array([[0, 1, 0, 0, 0, 0], [0, 0, 0, 0, -1, 0.5]], np.float32))
        assert [read_counter(picture) for picture in step.frame] == [(1, 0, 1), (9, 0, 1)]
        assert step.reward.tolist() == [1.0, 0.0]
        assert step.reward.dtype == np.float32
        for flag in (step.is_first, step.terminated, step.truncated, step.life_lost):
            assert flag.dtype == np.bool_
            assert flag.tolist() == [False, False]
        assert step.finished == ()


@BOTH
def test_an_end_opens_the_next_episode_in_the_same_step(num_workers: int) -> None:
    with make_vector(TASKS, seed=1, num_workers=num_workers, options={}) as env:
        env.reset()
        number, length, total, success = [0] * 5, [0] * 5, [0.0] * 5, [False] * 5
        num_lives = np.zeros(5, int)
        for step in played(env, 60):
            finished = {episode.index: episode for episode in step.finished}
            assert list(finished) == sorted(finished)
            assert np.array_equal(step.is_first, step.terminated | step.truncated)
            assert set(finished) == set(np.flatnonzero(step.is_first))
            num_lives += step.life_lost
            for k in range(5):
                length[k] += 1
                total[k] += float(step.reward[k])
                success[k] = success[k] or bool(step.reward[k] == 1)
                variant = (3, 9, 0, 5, 3)[k]
                if k in finished:
                    episode = finished[k]
                    assert episode.task == TASKS[k]
                    assert (episode.length, episode.episode_return) == (length[k], total[k])
                    assert episode.success is (success[k] if TASKS[k] == "dummy:slide" else None)
                    assert (step.terminated[k], step.truncated[k]) == (variant % 2 == 0, variant % 2 == 1)
                    number[k], length[k], total[k], success[k] = number[k] + 1, 0, 0.0, False
                assert read_counter(step.frame[k]) == (variant, number[k], length[k])
        assert min(number) >= 4  # 60 steps hold at least 4 whole episodes of at most 13
        assert (num_lives > 0).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("num_workers", [1, 2, 3, 9])
def test_workers_play_as_one_process_does(num_workers: int) -> None:
    with (
        SerialVectorEnv(TASKS, seed=3, options={}) as serial,
        make_vector(TASKS, seed=3, num_workers=num_workers, options={}) as workers,
    ):
        assert workers.specs == serial.specs
        for _ in range(2):  # a second reset goes on to the next episodes
            for ours, theirs in zip(serial.reset(), workers.reset(), strict=True):
                assert np.array_equal(ours, theirs)
            for one, other in zip(played(serial, 30), played(workers, 30), strict=True):
                assert_same(one, other)


def test_workers_play_atari_as_one_process_does() -> None:
    for module in ("gymnasium", "ale_py", "cv2"):
        pytest.importorskip(module)
    tasks, options = ("atari:Pong", "dummy:slide", "atari:Breakout"), {"time_limit": 12}
    with (
        SerialVectorEnv(tasks, seed=3, options=options) as serial,
        WorkerVectorEnv(tasks, seed=3, num_workers=2, options=options) as workers,
    ):
        assert serial.layout.size == 18 + 2
        assert np.array_equal(serial.reset()[0], workers.reset()[0])
        num_finished = 0
        for one, other in zip(played(serial, 30), played(workers, 30), strict=True):
            assert_same(one, other)
            num_finished += sum(episode.task.startswith("atari:") for episode in one.finished)
        assert num_finished == 4


def test_episodes_differ_by_run_task_and_number() -> None:
    lengths = {}
    for seed in (0, 1):
        with SerialVectorEnv(("dummy:count", "dummy:count"), seed=seed, options={}) as env:
            env.reset()
            episodes = [episode for step in played(env, 80) for episode in step.finished]
            for k in (0, 1):
                lengths[seed, k] = tuple(episode.length for episode in episodes if episode.index == k)[:6]
    assert len(set(lengths.values())) == 4
    assert all(len(set(six)) > 1 for six in lengths.values())


@BOTH
def test_reorder_renames_and_touches_nothing(num_workers: int) -> None:
    order = [4, 2, 0, 1, 3]
    with (
        make_vector(TASKS, seed=3, num_workers=num_workers, options={}) as moved,
        SerialVectorEnv(TASKS, seed=3, options={}) as still,
    ):
        moved.reset()
        still.reset()
        rng = np.random.default_rng(0)
        now = np.arange(5)  # task k of `moved` is task now[k] of `still`
        for _ in range(3):
            for _ in range(15):
                action = still.layout.random(rng)
                here, there = moved.step(action[now]), still.step(action)
                for name in ("frame", "is_first", "reward", "terminated", "truncated", "life_lost"):
                    assert np.array_equal(getattr(here, name), getattr(there, name)[now]), name
                expected = {(episode.task, episode.index): episode.episode_return for episode in there.finished}
                got = {(episode.task, int(now[episode.index])): episode.episode_return for episode in here.finished}
                assert got == expected
            moved.reorder(order)
            now = now[order]
            assert [spec.name for spec in moved.specs] == [TASKS[old] for old in now]
            assert np.array_equal(moved.layout.discrete_mask, still.layout.discrete_mask[now])
        assert now.tolist() != order  # three moves in a row are not one
        with pytest.raises(ValueError, match="permutation"):
            moved.reorder([0, 0, 1, 2, 3])


@BOTH
def test_answers_are_the_readers_own(num_workers: int) -> None:
    with make_vector(TASKS, seed=0, num_workers=num_workers, options={}) as env:
        frame, _ = env.reset()
        kept = frame.copy()
        first, *_ = played(env, 1)
        before = {name: getattr(first, name).copy() for name in ("frame", "reward", "is_first")}
        played(env, 20)
        assert np.array_equal(frame, kept)
        for name, value in before.items():
            assert np.array_equal(getattr(first, name), value)


@BOTH
def test_misuse_is_told_and_harms_nothing(num_workers: int) -> None:
    env = make_vector(("dummy:count-3", "dummy:slide"), seed=0, num_workers=num_workers, options={})
    good = np.array([[1, 0, 0, 0, 0], [0, 0, 0, 0.5, 0.5]], np.float32)
    with pytest.raises(RuntimeError, match="call reset before step"):
        env.step(good)
    env.reset()
    with pytest.raises(ValueError, match=r"needs shape \(2, 5\), got \(1, 5\)"):
        env.step(good[:1])
    illegal = good.copy()
    illegal[0] = [0, 0, 1, 0, 0]
    with pytest.raises(ValueError, match="action 2 is illegal"):
        env.step(illegal)
    assert [read_counter(frame) for frame in env.step(good).frame] == [(3, 0, 1), (9, 0, 1)]
    env.close()
    env.close()
    with pytest.raises(RuntimeError, match="closed"):
        env.step(good)
    with pytest.raises(RuntimeError, match="closed"):
        env.reset()


def test_wrong_runs_are_told() -> None:
    for num_workers in (0, 1):
        with pytest.raises(ValueError, match="did you mean"):
            make_vector(("dummy:cuont",), seed=0, num_workers=num_workers, options={})
        with pytest.raises(ValueError, match="one task or more"):
            make_vector((), seed=0, num_workers=num_workers, options={})
    with pytest.raises(ValueError, match="got -1"):
        make_vector(TASKS, seed=0, num_workers=-1, options={})


def test_a_failing_environment_speaks_for_itself_in_one_process() -> None:
    env = SerialVectorEnv(("dummy:count", "dummy:slide"), seed=0, options={"fail_at": 2})
    env.reset()
    with pytest.raises(RuntimeError, match="dummy:count: fails at step 2"):
        played(env, 3)


def test_starting_workers_leaves_this_process_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    script, environment = sys.modules["__main__"], dict(os.environ)
    with WorkerVectorEnv(TASKS, seed=0, num_workers=1, options={}):
        assert sys.modules["__main__"] is script
        assert dict(os.environ) == environment
