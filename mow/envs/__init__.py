'''Environments by name. Importing this, `base`, `dummy` or `vector` needs numpy alone; a suite is loaded when used.

To add one. Environments of gymnasium need no code: `--tasks gym:CartPole-v1`, or `gym:yours:Name-v0` where the
package `yours` registers `Name-v0` when it is imported. A suite of its own is a module with `make(name, *, seed)`, here
mow/envs/lights.py. `base.Env` is the contract; the last two methods, which are optional, let runs go on exactly.

```python
import numpy as np

from mow.envs.base import FRAME_SHAPE, TaskSpec


class Lights:
    """One of sixteen squares is lit. Its own button gives 1; then another is. 20 presses."""

    def __init__(self, name, *, seed):
        self._rng, self._lit, self._presses = np.random.default_rng(seed), 0, 0
        self.task = TaskSpec(
            name=f"lights:{name}", discrete=True, num_actions=16, legal=(True,) * 16, frame_skip=1, protocol="plain"
        )

    def reset(self, *, seed=None):
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._lit, self._presses = int(self._rng.integers(16)), 0
        return self._draw(), {}

    def step(self, action):
        if self._presses == 20:
            raise RuntimeError(f"{self.task.name}: no episode is running: call reset first")
        reward = float(action == self._lit)
        self._lit, self._presses = int(self._rng.integers(16)), self._presses + 1
        return self._draw(), reward, False, self._presses == 20, {}  # a time limit: truncated, not terminated

    def close(self):
        """Nothing to free."""

    def state_dict(self):
        return {"lit": self._lit, "presses": self._presses, "rng": self._rng.bit_generator.state}

    def load_state_dict(self, state):
        self._lit, self._presses, self._rng.bit_generator.state = state["lit"], state["presses"], state["rng"]

    def _draw(self):
        frame = np.zeros(FRAME_SHAPE, np.uint8)
        y, x = 16 * (self._lit // 4), 16 * (self._lit % 4)
        frame[y : y + 16, x : x + 16] = 255
        return frame


def make(name, *, seed):
    return Lights(name, seed=seed)
```

Then it gets its name here (and, if it needs a package, an extra in pyproject.toml that the remedy names):

```diff
--- mow/envs/__init__.py
     "gym": "mow.envs.gymnasium_envs",
+    "lights": "mow.envs.lights",
     "gym": ("render",),
+    "lights": (),
     "gym": "pip install gymnasium opencv-python-headless",
+    "lights": "pip install numpy",
-    return (*ATARI, *DMC, *counters, *MT50, *TINY7)
+    return (*ATARI, *DMC, *counters, *MT50, *TINY7, "lights:squares")
```

It works when this runs, and is done when tests/envs/test_contract.py passes with its tasks among CASES. What random and
expert play get goes to references.py; then scores are normalised and the panel and tables show how far it has come.

```python
from mow.envs.vector import make_vector

with make_vector(("lights:squares", "tiny:catch"), seed=0, num_workers=0, options={}) as envs:
    frame, is_first = envs.reset()  # uint8 [2, 64, 64, 3], bool [2]
    step = envs.step(envs.layout.random(np.random.default_rng(0)))
    assert step.reward.shape == (2,)
```
'''

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from mow.envs.base import Env
from mow.envs.dummy import VARIANTS
from mow.envs.process_state import CallState
from mow.envs.task_sets import ATARI, ATARI26, DMC, DMC18, MT10, MT50, TINY5, TINY7

# A suite is a module with `make(name, *, seed, **its options) -> Env`. Paths, so that a missing simulator hurts only
# those who use it.
SUITES: dict[str, str] = {
    "atari": "mow.envs.atari",
    "dmc": "mow.envs.dmc",
    "dummy": "mow.envs.dummy",
    "gym": "mow.envs.gymnasium_envs",
    "metaworld": "mow.envs.metaworld",
    "tiny": "mow.envs.tiny",
}

# Suites whose names are not known before they are loaded: their modules have `check(name)`.
_OPEN = ("gym",)

