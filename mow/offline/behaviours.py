"""Policies that record data: random play, scripted experts, trained runs, each with or without added noise."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mow.envs.base import TaskSpec
from mow.errors import UsageError

Numbers = NDArray[np.float32]
Policy = Callable[[Numbers], Numbers]  # of one episode: state [D] -> action [A]
RunOpener = Callable[[str, str, int], Policy]  # (run, task, seed) -> a trained policy, at the start of an episode

POLICIES = "random, ou, scripted, mixed or run:RUN[@CHECKPOINT]"
MIXED = ("scripted", "random", "scripted", "scripted", "random")  # 60 % and 40 %; ou where a task has no expert
EXPERTS = ("metaworld", "vec")  # suites whose tasks have a scripted expert
MIXED_NOISE = (0.5, 1.0, 2.0)
OU_THETA, OU_SIGMA = 0.15, 0.3  # pull to 0 and spread, per step


@dataclass(frozen=True)
class Behaviour:
    """The policy of an episode."""

    policy: str  # random, ou, scripted or run:RUN
    noise: float = 0.0  # standard deviation of the normal noise added to every action; none for random and ou
    or_ou: bool = False  # where a task has no expert, ou takes its place

    def of(self, task: str) -> "Behaviour":
        """The behaviour in a task."""
        return Behaviour("ou") if self.or_ou and task.partition(":")[0] not in EXPERTS else self


def behaviours(policy: str, noise: Sequence[float] = ()) -> tuple[Behaviour, ...]:
    """The pattern that episodes follow over and over, each policy with each noise equally often.

    Args: policy: names separated by commas. noise: standard deviations; empty: those of the policy, 0 or MIXED_NOISE.
    Raises: UsageError for an unknown policy or a noise below 0.
    """
    named = policy.split(",")
    names = [(each, name == "mixed") for name in named for each in (MIXED if name == "mixed" else (name,))]
    for name, _ in names:
        if name not in ("random", "ou", "scripted") and not name.startswith("run:"):
            raise UsageError(f"unknown policy {name!r}: take {POLICIES}")
    levels = tuple(noise) or (MIXED_NOISE if "mixed" in named else (0.0,))
    if bad := [level for level in levels if not 0.0 <= level < float("inf")]:
        raise UsageError(f"--noise must be 0 or more, got {bad[0]}")
    levels_of = {name: cycle((0.0,) if name in ("random", "ou") else levels) for name, _ in names}
    return tuple(
        Behaviour(name, next(levels_of[name]), or_ou=mixed and name == "scripted")
        for name, mixed in names * len(levels)
    )


def check_experts(pattern: Sequence[Behaviour], specs: Sequence[TaskSpec]) -> None:
    """Raises: UsageError for a task without an expert, if the pattern needs one."""
    for spec in specs:
        if any(each.of(spec.name).policy == "scripted" for each in pattern):
            expert_of(spec.name)


def expert_of(task: str) -> Policy:
    """The scripted expert of a task: state [D] -> action [A]. Raises: UsageError if it has none."""
    suite, _, name = task.partition(":")
    if suite == "metaworld":
        made: Any = import_module("metaworld.policies").ENV_POLICY_MAP[name]()

        def act(state: Numbers) -> Numbers:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # about actions beyond [-1, 1], which are clipped
                return made.get_action(state.astype(np.float64))  # type: ignore[no-any-return]

        return act
    if suite == "vec":
        return partial(import_module("mow.envs.vec").expert, task)
    raise UsageError(f"{task} has no scripted expert: collect it with --policy random, ou or run:RUN")


def make_policy(behaviour: Behaviour, spec: TaskSpec, rng: np.random.Generator, open_run: RunOpener) -> Policy:
    """The policy of one episode, whose actions lie in [-1, 1]; all its draws are from `rng`."""
    size, state = spec.num_actions, np.zeros(spec.num_actions)
    if behaviour.policy == "random":
        return lambda seen: rng.uniform(-1.0, 1.0, size).astype(np.float32)
    if behaviour.policy == "ou":

        def wander(seen: Numbers) -> Numbers:
            """Ornstein-Uhlenbeck process, x' = x - theta x + sigma N(0, 1)."""
            state[:] = (1.0 - OU_THETA) * state + OU_SIGMA * rng.standard_normal(size)
            return np.clip(state, -1.0, 1.0).astype(np.float32)

        return wander
    if behaviour.policy == "scripted":
        chosen = expert_of(spec.name)
    else:
        chosen = open_run(behaviour.policy.removeprefix("run:"), spec.name, int(rng.integers(2**31)))

    def noisy(seen: Numbers) -> Numbers:
        action = chosen(seen) + behaviour.noise * rng.standard_normal(size)
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    return noisy
