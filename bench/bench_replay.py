"""Speed of the replay beside a plain copy of the same bytes.

    python -m bench -k replay -s                                          prints a table per batch
    python -m bench -k replay --benchmark-json=run.json;  python -m bench.render run.json

Windows of frames for a batch of the world model (26 x 16 x 64) and for one of contexts (26 x 39 x 8), drawn from 26
games. The subject is the packed store where frames can be packed, else the raw one. Peers: a flat copy of as many bytes
between two blocks of memory in use (the bound), torch, NumPy, and torchrl, cpprb and tianshou where installed. "all
fields" is the whole ReplayBuffer.sample into a given batch; "on disk" is the packed store with every block in a file,
which the system's cache holds. Adding is timed in turns of eight steps, so that each has one block to pack.

Main memory is measured by the CPU's clock on every machine; with a GPU the gather there is timed too.
"""

import dataclasses
import tempfile
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bench.floors import Shape, Work
from bench.race import Contestant, Inputs, Race, table
from bench.recorded import recorded_frames
from bench.replay_peers import Drawn, make_peers
from mow.batch import TransitionBatch
from mow.replay import ReplayBuffer, draw_windows, gather_windows_cuda, set_num_threads
from mow.replay.packed import why_not_packed
from mow.replay.store_choice import StoreKind
from mow.system.machine import available_cores

_ROUNDS = 9
_ACTIONS = 18
_BLOCK_STEPS = 8

@dataclass(frozen=True)
class WindowShape(Shape):
    """B windows of L steps for each of K tasks that hold N steps."""

    K: int
    B: int
    L: int
    N: int


# The train batch is 327 MB of frames. 2,000 steps keep all peers together, each with its copy, near 4 GB.
SHAPES = [WindowShape(26, 16, 64, 2000), WindowShape(26, 39, 8, 2000)]


@dataclass(frozen=True)
class Recorded:
    """The same steps in every store, and the frames themselves."""

    frames: NDArray[np.uint8]  # [K, N, H, W, 3]
    source: str
    buffers: dict[str, ReplayBuffer]  # by kind of store, the subject first


@cache
def record(num_tasks: int, num_steps: int) -> Recorded:
    """Cached for the next benchmark: playing takes longer than measuring."""
    frames, source = recorded_frames(num_tasks, num_steps)
    kinds = ("raw",) if why_not_packed() else ("packed", "raw", "on disk")
    return Recorded(frames, source, {kind: filled(kind, frames) for kind in kinds})


def filled(kind: str, frames: NDArray[np.uint8]) -> ReplayBuffer:
    """A buffer that holds all of frames [K, N, H, W, 3] and no more."""
    num_tasks, num_steps = frames.shape[:2]
    store: StoreKind = "raw" if kind == "raw" else "packed"
    free_bytes, disk = (0, Path(tempfile.gettempdir())) if kind == "on disk" else (None, None)
    buffer = ReplayBuffer(
        num_tasks, num_steps, frames.shape[2:], _ACTIONS, seed=0, store=store, free_bytes=free_bytes, disk=disk
    )
    for step in range(num_steps):
        add(buffer, frames[:, step])
    return buffer


def add(buffer: ReplayBuffer, frame: NDArray[np.uint8]) -> None:
    action, reward = np.zeros((len(frame), _ACTIONS), np.float32), np.zeros(len(frame), np.float32)
    flag = np.zeros(len(frame), dtype=np.bool_)
    buffer.add(frame, action, reward, flag, flag, flag, flag)


def on_the_host(race: Race) -> Race:
    """The race by the wall clock with as many copying threads as cores, up to four; a round takes seconds."""
    num_threads = min(4, available_cores())
    torch.set_num_threads(num_threads)
    set_num_threads(num_threads)
    return race.on_the_cpu(_ROUNDS)


def make_windows(shape: WindowShape) -> Inputs:
    """Rows [K], first [K, B]: what a full buffer draws under its seed, counter and stream of zero."""
    size, head = np.full(shape.K, shape.N), np.zeros(shape.K, dtype=np.int64)
    return np.arange(shape.K), draw_windows(0, 0, 0, size, head, shape.N, shape.B, shape.L)


def check_windows(frames: NDArray[np.uint8], out: NDArray[np.uint8], output: Any, inputs: Inputs) -> None:
    """Check that every frame is that of its step, and that windows which a peer drew are whole."""
    if output is None:  # a flat copy
        assert (out.reshape(-1) == frames.reshape(-1)[: out.size]).all(), "the copy differs from its source"
        return
    if isinstance(output, Drawn):
        assert (np.diff(output.step, axis=1) == 1).all(), "a window with a gap"
        assert (output.task == output.task[:, :1]).all(), "a window of two tasks"
        assert (output.frame == frames[output.task, output.step]).all(), "a frame is not that of its step"
        return
    got = output.frame.numpy() if isinstance(output, TransitionBatch) else output
    rows, first = inputs
    for k, row in enumerate(rows.tolist()):
        for b, start in enumerate(first[k].tolist()):
            assert (got[k, b] == frames[row, start : start + got.shape[2]]).all(), f"window {b} of task {k} differs"


