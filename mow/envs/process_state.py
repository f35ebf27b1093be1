"""Settings of this process that a simulator may change, and that a call into it leaves as they were.

Put back after each call: the working folder; sys.stdout and sys.stderr; the filters of warnings; what SIGINT, SIGTERM,
SIGHUP and SIGPIPE do; umask; garbage collection on or off; the recursion limit; logging, where it was disabled; and of
PyTorch, if it is loaded, gradients on or off, default type and number of threads. Folder and filters are kept apart for
each simulator, which finds in its next call what it left. What it prints goes to stderr, where it can neither mix with
results nor fail.

Put back after construction, reset, load and close: the random state of PyTorch, of which a simulator has its own there.
After construction also the environment variables that were set before; new ones stay, for libraries that the simulator
loads later, but for those that PyTorch reads.

Not protected: the random states of `random` and numpy, from which this package draws nothing; within a step, the random
state of PyTorch; threads and processes that are left running (Python waits for threads that are no daemons before it
ends; with workers they end with the worker); file descriptors, limits and priority of the process, locale, timers,
modules that are patched. Workers protect from these too, and alone from os._exit, crashes and hangs.
"""

import gc
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from types import TracebackType
from typing import Any, TextIO

_INT, _TERM, _HUP, _PIPE = _SIGNALS = tuple(map(int, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)))
# signal.getsignal makes an enum of what this returns, which takes a hundred times as long.
_handler_of: Callable[[int], Any] = import_module("_signal").getsignal
_ROOT, _LOGGER = logging.root, logging.getLogger("mow")
# Variables by their beginnings that a simulator must not bring into a process that learns.
_FOR_TORCH = ("CUDA_", "MKL_", "NCCL_", "OMP_", "PYTORCH_", "TORCH", "TRITON_")


class CallState:
    """A context manager to be used for every call of one simulator, one call at a time."""

    def __init__(self) -> None:
        self._printed = _Printed()
        self._own_folder: str | None = None  # of the simulator, where it is another than ours
        self._own_filters: Any = list(warnings.filters)
        self._own_random: Any = None  # of PyTorch
        self._umask = os.umask(0o077)
        os.umask(self._umask)

    # Every step of every simulator passes here: lines are few and plain for that reason.
    def __enter__(self) -> None:
        self._folder = _folder()
        self._printed.stream = self._err = sys.stderr
        self._out, self._filters = sys.stdout, warnings.filters
        self._handlers, self._settings = _handlers(), _settings()
        sys.stdout = sys.stderr = self._printed  # type: ignore[assignment]  # as much of a stream as print needs
        warnings.filters = self._own_filters
        if self._own_folder:
            _go_to(self._own_folder)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.stdout, sys.stderr = self._out, self._err
        self._own_filters, warnings.filters = warnings.filters, self._filters
        folder = _folder()
        if folder != self._folder or self._own_folder:
            self._own_folder = None if folder == self._folder else folder
            if self._own_folder and self._folder:
                _go_to(self._folder)
        os.umask(self._umask)
        if _handlers() != self._handlers:
            _handle_again(self._handlers)
        if _settings() != self._settings:
            _set_again(self._settings)

    @contextmanager
    def and_random(self, *, environment: bool = False) -> Iterator[None]:
        """Around a call: puts back what costs too much for every step. Args: environment: its variables too."""
        restore_random, restore_environment = self._torch_random(), _environment() if environment else None
        try:
            yield
        finally:
            restore_random()
            if restore_environment is not None:
                restore_environment()

    def _torch_random(self) -> Callable[[], None]:
        torch = _torch()
        if torch is None:
            return lambda: None
        kept = torch.get_rng_state()
        if self._own_random is not None:
            torch.set_rng_state(self._own_random)

        def restore() -> None:
            self._own_random = torch.get_rng_state()
            torch.set_rng_state(kept)

        return restore


class _Printed:
    """A text stream that hands lines on to another, and loses them where that cannot take them."""

    stream: TextIO | None = None

    def write(self, text: str) -> int:
        with suppress(Exception):  # closed, full, not of this encoding: no reason for a simulator to fail
            if self.stream is not None:
                self.stream.write(text)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        with suppress(Exception):
            if self.stream is not None:
                self.stream.flush()

    def close(self) -> None:
        """The stream is not the simulator's to close."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _handlers() -> tuple[Any, Any, Any, Any]:
    return _handler_of(_INT), _handler_of(_TERM), _handler_of(_HUP), _handler_of(_PIPE)


def _handle_again(handlers: tuple[Any, ...]) -> None:
    for number, handler in zip(_SIGNALS, handlers, strict=True):
        if handler is not None:  # None: it was not set from Python, and cannot be set again from here
            with suppress(ValueError):  # not the main thread, from which a simulator cannot have set it either
                signal.signal(number, handler)


def _folder() -> str | None:
    """None where the working folder was deleted."""
    try:
        return os.getcwd()
    except OSError:
        return None


def _go_to(folder: str) -> None:
    with suppress(OSError):  # it may have been deleted
        os.chdir(folder)


def _torch() -> Any:
    """PyTorch, if it is loaded, as it is not in workers."""
    torch = sys.modules.get("torch")
    return torch if hasattr(torch, "default_generator") else None  # or it is being loaded


def _settings() -> tuple[Any, ...]:
    own = gc.isenabled(), sys.getrecursionlimit(), _ROOT.manager.disable, _LOGGER.disabled, _LOGGER.level
    if (torch := _torch()) is None:
        return own
    return *own, torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()


def _set_again(settings: tuple[Any, ...]) -> None:
    collects, recursion, _ROOT.manager.disable, _LOGGER.disabled, level, *of_torch = settings
    (gc.enable if collects else gc.disable)()
    sys.setrecursionlimit(recursion)
    _LOGGER.setLevel(level)
    if of_torch:
        gradients, dtype, threads = of_torch
        _torch().set_grad_enabled(gradients)
        _torch().set_default_dtype(dtype)
        _torch().set_num_threads(threads)


def _environment() -> Callable[[], object]:
    before = dict(os.environ)

    def restore() -> None:
        for name in [name for name in os.environ if name not in before and name.startswith(_FOR_TORCH)]:
            del os.environ[name]
        for name, value in before.items():
            if os.environ.get(name) != value:
                os.environ[name] = value

    return restore
