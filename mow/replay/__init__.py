"""Replay buffer of K tasks and windows drawn from it. Frames stay uint8; a draw is a function of its arguments."""

from mow.replay.buffer import ReplayBuffer
from mow.replay.gpu_store import GpuStore
from mow.replay.packed import PackedStore
from mow.replay.prefetch import Prefetcher, Request
from mow.replay.sampler import build_info, draw_windows, gather_windows_cuda, set_num_threads
from mow.replay.segments import load, load_tasks, save
from mow.replay.stores import RawStore

__all__ = [
    "GpuStore", "PackedStore", "Prefetcher", "RawStore", "ReplayBuffer", "Request", "build_info", "draw_windows",
    "gather_windows_cuda", "load", "load_tasks", "save", "set_num_threads",
]  # fmt: skip
