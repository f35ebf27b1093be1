"""Base class of the robot suites: one task of a MuJoCo simulator, seen through a camera and acted on in [-1, 1]^n."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, get_args

import mujoco
import numpy as np
from numpy.typing import NDArray

from mow.envs.base import Action, Frame, TaskSpec
from mow.envs.mujoco_render import Render, Renderer

# All that the simulator computes the future from, and what episodes change in models: goals, obstacles, terrain.
_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
_MODEL = ("body_pos", "body_quat", "site_pos", "geom_pos", "light_pos", "hfield_data", "wrap_prm", "dof_damping")


class RobotEnv(ABC):
    """One task. An action is held for `task.frame_skip` steps of the simulator, whose rewards are added up; an episode
    never ends by itself, a time limit cuts it.

    Args:
        task: name, actions and protocol.
        model, data: mujoco.MjModel and mujoco.MjData of the simulator, the same for its whole life.
        camera: number of the camera that is looked through.
        render: "light" or "full", see Renderer.
        horizon: steps of the simulator after which an episode is truncated.
        time_limit: agent steps after which it is truncated; None: the horizon alone.
        grain: of what is drawn light, see Renderer.
    Raises: ValueError if an option is none of these; ImportError if this machine cannot draw.
    """

    def __init__(
        self,
        task: TaskSpec,
        model: Any,
        data: Any,
        *,
        camera: int,
        render: object,
        horizon: int,
        time_limit: object,
        grain: float = 0.0,
    ) -> None:
        if time_limit is not None and (not isinstance(time_limit, int) or time_limit < 1):
            raise ValueError(f"time_limit counts agent steps, got {time_limit!r}: expected None or an int >= 1")
        self.task = task
        self._model, self._data = model, data
        self._renderer = Renderer(model, camera, checked_render(render), grain)
        self._horizon = horizon if time_limit is None else min(horizon, time_limit * task.frame_skip)
        self._num_steps = 0  # of the simulator
        self._running = False

    def reset(self, *, seed: int | None = None) -> tuple[Frame, dict[str, object]]:
        """Open an episode: [64, 64, 3]. Without a seed the randomness of the episode before goes on."""
        if seed is not None:
            self._seed(seed)
        self._begin()
        if self._model.nhfield:
            self._renderer.renew_terrain()
        self._num_steps, self._running = 0, True
        return self._draw(), {}

    def step(self, action: Action) -> tuple[Frame, float, bool, bool, dict[str, object]]:
        """Hold one action [n]. Raises: ValueError if it is not in [-1, 1]^n; RuntimeError if the episode is over."""
        command = np.asarray(action, np.float64)  # [n]
        if command.shape != (self.task.num_actions,) or not (np.abs(command) <= 1.0).all():
            raise ValueError(
                f"{self.task.name}: got {action}, expected {self.task.num_actions} entries in [-1, 1]: clip it"
            )
        if not self._running:
            raise RuntimeError(f"{self.task.name}: no episode is running: call reset first")
        total, success = 0.0, None
        for _ in range(min(self.task.frame_skip, self._horizon - self._num_steps)):
            reward, reached = self._advance(command)
            self._num_steps += 1
            total += reward
            if reached is not None:
                success = bool(success) or reached
        self._running = self._num_steps < self._horizon
        return self._draw(), total, False, not self._running, {} if success is None else {"success": success}

    def close(self) -> None:
        """Free what drawing takes; more than once does no harm."""
        self._renderer.close()

    def state_dict(self) -> dict[str, Any]:
        """See base.Resumable."""
        physics = np.empty(mujoco.mj_stateSize(self._model, _STATE))
        mujoco.mj_getState(self._model, self._data, physics, _STATE)
        return {
            "num_steps": self._num_steps,
            "running": self._running,
            "physics": physics.tolist(),
            "model": {name: getattr(self._model, name).ravel().tolist() for name in _MODEL},
            "own": self._own_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See base.Resumable."""
        self._num_steps, self._running = state["num_steps"], state["running"]
        for name, values in state["model"].items():
            array = getattr(self._model, name)
            array[:] = np.reshape(values, array.shape)
        physics = np.array(state["physics"])
        mujoco.mj_setState(self._model, self._data, physics, _STATE)
        mujoco.mj_forward(self._model, self._data)  # all that follows from the state
        # Once more: what the solver is to start from has moved on.
        mujoco.mj_setState(self._model, self._data, physics, _STATE)
        self._load_own_state(state["own"])
        if self._model.nhfield:
            self._renderer.renew_terrain()

    def _draw(self) -> Frame:
        return self._renderer.draw(self._data)

    @abstractmethod
    def _seed(self, seed: int) -> None:
        """Begin the randomness of the task anew."""

    @abstractmethod
    def _begin(self) -> None:
        """Open an episode in the simulator."""

    @abstractmethod
    def _advance(self, command: NDArray[np.float64]) -> tuple[float, bool | None]:
        """One step of the simulator: reward, and success or None where the suite has none.

        Args: command: [n] in [-1, 1].
        """

    @abstractmethod
    def _own_state(self) -> dict[str, Any]:
        """State of the simulator outside of MuJoCo, as JSON has it."""

    @abstractmethod
    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        """Go on from _own_state(), with MuJoCo already there."""


def checked_render(render: object) -> Render:
    """Raises: ValueError unless "light" or "full"."""
    for known in get_args(Render):
        if render == known:
            return known
    raise ValueError(f"unknown render {render!r}: expected {' or '.join(map(repr, get_args(Render)))}")


def checked_repeat(repeat: object, option: str) -> int:
    """Raises: ValueError unless a count."""
    if not isinstance(repeat, int) or repeat < 1:
        raise ValueError(f"{option} counts steps of the simulator per action, got {repeat!r}: expected an int >= 1")
    return repeat
