"""Environments by name. Importing this, `base`, `dummy` or `vector` needs numpy alone; a suite is loaded when used.

README.md in this folder shows how to add a suite.
"""

from collections.abc import Mapping, Sequence
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


def check_task(name: str) -> None:
    """Raise ValueError, with the nearest names, unless `name` is a known task; "gym:..." is looked up in gymnasium."""
    known = task_names()
    suite, _, task = name.partition(":")
    if suite in SUITES and not SUITES[suite].tasks:
        _module(name).check(task)
    elif name not in known:
        candidates = known if ":" in name else (*known, *SETS)
        nearest = ", ".join(get_close_matches(name, candidates, n=3, cutoff=0.0))
        known_sets = f"suites: {', '.join(SUITES)}; sets: {', '.join(SETS)}"
        raise ValueError(f"unknown task {name!r} ({known_sets}): did you mean {nearest}?")


def make(name: str, *, seed: int, options: Mapping[str, object]) -> Env:
    """The environment of task `name`.

    Args:
        name: "suite:Task", one of task_names() or "gym:ID".
        seed: of everything random in it, until a reset brings another.
        options: of all suites together; each takes those of its record in `suites`, so that one mapping serves a run
            with tasks of several suites.
    Raises: ValueError if the task is unknown or an option belongs to no suite; ImportError if the simulator is not
        installed.
    """
    check_task(name)
    known = sorted({option for suite in SUITES.values() for option in suite.options})
    if unknown := sorted(options.keys() - known):
        raise ValueError(f"{name}: unknown option {unknown[0]!r}: expected some of {', '.join(known)}")
    suite, _, task = name.partition(":")
    taken = {key: options[key] for key in SUITES[suite].options if key in options}
    env: Env = _module(name).make(task, seed=seed, **taken)
    return env


def _module(name: str) -> Any:
    """The module of a task's suite. Raises: ImportError with the task and the remedy."""
    suite = SUITES[name.partition(":")[0]]
    if "mujoco" in suite.needs:  # MuJoCo reads what to draw with when it is loaded
        import_module("mow.envs.mujoco_render").prepare()
    try:
        return import_module(suite.module)
    except ImportError as error:
        raise ImportError(f"task {name!r} cannot load its simulator ({error}): {suite.remedy}") from error
