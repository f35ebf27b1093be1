"""A timer for pytest-benchmark that counts device time alone.

pytest-benchmark reads its timer before and after the function that it times. This one advances only by the measured
time of the device: CUDA events on a GPU, the wall clock on a CPU. Statistics, JSON and --benchmark-compare then hold
device time. Use benchmark.pedantic with it: the calibration of the other modes waits for a running clock.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

Call = Callable[[], object]


class Clock:
    """Time that only `advance` moves, seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def advance(self, seconds: float) -> None:
        self.now += seconds


CLOCK = Clock()


def device_timer() -> float:
    """Seconds: the timer of pytest-benchmark."""
    return CLOCK.now


class Device:
    """The device of a benchmark, which measures calls. This class measures those of a CPU."""

    kind = "cpu"  # or "cuda"

    def __init__(self, name: str = "CPU") -> None:
        self.name = name

    def seconds(self, call: Call) -> float:
        """Device time of one call with cold caches."""
        return self.wall_seconds(call)

    def median_seconds(self, call: Call, rounds: int) -> float:
        return statistics.median(self.seconds(call) for _ in range(rounds))

    def wall_seconds(self, call: Call) -> float:
        """Time from the start of one call until its result is there."""
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def together(self, calls: Sequence[Call]) -> Call:
        """One call that makes all of `calls`; on a GPU without the host in between."""
        return partial(_in_turn, tuple(calls))

    def sets_needed(self, num_bytes: float) -> int:
        """Number of sets of inputs of that size which, used in turn, exceed the cache."""
        return 1


def _in_turn(calls: Sequence[Call]) -> None:
    for call in calls:
        call()


class CudaDevice(Device):
    """The current GPU.

    Before a call the L2 cache is overwritten and the GPU idles for about a millisecond, while the host queues
    everything: the events around the call include no launch latency.
    """

    kind = "cuda"
    _IDLE_CYCLES = 2_000_000
    _MAX_SETS = 32

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties()
        super().__init__(properties.name)
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
        def until_done() -> None:
            call()
            torch.cuda.synchronize()

        torch.cuda.synchronize()
        return super().wall_seconds(until_done)

    def together(self, calls: Sequence[Call]) -> Call:
        """A CUDA graph of all calls; each is made once before the capture, to compile."""
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
    return CudaDevice() if torch.cuda.is_available() else Device()
