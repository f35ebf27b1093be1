"""The suite "tiny": its tasks by name, and scripted experts.

`python -m mow.envs.tiny` measures the returns of random play and of the experts, and compares them with the references
in `suites`.
"""

import sys
from collections.abc import Callable, Sequence
from functools import cache, singledispatch

import numpy as np
from numpy.typing import NDArray

from mow.envs.base import Action
from mow.envs.suites import SUITES
from mow.envs.tiny_memory import NEAR, NEAR_REWARD, PUSHES, Bounce, Cell, Chase, distance, fly, nearer, walk
from mow.envs.tiny_tasks import GRID, SLIDE_STEP, Catch, Dodge, Goal, Pole, Slide, TinyEnv
from mow.system.console import complain, program, tell

LOOK_AHEAD = 4  # steps, of the expert of "chase"
LATER = 0.95  # discount of a step, of the same expert
EPISODES = 1000  # that the stated returns are means over

Policy = Callable[[TinyEnv], Action]

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


def random_policy(seed: int) -> Policy:
    """A policy that draws uniformly from the actions of any task."""
    rng = np.random.default_rng(seed)

    def act(env: TinyEnv) -> Action:
        if env.task.discrete:
            return int(rng.integers(env.task.num_actions))
        return rng.uniform(-1.0, 1.0, env.task.num_actions).astype(np.float32)

    return act


def measure(name: str, policy: Policy, *, episodes: int, seed: int) -> NDArray[np.float64]:
    """Returns of `episodes` episodes of "tiny:<name>" in a row: [episodes]."""
    env = make(name, seed=seed)
    returns = np.zeros(episodes)
    for index in range(episodes):
        env.reset()
        ended = False
        while not ended:
            _, reward, terminated, truncated, _ = env.step(policy(env))
            returns[index] += reward
            ended = terminated or truncated
    return returns


@program("mow.envs.tiny")
def main(arguments: Sequence[str] | None = None) -> int:
    """Print mean and standard deviation of all returns. Returns: 1 if a mean is not the stated one, else 0."""
    tell(sys.stdout, f"{'task':<12}{'policy':<8}{'mean':>9}{'std':>9}{'episodes':>10}{'stated':>9}\n")
    wrong = []
    for task, stated_returns in SUITES["tiny"].references.items():
        policies: dict[str, Policy] = {"random": random_policy(seed=1), "expert": expert_action}
        for (kind, policy), stated in zip(policies.items(), stated_returns, strict=True):
            returns = measure(task.removeprefix("tiny:"), policy, episodes=EPISODES, seed=0)
            mean, deviation = float(returns.mean()), float(returns.std(ddof=1))
            tell(sys.stdout, f"{task:<12}{kind:<8}{mean:9.3f}{deviation:9.3f}{len(returns):10d}{stated:9.3f}\n")
            # The constants have 3 decimals. The draws are those that they were taken from, so nothing else may differ.
            if abs(mean - stated) > 0.0006:
                wrong.append(f"{task}, {kind}: measured {mean:.3f}, stated {stated}")
    for line in wrong:
        complain(f"not as stated: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
