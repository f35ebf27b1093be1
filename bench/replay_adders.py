"""How else a step of all tasks can be added: other libraries, where they are installed.

Each holds the last N steps of K tasks, with the fields that ours holds, and takes a step of all tasks in one call.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Int64Array = NDArray[np.int64]


@dataclass(frozen=True)
class Step:
    """One step of K tasks."""

    frame: Frames  # [K, H, W, 3]
    action: NDArray[np.float32]  # [K, A]
    reward: NDArray[np.float32]  # [K]
    flag: NDArray[np.bool_]  # [K], in place of terminated, truncated, is_first and is_last


class Adder(Protocol):
    def add(self, step: Step) -> None:
        """Take the next step."""

    def frames(self, places: Int64Array) -> Frames:
        """[K, n, H, W, 3]: what lies at steps `places` [n], counted modulo N."""


class TorchRL:
    """One storage, step after step."""

    def __init__(self, first: Step, num_steps: int) -> None:
        from tensordict import TensorDict
        from torchrl.data import LazyTensorStorage, ReplayBuffer

        self._record = TensorDict
        self._num_tasks = len(first.frame)
        self._buffer = ReplayBuffer(storage=LazyTensorStorage(self._num_tasks * num_steps), batch_size=1)

    def add(self, step: Step) -> None:
        fields = {name: torch.from_numpy(value) for name, value in _fields(step).items()}
        self._buffer.extend(self._record(fields, batch_size=[self._num_tasks]))

    def frames(self, places: Int64Array) -> Frames:
        index = places * self._num_tasks + np.arange(self._num_tasks)[:, None]
        found: Frames = self._buffer[torch.from_numpy(index)]["frame"].numpy()
        return found


class Cpprb:
    """One ring, step after step."""

    def __init__(self, first: Step, num_steps: int) -> None:
        from cpprb import ReplayBuffer

        self._num_tasks = len(first.frame)
        fields = {name: {"shape": v.shape[1:] or 1, "dtype": v.dtype} for name, v in _fields(first).items()}
        self._buffer = ReplayBuffer(self._num_tasks * num_steps, fields)

    def add(self, step: Step) -> None:
        self._buffer.add(**_fields(step))

    def frames(self, places: Int64Array) -> Frames:
        index = places * self._num_tasks + np.arange(self._num_tasks)[:, None]
        found: Frames = self._buffer._encode_sample(index.reshape(-1))["frame"]
        return found.reshape(*index.shape, *found.shape[1:])


class Tianshou:
    """A ring per task; the next observation is not stored a second time."""

    def __init__(self, first: Step, num_steps: int) -> None:
        from tianshou.data import Batch, VectorReplayBuffer

        self._record = Batch
        self._num_tasks, self._num_steps = len(first.frame), num_steps
        self._buffer = VectorReplayBuffer(self._num_tasks * num_steps, self._num_tasks, ignore_obs_next=True)

    def add(self, step: Step) -> None:
        fields = {"obs": step.frame, "act": step.action, "rew": step.reward, "obs_next": step.frame}
        flags = {"terminated": step.flag, "truncated": step.flag}
        self._buffer.add(self._record(**fields, **flags, info={"is_first": step.flag}))

    def frames(self, places: Int64Array) -> Frames:
        index = places + np.arange(self._num_tasks)[:, None] * self._num_steps
        found: Frames = self._buffer.obs[index]
        return found


def _fields(step: Step) -> dict[str, NDArray[Any]]:
    flags = dict.fromkeys(("terminated", "truncated", "is_first", "is_last"), step.flag)
    return {"frame": step.frame, "action": step.action, "reward": step.reward, **flags}


LIBRARIES: dict[str, Callable[[Step, int], Adder]] = {"torchrl": TorchRL, "cpprb": Cpprb, "tianshou": Tianshou}


def make_adders(first: Step, num_steps: int) -> tuple[dict[str, Adder], dict[str, str]]:
    """Those that can run here, and why the others cannot; `first` says what steps are like."""
    adders, missing = {}, {}
    for name, make in LIBRARIES.items():
        try:
            adders[name] = make(first, num_steps)
        except ImportError as error:
            missing[name] = str(error)
    return adders, missing
