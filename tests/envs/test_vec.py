"""The suite vec: equations by hand, experts, references, and states through the vector of tasks."""

import json
import math

import numpy as np
import pytest

from mow.envs import SUITES, check_task, make
from mow.envs.base import MOST_STATE, EnvStep, TaskSpec
from mow.envs.measured import EPISODES, measure, random_policy
from mow.envs.task_sets import VEC4
from mow.envs.vec import VecEnv, expert, main
from mow.envs.vec import make as make_vec
from mow.envs.vector import VectorEnv, make_vector

STATE = {"obs": "state"}


def placed(name: str, *x: float) -> VecEnv:
    """An episode that goes on from the inner state `x`."""
    env = make_vec(name, seed=0)
    env.reset()
    env.load_state_dict({**env.state_dict(), "x": list(x)})
    return env


def test_one_step_of_each_by_hand() -> None:
    state, reward, *_ = placed("lq", 0.5, -0.2).step(np.array([0.5], np.float32))
    assert state == pytest.approx([0.5 - 0.02, -0.18 + 0.1])
    assert reward == pytest.approx(1 - 0.48**2 - 0.1 * 0.08**2 - 0.1 * 0.5**2)
    state, reward, *_ = placed("button", 0.45).step(np.array([1.0], np.float32))
    assert state == pytest.approx([0.55, 0.55**2])
    assert reward == 1.0
    assert placed("button", 0.45).step(np.array([0.5], np.float32))[1] == 0.0  # 0.5 is not above 0.5
    state, reward, *_, info = placed("reach", 0.0, 0.95, 0.14, 1.0).step(np.array([1.0, 1.0], np.float32))
    assert state == pytest.approx([0.1, 1.0, 0.14, 1.0])  # the wall is at 1
    assert reward == pytest.approx(0.96)
    assert info == {"success": True}
    state, reward, *_ = placed("pendulum", math.pi / 2, 1.0).step(np.array([-0.5], np.float32))
    speed = 1.0 + 0.05 * (15.0 - 3.0)
    angle = math.pi / 2 + 0.05 * speed
    assert state == pytest.approx([math.cos(angle), math.sin(angle), speed / 8], abs=1e-6)
    assert reward == pytest.approx((1 + math.cos(angle)) / 2)


def test_the_expert_of_lq_solves_the_riccati_equation() -> None:
    """No neighbour of its gain is better from a start that no bound touches, over a long horizon."""
    gain = -np.array([expert("vec:lq", np.eye(2, dtype=np.float32)[i] / 10)[0] * 10 for i in range(2)])

    def value(gain: np.ndarray) -> float:
        x, total = np.array([0.1, 0.1]), 0.0
        for _ in range(2000):
            action = -gain @ x
            x = np.array([x[0] + 0.1 * x[1], 0.9 * x[1] + 0.2 * action])
            total -= x[0] ** 2 + 0.1 * x[1] ** 2 + 0.1 * action**2
        return total

    for step in ((0.01, 0), (-0.01, 0), (0, 0.01), (0, -0.01)):
        assert value(gain + step) < value(gain)


@pytest.mark.parametrize("kind", ["random", "expert"])
@pytest.mark.parametrize("task", VEC4)
def test_policies_reach_the_stated_returns(task: str, kind: str) -> None:
    stated = SUITES["vec"].references[task][kind == "expert"]
    policy = random_policy(17) if kind == "random" else (lambda env: expert(task, env.observe()))
    returns = measure(make(task, seed=23, options=STATE), policy, episodes=40)  # other draws than the constants'
    tolerance = 4 * returns.std(ddof=1) * math.sqrt(1 / 40 + 1 / EPISODES) + 0.0005
    assert abs(returns.mean() - stated) <= tolerance


