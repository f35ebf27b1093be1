"""The one place where simulators are called: every call gives a valid answer or a failure.

Without workers and within them, every call goes through a GuardedEnv. Anything that is raised, SystemExit and
KeyboardInterrupt included, and any answer that cannot be used becomes a SimulatorFailure with one line on the cause;
only what the answer to a signal raises passes, as Ctrl-C does. What the process must keep is put back, see
`process_state`.
"""

import dis
import json
import logging
import signal
import traceback
from collections.abc import Callable, Mapping
from contextvars import copy_context
from pathlib import Path
from typing import Any

import numpy as np

from mow.envs import check_options, check_task, make
from mow.envs.answers import flag_of, frame_of, info_of, parts_of, reward_of
from mow.envs.base import Action, Env, Frame, Resumable, TaskSpec
from mow.envs.heartbeat import ON_BEAT
from mow.envs.process_state import CallState

_LOG = logging.getLogger("mow")


class SimulatorFailure(ValueError):
    """A simulator raised, or answered what cannot be used: it must be closed and is not called again.

    Its text is one line with the task; `reason` is that line without it, `traceback` where it was raised.
    """

    def __init__(self, name: str, error: BaseException) -> None:
        self.reason, self.traceback = _reason(error), "".join(traceback.format_exception(error))
        # A message that names the task comes from this package or a suite, with its own remedy.
        plain = isinstance(error, ValueError | ImportError) and name in str(error)
        super().__init__(_first_line(error) if plain else f"{name}: its simulator fails: {self.reason}{_place(error)}")


class SimulatorMissing(SimulatorFailure, ImportError):
    """Something that a simulator needs is not installed."""


class GuardedEnv:
    """One task, as `mow.envs.make` gives it, behind the guard.

    `reset`, `step` and `load_state_dict` raise nothing but SimulatorFailure; `close` and `state_dict` raise nothing.

    Args:
        name, seed, options: see `mow.envs.make`.
        on_call: called before every call of the simulator, and by long ones in between.
    Raises: ValueError if the task or an option is unknown; SimulatorFailure if the simulator cannot be made,
        SimulatorMissing if something is not installed.
    """

    task: TaskSpec

    def __init__(
        self, name: str, *, seed: int, options: Mapping[str, object], on_call: Callable[[], None] | None = None
    ) -> None:
        check_task(name)
        check_options(options)
        self._name, self._on_call = name, on_call
        self._env: Env | None = None
        self._state = CallState()
        self._context = copy_context()  # of its own: there numpy keeps the state of np.seterr
        if on_call is not None:
            self._context.run(ON_BEAT.set, on_call)
        try:
            with self._state.and_random(environment=True):
                self._call(self._make, seed, options)
        except SimulatorFailure:
            self.close()
            raise

    def reset(self, *, seed: int | None = None) -> tuple[Frame, dict[str, bool]]:
        """Open an episode: [64, 64, 3]."""
        with self._state.and_random():
            return self._call(self._reset, seed)  # type: ignore[no-any-return]

    def step(self, action: Action) -> tuple[Frame, float, bool, bool, dict[str, bool]]:
        """One action. Returns: frame [64, 64, 3], reward, terminated, truncated, and of the info what is used."""
        return self._call(self._step, action)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Free the simulator. What it raises is logged; more than once does no harm."""
        env, self._env = self._env, None
        if env is not None:
            try:
                with self._state.and_random():
                    self._call(env.close)
            except SimulatorFailure as failure:
                _LOG.warning("%s: its simulator does not close: %s", self._name, failure.reason)

    def state_dict(self) -> tuple[dict[str, Any] | None, str]:
        """State of the simulator, as JSON holds it, or None; then the reason, where it should have one."""
        try:
            return self._call(self._state_of), ""
        except SimulatorFailure as failure:
            return None, failure.reason

    def load_state_dict(self, state: Mapping[str, Any]) -> bool:
        """Go on from what state_dict() gave. Returns: False if the simulator cannot."""
        with self._state.and_random():
            return self._call(self._put_back, state)  # type: ignore[no-any-return]

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if self._on_call is not None:
            self._on_call()
        try:
            with self._state:
                return self._context.run(function, *arguments)
        except BaseException as error:
            if _is_of_a_signal(error):
                raise
            kind = SimulatorMissing if isinstance(error, ImportError) else SimulatorFailure
            raise kind(self._name, error) from error

    # Run within _call ------------------------------------------------------------------------------------------------

    def _make(self, seed: int, options: Mapping[str, object]) -> None:
        env = self._env = make(self._name, seed=seed, options=options)
        task: object = env.task
        if not isinstance(task, TaskSpec) or task.name != self._name:
            raise ValueError(f"{self._name}: expected a TaskSpec of that name as .task, got {task!r}")
        self.task = task

    def _reset(self, seed: int | None) -> tuple[Frame, dict[str, bool]]:
        frame, info = parts_of(self._name, self._alive().reset(seed=seed), ("frame", "info"))
        return frame_of(self._name, frame), info_of(self._name, info)

    def _step(self, action: Action) -> tuple[Frame, float, bool, bool, dict[str, bool]]:
        own = action if isinstance(action, int) else np.array(action)  # the simulator may write into it
        answer = self._alive().step(own)
        frame, reward, terminated, truncated, info = parts_of(
            self._name, answer, ("frame", "reward", "terminated", "truncated", "info")
        )
        return (
            frame_of(self._name, frame),
            reward_of(self._name, reward),
            flag_of(self._name, terminated, "terminated"),
            flag_of(self._name, truncated, "truncated"),
            info_of(self._name, info),
        )

    def _state_of(self) -> dict[str, Any] | None:
        env = self._alive()
        if not isinstance(env, Resumable):
            return None
        state = env.state_dict()
        json.dumps(state)  # raises TypeError or ValueError here rather than where the checkpoint is written
        return state

    def _put_back(self, state: Mapping[str, Any]) -> bool:
        env = self._alive()
        if not isinstance(env, Resumable):
            return False
        env.load_state_dict(state)
        return True

    def _alive(self) -> Env:
        if self._env is None:
            raise RuntimeError("it was closed: make another")
        return self._env


def _is_of_a_signal(error: BaseException) -> bool:
    """Raised by what answers SIGINT, SIGTERM or SIGHUP in this process, which only happened to run during a call.

    Python's own answer to SIGINT leaves no frame: its KeyboardInterrupt comes from where no `raise` stands.
    """
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    if isinstance(error, KeyboardInterrupt) and handlers[0] is signal.default_int_handler:
        where = _innermost(error)
        return dis.opname[where.tb_frame.f_code.co_code[where.tb_lasti]] != "RAISE_VARARGS"
    codes = [getattr(handler, "__code__", None) for handler in handlers]
    return any(frame.f_code in codes for frame, _ in traceback.walk_tb(error.__traceback__))


def _innermost(error: BaseException) -> Any:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace


def _place(error: BaseException) -> str:
    """The file and line that raised it: simulators are others' code, and the traceback is not printed."""
    where = _innermost(error)
    if where is None:
        return ""
    path = Path(where.tb_frame.f_code.co_filename)
    return f" ({Path(path.parent.name) / path.name}, line {where.tb_lineno})"


def _reason(error: BaseException) -> str:
    text = _first_line(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _first_line(error: BaseException) -> str:
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # noqa: BLE001 - an error whose str() fails
        return ""
    return lines[0] if lines else ""
