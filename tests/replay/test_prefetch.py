"""Prefetch changes when a batch is gathered, never what is in it."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mow.batch import TransitionBatch
from mow.replay import ReplayBuffer, set_num_threads
from mow.replay.packed import why_not_packed
from mow.replay.prefetch import Prefetcher, Request
from mow.replay.store_choice import StoreKind

ROOT = Path(__file__).resolve().parents[2]
TASKS, CAPACITY, FRAME, ACTIONS = 2, 24, (4, 6, 3), 3
needs_packed = pytest.mark.skipif(bool(why_not_packed()), reason=f"frames cannot be packed: {why_not_packed()}")


def make_buffer(num_steps: int = 20, store: StoreKind = "raw") -> ReplayBuffer:
    buffer = ReplayBuffer(TASKS, CAPACITY, FRAME, ACTIONS, seed=5, store=store)
    for index in range(num_steps):
        buffer.add(**step_of(index))
    return buffer


def step_of(index: int) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(index)
    return {
        "frame": random.integers(0, 256, size=(TASKS, *FRAME), dtype=np.uint8),
        "action": random.random((TASKS, ACTIONS), dtype=np.float32),
        "reward": np.full(TASKS, index, dtype=np.float32),
        "terminated": random.random(TASKS) < 0.1,
        "truncated": random.random(TASKS) < 0.1,
        "is_first": random.random(TASKS) < 0.1,
        "is_last": random.random(TASKS) < 0.1,
    }


def request(counter: int = 0, stream: int = 0, *, length: int = 5) -> Request:
    return Request(num_sequences=6, length=length, counter=counter, stream=stream)


def bytes_of(batch: TransitionBatch) -> bytes:
    return b"".join(tensor.numpy().tobytes() for tensor in batch.tensors().values())


def sampled(buffer: ReplayBuffer, name: Request) -> bytes:
    return bytes_of(buffer.sample(name.num_sequences, name.length, counter=name.counter, stream=name.stream))


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("mow-prefetch")]


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    yield
    assert threads() == []


class SlowBuffer(ReplayBuffer):
    """Waits for `go` before it samples, so that a test decides what happens first."""

    def __init__(self) -> None:
        super().__init__(TASKS, CAPACITY, FRAME, ACTIONS, seed=5)
        self.entered, self.go = threading.Event(), threading.Event()
        for index in range(20):
            self.add(**step_of(index))

    def sample(self, *args: Any, **options: Any) -> TransitionBatch:
        self.entered.set()
        assert self.go.wait(10)
        return super().sample(*args, **options)


def run(depth: int, store: StoreKind = "raw", num_updates: int = 40) -> list[bytes]:
    """A loop with two streams of other rhythms; the ring wraps on the way."""
    buffer = make_buffer(20, store)
    seen, contexts = [], 0
    with Prefetcher(buffer, depth=depth) as prefetcher:
        for update in range(num_updates):
            seen.append(bytes_of(prefetcher.next(request(update))))
            if update % 3 == 0:
                seen.append(bytes_of(prefetcher.next(request(contexts, stream=1, length=3))))
                contexts += 1
            prefetcher.wait()
            buffer.add(**step_of(20 + update))
    return seen


def test_bytes_do_not_depend_on_depth() -> None:
    expected = run(0)
    assert run(1) == expected
    assert run(4) == expected


@needs_packed
def test_bytes_depend_neither_on_the_store_nor_on_the_number_of_copying_threads() -> None:
    expected = run(1)
    from mow import _C

    before = _C.num_threads()
    try:
        for num_threads in (1, 2):
            set_num_threads(num_threads)
            assert [run(depth, "packed") for depth in (0, 1, 4)] == 3 * [expected]
    finally:
        set_num_threads(before)


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_a_batch_comes_from_the_state_that_was_published(depth: int) -> None:
    """The oracle: a plain sample at the moment of publication. One step more draws other windows."""
    buffer = make_buffer(30)  # full, so that each new step overwrites the oldest
    with Prefetcher(buffer, depth=depth) as prefetcher:
        for update in range(8):
            expected = sampled(buffer, request(update))
            prefetcher.publish(request(update))
            prefetcher.wait()
            buffer.add(**step_of(30 + update))
            assert bytes_of(prefetcher.take(request(update))) == expected
            assert sampled(buffer, request(update)) != expected


def test_next_draws_update_t_from_the_state_at_update_t_minus_1() -> None:
    buffer = make_buffer(20)
    with Prefetcher(buffer, depth=1) as prefetcher:
        assert bytes_of(prefetcher.next(request(0))) == sampled(buffer, request(0))
        expected = sampled(buffer, request(1))  # the state at update 0
        prefetcher.wait()
        buffer.add(**step_of(20))
        assert bytes_of(prefetcher.next(request(1))) == expected


def test_a_batch_is_gathered_while_the_caller_goes_on() -> None:
    buffer = SlowBuffer()
    with Prefetcher(buffer, depth=1) as prefetcher:
        prefetcher.publish(request(0))
        assert buffer.entered.wait(10)  # the thread is inside, and the caller is here
        buffer.go.set()
        assert prefetcher.take(request(0)).reward.shape == (TASKS, 6, 5)


def test_beyond_depth_publish_waits() -> None:
    buffer = SlowBuffer()
    with Prefetcher(buffer, depth=1) as prefetcher:
        prefetcher.publish(request(0))
        assert not buffer.go.is_set()  # publish did not wait for what can only go on from here
        threading.Timer(0.1, buffer.go.set).start()
        prefetcher.publish(request(1))
        assert buffer.go.is_set()


def test_the_writer_waits_for_the_gather() -> None:
    buffer = SlowBuffer()
    threading.Timer(0.1, buffer.go.set).start()
    with Prefetcher(buffer, depth=1) as prefetcher:
        prefetcher.publish(request(0))
        prefetcher.wait()
        assert buffer.go.is_set()
        buffer.add(**step_of(20))
        prefetcher.take(request(0))


def test_a_batch_is_drawn_as_of_its_publication_though_the_writer_went_on() -> None:
    buffer = SlowBuffer()
    with Prefetcher(buffer, depth=1) as prefetcher:
        prefetcher.publish(request(0))
        assert buffer.entered.wait(10)
        buffer.add(**step_of(20))
        buffer.go.set()
        assert bytes_of(prefetcher.take(request(0))) == sampled(make_buffer(20), request(0))


def test_steps_that_were_written_over_meanwhile_are_an_error() -> None:
    buffer = SlowBuffer()
    with Prefetcher(buffer, depth=1) as prefetcher:
        prefetcher.publish(request(0))
        assert buffer.entered.wait(10)
        for index in range(20, 20 + CAPACITY):
            buffer.add(**step_of(index))
        buffer.go.set()
        with pytest.raises(ValueError, match=r"first must be in 20 to 39 .* no longer held"):
            prefetcher.take(request(0))


@pytest.mark.parametrize("depth", [0, 1])
def test_errors_of_the_thread_arrive_at_take_with_their_traceback(depth: int) -> None:
    buffer = make_buffer(4)
    with Prefetcher(buffer, depth=depth) as prefetcher:
        prefetcher.publish(request(0))
        with pytest.raises(ValueError, match="task 0 holds 4 steps, a window needs 5") as caught:
            prefetcher.take(request(0))
        assert any(entry.name == "sample" for entry in caught.traceback)
        for index in range(4, 8):  # and the next request is none the worse for it
            buffer.add(**step_of(index))
        assert bytes_of(prefetcher.next(request(1))) == sampled(buffer, request(1))


def test_requests_are_taken_by_name_in_any_order() -> None:
    buffer = make_buffer()
    with Prefetcher(buffer, depth=4) as prefetcher:
        for counter in (0, 1, 2):
            prefetcher.publish(request(counter))
        assert prefetcher.pending() == [request(0), request(1), request(2)]
        for counter in (2, 0, 1):
            assert bytes_of(prefetcher.take(request(counter))) == sampled(buffer, request(counter))
        assert prefetcher.pending() == []


def test_next_keeps_what_was_published_ahead() -> None:
    buffer = make_buffer()
    with Prefetcher(buffer, depth=4) as prefetcher:
        prefetcher.publish(request(0))
        prefetcher.publish(request(1))
        expected = sampled(buffer, request(1))
        prefetcher.wait()
        buffer.add(**step_of(20))
        prefetcher.next(request(0))
        assert bytes_of(prefetcher.next(request(1))) == expected
        assert prefetcher.pending() == [request(2)]


@pytest.mark.parametrize("depth", [0, 1])
def test_a_batch_given_back_is_written_over_and_no_other(depth: int) -> None:
    buffer = make_buffer()
    with Prefetcher(buffer, depth=depth) as prefetcher:
        kept, spare = prefetcher.next(request(0)), prefetcher.next(request(1))
        expected = bytes_of(kept)
        prefetcher.give_back(spare)
        prefetcher.publish(request(0, length=4))  # of another size: takes memory of its own
        got = [prefetcher.next(request(counter)) for counter in (2, 3, 4)]
        assert [batch.frame.data_ptr() == spare.frame.data_ptr() for batch in got] == [False, True, False]
        assert [bytes_of(batch) for batch in got] == [sampled(buffer, request(counter)) for counter in (2, 3, 4)]
        assert bytes_of(kept) == expected
        assert bytes_of(prefetcher.take(request(0, length=4))) == sampled(buffer, request(0, length=4))


def test_wrong_names_are_refused() -> None:
    with Prefetcher(make_buffer(), depth=1) as prefetcher:
        prefetcher.publish(request(0))
        with pytest.raises(ValueError, match=r"was not published, pending are \[Request.*counter=0"):
            prefetcher.take(request(1))


def test_discard_lets_the_tasks_be_renumbered() -> None:
    buffer = make_buffer()
    with Prefetcher(buffer, depth=1) as prefetcher:
        prefetcher.publish(request(0))
        prefetcher.discard()
        buffer.reorder([1, 0])
        assert bytes_of(prefetcher.next(request(0))) == sampled(buffer, request(0))


def test_a_resumed_run_goes_on_with_the_same_bytes() -> None:
    """What was published steps ago, by a buffer that has gone on, is drawn as of then."""
    buffer = make_buffer(20)
    with Prefetcher(buffer, depth=1) as prefetcher:
        prefetcher.next(request(0))
        prefetcher.publish(request(7, stream=1))
        for index in (20, 21):
            prefetcher.wait()
            buffer.add(**step_of(index))
        saved = prefetcher.saved()
        assert saved == [(request(1), 20), (request(7, stream=1), 20)]
        expected = [bytes_of(prefetcher.take(name)) for name, _ in saved]
    with Prefetcher(make_buffer(22), depth=0) as resumed:
        for name, step in saved:
            resumed.publish(name, as_of=step)
        assert [bytes_of(resumed.take(name)) for name, _ in saved] == expected


_LOOPS = """
import torch
from tests.replay.test_prefetch import make_buffer, request
from mow.replay.prefetch import Prefetcher
with Prefetcher(make_buffer(), depth=1) as prefetcher:
    prefetcher.next(request())
    print(prefetcher._thread.submit(torch.get_num_threads).result(), torch.get_num_threads())
