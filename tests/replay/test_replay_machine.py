"""Any order of adding, wrapping, ending episodes, renumbering, sampling, saving and loading: all stores and a plain
list agree.
"""

import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from numpy.typing import NDArray

from mow.batch import TransitionBatch
from mow.replay import ReplayBuffer, load, save
from mow.replay.buffer import Draw
from mow.replay.packed import why_not_packed
from mow.replay.sampler import draw_windows

Step = dict[str, NDArray[Any]]
SHAPE, ACTION_SIZE = (5, 4, 3), 2


def step_of(index: int, num_tasks: int, *, noise: bool, ends: bool) -> Step:
    """Every field tells the task and the step; frames are noise, or one shade that moves."""
    random = np.random.default_rng(index)
    task = np.arange(num_tasks)
    frame = random.integers(0, 256, (num_tasks, *SHAPE), dtype=np.uint8)
    if not noise:
        frame[...] = ((7 * task + index) % 256)[:, None, None, None]
    return {
        "frame": frame,
        "action": random.normal(size=(num_tasks, ACTION_SIZE)).astype(np.float32),
        "reward": (1_000 * task + index).astype(np.float32),
        "terminated": (task % 2 == 0) & ends,
        "truncated": (task % 2 == 1) & ends,
        "is_first": random.random(num_tasks) < 0.1,
        "is_last": random.random(num_tasks) < 0.1,
    }


class ReplayMachine(RuleBasedStateMachine):
    """The list holds every step ever added, by task; a window is a slice of it. Each buffer saves to its own folder."""

    @initialize(
        capacity=st.integers(17, 100), num_tasks=st.integers(1, 4), seed=st.integers(0, 2**64 - 1), noise=st.booleans(),
        draw=st.sampled_from(["uniform", "recent"]),
    )
    def begin(self, capacity: int, num_tasks: int, seed: int, noise: bool, draw: Draw) -> None:
        self.capacity, self.num_tasks, self.seed, self.noise, self.draw = capacity, num_tasks, seed, noise, draw
        self.folder = Path(tempfile.mkdtemp())
        self.buffers = self.make_buffers()
        self.folders = [self.folder / str(index) for index in range(len(self.buffers))]
        self.history: list[list[Step]] = [[] for _ in range(num_tasks)]
        self.saved: list[list[Step]] | None = None

    def make_buffers(self) -> list[ReplayBuffer]:
        """Raw, packed, and packed with every block on a disk."""
        make = partial(ReplayBuffer, self.num_tasks, self.capacity, SHAPE, ACTION_SIZE, seed=self.seed, draw=self.draw)
        if why_not_packed():
            return [make(store="raw")]
        return [make(store="raw"), make(store="packed"), make(store="packed", free_bytes=0, disk=self.folder)]

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    @rule(num_steps=st.integers(1, 40), ends=st.booleans())
    def add(self, num_steps: int, ends: bool) -> None:
        """Up to 40 steps; an episode may end with the last."""
        for i in range(num_steps):
            index = len(self.history[0])
            step = step_of(index, self.num_tasks, noise=self.noise, ends=ends and i == num_steps - 1)
            for buffer in self.buffers:
                buffer.add(**step)
            for task, steps in enumerate(self.history):
                steps.append({name: value[task] for name, value in step.items()})

    @rule(data=st.data())
    def reorder(self, data: st.DataObject) -> None:
        order = data.draw(st.permutations(range(self.num_tasks)))
        for buffer in self.buffers:
            buffer.reorder(order)
        self.history = [self.history[task] for task in order]

    @rule()
    def save(self) -> None:
        for buffer, folder in zip(self.buffers, self.folders, strict=True):
            save(buffer, folder)
        self.saved = [[*steps] for steps in self.history]

    @rule()
    def load(self) -> None:
        """Each new buffer from what a buffer of another kind has saved."""
        if self.saved is None:
            return
        self.buffers, self.folders = self.make_buffers(), [*self.folders[1:], self.folders[0]]
        for buffer, folder in zip(self.buffers, self.folders, strict=True):
            load(folder, buffer)
        self.history = [[*steps] for steps in self.saved]

    @rule(num_sequences=st.integers(1, 4), length=st.integers(1, 16), counter=st.integers(0, 2**64 - 1),
          into_own=st.booleans())
    def sample(self, num_sequences: int, length: int, counter: int, into_own: bool) -> None:
        if len(self.history[0]) < length:
            return
        expected = self.expected(num_sequences, length, counter)
        for buffer in self.buffers:
            out = TransitionBatch(**{n: torch.full_like(t, 1) for n, t in expected.items()}) if into_own else None
            batch = buffer.sample(num_sequences, length, counter=counter, stream=3, out=out)
            assert out is None or batch is out
            for name, tensor in batch.tensors().items():
                got = tensor
                assert got.dtype == expected[name].dtype
                assert torch.equal(got, expected[name]), name

    def expected(self, num_sequences: int, length: int, counter: int) -> dict[str, torch.Tensor]:
        """The windows that are drawn, as slices of the list."""
        added = len(self.history[0])
        size = np.full(self.num_tasks, min(added, self.capacity))
        # With the head where a ring of this many steps has it, the oldest step lies at place 0: places are ages.
        age = draw_windows(self.seed, counter, 3, size, size % self.capacity, self.capacity, num_sequences, length,
                           recent=self.draw == "recent", backend="reference")
        first = added - size[:, None] + age  # [K, B]
        batch = {
            name: np.stack([
                np.stack([np.stack([step[name] for step in steps[begin : begin + length]]) for begin in first[task]])
                for task, steps in enumerate(self.history)
            ])
            for name in self.history[0][0]
        }
        batch["is_first"][:, :, 0] = True
        return {name: torch.from_numpy(values) for name, values in batch.items()}

    @invariant()
    def sizes_agree(self) -> None:
        if hasattr(self, "history"):
            for buffer in self.buffers:
                assert buffer.num_steps == len(self.history[0])


TestReplay = ReplayMachine.TestCase
TestReplay.settings = settings(
    max_examples=60, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
