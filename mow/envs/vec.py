"""The suite "vec": four small bodies that are observed by their state, in NumPy alone, with a scripted expert each.

`python -m mow.envs.vec` measures the returns of random play and of the experts, and compares them with the references
in `suites`.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mow.envs.base import FRAME_SHAPE, Action, Frame, Observation, TaskSpec
from mow.envs.measured import compare
from mow.system.console import program

Numbers = NDArray[np.float64]

LQ_A, LQ_B = np.array([[1.0, 0.1], [0.0, 0.9]]), np.array([0.0, 0.2])  # place and speed; a push changes the speed
LQ_COST = np.array([1.0, 0.1])  # of a squared place and speed
PUSH_COST = 0.1
MOVE = 0.1  # of a full action, of button and reach
NEAR = 0.05  # of the goal of reach: success
TORQUE, TOP_SPEED = 2.0, 8.0  # N m and rad/s, of pendulum


@dataclass(frozen=True, eq=False)
class Body:
    """One task: how an episode starts, goes on, and what is seen of it."""

    num_actions: int
    time_limit: int  # steps, after which an episode is truncated; none ends by itself
    start: Callable[[np.random.Generator], Numbers]
    advance: Callable[[Numbers, Numbers], tuple[Numbers, float]]  # (x, action) -> the next x, reward
    expert: Callable[[Numbers], Numbers]  # observation -> action, clipped by the caller
    observe: Callable[[Numbers], Numbers] = lambda x: x
    success: Callable[[Numbers], bool] | None = None


def _advance_lq(x: Numbers, action: Numbers) -> tuple[Numbers, float]:
    """x' = A x + B a within [-2, 2]^2, reward 1 - x'^T Q x' - 0.1 a^2."""
    x = (LQ_A @ x + LQ_B * action[0]).clip(-2.0, 2.0)
    return x, 1.0 - float(LQ_COST @ x**2) - PUSH_COST * float(action[0]) ** 2


@cache
def _lq_gain() -> Numbers:
    """K of the best unbounded a = -K x, by iterating the Riccati equation: [2]."""
    cost = np.diag(LQ_COST)
    for _ in range(1000):
        gain = LQ_B @ cost @ LQ_A / (PUSH_COST + LQ_B @ cost @ LQ_B)  # [2]
        closed = LQ_A - np.outer(LQ_B, gain)
        cost = np.diag(LQ_COST) + PUSH_COST * np.outer(gain, gain) + closed.T @ cost @ closed
    return gain  # type: ignore[no-any-return]


def _advance_button(x: Numbers, action: Numbers) -> tuple[Numbers, float]:
    """x' = x + 0.1 a within [-1, 1], reward 1 where x' > 0.5, else 0."""
    x = (x + MOVE * action).clip(-1.0, 1.0)
    return x, float(x[0] > 0.5)


def _advance_reach(x: Numbers, action: Numbers) -> tuple[Numbers, float]:
    """The point moves by 0.1 a within [-1, 1]^2, reward 1 - its distance to the goal."""
    x = np.concatenate([(x[:2] + MOVE * action).clip(-1.0, 1.0), x[2:]])
    return x, 1.0 - _distance(x)


def _distance(x: Numbers) -> float:
    return math.hypot(x[0] - x[2], x[1] - x[3])


def _advance_pendulum(x: Numbers, action: Numbers) -> tuple[Numbers, float]:
    """Angle from the top and its speed 0.05 s later, reward (1 + cos angle) / 2.

    Source: gymnasium, Pendulum-v1 (equations, constants, Euler step). Differs: the reward.
    """
    angle, speed = x.tolist()
    speed += 0.05 * (15.0 * math.sin(angle) + 3.0 * TORQUE * float(action[0]))
    speed = min(max(speed, -TOP_SPEED), TOP_SPEED)
    angle += 0.05 * speed
    return np.array([angle, speed]), 0.5 * (1.0 + math.cos(angle))


def _swing_up(seen: Numbers) -> Numbers:
    """Near the top hold the pendulum there, else bring its energy to what it has there at rest."""
    angle, speed = math.atan2(seen[1], seen[0]), TOP_SPEED * float(seen[2])
    if abs(angle) < 0.5 and abs(speed) < 3.0:
        return np.array([-(10.0 * angle + 2.0 * speed) / TORQUE])
    lack = 15.0 * (1.0 - math.cos(angle)) - 0.5 * speed**2  # per moment of inertia
    return np.array([math.copysign(1.0, speed) * lack])


