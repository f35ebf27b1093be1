"""Names of tasks, options, and what happens where a simulator is not installed (mow/envs/__init__.py)."""

import subprocess
import sys
from ast import literal_eval

import pytest

from mow.envs import SETS, SUITES, check_task, expand, make, task_names
from mow.envs.task_sets import ATARI26, TINY5, TINY7
from mow.envs.tiny import TASKS


def test_names_are_known_and_unique() -> None:
    names = task_names()
    assert len(set(names)) == len(names)
    assert len(set(ATARI26)) == 26
    assert set(ATARI26) < set(names)
    assert tuple(f"tiny:{name}" for name in TASKS) == TINY7
    assert set(TINY5) < set(TINY7) < set(names)
    assert {"dummy:count", "dummy:count-0", "dummy:count-7", "dummy:slide"} < set(names)
    # Of "gym" only gymnasium knows the names.
    assert {name.split(":")[0] for name in names} | {"gym"} == set(SUITES)
    assert {task for tasks in SETS.values() for task in tasks} <= set(names)
    for name in names:
        check_task(name)


def test_every_atari_name_is_a_game() -> None:
    gymnasium = pytest.importorskip("gymnasium")
    gymnasium.register_envs(pytest.importorskip("ale_py"))
    games = {f"atari:{name[4:-3]}" for name in gymnasium.registry if name.startswith("ALE/") and name.endswith("-v5")}
    assert {name for name in task_names() if name.startswith("atari:")} <= games


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("atari:Pnog", "atari:Pong"),
        ("metaworld:reach", "metaworld:reach-v3"),
        ("dmc:walker_walk", "dmc:walker-walk"),
        ("Breakout", "atari:Breakout"),
        ("dumy:slide", "dummy:slide"),
        ("atari:", "atari:"),
    ],
)
def test_unknown_tasks_name_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match="did you mean") as caught:
        check_task(name)
    message = str(caught.value)
    assert nearest in message
    assert message.split("did you mean ")[1].count(":") == 3
    assert "\n" not in message


def test_sets_stand_for_their_tasks() -> None:
    sizes = {"atari26": 26, "tiny5": 5, "tiny7": 7, "vec4": 4, "mt10": 10, "mt50": 50, "dmc18": 18}
    assert {name: len(tasks) for name, tasks in SETS.items()} == sizes
    for tasks in SETS.values():
        assert set(tasks) <= set(task_names())
    assert set(SETS["mt10"]) < set(SETS["mt50"])
    assert expand(["tiny5", "atari:Pong", "tiny:goal"]) == (*TINY5, "atari:Pong")
    assert expand(["mt11"]) == ("mt11",)
    with pytest.raises(ValueError, match=r"unknown task 'mt11'.*did you mean .*mt10"):
        check_task("mt11")


def test_options_reach_the_suite_that_knows_them() -> None:
    env = make("dummy:count", seed=0, options={"protocol": "storm", "fail_at": 0})
    with pytest.raises(RuntimeError, match="fails at step 0"):
        env.reset()
    with pytest.raises(ValueError, match=r"unknown option 'protocoll': .*protocol"):
        make("dummy:count", seed=0, options={"protocoll": "storm"})


def test_import_needs_numpy_alone() -> None:
    code = """
import sys
for name in ("torch", "gymnasium", "ale_py", "cv2", "scipy"):
    sys.modules[name] = None
import mow.envs, mow.envs.base, mow.envs.dummy, mow.envs.vector_group, mow.envs.tiny, mow.envs.vector
foreign = {name.split(".")[0] for name, module in sys.modules.items() if module} - set(sys.stdlib_module_names)
print(sorted(name for name in foreign if not name.startswith("_")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(literal_eval(done.stdout))
    assert {"mow", "numpy"} <= loaded
    assert not loaded & {"torch", "gymnasium", "ale_py", "cv2", "scipy"}


def test_importing_the_suites_changes_nothing_in_the_process() -> None:
    for name in ("gymnasium", "ale_py", "cv2"):
        pytest.importorskip(name)
    code = """
import os, sys
import cv2, gymnasium, numpy
cv2.setNumThreads(3)
before, names = dict(os.environ), set(dir(numpy))
import mow.envs.atari, mow.envs.gymnasium_envs, mow.envs.mujoco_render
assert dict(os.environ) == before
assert set(dir(numpy)) == names
assert cv2.getNumThreads() == 3
assert "triton" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_numpy_is_left_as_it_is_by_dm_control() -> None:
    pytest.importorskip("dm_control")
    make("dmc:quadruped-walk", seed=0, options={}).close()
    import numpy as np

    assert hasattr(np, "in1d") == (np.lib.NumpyVersion(np.__version__) < "2.4.0")