# Suites of MuJoCo, which reads what to draw with when it is loaded.
_MUJOCO = ("dmc", "metaworld")

# The options of each suite; see the class that takes them.
OPTIONS: dict[str, tuple[str, ...]] = {
    "atari": ("protocol", "action_set", "time_limit"),
    "dmc": ("render", "dmc_repeat", "time_limit"),
    "dummy": ("fail_at", "hang_at"),
    "gym": ("render",),
    "metaworld": ("render", "metaworld_repeat", "time_limit"),
    "tiny": (),
}

# What to install where a suite does not load.
_REMEDIES: dict[str, str] = {
    "atari": "pip install gymnasium ale-py opencv-python-headless",
    "dmc": "pip install -e '.[dmc]'",
    "dummy": "pip install numpy",
    "gym": "pip install gymnasium opencv-python-headless",
    "metaworld": "pip install -e '.[metaworld]'",
    "tiny": "pip install numpy",
}

# Tasks by the name of a set, which stands for all of them on a command line.
SETS: dict[str, tuple[str, ...]] = {
    "atari26": ATARI26,
    "tiny5": TINY5,
    "tiny7": TINY7,
    "mt10": MT10,
    "mt50": MT50,
    "dmc18": DMC18,
}


def task_names() -> tuple[str, ...]:
    """All known tasks, "suite:Task", but those of gymnasium; loads no simulator."""
    counters = (f"dummy:{variant}" for variant in VARIANTS)
    return (*ATARI, *DMC, *counters, *MT50, *TINY7)


def expand(names: Sequence[str]) -> tuple[str, ...]:
    """`names` with the sets among them replaced by their tasks; a task that is named twice stays where it was first."""
    return tuple(dict.fromkeys(task for name in names for task in SETS.get(name, (name,))))


def check_task(name: str) -> None:
    """Raise ValueError, naming what is nearest, unless `name` is a known task; "gym:..." is looked up in gymnasium."""
    known = task_names()
    suite, _, task = name.partition(":")
    if suite in _OPEN:
        state = CallState()  # checking imports the package of the task
        with state.and_random(environment=True), state:
            _loaded(suite, name).check(task)
    elif name not in known:
        candidates = known if ":" in name else (*known, *SETS)
        nearest = ", ".join(get_close_matches(name, candidates, n=3, cutoff=0.0))
        known_sets = f"suites: {', '.join(SUITES)}; sets: {', '.join(SETS)}"
        raise ValueError(f"unknown task {name!r} ({known_sets}): did you mean {nearest}?")


def make(name: str, *, seed: int, options: Mapping[str, object]) -> Env:
    """The environment of task `name`.

    Args:
        name: "suite:Task", one of task_names().
        seed: of everything random in it, until a reset brings another.
        options: for all suites together; each takes those that OPTIONS lists for it, so that one mapping serves a
            run with tasks of several suites.
    Raises: ValueError if the task is unknown or an option belongs to no suite; ImportError if the simulator is not
        installed.
    """
    check_task(name)
    check_options(options)
    suite, _, task = name.partition(":")
    taken = {key: options[key] for key in OPTIONS[suite] if key in options}
    env: Env = _loaded(suite, name).make(task, seed=seed, **taken)
    return env


def check_options(options: Mapping[str, object]) -> None:
    """Raises: ValueError if one belongs to no suite."""
    known = sorted(option for names in OPTIONS.values() for option in names)
    for option in options:
        if option not in known:
            raise ValueError(f"unknown option {option!r}: expected some of {', '.join(known)}")


def remedy(suite: str) -> str:
    """Remedy where a suite does not load."""
    return _REMEDIES[suite]


def _loaded(suite: str, name: str) -> Any:
    """The module of a suite. Raises: ImportError, naming the task and the remedy."""
    if suite in _MUJOCO:
        import_module("mow.envs.mujoco_render").prepare()
    try:
        return import_module(SUITES[suite])
    except ImportError as error:
        raise ImportError(f"task {name!r} cannot load its simulator ({error}): {_REMEDIES[suite]}") from error
