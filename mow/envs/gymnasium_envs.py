"""Any environment registered with gymnasium, seen as it draws itself: 64 x 64 RGB. Needs gymnasium and OpenCV."""

import os
import zlib
from collections.abc import Mapping
from contextlib import suppress
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast

import cv2
import gymnasium
import numpy as np
from numpy.typing import NDArray

from mow.envs.answers import flag_of, info_of, parts_of, picture_of, reward_of
from mow.envs.base import FRAME_SHAPE, Action, Frame, TaskSpec
from mow.envs.heartbeat import beat

# Packages that register their environments when they are imported. Of others, name the package in the id, as gymnasium
# itself has it: "package:Id-v0".
_REGISTRARS = {"MiniGrid-": "minigrid", "BabyAI-": "minigrid", "ALE/": "ale_py", "dm_control/": "shimmy"}
_REMEDY = "pip install -e '.[gym]' (classic control), '.[minigrid]', '.[metaworld]' (MuJoCo), or as on its page"


class GymEnv:
    """One registered environment; what its `render` draws is the observation, whatever else it would observe.

    The picture is averaged down to 64 x 64 without regard to its proportions; `mujoco_gymnasium` draws those of MuJoCo
    at that size. It may be of uint8 or of floats in [0, 1], with alpha or without. Actions of a Box are scaled from
    [-1, 1] to its bounds. Time limits are those of the registration (gymnasium's TimeLimit, or the environment's own)
    and truncate; info["success"] or info["is_success"] is the "success" of a step. Rewards are as they are.

    Its state is the seed of the episode and the actions since; going on replays them, which is exact for a simulator
    that repeats itself. Every episode has a seed of its own, so that the state does not grow with the run.

    Args:
        name: the id, "CartPole-v1", "package:Id-v0" or "Namespace/Id-v0".
        seed: of everything, until a reset brings another.
        render: of MuJoCo's, "light" or "full", see Renderer.
    Raises: ValueError if the id is unknown, its actions are no Discrete and no bounded Box, or it does not draw;
        ImportError if something that it needs is not installed.
    """

    def __init__(self, name: str, *, seed: int, render: object = "light") -> None:
        check(name)
        cv2.setNumThreads(0)  # the workers share the cores already
        try:
            _check_modes(name)
            made: Any = gymnasium.make(_registered(name), render_mode="rgb_array", disable_env_checker=True)
        except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
            raise _missing(name, error) from error
        except gymnasium.error.Error as error:
            raise ValueError(f"gym:{name} cannot be made: {_first_line(error)}") from error
        self._env, self._renderer = made, None
        try:
            self.task = self._prepare(f"gym:{name}", seed, render)
        except BaseException:
            with suppress(Exception):  # the first error is more useful
                self.close()
            raise

    def _prepare(self, name: str, seed: int, render: object) -> TaskSpec:
        """Draw once and look at the actions."""
        env = self._env
        self._rng = np.random.default_rng(seed)  # of the seeds of episodes that are given none
        self._seed, self._history = seed, list[list[float] | int]()  # of the episode: its seed, the actions since
        self._total, self._shown = 0.0, 0  # of the episode: rewards, checksum of the last picture
        self._running = False
        try:
            env.reset(seed=seed)
            is_mujoco = hasattr(env.unwrapped, "mujoco_renderer")
            height, width, _ = FRAME_SHAPE if is_mujoco else picture_of(name, env.render()).shape
        except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
            raise _missing(name.removeprefix("gym:"), error) from error
        if is_mujoco:
            self._renderer = import_module("mow.envs.mujoco_gymnasium").renderer_of(env.unwrapped, render)
        self._low, self._high, self._first = _bounds(name, env.action_space)
        discrete = self._low is None
        num_actions = int(env.action_space.n) if discrete else int(np.prod(env.action_space.shape))
        return TaskSpec(
            name=name,
            discrete=discrete,
            num_actions=num_actions,
            legal=(True,) * num_actions,
            frame_skip=1,
            protocol=f"gymnasium, {f'{render} rendering' if is_mujoco else f'drawn {width}x{height}'}",
        )

    def reset(self, *, seed: int | None = None) -> tuple[Frame, dict[str, object]]:
        """Open an episode: [64, 64, 3]. Without a seed it is drawn from the randomness of the construction."""
        return self._open(int(self._rng.integers(2**31)) if seed is None else seed), {}

    def step(self, action: Action) -> tuple[Frame, float, bool, bool, dict[str, object]]:
        """One step of the environment. Raises: RuntimeError if no episode is running; ValueError if its answer cannot
        be used."""
        if not self._running:
            raise RuntimeError(f"{self.task.name}: no episode is running: call reset first")
        name = self.task.name
        kept = int(action) if self.task.discrete else np.asarray(action, np.float32).tolist()
        self._history.append(kept)
        answer = self._env.step(self._native(kept))
        _, reward, ended, cut, info = parts_of(
            name, answer, ("observation", "reward", "terminated", "truncated", "info")
        )
        reward, terminated = reward_of(name, reward), flag_of(name, ended, "terminated")
        # Both at once, which some answer in the last step allowed: the task ended by itself.
        truncated = flag_of(name, cut, "truncated") and not terminated
        self._running, self._total = not (terminated or truncated), self._total + reward
        used = [*info_of(name, info, ("success", "is_success")).values()]
        return self._picture(), reward, terminated, truncated, {"success": used[-1]} if used else {}

    def close(self) -> None:
        """Free the simulator."""
        if self._renderer is not None:
            self._renderer.close()
        self._env.close()

    def state_dict(self) -> dict[str, Any]:
        """See base.Resumable."""
        return {
            "seed": self._seed,
            "history": list(self._history),
            "running": self._running,
            "total": self._total,
            "shown": self._shown,
            "rng": self._rng.bit_generator.state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See base.Resumable. Raises: ValueError if the same actions lead elsewhere; whatever the simulator raises."""
        self._open(state["seed"])
        for kept in state["history"]:
            beat()
            if not self._running:
                break
            self.step(kept if self.task.discrete else np.array(kept, np.float32))
        here = (len(self._history), self._running, self._total, self._shown)
        if here != (len(state["history"]), state["running"], state["total"], state["shown"]):
            raise ValueError(f"{self.task.name}: the same seed and actions did not lead to the same picture again")
        self._rng.bit_generator.state = state["rng"]

    def _open(self, seed: int) -> Frame:
        self._env.reset(seed=seed)
        self._seed, self._history, self._total, self._running = seed, [], 0.0, True
        return self._picture()

    def _native(self, kept: list[float] | int) -> Any:
        if self._low is None or self._high is None:
            return self._first + int(kept)  # type: ignore[arg-type]  # a discrete action is kept as an int
        space = self._env.action_space
        share = (np.asarray(kept, np.float64).reshape(space.shape) + 1.0) / 2.0  # in [0, 1]
        return (self._low + share * (self._high - self._low)).astype(space.dtype)

    def _picture(self) -> Frame:
        if self._renderer is not None:
            frame = self._renderer.draw(self._env.unwrapped.data)
        else:
            drawn = picture_of(self.task.name, self._env.render())  # [H, W, 3]
            frame = cv2.resize(drawn, FRAME_SHAPE[:2], interpolation=cv2.INTER_AREA)
        self._shown = zlib.crc32(frame.tobytes())
        return cast(Frame, frame)


def check(name: str) -> None:
    """Raises: ValueError, naming the nearest ids, unless it is registered, or if its package fails when it is imported;
    ImportError if it is missing."""
    # Before pygame is loaded, with which most of these draw: no window, no greeting.
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
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
        except (Exception, SystemExit) as error:
            why = f"{type(error).__name__}: {_first_line(error)}"
            raise ValueError(f"task 'gym:{name}': its package {package} fails when it is imported ({why})") from error
        if package in ("ale_py", "shimmy"):
            gymnasium.register_envs(module)
    known = list(gymnasium.registry)
    if _registered(name) not in known:
        nearest = ", ".join(f"gym:{one}" for one in get_close_matches(_registered(name), known, n=3, cutoff=0.0))
        raise ValueError(f"unknown task 'gym:{name}', it is none of the {len(known)} ids of gymnasium: did you mean "
                         f"{nearest}? Of a package that is not imported, write gym:package:Id-v0")


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


def _bounds(name: str, space: Any) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None, int]:
    """Lower and upper bounds of a Box, or two None and the first action of a Discrete. Raises: ValueError."""
    if isinstance(space, gymnasium.spaces.Discrete):
        return None, None, int(space.start)
    cannot = f"{name} cannot be laid out beside other tasks: its actions are {space}"
    if not isinstance(space, gymnasium.spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        raise ValueError(f"{cannot}, expected Discrete or a Box of floats: wrap it")
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError(f"{cannot}, without finite bounds that [-1, 1] could be scaled to: wrap it with ClipAction")
    return low, high, 0


def _missing(name: str, error: BaseException) -> ImportError:
    return ImportError(f"task 'gym:{name}' cannot load its simulator ({_first_line(error)}): {_REMEDY}")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def make(name: str, *, seed: int, render: object = "light") -> GymEnv:
    """The task "gym:<name>"."""
    return GymEnv(name, seed=seed, render=render)