BODIES: dict[str, Body] = {
    "lq": Body(1, 100, lambda rng: rng.uniform(-1.0, 1.0, 2), _advance_lq, lambda seen: -_lq_gain()[None] @ seen[:2]),
    "button": Body(1, 50, lambda rng: rng.uniform(-1.0, 1.0, 1), _advance_button, lambda seen: np.ones(1),
                   lambda x: np.array([x[0], x[0] ** 2])),
    "reach": Body(2, 50, lambda rng: rng.uniform(-1.0, 1.0, 4), _advance_reach,
                  lambda seen: (seen[2:4] - seen[:2]) / MOVE, success=lambda x: _distance(x) < NEAR),
    "pendulum": Body(1, 200, lambda rng: rng.uniform((-math.pi, -1.0), (math.pi, 1.0)), _advance_pendulum, _swing_up,
                     lambda x: np.array([math.cos(x[0]), math.sin(x[0]), x[1] / TOP_SPEED])),
}  # fmt: skip


def expert(task: str, state: Observation) -> NDArray[np.float32]:
    """Action [n] of a good player of "vec:NAME", from its observation; padding after it does no harm."""
    action = BODIES[task.removeprefix("vec:")].expert(np.asarray(state, np.float64))
    return action.clip(-1.0, 1.0).astype(np.float32)


_GREEN, _BLACK = (120, 200, 120), (20, 20, 20)  # of goals, of what moves
# From an observation: (x, y, radius, colour) of disks in a picture of [-1.2, 1.2]^2, y upwards.
_DISKS: dict[str, Callable[[Numbers], list[tuple[float, float, float, tuple[int, int, int]]]]] = {
    "lq": lambda seen: [(0.0, 0.0, 0.2, _GREEN), (seen[0] / 2, 0.0, 0.1, _BLACK)],
    "button": lambda seen: [(0.75, 0.0, 0.25, _GREEN), (seen[0], 0.0, 0.1, _BLACK)],
    "reach": lambda seen: [(seen[2], seen[3], 0.15, _GREEN), (seen[0], seen[1], 0.1, _BLACK)],
    "pendulum": lambda seen: [(0.0, 1.0, 0.2, _GREEN), *((t * seen[1], t * seen[0], 0.08, _BLACK)
                                                         for t in np.linspace(0.0, 1.0, 20))],
}  # fmt: skip


def draw(task: str, state: Observation) -> Frame:
    """Picture of "vec:NAME" for videos, from its observation; padding after it does no harm."""
    frame, side = np.full(FRAME_SHAPE, 255, np.uint8), np.linspace(-1.2, 1.2, FRAME_SHAPE[0])
    for x, y, radius, colour in _DISKS[task.removeprefix("vec:")](np.asarray(state, np.float64)):
        frame[(side[::-1, None] - y) ** 2 + (side - x) ** 2 < radius**2] = colour
    return frame


class VecEnv:
    """One body. Args: name: a key of BODIES. seed: of the starts, until a reset brings another."""

    def __init__(self, name: str, *, seed: int) -> None:
        body = self._body = BODIES[name]
        self._rng = np.random.default_rng(seed)
        self._x = body.start(np.random.default_rng(0))
        self._num_steps = body.time_limit  # no episode is running
        size, legal = len(self.observe()), (True,) * body.num_actions
        self.task = TaskSpec(f"vec:{name}", False, body.num_actions, legal, 1, "states", size)

    def observe(self) -> Observation:
        """The state now: float32 [state_size]."""
        return self._body.observe(self._x).astype(np.float32)

    def reset(self, *, seed: int | None = None) -> tuple[Observation, dict[str, object]]:
        """Open an episode. Without a seed the randomness of the episode before goes on."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._x, self._num_steps = self._body.start(self._rng), 0
        return self.observe(), {}

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, object]]:
        """One action. Raises: RuntimeError if the episode is over; ValueError if it is not in [-1, 1]^n."""
        name, body, push = self.task.name, self._body, np.asarray(action, np.float64)
        if self._num_steps == body.time_limit:
            raise RuntimeError(f"{name}: no episode is running: call reset first")
        if push.shape != (body.num_actions,) or not (np.abs(push) <= 1.0).all():
            raise ValueError(f"{name}: got {action}, expected {body.num_actions} entries in [-1, 1]: clip it")
        self._x, reward = body.advance(self._x, push)
        self._num_steps += 1
        info: dict[str, object] = {} if body.success is None else {"success": body.success(self._x)}
        return self.observe(), reward, False, self._num_steps == body.time_limit, info

    def close(self) -> None:
        """Nothing to free."""

    def state_dict(self) -> dict[str, Any]:
        """See base.Resumable."""
        return {"x": self._x.tolist(), "num_steps": self._num_steps, "rng": self._rng.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See base.Resumable."""
        self._x, self._num_steps = np.array(state["x"]), state["num_steps"]
        self._rng.bit_generator.state = state["rng"]


make = VecEnv


@program("mow.envs.vec")
def main(arguments: Sequence[str] | None = None) -> int:
    """Print mean and standard deviation of all returns. Returns: 1 if a mean is not the stated one, else 0."""
    return compare("vec", make, lambda env: expert(env.task.name, env.observe()))


if __name__ == "__main__":
    sys.exit(main())
