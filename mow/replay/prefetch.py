"""Batches of replay that are gathered while the one before them trains."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, Protocol, Self

import torch
from torch.profiler import record_function

from mow.batch import TransitionBatch


@dataclass(frozen=True)
class Request:
    """Names one batch by arguments of ReplayBuffer.sample."""

    num_sequences: int  # B
    length: int  # L, in steps
    counter: int
    stream: int

    def following(self) -> "Request":
        """The next batch of the same stream."""
        return replace(self, counter=self.counter + 1)


class Source(Protocol):
    """Windows that a batch is drawn from: a ReplayBuffer, or what stands in its place."""

    @property
    def num_steps(self) -> int:
        """Steps per task ever added."""

    def sample(
        self, num_sequences: int, length: int, *, counter: int, stream: int, as_of: int | None = None,
        pin: bool = False, out: TransitionBatch | None = None,
    ) -> TransitionBatch:  # fmt: skip
        """As ReplayBuffer.sample."""


class _Pending(NamedTuple):
    """A published batch that has not been taken."""

    request: Request
    num_steps: int  # of the buffer when it was published
    batch: "Future[tuple[TransitionBatch, torch.cuda.Event | None]]"  # the event follows its copy to a GPU


class Prefetcher:
    """Draws each batch from the state that was published for it and gathers it on a thread of its own.

    A batch is a function of its request and of the buffer at the moment of `publish`, whatever the depth, so that a run
    gets the same bytes with every depth and number of copying threads. It is drawn as of that step, also where the
    buffer has gone on meanwhile. A full buffer writes over its oldest steps: `wait()` before steps are added.

    All methods belong to one thread, the one that adds steps. The buffer's tasks must not be renumbered while a batch
    is pending: `discard()` first.
    """

    def __init__(self, buffer: Source, *, depth: int, device: torch.device | None = None) -> None:
        """Start with nothing published; the thread starts with the first batch.

        Args:
            buffer: to draw from.
            depth: batches that may be gathered in the background at a time; 0 makes `publish` wait for each.
            device: where batches go; None or a CPU leaves them in main memory. For a CUDA device they pass through
                page-locked memory and are copied on a stream of their own, while the device computes.
        """
        self._buffer = buffer
        self._depth = depth
        self._device = device if device is not None and device.type == "cuda" else None
        self._stream = torch.cuda.Stream(self._device) if self._device is not None else None
        self._pending: deque[_Pending] = deque()
        self._spare: dict[tuple[int, int], list[TransitionBatch]] = {}  # given back, by (B, L)
        torch.get_num_threads()  # torch settles how many this thread has at the first call, not after the other's
        # One thread, so that batches are gathered in the order of publication. Its loops of torch are its own alone:
        # two teams of OpenMP threads are more than the cores (an update of quickstart took 309 ms instead of 150).
        self._thread = ThreadPoolExecutor(1, "mow-prefetch", initializer=partial(torch.set_num_threads, 1))

    def publish(self, request: Request, *, as_of: int | None = None) -> None:
        """Fix the state that `request` is drawn from, as the buffer is now or was at a step, and begin to gather it.

        What is wrong with a request shows when it is taken.
        """
        num_steps = self._buffer.num_steps if as_of is None else as_of
        spare = self._spare.get((request.num_sequences, request.length))
        future = self._thread.submit(self._gather, request, num_steps, spare.pop() if spare else None)
        self._pending.append(_Pending(request, num_steps, future))
        if len(self._pending) > self._depth:
            wait([future])

    def take(self, request: Request) -> TransitionBatch:
        """The batch that was published as `request`; it belongs to the caller, who may give it back.

        Raises: ValueError if it was not published; what its gathering raised, with the traceback of the thread.
        """
        found = next((pending for pending in self._pending if pending.request == request), None)
        if found is None:
            raise ValueError(f"{request} was not published, pending are {self.pending()}")
        self._pending.remove(found)
        batch, landed = found.batch.result()
        if landed is not None:
            here = torch.cuda.current_stream(self._device)
            here.wait_event(landed)
            for tensor in batch.tensors().values():
                # The memory was taken on the copying stream; it must not be reused before the work queued here is done.
                tensor.record_stream(here)
        return batch

    def next(self, request: Request) -> TransitionBatch:
        """Take `request`, published now if it was not, then publish the one that follows it in its stream.

        Called once per update, before it trains, this draws the batch of update t from the state at update t - 1 and
        gathers it while that update trains. A batch that is published and never taken stays pending until discard().
        """
        if request not in self.pending():
            self.publish(request)
        batch = self.take(request)
        if request.following() not in self.pending():
            self.publish(request.following())
        return batch

    def give_back(self, batch: TransitionBatch) -> None:
        """Let a later batch be written over this one in main memory, which is not read from here on.

        Fresh memory costs as much again as the copy into it. Of batches on a GPU torch keeps the memory itself.
        """
        self._spare.setdefault((batch.frame.shape[1], batch.frame.shape[2]), []).append(batch)

    def pending(self) -> list[Request]:
        """Requests that are published and not taken, oldest first."""
        return [pending.request for pending in self._pending]

    def saved(self) -> list[tuple[Request, int]]:
        """Requests that a resumed run publishes, each as of its step, to go on with the same bytes."""
        return [(pending.request, pending.num_steps) for pending in self._pending]

    def wait(self) -> None:
        """Wait until all that was published is gathered: then the buffer may be written to."""
        wait([pending.batch for pending in self._pending])

    def discard(self) -> None:
        """Forget what is published, after the thread is done with it."""
        for pending in self._pending:
            pending.batch.cancel()
        self.wait()
        self._pending.clear()

    def read_from(self, buffer: Source) -> None:
        """Forget what is published, and go on with another buffer."""
        self.discard()
        self._spare.clear()
        self._buffer = buffer

    def close(self) -> None:
        """Forget what is published and end the thread."""
        self.discard()
        self._thread.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _gather(
        self, request: Request, num_steps: int, out: TransitionBatch | None
    ) -> tuple[TransitionBatch, torch.cuda.Event | None]:
        """On the thread."""
        with record_function("mow.prefetch"):  # its name in a profiler's timeline
            batch = self._buffer.sample(request.num_sequences, request.length, counter=request.counter,
                                        stream=request.stream, as_of=num_steps, pin=self._device is not None, out=out)
        if self._device is None:
            return batch, None
        with torch.cuda.stream(self._stream):
            moved, landed = batch.to(self._device), torch.cuda.Event()
            landed.record()
        # The page-locked memory goes back to torch's pool here; torch gives it out again only after the copy.
        return moved, landed
