"""The buffer: what goes in comes out, in whole windows, for the right task."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mow.batch import TransitionBatch
from mow.replay import ReplayBuffer
from mow.replay.packed import why_not_packed
from mow.replay.store_choice import StoreKind

needs_packing = pytest.mark.skipif(why_not_packed() != "", reason=why_not_packed() or "frames can be packed")
STORES = ["raw", pytest.param("packed", marks=needs_packing)]


def make_buffer(
    num_tasks: int = 3,
    capacity: int = 40,
    *,
    seed: int = 0,
    store: StoreKind = "raw",
) -> ReplayBuffer:
    return ReplayBuffer(num_tasks, capacity, (2, 4, 3), 5, seed=seed, store=store)


def step_of(index: int, num_tasks: int = 3) -> dict[str, NDArray[Any]]:
    """Step `index`, written so that every field tells the task and the index."""
    task = np.arange(num_tasks)
    frame = np.empty((num_tasks, 2, 4, 3), dtype=np.uint8)
    frame[...] = (100 * task + index)[:, None, None, None] % 256
    return {
        "frame": frame,
        "action": np.repeat((1000 * task + index)[:, None], 5, axis=1).astype(np.float32),
        "reward": (1000 * task + index).astype(np.float32),
        "terminated": (index + task) % 5 == 0,
        "truncated": (index + task) % 7 == 0,
        "is_first": (index + task) % 6 == 0,
        "is_last": (index + task) % 6 == 5,
    }


def fill(buffer: ReplayBuffer, num_steps: int, num_tasks: int = 3) -> ReplayBuffer:
    for index in range(num_steps):
        buffer.add(**step_of(index, num_tasks))
    return buffer


def same(one: TransitionBatch, other: TransitionBatch) -> bool:
    return all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())


def test_a_window_as_long_as_the_buffer_by_hand() -> None:
    """Six steps into four places: steps 2 to 5 are left, and the only window of four is exactly these."""
    batch = fill(make_buffer(2, 4), 6, num_tasks=2).sample(1, 4, counter=0, stream=0)
    assert batch.reward.tolist() == [[[2, 3, 4, 5]], [[1002, 1003, 1004, 1005]]]
    assert batch.frame[:, 0, :, 0, 0, 0].tolist() == [[2, 3, 4, 5], [102, 103, 104, 105]]
    assert batch.action[:, 0, :, 4].tolist() == [[2, 3, 4, 5], [1002, 1003, 1004, 1005]]
    assert batch.terminated[:, 0].tolist() == [[False, False, False, True], [False, False, True, False]]
    assert batch.truncated[:, 0].tolist() == [[False, False, False, False], [False, False, False, False]]
    # Index 0 opens every window; step 5 of task 1 opens an episode within it.
    assert batch.is_first[:, 0].tolist() == [[True, False, False, False], [True, False, False, True]]


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("num_steps", [20, 40, 61, 100])  # half full, full, wrapped 1.5 and 2.5 times
def test_windows_are_consecutive_and_held(num_steps: int, store: StoreKind) -> None:
    capacity, length = 40, 16
    buffer = fill(make_buffer(capacity=capacity, store=store), num_steps)
    batch = buffer.sample(200, length, counter=3, stream=1)
    first = batch.reward[..., :1]  # [K, B, 1]
    assert torch.equal(batch.reward, first + torch.arange(length))
    index = batch.reward - 1000 * torch.arange(3)[:, None, None]  # [K, B, L] step that each entry was written at
    assert index.min() == max(num_steps - capacity, 0)  # 200 draws of at most 25 windows meet the oldest and the newest
    assert index.max() == num_steps - 1
    task = torch.arange(3)[:, None, None]
    expected = (100 * task + index.long()) % 256
    assert torch.equal(batch.frame, expected[..., None, None, None].expand_as(batch.frame).to(torch.uint8))
    assert torch.equal(batch.action, batch.reward[..., None].expand_as(batch.action))
    assert torch.equal(batch.terminated, (index.long() + task) % 5 == 0)
    assert torch.equal(batch.truncated, (index.long() + task) % 7 == 0)
    is_first = (index.long() + task) % 6 == 0
    is_first[..., 0] = True
    assert torch.equal(batch.is_first, is_first)
    assert torch.equal(batch.is_last, (index.long() + task) % 6 == 5)


def test_shapes_and_dtypes_are_those_of_the_record() -> None:
    batch = fill(make_buffer(), 10).sample(4, 7, counter=0, stream=0)
    got = {name: (tensor.dtype, [*tensor.shape]) for name, tensor in batch.tensors().items()}
    assert got == {
        "frame": (torch.uint8, [3, 4, 7, 2, 4, 3]),
        "action": (torch.float32, [3, 4, 7, 5]),
        "reward": (torch.float32, [3, 4, 7]),
        "terminated": (torch.bool, [3, 4, 7]),
        "truncated": (torch.bool, [3, 4, 7]),
        "is_first": (torch.bool, [3, 4, 7]),
        "is_last": (torch.bool, [3, 4, 7]),
    }


def test_draws_follow_seed_counter_and_stream() -> None:
    def sample(seed: int, counter: int, stream: int) -> TransitionBatch:
        return fill(make_buffer(seed=seed), 40).sample(20, 3, counter=counter, stream=stream)

    base = sample(1, 2, 3)
    assert same(sample(1, 2, 3), base)  # by another buffer with the same content
    # 60 draws from 38 windows agree by chance with probability 38^-60.
    assert not any(same(sample(*name), base) for name in [(0, 2, 3), (1, 0, 3), (1, 2, 0)])


def test_a_batch_is_not_touched_by_later_steps_and_samples() -> None:
    buffer = fill(make_buffer(), 40)
    batch = buffer.sample(8, 5, counter=0, stream=0)
    kept = batch.map(torch.clone)
    for index in range(40):
        buffer.add(**step_of(500 + index))
    buffer.sample(8, 5, counter=0, stream=0)
    assert same(batch, kept)


@pytest.mark.parametrize("store", STORES)
def test_a_batch_is_written_into_the_callers_memory(store: StoreKind) -> None:
    buffer = fill(make_buffer(store=store), 61)
    fresh = buffer.sample(4, 7, counter=5, stream=1)
    own = fresh.map(torch.ones_like)
    places = [tensor.data_ptr() for tensor in own.tensors().values()]
    assert buffer.sample(4, 7, counter=5, stream=1, out=own) is own
    assert same(own, fresh)
    assert places == [tensor.data_ptr() for tensor in own.tensors().values()]


def test_is_first_is_forced_in_the_batch_and_not_in_the_ring() -> None:
    buffer = make_buffer(1, 8)
    for index in range(8):
        buffer.add(**{**step_of(index, 1), "is_first": np.array([index == 0])})
    for counter in range(10):
        assert buffer.sample(6, 4, counter=counter, stream=0).is_first[..., 0].all()
    assert buffer.sample(1, 8, counter=0, stream=0).is_first.tolist() == [[[True] + [False] * 7]]


@pytest.mark.parametrize("store", STORES)
def test_reorder_renumbers_what_is_held_and_what_comes(store: StoreKind) -> None:
    buffer = fill(make_buffer(store=store), 30)
    buffer.reorder([2, 0, 1])
    batch = buffer.sample(4, 5, counter=0, stream=0)
    assert (batch.reward // 1000)[:, 0, 0].tolist() == [2, 0, 1]
    for index in range(30, 70):  # task k writes to where task order[k] wrote
        step = step_of(index)
        buffer.add(**{name: value[[2, 0, 1]] for name, value in step.items()})
    batch = buffer.sample(50, 40, counter=1, stream=0)
    assert torch.equal(batch.reward, batch.reward[..., :1] + torch.arange(40))
    assert (batch.reward // 1000)[:, 0, 0].tolist() == [2, 0, 1]
    step = batch.reward % 1000
    shade = (100 * torch.tensor([2, 0, 1])[:, None, None] + step.long()) % 256
    assert torch.equal(batch.frame[..., 0, 0, 0].long(), shade)
    buffer.reorder(np.array([1, 2, 0]))  # the two together are the identity
    assert (buffer.sample(1, 1, counter=0, stream=0).reward // 1000).flatten().tolist() == [0, 1, 2]


@pytest.mark.parametrize("order", [[0, 1], [0, 1, 1], [0, 1, 3], [-1, 0, 1]])
def test_reorder_refuses_what_is_no_permutation(order: list[int]) -> None:
    with pytest.raises(ValueError, match="order must name each of the tasks 0 to 2 once, got"):
        make_buffer().reorder(order)


def test_sizes_and_memory() -> None:
    buffer = make_buffer(3, 40)
    assert buffer.num_steps == 0
    fill(buffer, 39)
    assert buffer.num_steps == 39
    fill(buffer, 2)
    assert buffer.num_steps == 41
    # A step is 24 bytes of frame, 20 of action, 4 of reward and 4 flags.
    assert buffer.memory_bytes == 3 * 40 * (24 + 20 + 4 + 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frame": np.zeros((3, 2, 4, 3), dtype=np.float32)}, r"frame of one step: expected uint8 \[3, 2, 4, 3\]"),
        ({"frame": np.zeros((3, 4, 2, 3), dtype=np.uint8)}, r"got uint8 \[3, 4, 2, 3\]"),
        ({"action": np.zeros((3, 4), dtype=np.float32)}, r"action of one step: expected float32 \[3, 5\]"),
        ({"reward": np.zeros(3)}, r"reward of one step: expected float32 \[3\], got float64 \[3\]"),
        ({"terminated": np.zeros(3, dtype=np.uint8)}, "terminated of one step: expected bool"),
        ({"truncated": np.zeros((), dtype=np.bool_)}, r"truncated of one step: expected bool \[3\], got bool \[\]"),
        ({"reward": np.array([0, 0, np.nan], dtype=np.float32)}, "reward of task 2: expected finite numbers, got nan"),
        ({"reward": np.array([0, -np.inf, 0], dtype=np.float32)}, "reward of task 1: .* got -inf at step 1"),
        ({"action": np.full((3, 5), np.nan, dtype=np.float32)}, "action of task 0: expected finite numbers"),
    ],
)
def test_add_refuses_and_adds_nothing(change: dict[str, Any], message: str) -> None:
    buffer = fill(make_buffer(), 1)
    with pytest.raises(ValueError, match=message):
        buffer.add(**{**step_of(1), **change})
    assert buffer.num_steps == 1


def test_sample_refuses_what_is_not_there() -> None:
    with pytest.raises(ValueError, match="task 0 holds 3 steps, a window needs 4: collect more steps"):
        fill(make_buffer(), 3).sample(1, 4, counter=0, stream=0)
    with pytest.raises(ValueError, match="task 0 holds 40 steps, a window needs 41"):
        fill(make_buffer(), 60).sample(1, 41, counter=0, stream=0)


@pytest.mark.parametrize("then", [0, 10, 40, 55, 60])
def test_a_batch_can_be_drawn_as_of_a_step_of_the_past(then: int) -> None:
    """A ring of 40 after 60 steps: what was drawn at step 55 is all held by luck of the seed, that of 10 is gone."""
    buffer = fill(make_buffer(capacity=40), 60)
    if then in (0, 10):
        message = "task 0 holds 0 steps" if then == 0 else "first must be in 20 to 57 .* no longer held"
        with pytest.raises(ValueError, match=message):
            buffer.sample(4, 3, counter=1, stream=0, as_of=then)
        return
    if then == 40:  # half of what was held is gone: some windows are held, some not
        held = sum(is_held(buffer, counter, then) for counter in range(50))
        assert 0 < held < 50
        return
    expected = fill(make_buffer(capacity=40), then).sample(1, 3, counter=1, stream=0)
    assert same(buffer.sample(1, 3, counter=1, stream=0, as_of=then), expected)


def is_held(buffer: ReplayBuffer, counter: int, then: int) -> bool:
    expected = fill(make_buffer(capacity=40), then).sample(1, 3, counter=counter, stream=0)
    try:
        got = buffer.sample(1, 3, counter=counter, stream=0, as_of=then)
    except ValueError:
        return False
    assert same(got, expected)
    return True


@pytest.mark.parametrize("then", [-1, 61])
def test_no_batch_is_drawn_as_of_another_time(then: int) -> None:
    with pytest.raises(ValueError, match=f"as_of must be in 0 to the 60 steps added, got {then}"):
        fill(make_buffer(capacity=40), 60).sample(1, 3, counter=0, stream=0, as_of=then)


@pytest.mark.gpu
def test_pinned_batches_are_pinned_and_equal() -> None:
    buffer = fill(make_buffer(), 40)
    pinned = buffer.sample(4, 8, counter=0, stream=0, pin=True)
    assert all(tensor.is_pinned() for tensor in pinned.tensors().values())
    assert same(pinned, buffer.sample(4, 8, counter=0, stream=0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_tasks": 0}, "num_rows must be at least 1, got 0"),
        ({"capacity": 0}, "capacity must be at least 1, got 0"),
        ({"frame_shape": (64, 0, 3)}, r"frame_shape\[1\] must be at least 1, got 0"),
        ({"extra": {"reward": 2}}, "extra column reward has the name of a field"),
        ({"store": "zip"}, "store must be one of auto, raw, packed, gpu, got 'zip'"),
    ],
)
def test_a_buffer_that_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    args: dict[str, Any] = {"num_tasks": 1, "capacity": 2, "frame_shape": (4, 4, 3), "action_size": 1, "seed": 0}
    with pytest.raises(ValueError, match=message):
        ReplayBuffer(**{**args, **change})
