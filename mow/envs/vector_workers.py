"""K tasks shared out among worker processes, which are replaced when they fail.

Each worker owns every W-th task and loops over its own; frames and flags come back through shared memory, and one
small message per worker and step carries the actions out and the finished episodes back. Threads would not do (the
Atari emulator holds the interpreter's lock), and one process per task costs ten times the memory.
"""

import ctypes
import multiprocessing
import time
import weakref
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, cast

import numpy as np

from mow.envs.vector_base import OrderedVectorEnv
from mow.envs.vector_group import Crash, record_of
from mow.envs.vector_process import Worker, end_workers, start_worker

# To start a worker, and to make one simulator, may take this long on top of the time for a step: some are slow to load.
_MAKING_S = 10.0


class WorkerVectorEnv(OrderedVectorEnv):
    """The tasks shared out among worker processes, which live until `close` or until this process ends.

    Args: as of `make_vector`; num_workers >= 1, and at most one per task is started.
    """

    def __init__(
        self, tasks: Sequence[str], *, seed: int, num_workers: int, options: Mapping[str, object],
        max_restarts: int = 0, timeout_s: float = 60.0, final_frames: bool = False,
        places: Sequence[int] | None = None,
    ) -> None:
        record = record_of(options)
        memory: Any = multiprocessing.get_context("spawn").RawArray(ctypes.c_byte, len(tasks) * record.itemsize)
        super().__init__(tasks, np.frombuffer(memory, record), seed, max_restarts, places)
        self._memory, self._options, self._final_frames, self._timeout_s = memory, options, final_frames, timeout_s
        self._workers: list[Worker] = []
        self._pending: list[Worker] = []  # with a request under way
        self._lost_early: list[Crash] = []  # gone at the time of the request
        # Also runs when the object is forgotten and when this process exits.
        self._end_workers = weakref.finalize(self, end_workers, self._workers)
        count = min(num_workers, len(tasks))
        for first in range(count):
            self._workers.append(self._start(first, {slot: tasks[slot] for slot in range(first, len(tasks), count)}))
        self._ask("build")
        specs, crashes = self._answers(making=True)
        if crashes:
            raise ValueError(self._failure(min(crashes)).line)
        self._set_specs({slot: spec for part in specs for slot, spec in part.items()})

    def close(self) -> None:
        """End the worker processes and free the shared memory; more than once does no harm."""
        if not self._closed:
            self._closed = True
            self._end_workers()
            self._board = self._board[:0].copy()  # lets go of the shared memory
            self._memory = None

    def _start(self, number: int, slots: dict[int, str]) -> Worker:
        return start_worker(number, slots, self._memory, self._seed, self._options, self._final_frames, self.places)

    def _ask(self, verb: str, by_slot: Mapping[int, Any] | None = None) -> None:
        for number, worker in enumerate(self._workers):
            mine = None if by_slot is None else {slot: by_slot[slot] for slot in worker.slots if slot in by_slot}
            if mine is not None and not mine:
                continue
            if worker.ended and verb == "renew":
                worker = self._workers[number] = self._start(number, worker.slots)
            try:
                worker.connection.send((verb, *(() if mine is None else (mine,))))
            except OSError:
                self._lost_early.append(self._ended(worker))
            else:
                self._pending.append(worker)

    def _answers(self, *, making: bool = False) -> tuple[list[Any], list[Crash]]:
        """See OrderedVectorEnv; workers without an answer are ended.

        The time limit counts from the start of the work on one task, not from the request.
        Raises: what a worker raised.
        """
        answers, crashes = [], self._lost_early
        waiting = {worker.connection: worker for worker in self._pending}
        self._pending, self._lost_early = [], []
        sent_at, limit_s = time.monotonic(), self._timeout_s + _MAKING_S * making
        while waiting:
            ends = {worker.connection: self._since(worker, sent_at) + limit_s for worker in waiting.values()}
            ready = wait(list(waiting), max(0.0, min(ends.values()) - time.monotonic()))
            for ours in cast(list[Connection], ready):
                worker = waiting.pop(ours)
                try:
                    error, answer = ours.recv()
                except (EOFError, OSError):
                    crashes.append(self._ended(worker))
                else:
                    if error is not None:  # of the construction, or of this package
                        self.close()
                        raise error
                    answers.append(answer)
            if not ready:
                now = time.monotonic()
                for worker in [one for one in waiting.values() if self._since(one, sent_at) + limit_s <= now]:
                    del waiting[worker.connection]
                    reason = f"its worker gave no answer within {limit_s:g} s (env.timeout_s)"
                    crashes.append(self._crash(worker, reason))
        return answers, crashes

    def _since(self, worker: Worker, sent_at: float) -> float:
        """Start of the work on its present task, or of the request, if none has begun since."""
        return max([sent_at, *(self._board["since"][slot] for slot in worker.slots if self._board["busy"][slot])])

    def _ended(self, worker: Worker) -> Crash:
        if not worker.ended:
            worker.end(grace_s=1.0)
        return self._crash(worker, f"its worker died with exit code {worker.process.exitcode}")

    def _crash(self, worker: Worker, reason: str) -> Crash:
        """Ends the worker. To blame is the task that it was in, or all of its tasks where it was idle."""
        if not worker.ended:
            worker.end()
        slots = tuple(worker.slots)
        busy = tuple(slot for slot in slots if self._board["busy"][slot])
        self._board["busy"][list(slots)] = False
        return Crash(slots, busy or slots, reason)
