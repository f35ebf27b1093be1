"""Robots of two suites beside each other, in this process and in workers."""

import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

if not (find_spec("metaworld") and find_spec("dm_control")):
    pytest.skip("robots need metaworld and dm_control: pip install -e '.[metaworld,dmc]'", allow_module_level=True)

from mow.envs.vector import make_vector


def test_workers_show_the_same_as_this_process_which_has_drawn_before() -> None:
    """Two suites in two processes, started beside a GL context that they must not inherit."""
    tasks = ("metaworld:reach-v3", "dmc:walker-walk", "tiny:catch")
    shown = []
    for workers in (0, 2):
        with make_vector(tasks, seed=1, num_workers=workers, options={"time_limit": 4}) as envs:
            rng = np.random.default_rng(0)
            frames = [envs.reset()[0]]
            frames += [envs.step(envs.layout.random(rng)).frame for _ in range(6)]
            shown.append(np.stack(frames))  # [7, 3, 64, 64, 3]
    assert np.array_equal(*shown)


def test_states_are_the_same_in_workers_and_open_no_gl() -> None:
    """In a process of its own, with a MUJOCO_GL that cannot be used."""
    code = """
import os, sys
import numpy as np
from mow.envs import mujoco_render
from mow.envs.vector import make_vector

if __name__ == "__main__":
    shown = []
    for workers in (0, 2):
        tasks = ("metaworld:reach-v3", "dmc:walker-walk", "vec:lq")
        with make_vector(tasks, seed=1, num_workers=workers, options={"obs": "state", "time_limit": 4}) as envs:
            rng = np.random.default_rng(0)
            states = [envs.reset()[0]]
            states += [envs.step(envs.layout.random(rng)).frame for _ in range(6)]
            shown.append(np.stack(states))
    assert shown[0].shape == (7, 3, 39)
    assert np.array_equal(*shown)
    assert not shown[0][:, 1, 24:].any() and not shown[0][:, 2, 2:].any()
    assert mujoco_render._context is None
    assert not {"OpenGL", "mujoco.egl", "mujoco.osmesa"} & set(sys.modules)
    assert os.environ["MUJOCO_GL"] == "egl_of_another_machine"
"""
    without = {name: value for name, value in os.environ.items() if name != "DISPLAY"}
    done = subprocess.run([sys.executable, "-c", code], env={**without, "MUJOCO_GL": "egl_of_another_machine"},
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
