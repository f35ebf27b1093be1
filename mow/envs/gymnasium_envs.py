"""Any environment registered with gymnasium, with its own rendering as frames, 64 x 64 RGB, or with its observations as
states. Needs gymnasium, OpenCV."""

import os
from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast

import cv2
import gymnasium
import numpy as np
from numpy.typing import NDArray

from mow.envs.answers import flag_of, info_of, parts_of, picture_of, reward_of
from mow.envs.base import FRAME_SHAPE, Action, Frame, Observation, TaskSpec

# Packages that register their environments when they are imported. Of others, name the package in the id, as gymnasium
# itself has it: "package:Id-v0".
_REGISTRARS = {"MiniGrid-": "minigrid", "BabyAI-": "minigrid", "ALE/": "ale_py", "dm_control/": "shimmy"}
_REMEDY = "pip install -e '.[gym]' (classic control), '.[minigrid]', '.[metaworld]' (MuJoCo), or as on its page"


class GymEnv:
    """One registered environment, observed by what its `render` draws, whatever else it would observe, or by its own
    observation: a 1-D Box, or a Dict of Boxes, joined in the order of its keys. Nothing is drawn then.

    The picture, of uint8 or floats in [0, 1], with alpha or without, is averaged down to 64 x 64 without regard to its
    proportions; `mujoco_gymnasium` draws those of MuJoCo at that size. Actions of a Box are scaled from [-1, 1] to its
    bounds. Time limits are those of the registration and truncate; info["success"] or info["is_success"] is the
    "success" of a step. Rewards are as they are.

    Args:
        name: the id, "CartPole-v1", "package:Id-v0" or "Namespace/Id-v0".
        seed: of everything, until a reset brings another.
        obs: "frame" or "state".
        render: of MuJoCo's, "light" or "full", see Renderer.
    Raises: ValueError if the id is unknown, its actions are no Discrete and no bounded Box, it does not draw, or has no
        such observation; ImportError if something that it needs is not installed.
    """

    def __init__(self, name: str, *, seed: int, obs: object = "frame", render: object = "light") -> None:
        check(name)
        cv2.setNumThreads(0)  # the workers share the cores already
        self._renderer: Any = None
        try:
            if obs == "frame":
                _check_modes(name)
            mode = "rgb_array" if obs == "frame" else None
            self._env: Any = gymnasium.make(_registered(name), render_mode=mode, disable_env_checker=True)
            self.task = self._prepare(f"gym:{name}", seed, obs, render)
        except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
            raise ImportError(f"task 'gym:{name}' cannot load its simulator ({error}): {_REMEDY}") from error
        except gymnasium.error.Error as error:
            raise ValueError(f"gym:{name} cannot be made: {error}") from error

    def _prepare(self, name: str, seed: int, obs: object, render: object) -> TaskSpec:
        """Draw once and look at the actions."""
        env = self._env
        self._running = False
        env.reset(seed=seed)
        size, words = (_size(name, env.observation_space), "states") if obs == "state" else (None, "")
        if size is None and hasattr(env.unwrapped, "mujoco_renderer"):
            self._renderer = import_module("mow.envs.mujoco_gymnasium").renderer_of(env.unwrapped, render)
            words = f"{render} rendering"
        elif size is None:
            height, width, _ = picture_of(name, env.render()).shape
            words = f"drawn {width}x{height}"
        self._bounds = _bounds(name, env.action_space)
        num_actions = int(env.action_space.n) if self._bounds is None else int(np.prod(env.action_space.shape))
        return TaskSpec(name, self._bounds is None, num_actions, (True,) * num_actions, frame_skip=1,
                        protocol=f"gymnasium, {words}", state_size=size)  # fmt: skip

    def reset(self, *, seed: int | None = None) -> tuple[Observation, dict[str, object]]:
        """Open an episode: frame [64, 64, 3], or state. Without a seed the randomness of the episode before goes on."""
        answer = self._env.reset(seed=seed)
        self._running = True
        if self.task.state_size is None:
            return self._picture(), {}
        return self._state(parts_of(self.task.name, answer, ("observation", "info"))[0]), {}

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, object]]:
        """One step of the environment. Raises: RuntimeError if no episode is running; ValueError if its answer cannot
        be used."""
        name, parts = self.task.name, ("observation", "reward", "terminated", "truncated", "info")
        if not self._running:
            raise RuntimeError(f"{name}: no episode is running: call reset first")
        own, reward, ended, cut, info = parts_of(name, self._env.step(self._native(action)), parts)
        terminated = flag_of(name, ended, "terminated")
        # Both at once, which some answer in the last step allowed: the task ended by itself.
        truncated = flag_of(name, cut, "truncated") and not terminated
        self._running = not (terminated or truncated)
        used = [*info_of(name, info, ("success", "is_success")).values()]
        success: dict[str, object] = {"success": used[-1]} if used else {}
        observation = self._picture() if self.task.state_size is None else self._state(own)
        return observation, reward_of(name, reward), terminated, truncated, success

    def close(self) -> None:
        """Free the simulator."""
        if self._renderer is not None:
            self._renderer.close()
        self._env.close()

    def _native(self, action: Action) -> Any:
        space = self._env.action_space
        if self._bounds is None:
            return space.start + action
        low, high = self._bounds
        share = (np.asarray(action, np.float64).reshape(space.shape) + 1.0) / 2.0  # in [0, 1]
        return (low + share * (high - low)).astype(space.dtype)

    def _state(self, own: Any) -> Observation:
        return np.array(gymnasium.spaces.flatten(self._env.observation_space, own), np.float32)

    def _picture(self) -> Frame:
        if self._renderer is not None:
            return cast(Frame, self._renderer.draw(self._env.unwrapped.data))
        drawn = picture_of(self.task.name, self._env.render())  # [H, W, 3]
        return cast(Frame, cv2.resize(drawn, FRAME_SHAPE[:2], interpolation=cv2.INTER_AREA))


