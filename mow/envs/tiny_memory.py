"""Two small visual tasks whose state no single picture shows: what moves is seen, where to and when is not. Numpy only.

The cells are those of "catch" and "dodge"; each task has its own background.
"""

import numpy as np

from mow.envs.base import Action, Frame
from mow.envs.tiny_tasks import CELL, GRID, TinyEnv, backdrop, paint_square

COURT = slice(1, GRID)  # rows of the ball in "bounce"; row 0 is the ceiling
Cell = tuple[int, int]  # row, column; of velocities: per step
NEAR = 2  # cells: how far the pursuer of "chase" may be for a step to be rewarded
NEAR_REWARD = 0.1
PUSHES: tuple[Cell, ...] = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))  # none, up, down, left, right


class Bounce(TinyEnv):
    """A ball crosses the court diagonally, one cell a step, and bounces off walls, ceiling and floor.

    The paddle in the bottom row goes left, stays or goes right. Reward when the ball is in the bottom row: 1 if the
    paddle is below it, else -1; it bounces either way. A picture shows where the ball is and none of its four
    directions; a paddle that follows the column it sees is one cell late. There and back takes the ball 12 steps in
    height and 14 in width, so that it comes down somewhere else each time.
    """

    NAME = "bounce"
    NUM_ACTIONS = 3
    TIME_LIMIT = 48  # the ball comes down four times
    STATE = ("ball", "velocity", "paddle")

    ball = (1, 0)  # row, column
    velocity = (1, 1)  # rows and columns per step, each 1 or -1; not shown
    paddle = 0  # column

    def draw(self) -> Frame:
        frame = backdrop((120, 60, 150))
        frame[:CELL] = (60, 30, 75)
        paint_square(frame, CELL * (GRID - 1), CELL * self.paddle, CELL, (90, 220, 120))
        # Smaller than its cell, so that a caught ball leaves the paddle's rim in sight.
        paint_square(frame, CELL * self.ball[0] + 1, CELL * self.ball[1] + 1, CELL - 2, (250, 250, 250))
        return frame

    def _begin(self, rng: np.random.Generator) -> None:
        row, column, paddle = rng.integers((COURT.start, 0, 0), GRID).tolist()
        down, right = (2 * rng.integers(2, size=2) - 1).tolist()
        self.ball, self.velocity, self.paddle = (row, column), (down, right), paddle

    def _advance(self, action: Action) -> tuple[float, bool]:
        self.paddle = min(max(self.paddle + int(action) - 1, 0), GRID - 1)
        self.ball, self.velocity = fly(self.ball, self.velocity)
        if self.ball[0] < GRID - 1:
            return 0.0, False
        return (1.0 if self.paddle == self.ball[1] else -1.0), False


def fly(ball: Cell, velocity: Cell) -> tuple[Cell, Cell]:
    """Ball and velocity of "bounce" one step later: what would leave the court turns round first."""
    (row, column), (down, right) = ball, velocity
    down = down if COURT.start <= row + down < GRID else -down
    right = right if 0 <= column + right < GRID else -right
    return (row + down, column + right), (down, right)


class Chase(TinyEnv):
    """A pursuer comes one cell nearer, diagonally too, on every second step; a walker that cannot stop at once flees.

    The walker moves by its velocity, -1 to 1 cells a step along either axis. A push (up, down, left or right) changes
    it by 1; without one the walker goes on as before, and a wall takes the part that runs into it. A picture shows
    neither the velocity nor whether the pursuer moves next. Reward: 0.1 for a step after which the pursuer is one or
    two cells away, which needs both; being caught terminates.
    """

    NAME = "chase"
    NUM_ACTIONS = len(PUSHES)
    TIME_LIMIT = 40
    STATE = ("walker", "velocity", "pursuer", "moves_next")

    walker = (0, 0)  # row, column
    velocity = (0, 0)  # rows and columns per step; not shown
    pursuer = (0, 0)  # row, column
    moves_next = False  # whether the pursuer moves in the next step; not shown

    def draw(self) -> Frame:
        frame = backdrop((45, 120, 200))
        paint_square(frame, CELL * self.walker[0], CELL * self.walker[1], CELL, (250, 240, 120))
        # Smaller than its cell, so that a walker that is caught stays in sight.
        paint_square(frame, CELL * self.pursuer[0] + 2, CELL * self.pursuer[1] + 2, CELL - 4, (130, 10, 20))
        return frame

    def _begin(self, rng: np.random.Generator) -> None:
        self.walker = divmod(int(rng.integers(GRID * GRID)), GRID)
        down, right = rng.integers(-1, 2, size=2).tolist()
        self.velocity, self.moves_next = (down, right), bool(rng.integers(2))
        row, column = ((place + GRID // 2) % GRID for place in self.walker)  # four cells away along either axis
        self.pursuer = (row, column)

    def _advance(self, action: Action) -> tuple[float, bool]:
        self.walker, self.velocity = walk(self.walker, self.velocity, PUSHES[int(action)])
        if self.moves_next:
            self.pursuer = nearer(self.pursuer, self.walker)
        self.moves_next = not self.moves_next
        gap = distance(self.walker, self.pursuer)
        return (NEAR_REWARD if 0 < gap <= NEAR else 0.0), gap == 0


def walk(walker: Cell, velocity: Cell, push: Cell) -> tuple[Cell, Cell]:
    """Walker and velocity of "chase" one step later."""
    speeds = [min(max(v + p, -1), 1) for v, p in zip(velocity, push, strict=True)]
    places = [min(max(place + speed, 0), GRID - 1) for place, speed in zip(walker, speeds, strict=True)]
    moved = [after - before for after, before in zip(places, walker, strict=True)]
    return (places[0], places[1]), (moved[0], moved[1])


def nearer(pursuer: Cell, walker: Cell) -> Cell:
    """The pursuer of "chase" after a move of its own: one cell along each axis along which they differ."""
    row, column = (p + (w > p) - (w < p) for p, w in zip(pursuer, walker, strict=True))
    return row, column


def distance(one: Cell, other: Cell) -> int:
    """Cells between two places, diagonal steps counted as one."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))
