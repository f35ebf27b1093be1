"""Base class of the robot suites: one task of a MuJoCo simulator, observed through a camera or by its state, and acted
on in [-1, 1]^n."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mow.envs.base import Action, Frame, Observation, TaskSpec
from mow.envs.mujoco_render import Renderer


class RobotEnv(ABC):
    """One task. An action is held for some steps of the simulator, whose rewards are added up; an episode never ends by
    itself, a time limit cuts it.

    Args:
        name: "suite:Task".
        model, data: mujoco.MjModel and mujoco.MjData of the simulator, the same objects throughout.
        num_actions: n.
        state_size: numbers of a state, in place of frames; None: frames. Nothing is drawn for states.
        camera: number of the camera.
        render: "light" or "full", see Renderer.
        repeat: steps of the simulator per action.
        horizon: steps of the simulator after which an episode is truncated.
        time_limit: agent steps after which it is truncated; None: the horizon alone.
        protocol: beginning of TaskSpec.protocol.
        grain: detail of the light rendering, see Renderer.
    Raises: ValueError if an option is none of these; ImportError if this machine cannot draw.
    """

    def __init__(
        self, name: str, model: Any, data: Any, *, num_actions: int, state_size: int | None, camera: int,
        render: object, repeat: object, horizon: int, time_limit: object, protocol: str = "", grain: float = 0.0,
    ) -> None:  # fmt: skip
        suite = name.partition(":")[0]
        for option, value in ((f"{suite}_repeat", repeat), ("time_limit", time_limit)):
            if not ((isinstance(value, int) and value >= 1) or (option == "time_limit" and value is None)):
                raise ValueError(f"{option} counts steps, got {value!r}: expected an int >= 1")
        assert isinstance(repeat, int)
        self.task = TaskSpec(
            name, False, num_actions, (True,) * num_actions, repeat,
            f"{protocol}action repeat {repeat}, {'states' if state_size else f'{render} rendering'}", state_size,
        )  # fmt: skip
        self._model, self._data = model, data
        self._renderer = None if state_size else Renderer(model, camera, render, grain)
        self._horizon = min(horizon, time_limit * repeat) if isinstance(time_limit, int) else horizon
        self._num_steps = 0  # of the simulator
        self._running = False

    def reset(self, *, seed: int | None = None) -> tuple[Observation, dict[str, object]]:
        """Open an episode: frame [64, 64, 3], or state. Without a seed the randomness of the episode before goes on."""
        if seed is not None:
            self._seed(seed)
        self._begin()
        if self._renderer is not None and self._model.nhfield:
            self._renderer.renew_terrain()
        self._num_steps, self._running = 0, True
        return self._observation(), {}

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, object]]:
        """Hold one action [n]. Raises: ValueError if it is not in [-1, 1]^n; RuntimeError if the episode is over."""
        name, command = self.task.name, np.asarray(action, np.float64)  # [n]
        if command.shape != (self.task.num_actions,) or not (np.abs(command) <= 1.0).all():
            raise ValueError(f"{name}: got {action}, expected {self.task.num_actions} entries in [-1, 1]: clip it")
        if not self._running:
            raise RuntimeError(f"{name}: no episode is running: call reset first")
        total, info = 0.0, dict[str, object]()
        for _ in range(min(self.task.frame_skip, self._horizon - self._num_steps)):
            reward, success = self._advance(command)
            self._num_steps += 1
            total += reward
            if success is not None:
                info["success"] = success or info.get("success", False)
        self._running = self._num_steps < self._horizon
        return self._observation(), total, False, not self._running, info

    def close(self) -> None:
        """Free what drawing takes; more than once does no harm."""
        if self._renderer is not None:
            self._renderer.close()

    def _observation(self) -> Observation:
        if self._renderer is None:
            return np.concatenate([np.ravel(part) for part in self._parts()]).astype(np.float32)
        return self._draw()

    def _draw(self) -> Frame:
        assert self._renderer is not None
        return self._renderer.draw(self._data)

    @abstractmethod
    def _parts(self) -> Iterable[Any]:
        """The numbers of the state, in their order."""

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