def check(name: str) -> None:
    """Import the package that registers an id.

    Raises: ValueError if it is not registered; ImportError if its package is missing.
    """
    # Before pygame is loaded, with which most of these draw: no window, no greeting.
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    package, colon, _ = name.rpartition(":")
    package = package if colon else next((found for start, found in _REGISTRARS.items() if name.startswith(start)), "")
    if package not in ("", "ale_py", "minigrid"):
        _prepare_mujoco()
    if package:
        try:
            module = import_module(package)
        except ImportError as error:
            raise ImportError(f"task 'gym:{name}' needs the package {package} ({error}): {_REMEDY}") from error
        except (Exception, SystemExit) as error:  # whatever a package does when it is imported
            why = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            raise ValueError(f"task 'gym:{name}': its package {package} fails when it is imported ({why})") from error
        if package in ("ale_py", "shimmy"):
            gymnasium.register_envs(module)
    try:
        gymnasium.spec(_registered(name))
    except gymnasium.error.Error as error:
        raise ValueError(f"unknown task 'gym:{name}' ({error}): of another package, write gym:package:Id-v0") from error


def _prepare_mujoco() -> None:
    """MuJoCo draws with what `mujoco_render` finds here, if that is prepared before it is loaded."""
    if find_spec("mujoco") is not None:
        import_module("mow.envs.mujoco_render").prepare()


def _registered(name: str) -> str:
    """The id without the package that registers it."""
    return name.rpartition(":")[2]


def _check_modes(name: str) -> None:
    """Raises: ValueError if the environment declares that it cannot draw; one made by a function declares nothing."""
    entry = gymnasium.spec(_registered(name)).entry_point
    if isinstance(entry, str) and "mujoco" in entry:
        _prepare_mujoco()
    creator = gymnasium.envs.registration.load_env_creator(entry) if isinstance(entry, str) else entry
    modes = getattr(creator, "metadata", {"render_modes": ["rgb_array"]}).get("render_modes", [])
    if "rgb_array" not in modes:
        raise ValueError(f"gym:{name} does not draw itself (render modes: {', '.join(modes) or 'none'}), and tasks are "
                         "learnt from pictures: choose another, or give it a render_mode rgb_array")


def _size(name: str, space: Any) -> int:
    """Numbers of a state. Raises: ValueError."""
    boxes = [*space.spaces.values()] if isinstance(space, gymnasium.spaces.Dict) else [space]
    if not all(isinstance(box, gymnasium.spaces.Box) for box in boxes) or (boxes == [space] and len(space.shape) != 1):
        raise ValueError(f"{name} has no state: its observations are {space}, expected a 1-D Box or a Dict of Boxes: "
                         "wrap it, or leave env.obs state out")
    return int(gymnasium.spaces.flatdim(space))


def _bounds(name: str, space: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Lower and upper bounds of a Box; None of a Discrete. Raises: ValueError."""
    if isinstance(space, gymnasium.spaces.Discrete):
        return None
    bounded = isinstance(space, gymnasium.spaces.Box) and np.isfinite(space.low).all() and np.isfinite(space.high).all()
    if not bounded or not np.issubdtype(space.dtype, np.floating):
        raise ValueError(f"{name} cannot be laid out beside other tasks: its actions are {space}, expected Discrete or "
                         "a Box of floats with finite bounds: wrap it")
    return space.low.astype(np.float64), space.high.astype(np.float64)


make = GymEnv
