"""Simulators that raise, hang, die or answer nonsense: made anew, and the others go on (mow/envs/vector_base.py)."""

import json
import logging
import os
import signal
from collections.abc import Callable

import numpy as np
import pytest

from mow.envs.base import EnvFailure, EnvStep
from mow.envs.dummy import CountingEnv, read_counter
from mow.envs.vector import SerialVectorEnv, VectorEnv, WorkerVectorEnv, make_vector
from tests.envs.test_vector import TASKS, assert_same, played
from tests.envs.test_vector_workers import gone, pids

BOTH = pytest.mark.parametrize("num_workers", [0, 2])
FAILS = {"fail_at": 20}  # steps after each construction; an episode has at most 13, so one is finished between
REPORTED = ("frame", "is_first", "reward", "terminated", "truncated", "life_lost")


def failing(num_workers: int, options: dict[str, object] = FAILS, max_restarts: int = 3) -> VectorEnv:
    return make_vector(TASKS, seed=1, num_workers=num_workers, options=options, max_restarts=max_restarts)


def workers(num_workers: int = 2, timeout_s: float = 60.0, **options: object) -> WorkerVectorEnv:
    env = WorkerVectorEnv(TASKS, seed=1, num_workers=num_workers, options=options, max_restarts=3)
    env._timeout_s = timeout_s  # starting takes longer than these tests want to wait
    env.reset()
    return env


def lost(step: EnvStep) -> list[int]:
    """Tasks whose episode is truncated without being finished."""
    finished = [episode.index for episode in step.finished]
    return [k for k in range(len(TASKS)) if step.truncated[k] and k not in finished]


@BOTH
def test_a_step_that_was_lost_is_truncated_and_a_new_episode_begins(num_workers: int) -> None:
    cut = 0
    with failing(num_workers) as env:
        env.reset()
        for step in played(env, 100):
            assert len(step.restarts) == len(lost(step))
            cut += len(step.restarts)
            for k in lost(step):
                assert read_counter(step.frame[k])[1:] == (0, 0)
                flags = (step.is_first[k], step.is_last[k], step.terminated[k], step.life_lost[k], step.reward[k])
                assert flags == (True, False, False, False, 0.0)
    # Each fails 20 steps after it was made, in a step or in the reset after it.
    assert 4 * len(TASKS) <= cut <= 5 * len(TASKS)


@BOTH
def test_what_happened_is_told(num_workers: int, caplog: pytest.LogCaptureFixture) -> None:
    with failing(num_workers) as env, caplog.at_level(logging.WARNING, "mow"):
        env.reset()
        restarts = [restart for step in played(env, 21) for restart in step.restarts]
    assert sorted(task for restart in restarts for task in restart.tasks) == sorted(TASKS)
    slide = next(restart for restart in restarts if restart.tasks == ("dummy:slide",))
    assert slide.reason == "RuntimeError: dummy:slide: fails at step 20, as set"
    assert "_fail_if_set" in slide.traceback
    assert f"dummy:slide: {slide.reason}; a new episode begins" in caplog.messages


@pytest.mark.parametrize("num_workers", [1, 2])
def test_rollouts_stay_the_same_for_every_number_of_workers(num_workers: int) -> None:
    with failing(0) as one, failing(num_workers) as other:
        one.reset()
        other.reset()
        for ours, theirs in zip(played(one, 70), played(other, 70), strict=True):
            assert_same(ours, theirs)
            assert lost(ours) == lost(theirs)


def test_a_new_simulator_has_seeds_of_its_own() -> None:
    """Lengths of episodes are all that seeds decide here."""
    lengths: dict[int, list[int]] = {}
    with SerialVectorEnv(["dummy:count"], seed=1, options={"fail_at": 60}, max_restarts=3) as env:
        env.reset()
        part = 0
        for step in played(env, 240):
            part += len(step.restarts)
            lengths.setdefault(part, []).extend(episode.length for episode in step.finished)
    assert part == 3
    assert len({tuple(found[:4]) for found in lengths.values()}) == 4


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_or_stopped_worker_is_replaced_and_the_others_do_not_notice(kill: signal.Signals) -> None:
    env = workers(timeout_s=60.0 if kill is signal.SIGKILL else 0.5)
    with env, SerialVectorEnv(TASKS, seed=1, options={}) as still:
        still.reset()
        victim, other = pids(env)  # the second owns tasks 1 and 3
        before = played(env, 5)
        os.kill(other, kill)
        if kill is signal.SIGKILL:
            assert gone(other)
        env._timeout_s = max(env._timeout_s, 0.5)
        after = played(env, 30, seed=1)
        assert gone(other)
        assert pids(env)[0] == victim
        (restart,) = after[0].restarts
        assert restart.tasks == (TASKS[1], TASKS[3])
        says = "died with exit code -9" if kill is signal.SIGKILL else r"gave no answer within 0.5 s (env.timeout_s)"
        assert restart.reason == f"its worker {says}"
        assert lost(after[0]) == [1, 3]
        assert not any(step.restarts for step in after[1:])
        for one, same in zip([*before, *after], [*played(still, 5), *played(still, 30, seed=1)], strict=True):
            for name in REPORTED:
                assert np.array_equal(getattr(one, name)[[0, 2, 4]], getattr(same, name)[[0, 2, 4]]), name
        assert sum(episode.index in (1, 3) for step in after for episode in step.finished) >= 2


