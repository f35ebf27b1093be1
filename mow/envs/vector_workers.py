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

from mow.envs.base import Action, EnvFailure, TaskSpec
from mow.envs.vector_base import OrderedVectorEnv
from mow.envs.vector_group import RECORD, Crash, Finished
from mow.envs.vector_process import Worker, end_workers, start_worker

# To start a worker, and to make one simulator, may take this long on top of the time for a step: some are slow to load.
_MAKING_S = 10.0


class WorkerVectorEnv(OrderedVectorEnv):
    """The tasks shared out among worker processes, which live until `close` or until this process ends.

    Args: as of `make_vector`; num_workers >= 1, and at most one per task is started.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        *,
        seed: int,
        num_workers: int,
        options: Mapping[str, object],
        max_restarts: int = 0,
        timeout_s: float = 60.0,
        final_frames: bool = False,
    ) -> None:
        if num_workers < 1:
            raise ValueError(f"expected one worker or more, got {num_workers}: use SerialVectorEnv for none")
        memory: Any = multiprocessing.get_context("spawn").RawArray(ctypes.c_byte, len(tasks) * RECORD.itemsize)
        super().__init__(tasks, np.frombuffer(memory, RECORD), seed, max_restarts)
        self._memory, self._options, self._timeout_s = memory, options, timeout_s
        self._final_frames = final_frames
        self._workers: list[Worker] = []
        self._pending: list[Worker] = []  # with a request under way
        self._lost_early: list[Crash] = []  # gone at the time of the request
        # Also runs when the object is forgotten and when this process exits.
        self._end_workers = weakref.finalize(self, end_workers, self._workers)
        count = min(num_workers, len(tasks))
        for first in range(count):
            self._workers.append(self._start(first, {slot: tasks[slot] for slot in range(first, len(tasks), count)}))
        specs: dict[int, TaskSpec] = {}
        try:
            for worker in self._workers:
                self._ask(worker, "build")
            for answer in self._all_answers(making=True, starting=True):
                specs.update(answer)
        except EnvFailure as failure:  # a worker that died or hangs
            raise ValueError(failure.line) from failure
        self._set_specs(specs)

    def close(self) -> None:
        """End the worker processes and free the shared memory; more than once does no harm."""
        if not self._closed:
            self._closed = True
            self._end_workers()
            self._board = np.zeros(0, RECORD)  # lets go of the shared memory
            self._memory = None

    def _reset_all(self) -> None:
        for worker in self._workers:
            self._ask(worker, "reset")
        self._all_answers()

    def _send_all(self, actions: Mapping[int, Action]) -> None:
        for worker in self._workers:
            self._ask(worker, "step", {slot: actions[slot] for slot in worker.slots})

    def _receive_all(self, actions: Mapping[int, Action]) -> tuple[list[Finished], list[Crash]]:
        answers, crashes = self._gather()
        finished = [episode for ended, _ in answers for episode in ended]
        return finished, [*crashes, *(crash for _, failed in answers for crash in failed)]

    def _renew(self, lost: Mapping[int, int]) -> list[Crash]:
        for number, worker in enumerate(self._workers):
            mine = {slot: lost[slot] for slot in worker.slots if slot in lost}
            if mine and worker.ended:
                self._workers[number] = self._start(number, worker.slots)
            if mine:
                self._ask(self._workers[number], "renew", mine)
        answers, crashes = self._gather(making=True)
        return [*crashes, *(crash for failed in answers for crash in failed)]

    def _states(self) -> dict[int, dict[str, Any]]:
        for worker in self._workers:
            self._ask(worker, "state_dict")
        answers, crashes = self._gather()
        states = {slot: kept for answer in answers for slot, kept in answer.items()}
        # The workers that are gone are replaced and reported in the next step.
        return states | {slot: self._lost(slot) for crash in crashes for slot in crash.slots}

    def _load_states(self, states: Mapping[int, Mapping[str, Any]]) -> list[int]:
        for worker in self._workers:
            self._ask(worker, "load_state_dict", {slot: states[slot] for slot in worker.slots})
        return [slot for renewed in self._all_answers(making=True) for slot in renewed]

    def _start(self, number: int, slots: dict[int, str]) -> Worker:
        return start_worker(number, slots, self._memory, self._seed, self._options, self._final_frames)

    def _ask(self, worker: Worker, verb: str, *arguments: object) -> None:
        try:
            worker.connection.send((verb, *arguments))
        except OSError:
            self._lost_early.append(self._ended(worker))
        else:
            self._pending.append(worker)

    def _all_answers(self, *, making: bool = False, starting: bool = False) -> list[Any]:
        """Answers of all workers. Raises: EnvFailure if one has none; ValueError or ImportError, see `_gather`."""
        answers, crashes = self._gather(making=making, starting=starting)
        if crashes:
            raise self._give_up(crashes[0])
        return answers

    def _gather(self, *, making: bool = False, starting: bool = False) -> tuple[list[Any], list[Crash]]:
        """One answer of every worker with a request, in no particular order, and those that have none, now ended.

        The time limit counts from the latest call of a simulator that is at work, not from the request.

        Args:
            making: simulators are made first; a call may then take longer.
            starting: raise the ValueError or ImportError of a worker here.
        """
        answers, crashes = [], self._lost_early
        waiting = {worker.connection: worker for worker in self._pending}
        self._pending, self._lost_early = [], []
        asked, limit_s = time.monotonic(), self._timeout_s + _MAKING_S * making
        while waiting:
            ends = {worker.connection: self._called(worker, asked) + limit_s for worker in waiting.values()}
            ready = wait(list(waiting), max(0.0, min(ends.values()) - time.monotonic()))
            for ours in cast(list[Connection], ready):
                worker = waiting.pop(ours)
                try:
                    report, answer = ours.recv()
                except (EOFError, OSError):
                    crashes.append(self._ended(worker))
                else:
                    if report is None:
                        answers.append(answer)
                    elif starting and report.user_error is not None:
                        self.close()
                        raise report.user_error(report.message)
                    else:
                        crashes.append(self._crash(worker, report.reason, report.traceback))
            if not ready:
                now = time.monotonic()
                for worker in [one for one in waiting.values() if self._called(one, asked) + limit_s <= now]:
                    del waiting[worker.connection]
                    reason = f"its worker gave no answer within {limit_s:g} s (env.timeout_s)"
                    crashes.append(self._crash(worker, reason))
        return answers, crashes

    def _called(self, worker: Worker, asked: float) -> float:
        """Start of its present call of a simulator, or of the request, if none has begun since."""
        return max([asked, *(self._board["called"][slot] for slot in worker.slots if self._board["busy"][slot])])

    def _ended(self, worker: Worker) -> Crash:
        if not worker.ended:
            worker.end(grace_s=1.0)
        return self._crash(worker, f"its worker died with exit code {worker.process.exitcode}")

    def _crash(self, worker: Worker, reason: str, traceback: str = "") -> Crash:
        """Ends the worker. To blame is the task that it was in, or all of its tasks where it was idle."""
        if not worker.ended:
            worker.end()
        slots = tuple(worker.slots)
        busy = tuple(slot for slot in slots if self._board["busy"][slot])
        self._board["busy"][list(slots)] = False
        return Crash(slots, busy or slots, reason.splitlines()[0], traceback)
