"""Robots of two suites beside each other, in this process and in workers."""

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
