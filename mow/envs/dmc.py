"""The DeepMind Control Suite from pixels. Needs dm_control and what MuJoCo draws with."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from dm_control import suite
from numpy.typing import NDArray

from mow.envs.base import TaskSpec
from mow.envs.mujoco_env import RobotEnv, checked_repeat

HORIZON = 1000  # steps of the simulator, of whatever length, in all tasks
_CAMERAS = {"quadruped": 2}  # of a domain; 0 of all others


class _Numpy:
    """numpy with in1d, which dm_control 1.0.28 calls (quadruped) and numpy 2.4 dropped."""

    in1d = staticmethod(np.isin)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


class ControlEnv(RobotEnv):
    """One task. Rewards lie in [0, 1] per step of the simulator; an episode never ends by itself.

    Args:
        name: "domain-task", as "walker-walk".
        seed: of starts and targets, until a reset brings another.
        render: "light" or "full", see Renderer; "full" is to the pixel what dm_control draws.
        repeat: steps of the simulator per action.
        time_limit: agent steps after which an episode is truncated; None: after 1000 steps of the simulator.
    Raises: ValueError if an option has none of these values; ImportError if this machine cannot draw.
    Source: Tunyasuvunakool et al. 2020; cameras and an action repeat of 2 as DreamerV3 (Hafner et al. 2023).
    """

    def __init__(
        self, name: str, *, seed: int, render: object = "light", repeat: object = 2, time_limit: object = None
    ) -> None:
        skip = checked_repeat(repeat, "dmc_repeat")
        domain, task = name.split("-")
        if domain == "quadruped" and not hasattr(np, "in1d"):
            suite.quadruped.np = _Numpy()
        self._sim: Any = suite.load(domain, task, task_kwargs={"random": seed})
        bounds = self._sim.action_spec()
        self._middle = (bounds.maximum + bounds.minimum) / 2  # [n], as are the next
        self._reach = (bounds.maximum - bounds.minimum) / 2
        num_actions = bounds.shape[0]
        spec = TaskSpec(
            name=f"dmc:{name}",
            discrete=False,
            num_actions=num_actions,
            legal=(True,) * num_actions,
            frame_skip=skip,
            protocol=f"action repeat {skip}, {render} rendering",
        )
        physics, camera = self._sim.physics, _CAMERAS.get(domain, 0)
        super().__init__(
            spec,
            physics.model.ptr,
            physics.data.ptr,
            camera=camera,
            render=render,
            horizon=HORIZON,
            time_limit=time_limit,
        )

    def _seed(self, seed: int) -> None:
        self._sim.task.random.seed(seed)

    def _begin(self) -> None:
        self._sim.reset()

    def _advance(self, command: NDArray[np.float64]) -> tuple[float, None]:
        step = self._sim.step(self._middle + self._reach * command)
        return float(step.reward), None

    def _own_state(self) -> dict[str, Any]:
        kind, keys, *rest = self._sim.task.random.get_state()
        return {"step_count": self._sim._step_count, "rng": [kind, keys.tolist(), *rest]}

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        self._sim._step_count, self._sim._reset_next_step = state["step_count"], False
        self._sim.task.random.set_state(tuple(state["rng"]))


def make(
    name: str, *, seed: int, render: object = "light", dmc_repeat: object = 2, time_limit: object = None
) -> ControlEnv:
    """The task "dmc:<name>"."""
    return ControlEnv(name, seed=seed, render=render, repeat=dmc_repeat, time_limit=time_limit)
