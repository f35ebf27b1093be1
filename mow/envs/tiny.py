"""The suite "tiny": its tasks by name, and scripted experts.

`python -m mow.envs.tiny` measures the returns of random play and of the experts, and compares them with the references
in `suites`.
"""

import sys
from collections.abc import Sequence
from functools import cache, singledispatch

import numpy as np
from numpy.typing import NDArray

from mow.envs.base import Action
from mow.envs.measured import compare
from mow.envs.tiny_memory import NEAR, NEAR_REWARD, PUSHES, Bounce, Cell, Chase, distance, fly, nearer, walk
from mow.envs.tiny_tasks import GRID, SLIDE_STEP, Catch, Dodge, Goal, Pole, Slide, TinyEnv
from mow.system.console import program

LOOK_AHEAD = 4  # steps, of the expert of "chase"
LATER = 0.95  # discount of a step, of the same expert

TASKS: dict[str, type[TinyEnv]] = {task.NAME: task for task in (Catch, Goal, Dodge, Pole, Slide, Bounce, Chase)}


def make(name: str, *, seed: int) -> TinyEnv:
    """The task "tiny:<name>"."""
    return TASKS[name](seed=seed)


@singledispatch
def expert_action(env: TinyEnv) -> Action:
    """Action of a good player, from the state of the task itself. Raises: TypeError."""
    raise TypeError(f"no expert for {type(env).__name__}: register one with expert_action")


@expert_action.register
def _(env: Catch) -> int:
    return 1 + int(np.sign(env.column - env.paddle))


@expert_action.register
def _(env: Goal) -> int:
    down, right = env.goal[0] - env.walker[0], env.goal[1] - env.walker[1]
    if down != 0:
        return 1 if down > 0 else 0
    return 3 if right > 0 else 2


@expert_action.register
def _(env: Dodge) -> int:
    # The blocks in the bottom row are past: they will be gone. The next to come is the lowest of the others.
    falling = env.blocks[:-1]  # [7, 8]
    next_row = np.flatnonzero(falling.any(axis=1))[-1]
    distance = np.abs(np.arange(GRID) - env.agent) + GRID * falling[next_row]  # [8]
    return 1 + int(np.sign(distance.argmin() - env.agent))


@expert_action.register
def _(env: Pole) -> int:
    position, speed, angle, turn = env.state
    return int(0.1 * position + 0.3 * speed + 3.0 * angle + turn > 0.0)


@expert_action.register
def _(env: Slide) -> NDArray[np.float32]:
    return np.array([(env.marker - env.block) / SLIDE_STEP], np.float32).clip(-1.0, 1.0)  # [1]


@expert_action.register
def _(env: Bounce) -> int:
    ball, velocity = fly(env.ball, env.velocity)
    while ball[0] < GRID - 1:
        ball, velocity = fly(ball, velocity)
    return 1 + int(np.sign(ball[1] - env.paddle))


@expert_action.register
def _(env: Chase) -> int:
    _, push = _best_push(env.walker, env.velocity, env.pursuer, env.moves_next, LOOK_AHEAD)
    return push


@cache
def _best_push(walker: Cell, velocity: Cell, pursuer: Cell, moves_next: bool, steps: int) -> tuple[float, int]:
    """The highest reward of the next `steps` of "chase", less 1 for being caught, and the index of its first push."""
    if steps == 0:
        return 0.0, 0
    options = []
    for push in PUSHES:
        place, moved = walk(walker, velocity, push)
        chaser = nearer(pursuer, place) if moves_next else pursuer
        gap = distance(place, chaser)
        later = _best_push(place, moved, chaser, not moves_next, steps - 1)[0] if gap else -1.0
        options.append((NEAR_REWARD if 0 < gap <= NEAR else 0.0) + LATER * later)
    best = max(options)
    return best, options.index(best)


@program("mow.envs.tiny")
def main(arguments: Sequence[str] | None = None) -> int:
    """Print mean and standard deviation of all returns. Returns: 1 if a mean is not the stated one, else 0."""
    return compare("tiny", make, expert_action)


if __name__ == "__main__":
    sys.exit(main())
