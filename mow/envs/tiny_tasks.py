"""Small visual tasks that differ in look, actions, dynamics and ending, and their base class. Numpy only.

A picture shows the state of its task (but not how many steps have gone by): cells of 8 or 10 pixels on a grid, or
shapes whose soft edges place them more finely than a pixel. Every task has its own background.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mow.envs.base import FRAME_SHAPE, Action, Frame, TaskSpec

GRID = 8  # columns and rows of "catch" and "dodge"
CELL = 8  # pixels
SIDE = 6  # cells of "goal"
GOAL_CELL = 10  # pixels; a wall of 2 pixels surrounds the cells
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))  # up, down, left, right: (row, column)
SLIDE_STEP = 0.3  # lengths per full action
SLIDE_SCALE = 26.0  # pixels per length
CART_SCALE = 9.0  # pixels per metre
POLE_SCALE = 90.0  # pixels that the tip moves per radian: at the angle where it falls, 19
GHOST_S = 0.2  # how far back the pole's faint twin is, seconds

_PIXEL_CENTRES = np.arange(FRAME_SHAPE[1], dtype=np.float32) + 0.5  # [64]


def backdrop(colour: tuple[int, int, int]) -> Frame:
    """One colour everywhere: [64, 64, 3]."""
    return np.full(FRAME_SHAPE, colour, np.uint8)


def paint_square(frame: Frame, top: int, left: int, size: int, colour: tuple[int, int, int]) -> None:
    """Fill size x size pixels of `frame` [64, 64, 3]."""
    frame[top : top + size, left : left + size] = colour


def paint_upright(
    frame: Frame, rows: slice, centre: float | NDArray[np.float64], width: float, colour: tuple[int, int, int]
) -> None:
    """Paint a strip over some rows of `frame` [64, 64, 3]; a pixel that it covers in part takes part of its colour.

    Args:
        centre: pixels from the left edge, one for all rows or one for each of them, [rows].
        width: pixels, 1 or more.
    """
    middle = np.asarray(centre, np.float32)[..., None]  # [1] or [rows, 1]
    # Only the columns that the strip can reach; an empty window where it lies outside the picture.
    near = slice(max(int(middle.min() - width), 0), max(int(middle.max() + width) + 1, 0))
    distance = np.abs(_PIXEL_CENTRES[near] - middle)  # [n] or [rows, n]
    cover = np.minimum(np.maximum((width + 1) / 2 - distance, 0.0), 1.0)[..., None]  # [n, 1] or [rows, n, 1]
    area = frame[rows, near].astype(np.float32)  # [rows, n, 3]
    frame[rows, near] = area + cover * (np.array(colour, np.float32) - area) + 0.5  # the cast cuts off: so it rounds


class TinyEnv(ABC):
    """Base class of the tasks: seed, checks, time limit. A time limit truncates; everything else terminates.

    Args:
        seed: of the starts and of what falls, until a reset brings another.
    """

    NAME: ClassVar[str]
    NUM_ACTIONS: ClassVar[int]  # of a continuous task: its dimensions
    TIME_LIMIT: ClassVar[int]  # agent steps
    DISCRETE: ClassVar[bool] = True
    FRAME_SKIP: ClassVar[int] = 1
    HAS_SUCCESS: ClassVar[bool] = False  # terminating is succeeding
    STATE: ClassVar[tuple[str, ...]]  # the attributes that hold where things are

    def __init__(self, *, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._running = False
        self.num_steps = 0  # of this episode, the one under way included
        legal = (True,) * self.NUM_ACTIONS
        self.task = TaskSpec(f"tiny:{self.NAME}", self.DISCRETE, self.NUM_ACTIONS, legal, self.FRAME_SKIP, "tiny")

    def reset(self, *, seed: int | None = None) -> tuple[Frame, dict[str, object]]:
        """Open an episode: [64, 64, 3]. Without a seed the randomness of the episode before goes on."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self.num_steps = 0
        self._running = True
        self._begin(self._rng)
        return self.draw(), {}

    def step(self, action: Action) -> tuple[Frame, float, bool, bool, dict[str, object]]:
        """One action. Raises: RuntimeError if the episode is over; ValueError if the action is none of this task."""
        if not self._running:
            raise RuntimeError(f"{self.task.name}: no episode is running: call reset first")
        self._check(action)
        self.num_steps += 1
        reward, terminated = self._advance(action)
        truncated = self.num_steps >= self.TIME_LIMIT and not terminated
        self._running = not (terminated or truncated)
        return self.draw(), reward, terminated, truncated, {"success": terminated} if self.HAS_SUCCESS else {}

    def close(self) -> None:
        """End the episode; there is nothing to free."""
        self._running = False

    def state_dict(self) -> dict[str, Any]:
        """See base.Resumable."""
        things = {name: getattr(self, name) for name in self.STATE}
        plain = {name: x.tolist() if isinstance(x, np.ndarray) else x for name, x in things.items()}
        own = {"rng": self._rng.bit_generator.state, "running": self._running, "num_steps": self.num_steps}
        return {**plain, **own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See base.Resumable."""
        for name in self.STATE:
            now, kept = getattr(self, name), state[name]
            if isinstance(now, np.ndarray):
                kept = np.array(kept, now.dtype)
            setattr(self, name, tuple(kept) if isinstance(now, tuple) else kept)
        self._rng.bit_generator.state = state["rng"]
        self._running, self.num_steps = state["running"], state["num_steps"]

    @abstractmethod
    def draw(self) -> Frame:
        """The state as a new picture [64, 64, 3]."""

    @abstractmethod
    def _begin(self, rng: np.random.Generator) -> None:
        """Draw the state that an episode starts from."""

    @abstractmethod
    def _advance(self, action: Action) -> tuple[float, bool]:
        """Move the state on by a checked action. Returns: reward, terminated."""

    def _check(self, action: Action) -> None:
        if self.DISCRETE:
            if not 0 <= int(action) < self.NUM_ACTIONS:
                raise ValueError(
                    f"{self.task.name}: got action {action}, expected an index below {self.NUM_ACTIONS}: take one"
                )
        elif np.shape(action) != (self.NUM_ACTIONS,) or not np.all(np.abs(action) <= 1.0):
            raise ValueError(f"{self.task.name}: got {action}, expected {self.NUM_ACTIONS} entries in [-1, 1]: clip it")


class Catch(TinyEnv):
    """A block falls one row a step for 7 steps; the paddle in the bottom row goes left, stays or goes right.

    Reward at the bottom: 1 if the paddle is below the block, else -1.
    """

    NAME = "catch"
    NUM_ACTIONS = 3
    TIME_LIMIT = GRID - 1  # never cuts anything: the block is down by then
    STATE = ("row", "column", "paddle")

    row = 0  # of the block
    column = 0  # of the block
    paddle = 0  # column

    def draw(self) -> Frame:
        frame = backdrop((25, 25, 80))
        paint_square(frame, CELL * (GRID - 1), CELL * self.paddle, CELL, (230, 230, 230))
        # Smaller than its cell, so that a caught block leaves the paddle's rim in sight.
        paint_square(frame, CELL * self.row + 1, CELL * self.column + 1, CELL - 2, (250, 220, 40))
        return frame

    def _begin(self, rng: np.random.Generator) -> None:
        self.row = 0
        self.column, self.paddle = rng.integers(GRID, size=2).tolist()

    def _advance(self, action: Action) -> tuple[float, bool]:
        self.paddle = min(max(self.paddle + int(action) - 1, 0), GRID - 1)
        self.row += 1
        if self.row < GRID - 1:
            return 0.0, False
        return (1.0 if self.paddle == self.column else -1.0), True


class Goal(TinyEnv):
    """A walker on 6 x 6 cells looks for the goal; it goes up, down, left or right, and walls stop it.

    Reward: -0.02 per step, and 1 more on reaching the goal, which terminates. Start and goal are random and differ.
    """

    NAME = "goal"
    NUM_ACTIONS = len(MOVES)
    TIME_LIMIT = 25
    HAS_SUCCESS = True
    STATE = ("walker", "goal")

    walker = (0, 0)  # row, column
    goal = (0, 0)  # row, column

    def draw(self) -> Frame:
        frame = backdrop((110, 95, 60))
        paint_square(frame, 2, 2, SIDE * GOAL_CELL, (235, 220, 160))
        paint_square(frame, 2 + GOAL_CELL * self.goal[0], 2 + GOAL_CELL * self.goal[1], GOAL_CELL, (30, 150, 40))
        # Smaller than its cell, so that a reached goal stays in sight.
        top, left = (4 + GOAL_CELL * place for place in self.walker)
        paint_square(frame, top, left, GOAL_CELL - 4, (40, 60, 220))
        return frame

    def _begin(self, rng: np.random.Generator) -> None:
        start = int(rng.integers(SIDE * SIDE))
        other = (start + int(rng.integers(1, SIDE * SIDE))) % (SIDE * SIDE)
        self.walker, self.goal = divmod(start, SIDE), divmod(other, SIDE)

    def _advance(self, action: Action) -> tuple[float, bool]:
        row, column = (
            min(max(place + move, 0), SIDE - 1) for place, move in zip(self.walker, MOVES[int(action)], strict=True)
        )
        self.walker = (row, column)
        reached = self.walker == self.goal
        return (0.98 if reached else -0.02), reached


class Dodge(TinyEnv):
    """Blocks fall one row a step, two new ones every second step; the agent in the bottom row evades them.

    Actions: left, stay, right. Reward: 0.1 per step survived; a hit terminates. There is always a way out: the
    agent has two moves between two pairs, and the nearest free column is never further.
    """

    NAME = "dodge"
    NUM_ACTIONS = 3
    TIME_LIMIT = 40
    STATE = ("agent", "blocks")

    agent = 0  # column

    def __init__(self, *, seed: int) -> None:
        super().__init__(seed=seed)
        self.blocks = np.zeros((GRID, GRID), np.bool_)  # [row, column]

    def draw(self) -> Frame:
        colours = np.array([(95, 15, 25), (255, 140, 30)], np.uint8)  # background, block
        frame = colours[self.blocks.astype(np.intp)].repeat(CELL, axis=0).repeat(CELL, axis=1)  # [64, 64, 3]
        # Smaller than its cell, so that the block that hits it stays in sight.
        paint_square(frame, CELL * (GRID - 1) + 1, CELL * self.agent + 1, CELL - 2, (60, 230, 240))
        return frame

    def _begin(self, rng: np.random.Generator) -> None:
        self.agent = int(rng.integers(GRID))
        self.blocks[:] = False
        self._add_pair(rng)

    def _advance(self, action: Action) -> tuple[float, bool]:
        self.agent = min(max(self.agent + int(action) - 1, 0), GRID - 1)
        self.blocks[1:] = self.blocks[:-1].copy()
        self.blocks[0] = False
        if self.num_steps % 2 == 0:
            self._add_pair(self._rng)
        hit = bool(self.blocks[-1, self.agent])
        return (0.0 if hit else 0.1), hit

    def _add_pair(self, rng: np.random.Generator) -> None:
        first = int(rng.integers(GRID))
        self.blocks[0, [first, (first + int(rng.integers(1, GRID))) % GRID]] = True


class Pole(TinyEnv):
    """A pole stands on a cart that is pushed left or right, twice per step; 0.1 per step, and a fall terminates.

    The picture leans the pole over twice as far as it stands, so that small angles show; only near the ends of the
    track does a tip that leans outward leave it. The pole's faint twin is where it would have been 0.2 s ago at the
    present speeds, so that one picture shows speeds too.
    Source: gymnasium, CartPole-v1 (Barto, Sutton and Anderson 1983): equations, constants, Euler steps, limits.
    Differs: two physics steps per action; a limit of 100 steps.
    """

    NAME = "pole"
    NUM_ACTIONS = 2
    TIME_LIMIT = 100
    FRAME_SKIP = 2
    STATE = ("state",)

    state = (0.0, 0.0, 0.0, 0.0)  # position m, speed m/s, angle rad (positive to the right), angular speed rad/s

    def draw(self) -> Frame:
        frame = backdrop((165, 210, 245))
        frame[56:] = (110, 140, 60)
        position, speed, angle, turn = self.state
        self._paint_pole(frame, position - GHOST_S * speed, angle - GHOST_S * turn, (215, 155, 155))
        paint_upright(frame, slice(48, 56), 32 + CART_SCALE * position, 16, (30, 30, 30))
        self._paint_pole(frame, position, angle, (150, 40, 20))
        return frame

    def _paint_pole(self, frame: Frame, position: float, angle: float, colour: tuple[int, int, int]) -> None:
        rows = slice(8, 48)
        height = (47.5 - np.arange(8, 48)) / 40  # [40] of each row above the cart, in lengths of the pole
        paint_upright(frame, rows, 32 + CART_SCALE * position + POLE_SCALE * angle * height, 6, colour)

    def _begin(self, rng: np.random.Generator) -> None:
        position, speed, angle, turn = rng.uniform(-0.05, 0.05, 4).tolist()
        self.state = (position, speed, angle, turn)

    def _advance(self, action: Action) -> tuple[float, bool]:
        fallen = False
        for _ in range(self.FRAME_SKIP):
            self.state = push_cart(self.state, 10.0 if int(action) == 1 else -10.0)
            fallen = fallen or abs(self.state[0]) > 2.4 or abs(self.state[2]) > math.radians(12)
        return 0.1, fallen


def push_cart(state: tuple[float, float, float, float], force: float) -> tuple[float, float, float, float]:
    """Cart and pole 0.02 s later, by one Euler step.

        temp = (F + m l w^2 sin a) / M,   a'' = (g sin a - temp cos a) / (l (4/3 - m cos^2 a / M)),
        x'' = temp - m l a'' cos a / M,   with half-length l = 0.5 m, pole m = 0.1 kg, both M = 1.1 kg

    Args:
        state: x in m, x' in m/s, a in rad, w = a' in rad/s.
        force: F, newtons.
    Source: gymnasium, CartPole-v1.
    """
    x, speed, angle, turn = state
    cosine, sine = math.cos(angle), math.sin(angle)
    temp = (force + 0.05 * turn**2 * sine) / 1.1
    angular_acceleration = (9.8 * sine - temp * cosine) / (0.5 * (4 / 3 - 0.1 * cosine**2 / 1.1))
    acceleration = temp - 0.05 * angular_acceleration * cosine / 1.1
    return x + 0.02 * speed, speed + 0.02 * acceleration, angle + 0.02 * turn, turn + 0.02 * angular_acceleration


class Slide(TinyEnv):
    """A block on a line [-1, 1] is pushed toward a marker by 0.3 per full action; walls stop it.

    Reward per step: max(0, 1 - 2 * distance) after the push. Start and marker are uniform over the line.
    """

    NAME = "slide"
    NUM_ACTIONS = 1
    TIME_LIMIT = 15
    DISCRETE = False
    STATE = ("block", "marker")

    block = 0.0  # [-1, 1]
    marker = 0.0  # [-1, 1]

    def draw(self) -> Frame:
        frame = backdrop((25, 110, 75))
        frame[30:34] = (10, 45, 30)
        paint_upright(frame, slice(8, 28), 32 + SLIDE_SCALE * self.marker, 8, (240, 130, 200))
        paint_upright(frame, slice(36, 56), 32 + SLIDE_SCALE * self.block, 10, (245, 245, 250))
        return frame

    def _begin(self, rng: np.random.Generator) -> None:
        self.block, self.marker = rng.uniform(-1.0, 1.0, 2).tolist()

    def _advance(self, action: Action) -> tuple[float, bool]:
        push = float(np.asarray(action)[0])
        self.block = min(max(self.block + SLIDE_STEP * push, -1.0), 1.0)
        return max(0.0, 1.0 - 2.0 * abs(self.block - self.marker)), False
