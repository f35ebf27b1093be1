"""The benchmark of stepping: every contestant is right on a few games, and one that is wrong is not timed."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from bench import bench_envs, env_peers
from bench.bench_envs import InThisProcess, Ours, computed_seconds, draw_actions
from bench.clock import Device
from bench.env_peers import BareWorkers, Frames, bare_task
from bench.floors import Ceilings
from bench.race import Race
from mow import envs
from mow.envs.vector import SerialVectorEnv
from tests.test_bench_replay import QuietBenchmark

needs_atari = pytest.mark.skipif(
    not all(find_spec(name) for name in ("gymnasium", "ale_py", "cv2")), reason="needs gymnasium, ale-py and OpenCV"
)
# Processes of gymnasium are forked, which Python warns of where there are threads.
pytestmark = pytest.mark.filterwarnings("default")

GAMES = ("atari:Pong", "atari:Breakout", "atari:Qbert")


def a_race(rounds: int = 1) -> Race:
    return Race(QuietBenchmark(), Device(), Ceilings(1e9, 1e9), "reference", rounds=rounds)


@needs_atari
def test_every_contestant_passes_its_check() -> None:
    bench_envs.test_steps(a_race(), GAMES)


@needs_atari
@pytest.mark.parametrize("peer", [env_peers.EmulatorVector, Ours])
def test_a_wrong_contestant_is_not_timed(monkeypatch: pytest.MonkeyPatch, peer: type) -> None:
    play = peer.play

    def wrong(self: Any, actions: np.ndarray) -> Frames:
        frame = play(self, actions).copy()
        if not isinstance(self, Ours) or not isinstance(self.envs, SerialVectorEnv):
            frame[1, 0, 0, 0] ^= 1
        return frame

    monkeypatch.setattr(peer, "play", wrong)
    monkeypatch.setattr(bench_envs, "GymnasiumAsync", env_peers.EmulatorVector)  # which starts sooner
    with pytest.raises(AssertionError, match=r"is wrong, so nothing is timed: the frames of tasks \[1\] are not those"):
        bench_envs.test_steps(a_race(), GAMES)


@pytest.mark.parametrize("lockstep", [False, True])
def test_bare_processes_take_every_action(lockstep: bool) -> None:
    tasks = ("tiny:slide",) * 3
    (actions,) = draw_actions(3, 7)
    workers, alone = BareWorkers(tasks, bare_task, workers=2, lockstep=lockstep), InThisProcess(tasks, bare_task)
    assert np.array_equal(workers.frame, alone.frame)
    for _ in range(2):
        frame = workers.play(actions)
        assert np.array_equal(frame, alone.play(actions))
        assert not np.array_equal(frame[0], frame[1])  # the same task, other actions
    workers.close()
    assert not any(process.is_alive() for process in workers._processes)


def test_sets_that_are_not_known_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envs, "SETS", {})
    with pytest.raises(pytest.skip.Exception, match="no set mt10"):
        bench_envs.test_robots(a_race(), "mt10")
    with pytest.raises(pytest.skip.Exception, match="no suite nowhere"):
        bench_envs.needs("nowhere")


def test_computing_is_counted_and_waiting_is_not() -> None:
    def spent(call: Callable[[], object]) -> float:
        before = computed_seconds()
        call()
        return computed_seconds() - before

    assert spent(lambda: sum(range(20_000_000))) > 0.1
    assert spent(lambda: __import__("time").sleep(0.3)) < 0.1
