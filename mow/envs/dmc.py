"""The DeepMind Control Suite. Needs dm_control and, for frames, what MuJoCo draws with.

A state holds the values of the task's observation in their own order, each flattened.
"""

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from dm_control import suite
from numpy.typing import NDArray

from mow.envs.mujoco_env import RobotEnv

HORIZON = 1000  # steps of the simulator, of whatever length, in all tasks
_CAMERAS = {"quadruped": 2}  # of a domain; 0 of all others


class ControlEnv(RobotEnv):
    """One task. Rewards lie in [0, 1] per step of the simulator; an episode never ends by itself.

    Args:
        name: "domain-task", as "walker-walk".
        seed: of starts and targets, until a reset brings another.
        obs: "frame" or "state".
        render: "light" or "full", see Renderer; "full" is to the pixel what dm_control draws.
        dmc_repeat: steps of the simulator per action.
        time_limit: agent steps after which an episode is truncated; None: after 1000 steps of the simulator.
    Raises: ValueError if an option has none of these values; ImportError if this machine cannot draw.
    Source: Tunyasuvunakool et al. 2020; cameras and an action repeat of 2 as DreamerV3 (Hafner et al. 2023).
    """

    def __init__(
        self, name: str, *, seed: int, obs: object = "frame", render: object = "light", dmc_repeat: object = 2,
        time_limit: object = None,
    ) -> None:  # fmt: skip
        domain, task = name.split("-")
        if domain == "quadruped" and not hasattr(np, "in1d"):  # dm_control 1.0.28 calls it, and numpy 2.4 dropped it
            suite.quadruped.np = SimpleNamespace(**vars(np), in1d=np.isin)
        self._sim: Any = suite.load(domain, task, task_kwargs={"random": seed})
        bounds = self._sim.action_spec()
        self._middle = (bounds.maximum + bounds.minimum) / 2  # [n], as are the next
        self._reach = (bounds.maximum - bounds.minimum) / 2
        self._seen: Mapping[str, Any] = {}  # the newest observation
        size = sum(int(np.prod(part.shape)) for part in self._sim.observation_spec().values())
        physics = self._sim.physics
        super().__init__(
            f"dmc:{name}", physics.model.ptr, physics.data.ptr, num_actions=bounds.shape[0],
            state_size=size if obs == "state" else None, camera=_CAMERAS.get(domain, 0), render=render,
            repeat=dmc_repeat, horizon=HORIZON, time_limit=time_limit,
        )  # fmt: skip

    def _seed(self, seed: int) -> None:
        self._sim.task.random.seed(seed)

    def _begin(self) -> None:
        self._seen = self._sim.reset().observation

    def _advance(self, command: NDArray[np.float64]) -> tuple[float, None]:
        step = self._sim.step(self._middle + self._reach * command)
        self._seen = step.observation
        return float(step.reward), None

    def _parts(self) -> Iterable[Any]:
        return self._seen.values()


make = ControlEnv
