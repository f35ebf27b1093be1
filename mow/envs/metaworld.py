"""Meta-World's 50 tasks of one robot arm. Needs metaworld 3 and, for frames, what MuJoCo draws with.

The picture is that of the camera in front of the arm, above the table, which papers get by moving corner2 to
(0.75, 0.075, 0.7) and which version 3 has as corner4. Goals and objects are placed anew in every episode. An episode
lasts 500 steps and never ends by itself; success is measured at every step, and one success
counts for the episode.

A state is the simulator's own [39]: hand 3, fingers 1, two objects of 7 each, the same 18 of the step before, goal 3.
"""

from typing import Any

import metaworld  # noqa: F401
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from numpy.typing import NDArray

from mow.envs.base import Frame
from mow.envs.mujoco_env import RobotEnv

HORIZON = 500  # steps of the simulator
CAMERA = "corner4"
GRAIN = 0.006  # m; a third of a pixel one metre away, and the robot comes no nearer to the camera than 0.75 m
STATE_SIZE = 39
NUM_ACTIONS = 4  # motion of the hand in x, y, z, and the force on the fingers


class MetaworldEnv(RobotEnv):
    """One task.

    Args:
        name: as metaworld has it, "reach-v3".
        seed: of goals and objects, until a reset brings another.
        obs: "frame" or "state".
        render: "light" or "full", see Renderer; "full" is to the pixel what gymnasium draws, "light" also draws
            meshes of more than 3,000 faces, the robot's and the goal of soccer, with a third of them.
        metaworld_repeat: steps of the simulator per action.
        time_limit: agent steps after which an episode is truncated; None: after 500 steps of the simulator.
    Raises: ValueError if an option has none of these values; ImportError if this machine cannot draw.
    Source: Yu et al. 2020; camera, random goals and rule of success as TD-MPC2 (Hansen et al. 2024) has them; horizon
        500 and an action per step as MoW (300k steps per task).
    Differs: goals are drawn from the whole of a task's space, not from a list of 50. The marker of the goal is put
        where the goal is before every picture: in nine tasks the simulator leaves markers elsewhere.
    """

    def __init__(
        self, name: str, *, seed: int, obs: object = "frame", render: object = "light", metaworld_repeat: object = 1,
        time_limit: object = None,
    ) -> None:  # fmt: skip
        sim = ALL_V3_ENVIRONMENTS[name]()
        # Rewards read the goal from the observation, whose cached bounds must be made anew, or it is clipped to 0.
        sim._partially_observable = False
        sim.__dict__.pop("sawyer_observation_space", None)
        # Draw goals from the seeded generator; the simulator's own reset ignores its seed.
        sim._freeze_rand_vec, sim.seeded_rand_vec, sim._set_task_called = False, True, True
        self._sim: Any = sim
        super().__init__(
            f"metaworld:{name}", sim.model, sim.data, num_actions=NUM_ACTIONS,
            state_size=STATE_SIZE if obs == "state" else None, camera=sim.model.camera(CAMERA).id, render=render,
            repeat=metaworld_repeat, horizon=HORIZON, time_limit=time_limit, protocol="random goals, ", grain=GRAIN,
        )  # fmt: skip
        self._seed(seed)
        self._state: NDArray[np.float64] = np.zeros(0)

    @property
    def state(self) -> NDArray[np.float64]:
        """State vector [39] of the simulator, the goal last, as scripted policies take it."""
        return self._state

    def _seed(self, seed: int) -> None:
        self._sim.seed(seed)

    def _begin(self) -> None:
        self._state = self._sim.reset()[0]

    def _advance(self, command: NDArray[np.float64]) -> tuple[float, bool]:
        self._state, reward, _, _, info = self._sim.step(command)
        return float(reward), bool(info["success"])

    def _parts(self) -> list[NDArray[np.float64]]:
        return [self._state]

    def _draw(self) -> Frame:
        for marker, position in self._sim._target_site_config:
            # pick-out-of-hole draws its goal at the start of the object, so that no picture shows the goal.
            self._sim._set_pos_site(marker, self._sim._target_pos if marker == "goal" else position)
        return np.ascontiguousarray(super()._draw()[::-1, ::-1])  # the camera hangs upside down


make = MetaworldEnv
