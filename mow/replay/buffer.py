"""What K tasks saw and did, in rings of `capacity` steps, and batches of windows drawn from them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mow.batch import TransitionBatch
from mow.replay.sampler import Backend, draw_windows, gather_windows, takes_compiled

# The fields of TransitionBatch, in their order, and how a step of each is stored.
FIELD_DTYPES: dict[str, type[np.generic]] = {
    "frame": np.uint8,
    "action": np.float32,
    "reward": np.float32,
    "terminated": np.bool_,
    "truncated": np.bool_,
    "is_first": np.bool_,
}


class ReplayBuffer:
    """The last `capacity` steps of each of K tasks; once full, the oldest step makes room.

    All tasks step together. A ring is task-major, [K, capacity, ...], so that a window is one block of memory, or two
    where it wraps. Windows may cross the borders of episodes; `is_first` marks them. A buffer belongs to one thread:
    add and sample must not run at the same time.
    """

    def __init__(
        self,
        num_tasks: int,
        capacity: int,
        frame_shape: Sequence[int],
        action_size: int,
        *,
        seed: int,
        backend: Backend = "auto",
    ) -> None:
        """Set the rings up; memory is taken page by page as steps arrive.

        Args:
            num_tasks: K.
            capacity: steps per task.
            frame_shape: of one observation, (height, width, 3).
            action_size: A.
            seed: of all draws, 0 to 2^64 - 1.
            backend: see sampler.draw_windows.
        Raises: ValueError for a size below 1 or a seed out of range; ImportError for backend "compiled" without the
            extension.
        """
        sizes = {"num_tasks": num_tasks, "capacity": capacity, "action_size": action_size}
        for name, value in {**sizes, **{f"frame_shape[{i}]": side for i, side in enumerate(frame_shape)}}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed must be in 0 to {2**64 - 1}, got {seed}")
        takes_compiled(backend)  # an impossible backend is an error now, not at the first sample
        shapes: dict[str, tuple[int, ...]] = {"frame": tuple(frame_shape), "action": (action_size,)}
        # np.zeros takes a page of memory only once a step is written to it.
        self._rings: dict[str, NDArray[Any]] = {
            name: np.zeros((num_tasks, capacity, *shapes.get(name, ())), dtype) for name, dtype in FIELD_DTYPES.items()
        }
        self._rows = np.arange(num_tasks)  # [K] ring row of each task
        self._capacity = capacity
        self._num_steps = 0
        self._seed = seed
        self._backend = backend

    @property
    def num_steps(self) -> int:
        """Steps per task ever added."""
        return self._num_steps

    @property
    def size(self) -> NDArray[np.int64]:
        """[K] steps held for each task."""
        return np.full(len(self._rows), min(self._num_steps, self._capacity), dtype=np.int64)

    @property
    def memory_bytes(self) -> int:
        """Bytes that the buffer takes once full."""
        return sum(ring.nbytes for ring in self._rings.values())

    def add(
        self,
        frame: NDArray[np.uint8],
        action: NDArray[np.float32],
        reward: NDArray[np.float32],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        is_first: NDArray[np.bool_],
    ) -> None:
        """Add one step of every task; TransitionBatch says what the fields mean.

        Args: frame uint8 [K, H, W, 3], action float32 [K, A], reward float32 [K], the others bool [K].
        Raises: ValueError for another shape or dtype, or a reward or action that is not finite; nothing is added then.
        """
        step: dict[str, NDArray[Any]] = {
            "frame": frame,
            "action": action,
            "reward": reward,
            "terminated": terminated,
            "truncated": truncated,
            "is_first": is_first,
        }
        for name, value in step.items():
            ring = self._rings[name]
            expected = (len(self._rows), *ring.shape[2:])
            if value.shape != expected or value.dtype != ring.dtype:
                raise ValueError(f"{name} of one step: expected {ring.dtype} {[*expected]}, got {value.dtype} "
                                 f"{[*value.shape]}: pass one entry per task, in the buffer's dtype")
        for name in ("reward", "action"):
            finite = np.isfinite(step[name]).reshape(len(self._rows), -1).all(axis=1)  # [K]
            if not finite.all():
                task = int(finite.argmin())
                raise ValueError(f"{name} of task {task}: expected finite numbers, got {step[name][task].tolist()} at "
                                 f"step {self._num_steps}: look for the cause in its environment or policy")
        head = self._num_steps % self._capacity
        for name, value in step.items():
            self._rings[name][self._rows, head] = value
        self._num_steps += 1

    def sample(
        self, num_sequences: int, length: int, *, counter: int, stream: int, pin: bool = False
    ) -> TransitionBatch:
        """Draw B windows of L steps per task, uniformly over all windows held; is_first is true at index 0 of each.

        Args:
            num_sequences: B.
            length: L, in steps.
            counter: of the batch; the same buffer, counter and stream give the same windows.
            stream: what the batch is for, 0 to 2^32 - 1.
            pin: put the batch into page-locked memory, from where copies to a GPU need not wait.
        Returns: tensors in main memory that the buffer does not touch again.
        Raises: ValueError if a task has fewer than L steps, or for pin without a CUDA device.
        """
        if pin and not torch.cuda.is_available():
            raise ValueError("pin=True needs a CUDA device, got none: sample with pin=False")
        num_tasks = len(self._rows)
        head = np.full(num_tasks, self._num_steps % self._capacity, dtype=np.int64)
        start = draw_windows(self._seed, counter, stream, self.size, head, self._capacity, num_sequences, length,
                             backend=self._backend)  # [K, B]
        window = {
            name: torch.empty((num_tasks, num_sequences, length, *ring.shape[2:]),
                              dtype=torch.from_numpy(ring[:0]).dtype, pin_memory=pin)
            for name, ring in self._rings.items()
        }
        gather_windows([*self._rings.values()], self._rows, start, length, [t.numpy() for t in window.values()],
                       backend=self._backend)
        window["is_first"][:, :, 0] = True
        return TransitionBatch(**window)

    def reorder(self, order: Sequence[int] | NDArray[np.int64]) -> None:
        """Renumber the tasks: task k becomes what was task order[k]. No step is moved.

        Raises: ValueError if `order` [K] does not name every task once.
        """
        order = np.asarray(order)
        if sorted(order.tolist()) != [*range(len(self._rows))]:
            raise ValueError(f"order must name each of the tasks 0 to {len(self._rows) - 1} once, got {order.tolist()}")
        self._rows = self._rows[order]
