"""The counting environments: what a frame says, when an episode ends, what is rewarded."""

import numpy as np
import pytest

from mow.envs.dummy import VARIANTS, CountingEnv, draw_counter, make, read_counter


def test_a_frame_by_hand() -> None:
    frame = draw_counter(5, 258, 3)  # 5 = 101, 258 = 1 and 2 in two bytes, 3 = 11 in binary
    bright = frame[4:32:8, 4::8, 0] == 255  # [4, 8] the middle of each block
    assert bright.astype(int).tolist() == [
        [0, 0, 0, 0, 0, 1, 0, 1],
        [0, 0, 0, 0, 0, 0, 0, 1],
        [0, 0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 1, 1],
    ]
    assert read_counter(frame) == (5, 258, 3)


@pytest.mark.parametrize("counter", [(0, 0, 0), (9, 65535, 255), (8, 256, 13), (3, 255, 128)])
def test_frames_read_back_even_when_blurred(counter: tuple[int, int, int]) -> None:
    frame = draw_counter(*counter)
    assert read_counter(frame) == counter
    noise = np.random.default_rng(0).integers(-100, 101, frame.shape)
    assert read_counter(np.clip(frame + noise, 0, 255).astype(np.uint8)) == counter


def test_frames_that_cannot_be_read_back_are_refused() -> None:
    for counter in ((256, 0, 0), (0, 65536, 0), (0, 0, 256)):
        with pytest.raises(OverflowError):
            draw_counter(*counter)


def test_variants_look_different() -> None:
    colours = {tuple(draw_counter(variant, 0, 0)[-1, -1].tolist()) for variant in VARIANTS.values()}
    assert len(colours) == len(VARIANTS)


def test_rewards_by_hand() -> None:
    env = make("count-1", seed=0)  # 4 actions, all legal: the right ones are 1, 2, 3, 0, 1
    env.reset()
    assert [env.step(action)[1] for action in (1, 2, 0, 0, 1)] == [1.0, 1.0, 0.0, 1.0, 1.0]
    slide = make("slide", seed=0)
    slide.reset()
    targets = [(0.9, 0.1), (-0.5, 0.5), (-0.5, 0.5)]  # right within 0.5 of (0.5, 0.5), (-0.5, 0.5), (0.5, 0.5)
    steps = [slide.step(np.array(target, np.float32)) for target in targets]
    assert [reward for _, reward, *_ in steps] == [1.0, 1.0, 0.0]
    assert [info["success"] for *_, info in steps] == [True, True, False]


@pytest.mark.parametrize("name", VARIANTS)
def test_episodes_end_as_the_variant_says(name: str) -> None:
    env = make(name, seed=3)
    action = 0 if env.task.discrete else np.zeros(2, np.float32)
    lengths, lives = [], 0
    for episode in range(40):
        frame, _ = env.reset()
        assert read_counter(frame) == (VARIANTS[name], episode, 0)
        ended, length = False, 0
        while not ended:
            frame, _, terminated, truncated, info = env.step(action)
            length += 1
            lives += bool(info["life_lost"])
            assert read_counter(frame) == (VARIANTS[name], episode, length)
            ended = terminated or truncated
        assert (terminated, truncated) == (VARIANTS[name] % 2 == 0, VARIANTS[name] % 2 == 1)
        lengths.append(length)
    assert set(lengths) == set(range(7, 14))  # 40 draws miss one of 7 lengths with probability 0.015; seed 3 does not
    assert lives == (40 if VARIANTS[name] % 2 == 0 else 0)


def test_action_sets() -> None:
    assert {make(f"count-{v}", seed=0).task.num_actions for v in range(8)} == {3, 4, 5}
    assert make("count-3", seed=0).task.legal == (True, True, False)
    assert make("count-7", seed=0).task.legal == (True, True, True, False)
    assert make("slide", seed=0).task.num_actions == 2
    assert not make("slide", seed=0).task.discrete


def test_misuse_is_told() -> None:
    env = make("count-3", seed=0)
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(0)
    env.reset()
    for action in (2, 3, -1):
        with pytest.raises(ValueError, match=f"got action {action}"):
            env.step(action)
    with pytest.raises(ValueError, match="fail_at counts steps"):
        CountingEnv("count", seed=0, fail_at=-1)
    with pytest.raises(ValueError, match="hang_at counts steps"):
        CountingEnv("count", seed=0, hang_at="soon")


def test_fails_when_asked() -> None:
    env = make("count", seed=0, fail_at=2)
    env.reset()
    env.step(0)
    env.step(0)
    with pytest.raises(RuntimeError, match="dummy:count: fails at step 2"):
        env.step(0)
