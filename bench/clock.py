"""A clock that counts the time of the device alone.

pytest-benchmark reads a timer before and after the function that it times. The timer here stands still except when a
measured function moves it by what the device needed: by CUDA events on a GPU, by the processor's clock on a CPU. So
statistics, JSON and --benchmark-compare hold device time. Only benchmark.pedantic works with it: the calibration of
other modes would wait for a clock that does not run.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch

Call = Callable[[], object]


class Device(Protocol):
    """The device of a benchmark, which measures calls."""

    name: str
    kind: str  # "cuda" or "cpu"

    def seconds(self, call: Call) -> float:
        """Seconds that the device works on one call, with cold caches."""

    def wall_seconds(self, call: Call) -> float:
        """Seconds that the caller waits for one call and its result."""

    def together(self, calls: Sequence[Call]) -> Call:
        """One call that makes all of `calls`, without the host where the device can do that."""

    def sets_needed(self, num_bytes: float) -> int:
        """Number of sets of inputs of that size which, used in turn, do not stay in the cache."""


class Clock:
    """Time that only `advance` moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def advance(self, seconds: float) -> None:
        self.now += seconds


CLOCK = Clock()


def device_timer() -> float:
    """The timer that pytest-benchmark is given; seconds."""
    return CLOCK.now


class CpuDevice:
    kind = "cpu"

    def __init__(self, name: str = "CPU") -> None:
        self.name = name

    def seconds(self, call: Call) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def wall_seconds(self, call: Call) -> float:
        return self.seconds(call)

    def together(self, calls: Sequence[Call]) -> Call:
        return partial(_in_turn, tuple(calls))

    def sets_needed(self, num_bytes: float) -> int:
        return 1


def _in_turn(calls: Sequence[Call]) -> None:
    for call in calls:
        call()


class CudaDevice:
    """The current GPU.

    Before a call the L2 cache is overwritten and the GPU idles for about a millisecond; the host has queued everything
    by then, so that the events around the call see no launch latency.
    """

    kind = "cuda"
    _IDLE_CYCLES = 2_000_000
    _MAX_SETS = 32

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties()
        self.name: str = properties.name
        self._l2_bytes: int = properties.L2_cache_size
        self._flush = torch.empty(2 * self._l2_bytes, dtype=torch.uint8, device="cuda")

    def seconds(self, call: Call) -> float:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        torch.cuda._sleep(self._IDLE_CYCLES)
        start.record()
        call()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) * 1e-3

    def wall_seconds(self, call: Call) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    def together(self, calls: Sequence[Call]) -> Call:
        """A CUDA graph of all calls; each is made once before, so that nothing is compiled while it is captured."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            _in_turn(calls)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            _in_turn(calls)
        return graph.replay

    def sets_needed(self, num_bytes: float) -> int:
        return max(1, min(self._MAX_SETS, -int(-2 * self._l2_bytes // max(num_bytes, 1))))


def this_device() -> Device:
    return CudaDevice() if torch.cuda.is_available() else CpuDevice()
