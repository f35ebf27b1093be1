"""Atari: pixels against gymnasium's own preprocessing, the two protocols, masks, ends of episodes."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium")
ale_py = pytest.importorskip("ale_py")
cv2 = pytest.importorskip("cv2")

from mow.envs.atari import TIME_LIMIT, AtariEnv  # noqa: E402
from mow.envs.task_sets import ATARI26  # noqa: E402

# Number of actions that do something, counted with ale-py 0.12.1; in the order of ATARI26.
MINIMAL = dict(
    zip(
        ATARI26,
        [18, 10, 7, 9, 18, 18, 18, 4, 18, 9, 6, 3, 18, 8, 18, 18, 18, 18, 14, 9, 6, 18, 6, 18, 18, 6],
        strict=True,
    )
)


def raw_game(game: str, sticky: float) -> Any:
    options = {"full_action_space": True, "repeat_action_probability": sticky, "disable_env_checker": True}
    return gymnasium.make(f"ALE/{game}-v5", frameskip=1, **options)


def reference(game: str, *, sticky: float, noop_max: int) -> Any:
    return gymnasium.wrappers.AtariPreprocessing(
        raw_game(game, sticky), noop_max=noop_max, frame_skip=4, screen_size=64, grayscale_obs=False
    )


def rollout(env: AtariEnv, actions: list[int]) -> list[tuple[bytes, float]]:
    return [(frame.tobytes(), reward) for frame, reward, *_ in map(env.step, actions)]


@pytest.mark.parametrize("game", ["Assault", "MsPacman"])
@pytest.mark.parametrize(("protocol", "sticky", "noop_max"), [("100k", 0.0, 30), ("storm", 0.25, 0)])
def test_same_as_gymnasium(game: str, protocol: str, sticky: float, noop_max: int) -> None:
    ours = AtariEnv(game, seed=7, protocol=protocol)
    theirs = reference(game, sticky=sticky, noop_max=noop_max)
    frame, _ = ours.reset(seed=7)
    expected, _ = theirs.reset(seed=7)
    assert np.array_equal(frame, expected)
    legal = np.flatnonzero(ours.task.legal)
    total = 0.0
    for step, action in enumerate(np.random.default_rng(0).choice(legal, 150).tolist()):
        frame, *signals, _ = ours.step(action)
        expected, *expected_signals, _ = theirs.step(action)
        if any(signals[1:]):  # the pictures of a game's end differ on purpose; the next test looks at them
            break
        assert np.array_equal(frame, expected), step
        assert signals == expected_signals, step
        total += signals[0]
    assert step > 60
    assert total > 0  # something happened
    if (game, protocol) == ("MsPacman", "100k"):  # Assault remembers games before, storm seeds every reset
        assert np.array_equal(ours.reset()[0], theirs.reset()[0])
    ours.close()
    theirs.close()


def test_a_game_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """To load one is nearly all that starting costs."""
    loaded = []
    load: Any = ale_py.ALEInterface.loadROM

    def counted(emulator: Any, rom: object) -> None:
        loaded.append(rom)
        load(emulator, rom)

    monkeypatch.setattr(ale_py.ALEInterface, "loadROM", counted)
    env = AtariEnv("Pong", seed=0)
    env.reset(seed=1)
    assert len(loaded) == 1
    env.close()


class FakeEmulator:
    """Plays a list of screens, each of one brightness, one per frame; the game is over with the last."""

    def __init__(self, brightness: list[int]) -> None:
        self._brightness = brightness
        self._frame = -1

    def act(self, action: int) -> int:
        self._frame += 1
        return 1

    def game_over(self) -> bool:
        return self._frame == len(self._brightness) - 1

    def lives(self) -> int:
        return 0 if self.game_over() else 3

    def getScreenRGB(self, screen: np.ndarray) -> None:
        screen[:] = self._brightness[self._frame]


@pytest.mark.parametrize(
    ("brightness", "shown", "reward", "terminated"),
    [
        ([1, 90, 80, 7, 0], 80, 4.0, False),  # the brighter of the last two, not the 90
        ([1, 90, 7, 80, 0], 80, 4.0, False),
        ([1, 90, 80, 7], 80, 4.0, True),
        ([1, 90, 7], 7, 3.0, True),  # ended within the skip: the last screen, nothing older
        ([5], 5, 1.0, True),
    ],
)
def test_pooling_by_hand(brightness: list[int], shown: int, reward: float, terminated: bool) -> None:
    env = AtariEnv("Pong", seed=0)
    env.reset()
    env._screens[:] = 255  # left over from an earlier step
    env._lives = 3
    env._ale = FakeEmulator(brightness)  # type: ignore[assignment]
    frame, *signals, info = env.step(0)
    assert set(frame.ravel().tolist()) == {shown}
    assert signals == [reward, terminated, False]
    assert info == {"life_lost": terminated}
    env.close()


def test_a_game_is_over_when_the_emulator_says_so() -> None:
    raw = raw_game("Breakout", 0.25)
    ours = AtariEnv("Breakout", seed=0, protocol="storm")
    ours.reset()
    raw.reset(seed=0)
    over = False
    while not over:
        _, _, terminated, truncated, info = ours.step(1)
        for _ in range(4):
            _, _, over, _, _ = raw.step(1)
            if over:
                break
        assert terminated == over
        assert not truncated
    assert info["life_lost"]
    with pytest.raises(RuntimeError, match="call reset"):
        ours.step(1)
    ours.close()
    raw.close()


def test_same_seed_and_actions_give_the_same_rollout() -> None:
    actions = np.random.default_rng(1).integers(0, 3, 60).tolist()
    rollouts = []
    for env in (AtariEnv("Qbert", seed=5), AtariEnv("Qbert", seed=5)):
        frames = [env.reset()[0].tobytes()]
        rollouts.append((frames, rollout(env, actions)))
        env.close()
    assert rollouts[0] == rollouts[1]


def test_resets_differ_by_seed_and_without_one() -> None:
    env = AtariEnv("Freeway", seed=0)  # its cars move from the first frame, so the picture shows the no-ops
    by_seed = {env.reset(seed=seed)[0].tobytes() for seed in range(8)}
    unseeded = {env.reset()[0].tobytes() for _ in range(8)}
    # 8 draws of 30 no-op counts hold on average 7.1 different ones, and 3 or fewer less than once in a million times.
    assert len(by_seed) > 3
    assert len(unseeded) > 3
    assert env.reset(seed=3)[0].tobytes() == env.reset(seed=3)[0].tobytes()
    env.close()


def test_storm_repeats_the_same_start() -> None:
    env = AtariEnv("Freeway", seed=0, protocol="storm")
    actions = [2, 0, 0, 2] * 10  # with sticky actions, what these do is random
    starts = [(env.reset(seed=seed)[0].tobytes(), rollout(env, actions)) for seed in (None, 1, 2)]
    assert starts[0] == starts[1] == starts[2]
    other = AtariEnv("Freeway", seed=1, protocol="storm")
    assert other.reset()[0].tobytes() == starts[0][0]  # no no-ops
    assert rollout(other, actions) != starts[0][1]  # other sticky actions
    env.close()
    other.close()


def test_the_time_limit_truncates() -> None:
    assert TIME_LIMIT == 27_000
    env = AtariEnv("Pong", seed=0, time_limit=9)
    for _ in range(2):  # the count begins anew
        env.reset()
        ends = [env.step(0)[2:4] for _ in range(9)]
        assert ends == [(False, False)] * 8 + [(False, True)]
        with pytest.raises(RuntimeError, match="call reset"):
            env.step(0)
    env.close()


def test_a_lost_life_is_told_and_ends_nothing() -> None:
    env = AtariEnv("Breakout", seed=0)
    env.reset()
    lost = 0
    while lost < 2:
        _, _, terminated, truncated, info = env.step(1)
        assert not terminated
        assert not truncated
        lost += bool(info["life_lost"])
    env.close()


@pytest.mark.parametrize("name", ATARI26)
def test_minimal_masks(name: str) -> None:
    env = AtariEnv(name.split(":")[1], seed=0)
    assert env.task.num_actions == len(env.task.legal) == 18
    assert sum(env.task.legal) == MINIMAL[name]
    assert env.task.legal[0]  # doing nothing is always possible
    env.close()


def test_full_set_and_illegal_actions() -> None:
    full = AtariEnv("Pong", seed=0, action_set="full")
    assert all(full.task.legal)
    minimal = AtariEnv("Pong", seed=0)
    minimal.reset()
    assert minimal.task.legal == tuple(index in (0, 1, 3, 4, 11, 12) for index in range(18))
    for action in (2, 18, -1):
        with pytest.raises(ValueError, match=f"got action {action}"):
            minimal.step(action)
    full.close()
    minimal.close()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"protocol": "1k"}, "'100k' or 'storm'"),
        ({"action_set": "all"}, "'minimal' or 'full'"),
        ({"time_limit": 0}, "int >= 1"),
    ],
)
def test_wrong_options_are_told(option: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AtariEnv("Pong", seed=0, **option)


def test_the_emulator_prints_nothing() -> None:
    code = "from mow.envs import make; env = make('atari:Pong', seed=0, options={}); env.reset(); env.step(0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
