"""Windows of frames by other means: torch, NumPy, and other libraries where they are installed.

Each peer takes rows [K] and first [K, B] and returns frames [K, B, L, H, W, 3], or Drawn where it draws by itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Int64Array = NDArray[np.int64]
Peer = Callable[[Int64Array, Int64Array], Any]


@dataclass(frozen=True)
class Drawn:
    """Windows that a peer chose itself: N = K * B of them, with the task and step of each frame."""

    frame: Frames  # [N, L, H, W, 3]
    task: Int64Array  # [N, L]
    step: Int64Array  # [N, L]


def flat_copy(frames: Frames, out: Frames) -> Peer:
    """The bound: as many bytes, from one block of memory to another that is in use already."""
    source, target = torch.from_numpy(frames.reshape(-1)[: out.size]), torch.from_numpy(out.reshape(-1))

    def call(rows: Int64Array, first: Int64Array) -> None:
        target.copy_(source)

    return call


def _flat_index(rows: Int64Array, first: Int64Array, num_steps: int, length: int) -> Int64Array:
    """[K * B * L] indices into the frames of all tasks, one task after the other."""
    return (rows[:, None, None] * num_steps + first[:, :, None] + np.arange(length)).reshape(-1)


def torch_index_select(frames: Frames, out: Frames) -> Peer:
    num_steps, length = frames.shape[1], out.shape[2]
    ring = torch.from_numpy(frames.reshape(frames.shape[0] * num_steps, -1))
    target = torch.from_numpy(out.reshape(-1, ring.shape[1]))

    def call(rows: Int64Array, first: Int64Array) -> Frames:
        index = torch.from_numpy(_flat_index(rows, first, num_steps, length))
        torch.index_select(ring, 0, index, out=target)
        return out

    return call


def numpy_slices(frames: Frames, out: Frames) -> Peer:
    length = out.shape[2]

    def call(rows: Int64Array, first: Int64Array) -> Frames:
        for k, row in enumerate(rows.tolist()):
            for b, start in enumerate(first[k].tolist()):
                out[k, b] = frames[row, start : start + length]
        return out

    return call


def torchrl_slices(frames: Frames, out: Frames) -> Peer:
    """SliceSampler over one storage, a task to a trajectory; it draws tasks at random, not B windows of each."""
    from tensordict import TensorDict
    from torchrl.data import LazyTensorStorage, ReplayBuffer, SliceSampler

    num_tasks, num_steps = frames.shape[:2]
    windows, length = out.shape[0] * out.shape[1], out.shape[2]
    buffer = ReplayBuffer(
        storage=LazyTensorStorage(num_tasks * num_steps),
        sampler=SliceSampler(slice_len=length, traj_key="task", cache_values=True),
        batch_size=windows * length,
    )
    for task in range(num_tasks):
        columns = {
            "frame": torch.from_numpy(frames[task]),
            "task": torch.full((num_steps,), task),
            "step": torch.arange(num_steps),
        }
        buffer.extend(TensorDict(columns, batch_size=[num_steps]))

    def call(rows: Int64Array, first: Int64Array) -> Drawn:
        batch = buffer.sample().reshape(windows, length)
        return Drawn(*(batch[name].numpy() for name in ("frame", "task", "step")))

    return call


def cpprb_rows(frames: Frames, out: Frames) -> Peer:
    """cpprb has no windows: rows are read by index, as its own sampling does inside."""
    from cpprb import ReplayBuffer

    num_tasks, num_steps = frames.shape[:2]
    length = out.shape[2]
    buffer = ReplayBuffer(num_tasks * num_steps, {"frame": {"shape": frames.shape[2:], "dtype": np.uint8}})
    for task in range(num_tasks):
        buffer.add(frame=frames[task])

    def call(rows: Int64Array, first: Int64Array) -> Frames:
        found: Frames = buffer._encode_sample(_flat_index(rows, first, num_steps, length))["frame"]
        return found.reshape(out.shape)

    return call


def tianshou_get(frames: Frames, out: Frames) -> Peer:
    from tianshou.data import ReplayBuffer

    num_tasks, num_steps = frames.shape[:2]
    total, length = num_tasks * num_steps, out.shape[2]
    flat, zeros = frames.reshape(total, *frames.shape[2:]), np.zeros(total, dtype=np.bool_)
    # It keeps the arrays that it is given: no memory of its own, no cost to the others.
    buffer = ReplayBuffer.from_data(flat, zeros, zeros, zeros, zeros, zeros, flat)

    def call(rows: Int64Array, first: Int64Array) -> Frames:
        found: Frames = buffer.get(_flat_index(rows, first, num_steps, length), "obs")
        return found.reshape(out.shape)

    return call


HERE: dict[str, Callable[[Frames, Frames], Peer]] = {
    "flat copy, torch": flat_copy,
    "torch index_select(out)": torch_index_select,
    "NumPy slices": numpy_slices,
}
LIBRARIES: dict[str, Callable[[Frames, Frames], Peer]] = {
    "torchrl SliceSampler": torchrl_slices,
    "cpprb": cpprb_rows,
    "tianshou get": tianshou_get,
}


def make_peers(frames: Frames, out: Frames) -> tuple[dict[str, Peer], dict[str, str]]:
    """Those that can run here, and why the others cannot."""
    peers = {name: make(frames, out) for name, make in HERE.items()}
    missing = {}
    for name, make in LIBRARIES.items():
        try:
            peers[name] = make(frames, out)
        except ImportError as error:
            missing[name] = str(error)
    return peers, missing
