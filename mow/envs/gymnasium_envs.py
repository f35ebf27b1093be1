"""Any environment registered with gymnasium, seen as it draws itself: 64 x 64 RGB. Needs gymnasium and OpenCV."""

import os
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast

# Before pygame is loaded, with which most of these draw: no window, no greeting.
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

import cv2
import gymnasium
import numpy as np
from numpy.typing import NDArray

from mow.envs.base import FRAME_SHAPE, Action, Frame, TaskSpec

cv2.setNumThreads(0)  # the workers share the cores already

# Packages that register their environments when they are imported. Of others, name the package in the id, as gymnasium
# itself has it: "package:Id-v0".
_REGISTRARS = {"MiniGrid-": "minigrid", "BabyAI-": "minigrid", "ALE/": "ale_py", "dm_control/": "shimmy"}
_REMEDY = "pip install -e '.[gym]' (classic control), '.[minigrid]', '.[metaworld]' (MuJoCo), or what its page says"


class GymEnv:
    """One registered environment; what its `render` draws is the observation, whatever else it would observe.

    The picture is averaged down to 64 x 64 without regard to its proportions; `gymnasium_mujoco` draws those of MuJoCo
    at that size. Actions of a Box are scaled from [-1, 1] to its bounds. Time limits are those of the registration
    (gymnasium's TimeLimit, or the environment's own) and truncate; info["success"] or info["is_success"] is told on.
    Rewards are as they are.

    Its state is the seed and all actions since: going on replays them, which is exact for a simulator that repeats
    itself.

    Args:
        name: the id, "CartPole-v1", "package:Id-v0" or "Namespace/Id-v0".
        seed: of everything, until a reset brings another.
        render: of MuJoCo's, "light" or "full", see Renderer.
    Raises: ValueError if the id is unknown, its actions are no Discrete and no bounded Box, or it does not draw;
        ImportError if something that it needs is not installed.
    """

    def __init__(self, name: str, *, seed: int, render: object = "light") -> None:
        check(name)
        try:
            _check_modes(name)
            made: Any = gymnasium.make(_registered(name), render_mode="rgb_array", disable_env_checker=True)
            made.reset(seed=seed)
            is_mujoco = hasattr(made.unwrapped, "mujoco_renderer")
            drawn = "" if is_mujoco else "drawn {1}x{0}".format(*made.render().shape)
        except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
            why = _first_line(error)
            raise ImportError(f"task 'gym:{name}' cannot load its simulator ({why}): {_REMEDY}") from error
        except gymnasium.error.Error as error:
            raise ValueError(f"gym:{name} cannot be made: {_first_line(error)}") from error
        self._env = made
        self._renderer: Any = None
        if is_mujoco:
            self._renderer = import_module("mow.envs.gymnasium_mujoco").renderer_of(made.unwrapped, render)
        self._running = False
        self._seed: int | None = seed
        self._history: list[list[float] | int | None] = []  # actions since the seed; None for a reset without another
        self._low, self._high, self._first = _bounds(name, made.action_space)
        discrete = self._low is None
        num_actions = int(made.action_space.n) if discrete else int(np.prod(made.action_space.shape))
        self.task = TaskSpec(
            name=f"gym:{name}",
            discrete=discrete,
            num_actions=num_actions,
            legal=(True,) * num_actions,
            frame_skip=1,
            protocol=f"gymnasium, {drawn or f'{render} rendering'}",
        )

    def reset(self, *, seed: int | None = None) -> tuple[Frame, dict[str, object]]:
        """Open an episode: [64, 64, 3]. Without a seed the randomness of the episode before goes on."""
        if seed is None:
            self._history.append(None)
        else:
            self._seed, self._history = seed, []
        self._env.reset(seed=seed)
        self._running = True
        return self._picture(), {}

    def step(self, action: Action) -> tuple[Frame, float, bool, bool, dict[str, object]]:
        """One step of the environment. Raises: RuntimeError if no episode is running."""
        if not self._running:
            raise RuntimeError(f"{self.task.name}: no episode is running: call reset first")
        kept = int(action) if self.task.discrete else np.asarray(action, np.float32).tolist()
        self._history.append(kept)
        _, reward, terminated, truncated, info = self._env.step(self._native(kept))
        self._running = not (terminated or truncated)
        told: dict[str, object] = {}
        for key in ("success", "is_success"):
            if key in info:
                told["success"] = bool(info[key])
        # Both at once, which some answer in the last step allowed: the task ended by itself.
        return self._picture(), float(reward), bool(terminated), bool(truncated and not terminated), told

    def close(self) -> None:
        """Free the simulator."""
        if self._renderer is not None:
            self._renderer.close()
        self._env.close()

    def state_dict(self) -> dict[str, Any]:
        """See base.Resumable."""
        return {"seed": self._seed, "history": list(self._history), "running": self._running}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See base.Resumable."""
        self._seed, self._history, self._running = state["seed"], list(state["history"]), state["running"]
        self._env.reset(seed=self._seed)
        for kept in self._history:
            if kept is None:
                self._env.reset()
            else:
                self._env.step(self._native(kept))

    def _native(self, kept: list[float] | int) -> Any:
        if self._low is None or self._high is None:
            return self._first + int(kept)  # type: ignore[arg-type]  # a discrete action is kept as an int
        space = self._env.action_space
        share = (np.asarray(kept, np.float64).reshape(space.shape) + 1.0) / 2.0  # in [0, 1]
        return (self._low + share * (self._high - self._low)).astype(space.dtype)

    def _picture(self) -> Frame:
        if self._renderer is not None:
            return cast(Frame, self._renderer.draw(self._env.unwrapped.data))
        drawn = np.ascontiguousarray(self._env.render())  # [H, W, 3]
        return cast(Frame, cv2.resize(drawn, FRAME_SHAPE[:2], interpolation=cv2.INTER_AREA))


def check(name: str) -> None:
    """Raises: ValueError, naming the nearest ids, unless it is registered; ImportError if its package is missing."""
    package, colon, _ = name.rpartition(":")
    package = package if colon else next((found for start, found in _REGISTRARS.items() if name.startswith(start)), "")
    if not all(part.isidentifier() for part in package.split(".") if package):
        raise ValueError(f"unknown task 'gym:{name}': {package!r} is no package; write gym:package:Id-v0")
    if package not in ("", "ale_py", "minigrid"):
        _prepare_mujoco()
    if package:
        try:
            module = import_module(package)
        except ImportError as error:
            raise ImportError(f"task 'gym:{name}' needs the package {package} ({error}): {_REMEDY}") from error
        if package in ("ale_py", "shimmy"):
            gymnasium.register_envs(module)
    known = list(gymnasium.registry)
    if _registered(name) not in known:
        nearest = ", ".join(f"gym:{one}" for one in get_close_matches(_registered(name), known, n=3, cutoff=0.0))
        raise ValueError(f"unknown task 'gym:{name}', gymnasium knows {len(known)} ids and not this one: did you mean "
                         f"{nearest}? Of a package that is not imported, write gym:package:Id-v0")


def _prepare_mujoco() -> None:
    """MuJoCo draws with what `offscreen` finds here, if that is loaded before it."""
    if find_spec("mujoco") is not None:
        import_module("mow.envs.offscreen")


def _registered(name: str) -> str:
    """The id without the package that registers it."""
    return name.rpartition(":")[2]


def _check_modes(name: str) -> None:
    """Raises: ValueError if the environment says that it cannot draw; one made by a function says nothing here."""
    entry = gymnasium.spec(_registered(name)).entry_point
    if isinstance(entry, str) and "mujoco" in entry:
        _prepare_mujoco()
    creator = gymnasium.envs.registration.load_env_creator(entry) if isinstance(entry, str) else entry
    modes = getattr(creator, "metadata", {"render_modes": ["rgb_array"]}).get("render_modes", [])
    if "rgb_array" not in modes:
        raise ValueError(f"gym:{name} does not draw itself (render modes: {', '.join(modes) or 'none'}), and tasks are "
                         "learnt from pictures: choose another, or give it a render_mode rgb_array")


def _bounds(name: str, space: Any) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None, int]:
    """Lower and upper bounds of a Box, or two None and the first action of a Discrete. Raises: ValueError."""
    if isinstance(space, gymnasium.spaces.Discrete):
        return None, None, int(space.start)
    cannot = f"gym:{name} cannot be laid out beside other tasks: its actions are {space}"
    if not isinstance(space, gymnasium.spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        raise ValueError(f"{cannot}, expected Discrete or a Box of floats: wrap it")
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError(f"{cannot}, without finite bounds that [-1, 1] could be scaled to: wrap it with ClipAction")
    return low, high, 0


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def make(name: str, *, seed: int, render: object = "light") -> GymEnv:
    """The task "gym:<name>"."""
    return GymEnv(name, seed=seed, render=render)
