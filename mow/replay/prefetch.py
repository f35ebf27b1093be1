"""Batches of replay that are gathered while the one before them trains."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import torch
from torch.profiler import record_function

from mow.batch import TransitionBatch
from mow.replay.buffer import ReplayBuffer


@dataclass(frozen=True)
class Request:
    """Names one batch; ReplayBuffer.sample says what the parts mean."""

    num_sequences: int  # B
    length: int  # L, in steps
    counter: int
    stream: int

    def following(self) -> "Request":
        """The next batch of the same stream."""
        return replace(self, counter=self.counter + 1)


@dataclass(frozen=True)
class _Pending:
    """A published batch that nobody has taken yet."""

    request: Request
    num_steps: int  # of the buffer when it was published
    batch: "Future[_Arrival]"


@dataclass(frozen=True)
class _Arrival:
    """A gathered batch; one on a GPU may still be on its way there, until `landed`."""

    batch: TransitionBatch
    landed: torch.cuda.Event | None


def _without_a_team() -> None:
    """Loops of torch on this thread are its own alone; the packed store has threads that are not OpenMP's.

    Two teams of OpenMP threads are more than the cores, and then neither keeps its threads awake between loops: with
    two cores an update of quickstart took 309 ms instead of 150.
    """
    torch.set_num_threads(1)  # of this thread, and of those that begin later


class Prefetcher:
    """Draws each batch from the state that was published for it and gathers it on a thread of its own.

    A batch is a function of its request and of the buffer at the moment of `publish`, whatever the depth, so that a run
    gets the same bytes with every depth and number of copying threads. It is drawn as of that step, also where the
    buffer has gone on meanwhile. A full buffer that goes on writes over its oldest steps: add steps through
    `writing()`, which waits until what was published is gathered. Where training takes longer than a gather, there is
    nothing left to wait for by then.

    All methods belong to one thread, the one that adds steps. The buffer's tasks must not be renumbered while a batch
    is pending: `discard()` first.
    """

    def __init__(self, buffer: ReplayBuffer, *, depth: int, device: torch.device | None = None) -> None:
        """Start with nothing published; the thread starts with the first batch.

        Args:
            buffer: to draw from.
            depth: batches that may be gathered in the background at a time; 0 makes `publish` wait for each.
            device: where batches go; None or a CPU leaves them in main memory. For a CUDA device they pass through
                page-locked memory and are copied on a stream of their own, while the device computes.
        Raises: ValueError for a negative depth, or a CUDA device where there is none.
        """
        if depth < 0:
            raise ValueError(f"depth must be at least 0, got {depth}: 0 gathers each batch before going on")
        if device is not None and device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device {device} needs CUDA, got none here: prefetch to main memory with device=None")
        self._buffer = buffer
        self._depth = depth
        self._device = device if device is not None and device.type == "cuda" else None
        self._stream = torch.cuda.Stream(self._device) if self._device is not None else None
        self._pending: deque[_Pending] = deque()
        self._spare: dict[tuple[int, int], list[TransitionBatch]] = {}  # given back, by (B, L)
        torch.get_num_threads()  # torch settles how many this thread has when it is first asked, not after the other
        # One thread, so that batches are gathered in the order of publication. The executor ends it when it is shut
        # down, when it is forgotten and when the process ends.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mow-prefetch", initializer=_without_a_team)
        self._closed = False

    def publish(self, request: Request, *, as_of: int | None = None) -> None:
        """Fix the state that `request` is drawn from, as the buffer is now or was at a step, and begin to gather it.

        What is wrong with a request shows when it is taken. Raises: ValueError if the request is pending already, or
        after close().
        """
        if self._closed:
            raise ValueError(f"publish of {request} after close(): make a new Prefetcher")
        if request in self.pending():
            raise ValueError(f"{request} is pending already: take it before it is published again")
        num_steps = self._buffer.num_steps if as_of is None else as_of
        spare = self._spare.get((request.num_sequences, request.length))
        future = self._thread.submit(self._gather, request, num_steps, spare.pop() if spare else None)
        self._pending.append(_Pending(request, num_steps, future))
        if len(self._pending) > self._depth:
            wait([self._pending[-1].batch])

    def take(self, request: Request) -> TransitionBatch:
        """The batch that was published as `request`; it belongs to the caller, who may give it back.

        Raises: ValueError if it was not published; what its gathering raised, with the traceback of the thread.
        """
        found = next((pending for pending in self._pending if pending.request == request), None)
        if found is None:
            raise ValueError(f"{request} was not published, pending are {[*self.pending()]}: publish it first")
        self._pending.remove(found)
        arrival = found.batch.result()
        if arrival.landed is not None:
            here = torch.cuda.current_stream(self._device)
            here.wait_event(arrival.landed)
            for tensor in arrival.batch.tensors().values():
                # The memory was taken on the copying stream; it must not be reused before the work queued here is done.
                tensor.record_stream(here)
        return arrival.batch

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
        """Let a later batch be written over this one, which nobody may read from here on.

        Fresh memory costs as much again as the copy into it. Where batches go to a GPU there is nothing to give back:
        torch keeps the page-locked memory and the GPU's. Raises: ValueError for a batch on a GPU.
        """
        if batch.frame.device.type != "cpu":
            raise ValueError(f"give_back takes batches in main memory, got one on {batch.frame.device}: just drop it")
        self._spare.setdefault((batch.frame.shape[1], batch.frame.shape[2]), []).append(batch)

    def pending(self) -> Iterator[Request]:
        """What is published and not taken, oldest first."""
        return (pending.request for pending in self._pending)

    def saved(self) -> list[tuple[Request, int]]:
        """What a resumed run publishes, each as of its step, to go on with the same bytes."""
        return [(pending.request, pending.num_steps) for pending in self._pending]

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Wait until all that was published is gathered; inside, the buffer may be written to."""
        wait([pending.batch for pending in self._pending])
        yield

    def discard(self) -> None:
        """Forget what is published, after the thread is done with it."""
        for pending in self._pending:
            pending.batch.cancel()
        wait([pending.batch for pending in self._pending])
        self._pending.clear()

    def close(self) -> None:
        """Forget what is published and end the thread. Closing twice is closing once."""
        self._closed = True
        self.discard()
        self._thread.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _gather(self, request: Request, num_steps: int, out: TransitionBatch | None) -> _Arrival:
        """On the thread."""
        with record_function("mow.prefetch"):  # its name in a profiler's timeline
            batch = self._buffer.sample(request.num_sequences, request.length, counter=request.counter,
                                        stream=request.stream, as_of=num_steps, pin=self._device is not None, out=out)
        if self._device is None or self._stream is None:
            return _Arrival(batch, None)
        with torch.cuda.stream(self._stream):
            moved = batch.to(self._device)
            landed = torch.cuda.Event()
            landed.record()
        # The page-locked memory goes back to torch's pool here; torch gives it out again only after the copy.
        return _Arrival(moved, landed)
