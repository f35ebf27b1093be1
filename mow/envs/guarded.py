"""The place where simulators are called: every call gives a valid answer or raises SimulatorFailure.

Any Exception or SystemExit of a simulator, and any answer that cannot be used, becomes a SimulatorFailure with one line
on the cause. During a call stdout goes to stderr, where it cannot mix with results; after it, the working folder and
the handlers of SIGINT, SIGTERM and SIGHUP are as before.
"""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from mow.envs import make
from mow.envs.answers import flag_of, frame_of, info_of, parts_of, reward_of, state_of
from mow.envs.base import Action, Env, Observation, Resumable

_LOG = logging.getLogger("mow")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class SimulatorFailure(ValueError):
    """A simulator raised, or gave an answer that cannot be used: it must be closed and is not called again.

    Its text is one line with the task; `reason` is that line without it, `traceback` where it was raised.
    """

    def __init__(self, name: str, error: BaseException) -> None:
        self.traceback = "".join(traceback.format_exception(error))
        line = (str(error).strip().splitlines() or [""])[0]
        self.reason = f"{type(error).__name__}: {line}" if line else type(error).__name__
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(*Path(place.filename).parts[-2:])}, line {place.lineno}"
        # A message that names the task comes from this package or a suite, with its own remedy.
        plain = isinstance(error, ValueError | ImportError) and name in line
        super().__init__(line if plain else f"{name}: its simulator fails: {self.reason} ({where})")


class GuardedEnv:
    """One task, as `mow.envs.make` gives it; its methods raise nothing but SimulatorFailure, and `close` nothing.

    Args:
        name, seed, options: see `mow.envs.make`.
    Raises: SimulatorFailure, a ValueError, if the simulator cannot be made or is not installed.
    """

    def __init__(self, name: str, *, seed: int, options: Mapping[str, object]) -> None:
        self._name = name
        self._env: Env = self._call(make, name, seed=seed, options=options)
        self._closed = False
        self.task = self._env.task

    def reset(self, *, seed: int | None = None) -> tuple[Observation, dict[str, bool]]:
        """Open an episode: frame [64, 64, 3], or state [state_size]."""
        return self._call(self._reset, seed)  # type: ignore[no-any-return]

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, bool]]:
        """One action. Returns: frame or state, reward, terminated, truncated, and the used entries of the info."""
        return self._call(self._step, action)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Free the simulator. What it raises is logged; more than once does no harm."""
        if not self._closed:
            self._closed = True
            try:
                self._call(self._env.close)
            except SimulatorFailure as failure:
                _LOG.warning("%s: its simulator does not close: %s", self._name, failure.reason)

    def state_dict(self) -> dict[str, Any] | None:
        """State of the simulator, as JSON holds it; None where it has none."""
        return self._env.state_dict() if isinstance(self._env, Resumable) else None

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what state_dict() gave."""
        self._call(self._env.load_state_dict, state)  # type: ignore[attr-defined]

    def _call(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        try:
            with kept_process():
                return function(*arguments, **named)
        except (Exception, SystemExit) as error:
            raise SimulatorFailure(self._name, error) from error

    def _reset(self, seed: int | None) -> tuple[Observation, dict[str, bool]]:
        frame, info = parts_of(self._name, self._env.reset(seed=seed), ("frame", "info"))
        return self._observation(frame), info_of(self._name, info)

    def _step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, bool]]:
        own = action if isinstance(action, int) else np.array(action)  # the simulator may write into it
        parts = ("frame", "reward", "terminated", "truncated", "info")
        frame, reward, terminated, truncated, info = parts_of(self._name, self._env.step(own), parts)
        return (
            self._observation(frame),
            reward_of(self._name, reward),
            flag_of(self._name, terminated, "terminated"),
            flag_of(self._name, truncated, "truncated"),
            info_of(self._name, info),
        )

    def _observation(self, answer: Any) -> Observation:
        size = self.task.state_size
        return frame_of(self._name, answer) if size is None else state_of(self._name, answer, size)


@contextmanager
def kept_process() -> Iterator[None]:
    """Send stdout to stderr inside; at the end restore working folder and signal handlers."""
    folder, handlers = os.getcwd(), [signal.getsignal(number) for number in _SIGNALS]
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.chdir(folder)
        for number, handler in zip(_SIGNALS, handlers, strict=True):
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)