"""


def test_the_thread_has_no_team_of_its_own_and_leaves_the_owner_his() -> None:
    done = subprocess.run([sys.executable, "-c", _LOOPS], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "2"},
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.split() == ["1", "2"]


def test_the_thread_ends_with_its_owner() -> None:
    """Closed, left by an exception, or forgotten as by a failed test."""
    prefetcher = Prefetcher(make_buffer(), depth=1)
    prefetcher.publish(request(0))
    assert len(threads()) == 1
    prefetcher.close()
    prefetcher.close()
    assert threads() == []

    def fail() -> None:
        with Prefetcher(make_buffer(), depth=1) as prefetcher:
            prefetcher.publish(request(0))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert threads() == []
    prefetcher = Prefetcher(make_buffer(), depth=1)
    prefetcher.publish(request(0))
    del prefetcher
    deadline = time.monotonic() + 10
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.gpu
@pytest.mark.parametrize("depth", [0, 1, 4])
def test_batches_arrive_on_the_gpu(depth: int) -> None:
    buffer = make_buffer()
    with Prefetcher(buffer, depth=depth, device=torch.device("cuda")) as prefetcher:
        for update in range(20):
            batch = prefetcher.next(request(update))
            assert batch.frame.device.type == "cuda"
            assert bytes_of(batch.to(torch.device("cpu"))) == sampled(buffer, request(update))
