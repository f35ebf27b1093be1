"""Returns of random play and of scripted experts, measured, and compared with the references that `suites` states."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mow.envs.base import Action, Env
from mow.envs.suites import SUITES
from mow.system.console import complain, tell

EPISODES = 1000  # that the stated returns are means over

Policy = Callable[[Any], Action]  # of the environment itself


def random_policy(seed: int) -> Policy:
    """A policy that draws uniformly from the actions of any task."""
    rng = np.random.default_rng(seed)

    def act(env: Env) -> Action:
        if env.task.discrete:
            return int(rng.integers(env.task.num_actions))
        return rng.uniform(-1.0, 1.0, env.task.num_actions).astype(np.float32)

    return act


def measure(env: Env, policy: Policy, *, episodes: int) -> NDArray[np.float64]:
    """Returns of `episodes` episodes in a row: [episodes]."""
    returns = np.zeros(episodes)
    for index in range(episodes):
        env.reset()
        ended = False
        while not ended:
            _, reward, terminated, truncated, _ = env.step(policy(env))
            returns[index] += reward
            ended = terminated or truncated
    return returns


def compare(suite: str, make: Callable[..., Env], expert: Policy) -> int:
    """Print mean and standard deviation of all returns. Returns: 1 if a mean is not the stated one, else 0."""
    tell(sys.stdout, f"{'task':<14}{'policy':<8}{'mean':>9}{'std':>9}{'episodes':>10}{'stated':>9}\n")
    wrong = []
    for task, stated_returns in SUITES[suite].references.items():
        policies: dict[str, Policy] = {"random": random_policy(seed=1), "expert": expert}
        for (kind, policy), stated in zip(policies.items(), stated_returns, strict=True):
            returns = measure(make(task.partition(":")[2], seed=0), policy, episodes=EPISODES)
            mean, deviation = float(returns.mean()), float(returns.std(ddof=1))
            tell(sys.stdout, f"{task:<14}{kind:<8}{mean:9.3f}{deviation:9.3f}{len(returns):10d}{stated:9.3f}\n")
            # The constants have 3 decimals. The draws are those that they were taken from, so nothing else may differ.
            if abs(mean - stated) > 0.0006:
                wrong.append(f"{task}, {kind}: measured {mean:.3f}, stated {stated}")
    for line in wrong:
        complain(f"not as stated: {line}")
    return 1 if wrong else 0
