"""One process that steps some tasks for another: its start, its main loop, its end."""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import ModuleType
from typing import Any

import numpy as np

from mow.envs.vector_group import TaskGroup, record_of

# Read by libraries when they load, so they must stand before a worker starts. For Mesa 0 is the calling thread; with
# 1 it hands every picture to another and waits.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}


@dataclass(frozen=True, eq=False)
class Worker:
    """A process, seen from its parent, which sends (verb, *arguments) and gets (error or None, answer)."""

    process: SpawnProcess
    connection: Connection
    slots: dict[int, str]  # its tasks, by slot

    @property
    def ended(self) -> bool:
        return self.connection.closed

    def end(self, grace_s: float = 0.0) -> None:
        """Close its pipe, whose end an idle worker reads and leaves; kill it if it does not leave in time."""
        self.connection.close()
        self.process.join(timeout=grace_s)
        if self.process.is_alive():
            self.process.kill()  # a stopped or hung process ends by nothing less
            self.process.join()


def start_worker(
    number: int, slots: dict[int, str], memory: Any, seed: int, options: Mapping[str, object], final_frames: bool,
    places: Sequence[int],
) -> Worker:
    """A process with a TaskGroup that is not built yet; `memory` is shared and holds a board."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    arguments = (theirs, memory, slots, seed, dict(options), final_frames, places)
    process = context.Process(target=_work, args=arguments, name=f"envs-{number}", daemon=True)
    with quiet_start():
        process.start()
    theirs.close()  # or the death of the worker would not end the pipe
    return Worker(process, ours, slots)


def end_workers(workers: list[Worker]) -> None:
    """Close their pipes, wait a moment, then kill."""
    for worker in workers:
        worker.connection.close()
    for worker in workers:
        worker.end(grace_s=1.0)
    workers.clear()


@contextmanager
def quiet_start() -> Iterator[None]:
    """While a worker starts: one thread per library, and no trace of the caller's script.

    A spawned process imports the script that spawned it, and with it PyTorch: 200 MiB and seconds per worker, and a
    script without a __main__ guard would start workers without end. A worker needs this module alone.
    """
    script, environment = sys.modules["__main__"], dict(os.environ)
    sys.modules["__main__"] = ModuleType("__main__")
    os.environ.update(_ONE_THREAD)
    try:
        yield
    finally:
        sys.modules["__main__"] = script
        for name in _ONE_THREAD.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)


def _work(
    connection: Connection, memory: Any, slots: dict[int, str], seed: int, options: dict[str, Any], final_frames: bool,
    places: Sequence[int],
) -> None:
    """Main loop of a worker: answers the parent until the pipe ends; what is raised goes to the parent."""
    # Ctrl-C, a closed terminal and a launcher's SIGTERM to the whole group are the parent's to answer.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=follow_parent, daemon=True).start()
    board = np.frombuffer(memory, record_of(options))
    try:
        with closing(TaskGroup(slots, board, seed, options, final_frames=final_frames, places=places)) as group:
            while True:
                verb, *arguments = connection.recv()
                connection.send((None, getattr(group, verb)(*arguments)))
    except BaseException as error:  # noqa: BLE001 - the process ends in order, without a second traceback
        # A kind that the parent can unpickle.
        sent = ValueError(str(error)) if isinstance(error, ValueError) else RuntimeError(repr(error))
        sent.add_note("".join(traceback.format_exception(error)))
        with suppress(OSError):  # the parent closed the pipe or is gone
            connection.send((sent, None))


def follow_parent() -> None:
    """Leave when the parent has died, even from within a simulator that hangs."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
