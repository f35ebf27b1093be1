"""Environments by name. Importing this, `base`, `dummy` or `vector` needs numpy alone; a suite is loaded when used.

README.md in this folder shows how to add a suite.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from mow.envs.base import Env
from mow.envs.suites import SUITES as SUITES
from mow.envs.task_sets import SETS as SETS


def task_names() -> tuple[str, ...]:
    """All known tasks, "suite:Task", except those of gymnasium; loads no simulator."""
    return tuple(task for suite in SUITES.values() for task in suite.tasks)


def expand(names: Sequence[str]) -> tuple[str, ...]:
    """`names` with the sets among them replaced by their tasks; a task named twice keeps its first place."""
    return tuple(dict.fromkeys(task for name in names for task in SETS.get(name, (name,))))


def check_task(name: str, obs: object = None) -> None:
    """Raise ValueError, with the nearest names, unless `name` is a known task; "gym:..." is looked up in gymnasium.

    Args: obs: raise it also unless its suite has these observations, "frame" or "state"; None: any.
    """
    known = task_names()
    suite, _, task = name.partition(":")
    if suite in SUITES and not SUITES[suite].tasks:
        _module(name).check(task)
    elif name not in known:
        candidates = known if ":" in name else (*known, *SETS)
        nearest = ", ".join(get_close_matches(name, candidates, n=3, cutoff=0.0))
        known_sets = f"suites: {', '.join(SUITES)}; sets: {', '.join(SETS)}"
        raise ValueError(f"unknown task {name!r} ({known_sets}): did you mean {nearest}?")
    if obs is not None and obs not in SUITES[suite].observations:
        able = ", ".join(one.name for one in SUITES.values() if obs in one.observations)
        raise ValueError(f"task {name!r} has no {obs} observations: set env.obs to {SUITES[suite].observations[0]}, or "
                         f"take tasks of {able}")


def make(name: str, *, seed: int, options: Mapping[str, object]) -> Env:
    """The environment of task `name`.

    Args:
        name: "suite:Task", one of task_names() or "gym:ID".
        seed: of everything random in it, until a reset brings another.
        options: of all suites together; each takes those of its record in `suites`, so that one mapping serves a run
            with tasks of several suites.
    Raises: ValueError if the task is unknown, has no such observations (option obs, "frame" by default) or an option
        belongs to no suite; ImportError if the simulator is not installed.
    """
    obs = options.get("obs", "frame")
    check_task(name, obs)
    known = sorted({option for suite in SUITES.values() for option in suite.options})
    if unknown := sorted(options.keys() - known):
        raise ValueError(f"{name}: unknown option {unknown[0]!r}: expected some of {', '.join(known)}")
    suite, _, task = name.partition(":")
    taken = {key: options[key] for key in SUITES[suite].options if key in options}
    env: Env = _module(name, draws=obs == "frame").make(task, seed=seed, **taken)
    return env


def _module(name: str, *, draws: bool = True) -> Any:
    """The module of a task's suite. Raises: ImportError with the task and the remedy."""
    suite = SUITES[name.partition(":")[0]]
    loading: AbstractContextManager[None] = nullcontext()
    if "mujoco" in suite.needs:  # MuJoCo reads what to draw with when it is loaded
        render = import_module("mow.envs.mujoco_render")
        loading = nullcontext(render.prepare()) if draws else render.without_gl()
    try:
        with loading:
            return import_module(suite.module)
    except ImportError as error:
        raise ImportError(f"task {name!r} cannot load its simulator ({error}): {suite.remedy}") from error