def test_the_table_tells_a_wrong_constant(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for task in VEC4[2:]:
        monkeypatch.delitem(SUITES["vec"].references, task)
    monkeypatch.setitem(SUITES["vec"].references, "vec:lq", (0.0, 0.0))
    monkeypatch.setattr("mow.envs.measured.EPISODES", 2)
    assert main() == 1
    assert "vec:lq, expert: measured" in capsys.readouterr().err


def test_padding_does_not_change_the_expert() -> None:
    for task in VEC4:
        state = make(task, seed=3, options=STATE).reset(seed=1)[0]
        assert np.array_equal(expert(task, state), expert(task, np.concatenate([state, np.zeros(3, np.float32)])))


def trace(envs: VectorEnv, num_steps: int, seed: int) -> list[EnvStep]:
    rng = np.random.default_rng(seed)
    return [envs.step(envs.layout.random(rng)) for _ in range(num_steps)]


def assert_equal(one: list[EnvStep], other: list[EnvStep]) -> None:
    for left, right in zip(one, other, strict=True):
        for name in ("frame", "reward", "is_first", "is_last", "terminated", "truncated"):
            assert np.array_equal(getattr(left, name), getattr(right, name)), name
        assert left.finished == right.finished


def test_workers_give_the_bytes_of_this_process_and_go_on_from_its_state() -> None:
    with make_vector(VEC4, seed=4, num_workers=0, options=STATE, final_frames=True) as envs:
        opened, _ = envs.reset()
        assert opened.dtype == np.float32
        assert opened.shape == (4, 4)
        first = trace(envs, 60, seed=0)
        envs.reorder([3, 1, 0, 2])
        kept = json.loads(json.dumps(envs.state_dict()))
        then = trace(envs, 60, seed=1)
    with make_vector(VEC4, seed=4, num_workers=2, options=STATE, final_frames=True) as envs:
        assert np.array_equal(envs.reset()[0], opened)
        assert_equal(trace(envs, 60, seed=0), first)
    with make_vector(VEC4, seed=4, num_workers=1, options=STATE, final_frames=True) as envs:
        assert envs.load_state_dict(kept) == {}
        assert [spec.state_size for spec in envs.specs] == [3, 2, 2, 4]
        assert_equal(trace(envs, 60, seed=1), then)


def test_states_end_in_zeros_and_final_states_are_shown() -> None:
    with make_vector(VEC4, seed=4, num_workers=0, options=STATE, final_frames=True) as envs:
        envs.reset()
        steps = trace(envs, 52, seed=0)
    for k, size in enumerate((2, 2, 4, 3)):
        assert not any(step.frame[k, size:].any() for step in steps)
    assert [at for at, step in enumerate(steps) if step.is_last[2]] == [49]
    goals = [step.frame[2, 2:].tolist() for step in steps]
    assert goals[48] == goals[49] != goals[50]


def test_a_body_that_fails_is_made_anew_and_one_without_a_state_opens_an_episode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks, fails_at = ("vec:lq", "vec:reach"), 3
    made = VecEnv.step

    def step(self: VecEnv, action: np.ndarray) -> tuple[object, ...]:
        if self.task.name == "vec:lq" and self._num_steps == fails_at:
            raise RuntimeError("broken")
        return made(self, action)

    monkeypatch.setattr(VecEnv, "step", step)
    with make_vector(tasks, seed=4, num_workers=0, options=STATE, max_restarts=1) as envs:
        envs.reset()
        steps = trace(envs, 4, seed=0)
        assert [len(each.restarts) for each in steps] == [0, 0, 0, 1]
        assert (steps[3].truncated.tolist(), steps[3].is_first.tolist()) == ([True, False], [True, False])
        assert not steps[3].frame[0, 2:].any()
        assert not np.array_equal(steps[3].frame[0], steps[2].frame[0])
        kept = envs.state_dict()
    kept["tasks"]["0"]["env"] = None  # as an environment that is not Resumable leaves it
    with make_vector(tasks, seed=4, num_workers=0, options=STATE) as envs:
        (renewed,) = envs.load_state_dict(kept).items()
    assert renewed[0] == 0
    assert renewed[1].shape == (4,)
    assert not renewed[1][2:].any()


def test_success_at_any_step_and_at_the_last_one() -> None:
    """The point reaches its goal and is driven away again."""
    with make_vector(["vec:reach"], seed=4, num_workers=0, options=STATE) as envs:
        state, _ = envs.reset()
        for at in range(50):
            action = expert("vec:reach", state[0]) if at < 40 else -np.sign(state[0, 2:] + 1e-6).astype(np.float32)
            state = (step := envs.step(action[None])).frame
        (episode,) = step.finished
        assert (episode.success, episode.final_success) == (True, False)


@pytest.mark.parametrize(
    ("name", "obs", "says"),
    [
        ("vec:lq", "frame", "'vec:lq' has no frame observations: set env.obs to state, or take tasks of atari, dmc, "),
        ("tiny:slide", "state", "'tiny:slide' has no state observations: set env.obs to frame, or take tasks of dmc, "),
    ],
)
def test_other_observations_are_refused(name: str, obs: str, says: str) -> None:
    for call in (lambda: check_task(name, obs), lambda: make(name, seed=0, options={"obs": obs})):
        with pytest.raises(ValueError, match=says) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_broken_state_is_the_simulators_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    made = VecEnv.observe
    for broken, says in (
        (lambda self: made(self) * np.float32("nan"), r"vec:lq: expected finite numbers as state, got \[nan, nan\]"),
        (lambda self: made(self).astype(np.float64), r"vec:lq: expected a state float32 \[2\], got float64 \[2\]"),
    ):
        monkeypatch.setattr(VecEnv, "observe", broken)
        with pytest.raises(ValueError, match=says):
            make_vector(["vec:lq"], seed=0, num_workers=0, options=STATE)


def test_a_state_that_no_board_holds_is_refused() -> None:
    with pytest.raises(ValueError, match=f"1 to {MOST_STATE} numbers, got {1 + MOST_STATE}"):
        TaskSpec("x:y", False, 1, (True,), 1, "", MOST_STATE + 1)


def test_misuse_is_refused() -> None:
    with pytest.raises(RuntimeError, match="vec:lq: no episode is running: call reset"):
        make_vec("lq", seed=0).step(np.zeros(1, np.float32))
    env = make_vec("reach", seed=0)
    env.reset()
    for action in (np.zeros(1, np.float32), np.array([0.0, 1.5], np.float32), np.array([np.nan, 0.0], np.float32)):
        with pytest.raises(ValueError, match=r"vec:reach: got .* expected 2 entries in "):
            env.step(action)