def stores_of(recorded: Recorded, shape: WindowShape, out: NDArray[np.uint8]) -> dict[str, Contestant]:
    """The gather of each store, and the whole sample."""
    batch = recorded.buffers["raw"].sample(shape.B, shape.L, counter=0, stream=0)
    batch = dataclasses.replace(batch, frame=torch.from_numpy(out))
    contestants: dict[str, Contestant] = {}
    for kind, buffer in recorded.buffers.items():

        def gather(rows: Any, first: Any, buffer: ReplayBuffer = buffer) -> NDArray[np.uint8]:
            buffer.store.gather(rows, first, shape.L, out)
            return out

        def sample(rows: Any, first: Any, buffer: ReplayBuffer = buffer) -> TransitionBatch:
            return buffer.sample(shape.B, shape.L, counter=0, stream=0, out=batch)

        contestants[kind], contestants[f"{kind}, all fields"] = gather, sample
    return contestants


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_windows(race: Race, shape: WindowShape) -> None:
    race = on_the_host(race)
    recorded = record(shape.K, shape.N)
    frames = recorded.frames
    out = np.empty((shape.K, shape.B, shape.L, *frames.shape[2:]), dtype=np.uint8)
    (kind, subject), *others = stores_of(recorded, shape, out).items()
    peers, missing = make_peers(frames, out)
    check, work = partial(check_windows, frames, out), Work(0.0, 2.0 * out.nbytes)
    race.run(subject, dict(others) | peers, make=partial(make_windows, shape), check=check, work=work)
    title = f"{shape}: {out.nbytes / 1e6:.0f} MB of frames"
    show(race, recorded, kind, title, out.nbytes / 1e9, "GB/s", not_installed=missing)


def show(race: Race, recorded: Recorded, subject: str, title: str, amount: float, unit: str, **more: Any) -> None:
    """Add stores and threads to the numbers, and print the table."""
    race.note(
        "flat copy, torch",
        backend=subject,
        frames=recorded.source,
        ratio={kind: round(buffer.store.ratio, 2) for kind, buffer in recorded.buffers.items()},
        store_bytes={kind: buffer.store.memory_bytes for kind, buffer in recorded.buffers.items()},
        copying_threads=torch.get_num_threads(),
        **more,
    )
    info = race.benchmark.extra_info
    absent = f"; not installed: {', '.join(more['not_installed'])}" if more.get("not_installed") else ""
    stores = f"stores {info['ratio']} times smaller than raw; {info['copying_threads']} threads"
    print(table(f"{title}; {recorded.source}; {stores}{absent}", info, amount, unit))


@pytest.mark.parametrize("shape", SHAPES[:1], ids=str)
def test_add(race: Race, shape: WindowShape) -> None:
    """Eight steps of all tasks into buffers of their own, which are full, so that the oldest make room."""
    race = on_the_host(race)
    recorded = record(shape.K, shape.N)
    frames = recorded.frames
    held = min(256, shape.N)

    def adder(buffer: ReplayBuffer) -> Contestant:
        def call() -> ReplayBuffer:
            for _ in range(_BLOCK_STEPS):  # never the frames of the turn before, which the cache holds
                add(buffer, frames[:, buffer.num_steps % shape.N])
            return buffer

        return call

    def check(buffer: ReplayBuffer, inputs: Inputs) -> None:
        steps = np.arange(buffer.num_steps - _BLOCK_STEPS, buffer.num_steps)
        newest = np.empty((shape.K, 1, _BLOCK_STEPS, *frames.shape[2:]), dtype=np.uint8)
        buffer.store.gather(np.arange(shape.K), np.full((shape.K, 1), steps[0]), _BLOCK_STEPS, newest)
        assert (newest[:, 0] == frames[:, steps % shape.N]).all(), "the newest frames are not those that were added"

    num_frames = shape.K * _BLOCK_STEPS
    (kind, subject), *others = ((kind, adder(filled(kind, frames[:, :held]))) for kind in recorded.buffers)
    work = Work(0.0, 2.0 * _BLOCK_STEPS * frames[:, 0].nbytes)
    race.run(subject, dict(others), make=lambda: (), check=check, work=work)
    show(race, recorded, kind, f"add, {num_frames} frames a turn", num_frames, "frames/s", frames_per_turn=num_frames)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_windows_on_the_gpu(race: Race, shape: WindowShape) -> None:
    """The ring lies on the GPU; the bound is a copy there."""
    frames, source = recorded_frames(shape.K, shape.N)
    ring = torch.from_numpy(frames).cuda()
    out = torch.empty(shape.K, shape.B, shape.L, *ring.shape[2:], dtype=torch.uint8, device="cuda")
    flat = ring.view(shape.K * shape.N, -1)

    def gather(rows: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        gather_windows_cuda(ring, rows, first, shape.L, out)
        return out

    def index_select(rows: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        steps = first.unsqueeze(-1) + torch.arange(shape.L, device="cuda")
        index = (rows[:, None, None] * shape.N + steps).flatten()
        torch.index_select(flat, 0, index, out=out.view(len(index), -1))
        return out

    def check(got: torch.Tensor, inputs: Inputs) -> None:
        rows, first = (array.cpu().numpy() for array in inputs)
        check_windows(frames, frames, got.cpu().numpy(), (rows, first))

    race.benchmark.extra_info.update(frames=source)
    race.run(
        gather,
        {"torch index_select(out)": index_select},
        make=lambda: tuple(torch.from_numpy(array).cuda() for array in make_windows(shape)),
        check=check,
        work=Work(0.0, 2.0 * out.numel()),
    )
