"""Pictures of MuJoCo models: what draws them is found, one model does not draw into another's, exits are silent."""

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import pytest

if not (find_spec("metaworld") and find_spec("dm_control")):
    pytest.skip("robots need metaworld and dm_control: pip install -e '.[metaworld,dmc]'", allow_module_level=True)

from mow.envs import make, mujoco_render
from mow.envs.base import Frame

TASKS = ("metaworld:reach-v3", "metaworld:hammer-v3", "dmc:walker-walk", "dmc:cheetah-run")


def action(env) -> np.ndarray:
    return np.full(env.task.num_actions, 0.5, np.float32)


def frames(env, steps: int) -> Iterator[Frame]:
    yield env.reset(seed=1)[0]
    for _ in range(steps):
        yield env.step(action(env))[0]


@pytest.fixture(scope="module")
def alone() -> dict[str, list[Frame]]:
    """What each task shows where no other is drawn beside it; a process of its own for each would take long."""
    shown = {}
    for task in TASKS:
        env = make(task, seed=0, options={})
        shown[task] = list(frames(env, 3))
        env.close()
    return shown


def test_a_picture_is_the_same_beside_others(alone: dict[str, list[Frame]]) -> None:
    envs = {task: make(task, seed=0, options={}) for task in TASKS}
    for index, together in enumerate(zip(*(frames(envs[task], 3) for task in TASKS), strict=True)):
        for task, frame in zip(TASKS, together, strict=True):
            assert np.array_equal(frame, alone[task][index]), (task, index)
    for env in envs.values():
        env.close()


class Nowhere:
    """A GL context that does not make itself current."""

    def make_current(self) -> None:
        pass


def test_contexts_of_other_libraries_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture before and after others have drawn theirs, each in a context of its own that is left current."""
    from dm_control import suite
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    env = make("metaworld:reach-v3", seed=0, options={})
    before, _ = env.reset(seed=1)
    env.reset(seed=2)
    stranger = ALL_V3_ENVIRONMENTS["hammer-v3"](render_mode="rgb_array", width=64, height=64)
    stranger.mujoco_renderer.render("rgb_array")
    suite.load("walker", "walk").physics.render(64, 64)
    stranger.mujoco_renderer._get_viewer("rgb_array").make_context_current()
    with monkeypatch.context() as planted:
        planted.setattr(env._renderer, "_gl", Nowhere())
        assert not np.array_equal(env.reset(seed=1)[0], before), "or this test could not fail"
    assert np.array_equal(env.reset(seed=1)[0], before)
    env.close()
    stranger.mujoco_renderer.close()


@pytest.mark.parametrize("missing", ["libEGL.so.1", "libGL.so.1"])
def test_osmesa_is_taken_where_egl_is_not_whole(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mujoco_render, "_loads", lambda library: library != missing)
    assert mujoco_render.choose_backend({}) == "osmesa"


def test_what_is_missing_is_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mujoco_render, "_loads", lambda library: False)
    with pytest.raises(ImportError) as caught:
        mujoco_render.choose_backend({})
    assert str(caught.value) == (
        "nothing to draw with (egl: no libEGL.so.1; osmesa: no libOSMesa.so.8): "
        "apt-get install -y --no-install-recommends libegl1 libgl1, then set MUJOCO_GL=egl"
    )
    with pytest.raises(ImportError, match=r"osmesa: no libOSMesa\.so\.8.*libosmesa6, then set MUJOCO_GL=osmesa"):
        mujoco_render.choose_backend({"MUJOCO_GL": "osmesa"})
    with pytest.raises(ImportError, match="MUJOCO_GL=glfw draws only on a screen: unset it"):
        mujoco_render.choose_backend({"MUJOCO_GL": "glfw"})


def test_what_is_told_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mujoco_render, "_missing", lambda backend: "")
    assert mujoco_render.choose_backend({}) == "egl"
    assert mujoco_render.choose_backend({"MUJOCO_GL": " OSMesa "}) == "osmesa"


def test_nothing_to_draw_with_is_not_a_missing_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mujoco_render, "_context", None)
    monkeypatch.setattr(mujoco_render, "_failure", "nothing to draw with (...): apt-get install libegl1")
    for task in TASKS[::2]:
        with pytest.raises(ImportError, match=r"^nothing to draw with") as caught:
            make(task, seed=0, options={})
        assert "pip" not in str(caught.value)


def in_a_process(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**inherited, **environ}
    )


def test_egl_without_a_driver_is_not_taken() -> None:
    code = "from mow.envs.mujoco_render import count_egl_devices; print(count_egl_devices())"
    assert in_a_process(code, __EGL_VENDOR_LIBRARY_DIRS="/nowhere").stdout == "0\n"
    assert int(in_a_process(code).stdout) > 0


def test_a_process_ends_in_silence_with_environments_open() -> None:
    code = """
from mow.envs import make
kept = [make(task, seed=0, options={}) for task in ("metaworld:reach-v3", "dmc:walker-walk")]
print([env.reset(seed=0)[0].shape for env in kept])
"""
    done = in_a_process(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[(64, 64, 3), (64, 64, 3)]\n", "")


@pytest.mark.skipif(not find_spec("triton"), reason="triton is not installed")
def test_triton_can_be_loaded_after_a_picture() -> None:
    """A process that draws with Mesa and loads Triton after it dies of a signal: we load it first."""
    done = in_a_process(
        "from mow.envs import make; make('dmc:walker-walk', seed=0, options={}).reset(); import torch, triton"
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_osmesa_draws_the_same(alone: dict[str, list[Frame]]) -> None:
    if not mujoco_render._loads("libOSMesa.so.8"):
        pytest.skip("no libOSMesa.so.8: apt-get install libosmesa6")
    code = "print(make('dmc:walker-walk', seed=0, options={}).reset(seed=1)[0].tobytes().hex())"
    done = in_a_process(f"from mow.envs import make; {code}", MUJOCO_GL="osmesa")
    frame = np.frombuffer(bytes.fromhex(done.stdout), np.uint8).reshape(64, 64, 3)
    # Both are Mesa's, but the surfaces have other formats: a shade of difference.
    assert np.abs(frame.astype(int) - alone["dmc:walker-walk"][0]).max() <= 2


@pytest.mark.parametrize("task", TASKS[::2])
def test_bad_options_are_refused(task: str) -> None:
    suite = task.split(":")[0]
    for options, says in (
        ({"render": "pretty"}, "unknown render 'pretty': expected 'light' or 'full'"),
        ({f"{suite}_repeat": 0}, f"{suite}_repeat counts steps, got 0"),
        ({"time_limit": 0}, "time_limit counts steps, got 0"),
    ):
        with pytest.raises(ValueError, match=says):
            make(task, seed=0, options=options)


def test_close_twice_does_no_harm() -> None:
    env = make("dmc:walker-walk", seed=0, options={})
    env.close()
    env.close()
