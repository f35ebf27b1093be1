"""MuJoCo environments of gymnasium: they draw without being told how, in the one context, and stay in the picture."""

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

for needed in ("gymnasium", "mujoco", "cv2", "imageio", "packaging"):
    if not find_spec(needed):
        pytest.skip(f"gymnasium's robots need {needed}: pip install -e '.[metaworld]'", allow_module_level=True)

from mow.envs import make  # noqa: E402
from mow.envs.base import Frame  # noqa: E402

CHEETAH = "gym:HalfCheetah-v5"


def frames(task: str, steps: int = 3) -> Iterator[Frame]:
    env = make(task, seed=0, options={})
    yield env.reset(seed=1)[0]
    for _ in range(steps):
        yield env.step(np.full(env.task.num_actions, 0.5, np.float32))[0]
    env.close()


def test_a_fresh_process_and_its_workers_draw_by_themselves() -> None:
    """Where nobody has said what to draw with; the process ends in silence, with environments open."""
    code = """
import numpy as np
from mow.envs import make
from mow.envs.vector import make_vector
kept = [make(task, seed=0, options={}) for task in ("gym:Hopper-v5", "gym:Reacher-v5")]
here = [env.reset(seed=1)[0].std().item() > 5 for env in kept]
with make_vector(("gym:Hopper-v5",), seed=0, num_workers=1, options={}) as apart:
    there = [apart.reset()[0].std().item() > 5]
print(here, there)
"""
    environ = {name: value for name, value in os.environ.items() if name not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environ)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[True, True] [True]\n", "")


def test_a_picture_is_the_same_beside_others() -> None:
    tasks = (CHEETAH, "gym:Reacher-v5", "gym:Hopper-v5")
    alone = [list(frames(task)) for task in tasks]
    for index, together in enumerate(zip(*map(frames, tasks), strict=True)):
        for one, frame in zip(alone, together, strict=True):
            assert np.array_equal(one[index], frame)
    assert len({one[0].tobytes() for one in alone}) == 3


def test_full_is_to_the_pixel_what_gymnasium_draws() -> None:
    import gymnasium

    ours = make(CHEETAH, seed=0, options={"render": "full"})
    first = ours.reset(seed=1)[0]
    theirs = gymnasium.make("HalfCheetah-v5", render_mode="rgb_array", width=64, height=64, camera_name="track")
    theirs.reset(seed=1)
    assert np.array_equal(first, theirs.render())
    assert np.array_equal(ours.reset(seed=1)[0], first)  # whatever context is current
    light = make(CHEETAH, seed=0, options={})
    assert 0 < np.abs(light.reset(seed=1)[0].astype(int) - first).mean() < 30
    for env in (ours, theirs, light):
        env.close()


def test_the_view_is_the_same_for_all_seeds() -> None:
    """Of a model without a camera of its own; gymnasium's depends on the first picture."""
    pictures = []
    for seed in (0, 1):
        env = make("gym:Pusher-v5", seed=seed, options={})
        pictures.append(env.reset(seed=2)[0])
        env.close()
    assert pictures[0].std() > 5
    assert np.array_equal(*pictures)


def test_what_runs_stays_in_the_picture() -> None:
    env: Any = make(CHEETAH, seed=0, options={})
    before = env.reset(seed=1)[0]
    inner = env._env.unwrapped
    far = inner.data.qpos.copy()
    far[0] += 20.0  # metres; the pattern of the floor repeats in them
    inner.set_state(far, inner.data.qvel)
    assert np.abs(env._picture().astype(int) - before).mean() < 2.0
    env.close()