def test_a_hung_simulator_is_replaced_with_its_worker() -> None:
    with workers(timeout_s=0.5, hang_at=20) as env:
        steps = played(env, 21)
        assert sorted(restart.tasks for step in steps for restart in step.restarts) == [TASKS[0::2], TASKS[1::2]]
        assert sorted(k for step in steps for k in lost(step)) == [0, 1, 2, 3, 4]
        assert sum(env._failures.values()) == 2  # one task of each worker hung: the one that it was in


@BOTH
@pytest.mark.parametrize(("fail_at", "num_steps"), [(3, 3), (1, 1)])
def test_after_the_last_restart_it_ends_with_the_traceback(num_workers: int, fail_at: int, num_steps: int) -> None:
    env = failing(num_workers, {"fail_at": fail_at}, max_restarts=2)
    env.reset()
    played(env, num_steps)
    with pytest.raises(EnvFailure) as caught:
        played(env, 100)
    line = (
        f"{TASKS[0]} failed 3 times in a row, with no finished episode between: "
        f"RuntimeError: {TASKS[0]}: fails at step {fail_at}, as set (seed 1, simulator 3, action "
    )
    assert caught.value.line.startswith(line)
    assert 0 <= int(caught.value.line.removeprefix(line).removesuffix(")")) < env.specs[0].num_actions
    assert "_fail_if_set" in caught.value.traceback
    with pytest.raises(RuntimeError, match="closed"):
        played(env, 1)
    kept = json.loads(json.dumps(env.state_dict()))  # a run can be saved all the same
    with make_vector(TASKS, seed=1, num_workers=0, options={}) as fresh:
        assert sorted(fresh.load_state_dict(kept)) == [0, 1, 2, 3, 4]
        played(fresh, 30)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (lambda answer: (answer[0], float("nan"), *answer[2:]), "expected a finite number within float32"),
        (lambda answer: (answer[0], float("-inf"), *answer[2:]), "expected a finite number within float32"),
        (lambda answer: (answer[0][..., :1], *answer[1:]), "expected a frame uint8 [64, 64, 3], got uint8 [64, 64, 1]"),
        (lambda answer: (answer[0] / 2.0, *answer[1:]), "expected a frame uint8 [64, 64, 3], got float64 [64, 64, 3]"),
    ],
)
def test_nonsense_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, broken: Callable[[tuple[object, ...]], tuple[object, ...]], reason: str
) -> None:
    step, calls = CountingEnv.step, [0]

    def breaks_once(self: CountingEnv, action: int) -> tuple[object, ...]:
        calls[0] += 1
        answer = step(self, action)
        return broken(answer) if calls[0] == 3 else answer

    monkeypatch.setattr(CountingEnv, "step", breaks_once)
    with SerialVectorEnv(["dummy:count"], seed=0, options={}, max_restarts=1) as env:
        env.reset()
        steps = played(env, 30)
    (restart,) = steps[2].restarts
    assert restart.reason.startswith(f"ValueError: dummy:count: {reason}")
    assert all(np.isfinite(step.reward).all() for step in steps)
    assert sum(len(step.restarts) for step in steps) == 1


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0)])
def test_it_goes_on_after_restarts_with_the_same_bytes(before: int, after: int) -> None:
    with failing(before) as env:
        env.reset()
        played(env, 30)  # one restart each
        env.reorder([3, 1, 4, 0, 2])
        kept = json.loads(json.dumps(env.state_dict()))
        expected = played(env, 60, seed=2)
    assert any(step.restarts for step in expected)
    with failing(after) as env:
        assert env.load_state_dict(kept) == {}
        for one, other in zip(expected, played(env, 60, seed=2), strict=True):
            assert_same(one, other)


def test_a_worker_that_is_gone_when_its_state_is_asked_for() -> None:
    with workers() as env:
        played(env, 3)
        victim = pids(env)[1]
        os.kill(victim, signal.SIGKILL)
        assert gone(victim)
        kept = json.loads(json.dumps(env.state_dict()))
        step = played(env, 1)[0]  # here it goes on
        assert lost(step) == [1, 3]
    with make_vector(TASKS, seed=1, num_workers=0, options={}) as other:
        assert sorted(other.load_state_dict(kept)) == [1, 3]
        played(other, 20)


@BOTH
def test_a_step_has_two_halves(num_workers: int) -> None:
    with failing(num_workers, {}) as halves, failing(num_workers, {}) as whole:
        halves.reset()
        whole.reset()
        rng, steps = np.random.default_rng(0), played(whole, 20)
        for expected in steps:
            halves.send(halves.layout.random(rng))
            with pytest.raises(RuntimeError, match="a step is under way: call receive first"):
                halves.state_dict()
            with pytest.raises(RuntimeError, match="a step is under way"):
                halves.send(halves.layout.random(np.random.default_rng(5)))
            assert_same(halves.receive(), expected)
            with pytest.raises(RuntimeError, match="no step is under way: call send before receive"):
                halves.receive()
        halves.send(halves.layout.random(rng))  # and closing in between harms nothing
