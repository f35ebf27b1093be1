"""All K tasks of a run stepped as one: in this process, or in worker processes that share memory with it.

Each worker owns every W-th task and loops over its own; frames and flags come back through shared memory, and one
small message per worker and step carries the actions out and the finished episodes back. Threads would not do (the
Atari emulator holds the interpreter's lock), and one process per task costs ten times the memory.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import ModuleType, TracebackType
from typing import Any, Protocol, Self, cast

import numpy as np
from numpy.typing import NDArray

from mow.envs import check_task
from mow.envs.base import Action, ActionLayout, EnvStep, Episode, TaskSpec, permutation
from mow.envs.task_group import FLAGS, RECORD, Finished, TaskGroup

# Read by libraries when they load, so they must stand before a worker starts.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LP_NUM_THREADS"), "1")


class VectorEnv(Protocol):
    """K tasks that are stepped together; an episode that ends is followed by the next within the same step."""

    @property
    def specs(self) -> tuple[TaskSpec, ...]: ...

    @property
    def layout(self) -> ActionLayout: ...

    def reset(self) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]: ...

    def step(self, action: NDArray[np.float32]) -> EnvStep: ...

    def reorder(self, order: Sequence[int] | NDArray[np.integer]) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> dict[int, NDArray[np.uint8]]: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


def make_vector(tasks: Sequence[str], *, seed: int, num_workers: int, options: Mapping[str, object]) -> VectorEnv:
    """The tasks in this process (num_workers = 0) or in at most one worker process per task.

    Rollouts are the same for every num_workers. Raises: ValueError if num_workers is negative, there is no task, or
    one is unknown; RuntimeError if a worker fails to start.
    """
    if num_workers < 0:
        raise ValueError(f"num_workers counts processes, got {num_workers}: pass 0 to stay in this process")
    if num_workers == 0:
        return SerialVectorEnv(tasks, seed=seed, options=options)
    return WorkerVectorEnv(tasks, seed=seed, num_workers=num_workers, options=options)


class _OrderedVectorEnv(ABC):
    """What both kinds share: the order of the tasks, the checks and the records."""

    def __init__(self, tasks: Sequence[str], board: NDArray[np.void]) -> None:
        self._board = board  # [K], by slot
        self._slots: NDArray[np.integer] = np.arange(len(tasks))  # [K] the slot that task k shows
        self._ready = False  # reset has been called
        self._closed = False

    def _learn_specs(self, specs: Mapping[int, TaskSpec]) -> None:
        self.specs = tuple(specs[slot] for slot in range(len(self._slots)))
        self.layout = ActionLayout.from_tasks(self.specs)

    def reset(self) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Open an episode in every task: frames [K, 64, 64, 3] and is_first [K], all True."""
        self._check_open()
        self._reset_all()
        self._ready = True
        return self._board["frame"][self._slots], self._board["is_first"][self._slots]

    def step(self, action: NDArray[np.float32]) -> EnvStep:
        """One agent step of every task.

        Args:
            action: [K, A] as `layout` says.
        Raises: ValueError if the shape is wrong or an action is illegal, before any task is stepped; RuntimeError
            before the first reset and after close.
        """
        self._check_open()
        if not self._ready:
            raise RuntimeError("no episode is running: call reset before step")
        shape = (len(self._slots), self.layout.size)
        if action.shape != shape:
            raise ValueError(f"action needs shape {shape}, got {action.shape}: encode it with .layout")
        native = {int(slot): self.layout.decode(k, action[k]) for k, slot in enumerate(self._slots)}
        finished = {slot: (total, length, success) for slot, total, length, success in self._step_all(native)}
        episodes = tuple(
            Episode(self.specs[k].name, k, *finished[slot]) for k, slot in enumerate(self._slots) if slot in finished
        )
        frame = self._board["frame"][self._slots]  # [K, 64, 64, 3], a copy, as are the others
        flags = {name: self._board[name][self._slots] for name in FLAGS}  # [K] each
        return EnvStep(frame=frame, finished=episodes, **flags)

    def reorder(self, order: Sequence[int] | NDArray[np.integer]) -> None:
        """Make task k the old task order[k]; no environment is touched. Raises: ValueError unless a permutation."""
        index = permutation(order, len(self._slots))
        self._slots = self._slots[index]
        self.specs = tuple(self.specs[old] for old in index)
        self.layout = self.layout.reorder(index)

    def state_dict(self) -> dict[str, Any]:
        """Where all tasks are, in their present order, as what JSON can hold."""
        self._check_open()
        return {"slots": self._slots.tolist(), "tasks": {str(slot): kept for slot, kept in self._states().items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> dict[int, NDArray[np.uint8]]:
        """Go on from a state_dict() of the same tasks, whatever the number of workers; takes the place of reset.

        Returns: the tasks k whose simulators cannot go on, with the first frame [64, 64, 3] of their new episodes.
        """
        self._check_open()
        order = [self._slots.tolist().index(slot) for slot in state["slots"]]
        self.reorder(order)
        renewed = self._load_states({int(slot): kept for slot, kept in state["tasks"].items()})
        self._ready = True
        return {k: self._board["frame"][slot].copy() for k, slot in enumerate(self._slots) if slot in renewed}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("these environments are closed: make new ones")

    @abstractmethod
    def _reset_all(self) -> None: ...

    @abstractmethod
    def _step_all(self, actions: Mapping[int, Action]) -> list[Finished]: ...

    @abstractmethod
    def _states(self) -> dict[int, dict[str, Any]]: ...

    @abstractmethod
    def _load_states(self, states: Mapping[int, Mapping[str, Any]]) -> list[int]: ...

    @abstractmethod
    def close(self) -> None: ...


class SerialVectorEnv(_OrderedVectorEnv):
    """All tasks in this process, one after the other: for tests, debugging and single cores. See `make_vector`."""

    def __init__(self, tasks: Sequence[str], *, seed: int, options: Mapping[str, object]) -> None:
        _check_run(tasks, seed)
        super().__init__(tasks, np.zeros(len(tasks), RECORD))
        self._group = TaskGroup(dict(enumerate(tasks)), self._board, seed, options)
        self._learn_specs(self._group.specs)

    def close(self) -> None:
        """Free the simulators; more than once does no harm."""
        if not self._closed:
            self._closed = True
            self._group.close()

    def _reset_all(self) -> None:
        self._group.reset()

    def _step_all(self, actions: Mapping[int, Action]) -> list[Finished]:
        return self._group.step(actions)

    def _states(self) -> dict[int, dict[str, Any]]:
        return self._group.state_dict()

    def _load_states(self, states: Mapping[int, Mapping[str, Any]]) -> list[int]:
        return self._group.load_state_dict(states)


@dataclass(frozen=True, eq=False)
class _Worker:
    process: SpawnProcess
    connection: Connection
    slots: dict[int, str]  # its tasks, by slot


class WorkerVectorEnv(_OrderedVectorEnv):
    """The tasks shared out among worker processes, which live until `close` or until this process ends.

    Args:
        tasks: [K] names, "suite:Task".
        seed: >= 0; rollouts depend on it, on the tasks' places in the list and on the actions, on nothing else.
        num_workers: >= 1; at most one per task is started.
        options: of the suites.
        timeout_s: how long to wait for a worker to start, reset or step, in seconds.
    Raises: ValueError if an argument is none of these; RuntimeError, which closes all, if a worker raises (its
        traceback is in the message), dies or does not answer in time.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        *,
        seed: int,
        num_workers: int,
        options: Mapping[str, object],
        timeout_s: float = 60.0,
    ) -> None:
        _check_run(tasks, seed)
        if num_workers < 1:
            raise ValueError(f"expected one worker or more, got {num_workers}: use SerialVectorEnv for none")
        context = multiprocessing.get_context("spawn")
        memory: Any = context.RawArray(ctypes.c_byte, len(tasks) * RECORD.itemsize)
        super().__init__(tasks, np.frombuffer(memory, RECORD))
        self._timeout_s = timeout_s
        self._workers: list[_Worker] = []
        # Also runs when the object is forgotten and when this process exits.
        self._end_workers = weakref.finalize(self, _end, self._workers)
        count = min(num_workers, len(tasks))
        with _quiet_start():
            for first in range(count):
                slots = {slot: tasks[slot] for slot in range(first, len(tasks), count)}
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_work, args=(theirs, memory, slots, seed, dict(options)), name=f"envs-{first}", daemon=True
                )
                process.start()
                theirs.close()  # or the death of the worker would not end the pipe
                self._workers.append(_Worker(process, ours, slots))
        specs: dict[int, TaskSpec] = {}
        for answer in self._gather():
            specs.update(answer)
        self._learn_specs(specs)

    def close(self) -> None:
        """End the worker processes and free the shared memory; more than once does no harm."""
        if not self._closed:
            self._closed = True
            self._end_workers()
            self._board = np.zeros(0, RECORD)  # lets go of the shared memory

    def _reset_all(self) -> None:
        for worker in self._workers:
            self._send(worker, ("reset",))
        self._gather()

    def _step_all(self, actions: Mapping[int, Action]) -> list[Finished]:
        for worker in self._workers:
            self._send(worker, ("step", {slot: actions[slot] for slot in worker.slots}))
        return [finished for answer in self._gather() for finished in answer]

    def _states(self) -> dict[int, dict[str, Any]]:
        for worker in self._workers:
            self._send(worker, ("state_dict",))
        return {slot: kept for answer in self._gather() for slot, kept in answer.items()}

    def _load_states(self, states: Mapping[int, Mapping[str, Any]]) -> list[int]:
        for worker in self._workers:
            self._send(worker, ("load_state_dict", {slot: states[slot] for slot in worker.slots}))
        return [slot for answer in self._gather() for slot in answer]

    def _send(self, worker: _Worker, message: tuple[object, ...]) -> None:
        try:
            worker.connection.send(message)
        except OSError as error:
            raise self._failure(worker, "died") from error

    def _gather(self) -> list[Any]:
        """One answer of every worker, in no particular order. Raises: RuntimeError if one has none."""
        answers = []
        waiting = {worker.connection: worker for worker in self._workers}
        deadline = time.monotonic() + self._timeout_s
        while waiting:
            ready = cast(list[Connection], wait(list(waiting), max(0.0, deadline - time.monotonic())))
            if not ready:
                hung = next(iter(waiting.values()))
                raise self._failure(hung, f"gave no answer within {self._timeout_s:g} s (timeout_s)")
            for ours in ready:
                worker = waiting.pop(ours)
                try:
                    failed, answer = ours.recv()
                except (EOFError, OSError) as error:
                    raise self._failure(worker, "died") from error
                if failed:
                    raise self._failure(worker, f"raised\n{answer}")
                answers.append(answer)
        return answers

    def _failure(self, worker: _Worker, what: str) -> RuntimeError:
        """The error to raise; closes everything, since the other workers are somewhere within a step."""
        busy = [name for slot, name in worker.slots.items() if self._board["busy"][slot]]
        self.close()
        if what == "died":
            what = f"died with exit code {worker.process.exitcode}"
        return RuntimeError(f"environment worker of {', '.join(busy or worker.slots.values())} {what}")


def _check_run(tasks: Sequence[str], seed: int) -> None:
    if not tasks:
        raise ValueError("a run needs one task or more, got none: name them as in 'atari:Pong'")
    if seed < 0:
        raise ValueError(f"a seed is >= 0, got {seed}: pass another")
    for name in tasks:
        check_task(name)


def _end(workers: list[_Worker]) -> None:
    """Ask, wait a moment, then kill; a stopped or hung process ends by nothing less."""
    for worker in workers:
        worker.connection.close()  # an idle worker reads the end of its pipe and leaves
    for worker in workers:
        worker.process.join(timeout=1.0)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
    workers.clear()


@contextmanager
def _quiet_start() -> Iterator[None]:
    """While workers start: one thread per library, and no trace of the caller's script.

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
        for name in _ONE_THREAD:
            if name in environment:
                os.environ[name] = environment[name]
            else:
                del os.environ[name]


class _Reporting:
    """Sends whatever is raised inside to the parent; the process then ends in order, without a second traceback."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        # Where the parent closed the pipe or is gone, there is nobody to tell.
        with suppress(OSError):
            self._connection.send((True, "".join(traceback.format_exception(error))))
        return True


def _work(
    connection: Connection, memory: Any, slots: dict[int, str], seed: int, options: dict[str, object]
) -> None:
    """A worker's life: make the environments of its slots, then answer the parent until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=_follow_parent, daemon=True).start()
    with _Reporting(connection):
        group = TaskGroup(slots, np.frombuffer(memory, RECORD), seed, options)
        connection.send((False, group.specs))
        while True:
            verb, *arguments = connection.recv()
            connection.send((False, getattr(group, verb)(*arguments)))


def _follow_parent() -> None:
    """Leave when the parent has died, even from within a simulator that hangs."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
