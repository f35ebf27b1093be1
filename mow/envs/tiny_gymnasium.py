"""Tasks as gymnasium environments, for agents that are not of this package. Needs gymnasium."""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from mow.envs import make
from mow.envs.base import FRAME_SHAPE, Action, Frame


class GymnasiumEnv(gymnasium.Env[Frame, Action | np.integer]):
    """One task, of any suite. Its discrete actions are the legal ones, counted from 0.

    All randomness comes from gymnasium's generator: a reset with a seed repeats its episodes, the first without one
    takes a seed from the operating system.

    Args:
        task: "suite:Task".
        options: of its suite, see mow.envs.suites.
    Raises: ValueError if the task is unknown; ImportError if its simulator is not installed.
    """

    def __init__(self, task: str, options: Mapping[str, object] | None = None) -> None:
        self._env = make(task, seed=0, options=options or {})
        self._legal = np.flatnonzero(self._env.task.legal)  # [num legal]
        self.observation_space = gymnasium.spaces.Box(0, 255, FRAME_SHAPE, np.uint8)
        box = gymnasium.spaces.Box(-1.0, 1.0, (self._env.task.num_actions,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(len(self._legal)) if self._env.task.discrete else box

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Frame, dict[str, object]]:
        """Open an episode: [64, 64, 3]. Raises: ValueError if given options: there are none."""
        if options:
            raise ValueError(f"a reset takes no options, got {options}: leave them out")
        super().reset(seed=seed)
        frame, info = self._env.reset(seed=int(self.np_random.integers(2**31)))
        return frame, dict(info)

    def step(self, action: Action | np.integer) -> tuple[Frame, float, bool, bool, dict[str, object]]:
        """One action of action_space. Raises: ValueError if it is none of them; RuntimeError if the episode is over."""
        if isinstance(self.action_space, gymnasium.spaces.Discrete):
            # The index goes through a table here, so that the task cannot see when it is wrong.
            if not self.action_space.contains(action):
                raise ValueError(f"got action {action}, expected one of {self.action_space}: take it from action_space")
            native: Action = int(self._legal[int(action)])
        else:
            native = np.asarray(action, np.float32)  # [n]
        frame, reward, terminated, truncated, info = self._env.step(native)
        return frame, reward, terminated, truncated, dict(info)

    def __str__(self) -> str:
        return f"<GymnasiumEnv {self._env.task.name}>"

    def close(self) -> None:
        """Free the task."""
        self._env.close()
