"""One benchmark: an op and its peers on the same inputs, first checked, then timed.

All contestants are checked against float64 before a clock starts. Then they run in turn, round after round, so that
they share clock rates and heat. The op runs once more as its own peer: its speedup over itself is the noise, below
which other speedups mean nothing.
"""

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.ceilings import measure_ceilings
from bench.clock import CLOCK, Device
from bench.floors import Ceilings, Work
from mow.kernels import Backend

# Below this floor a launch costs as much as the work: such shapes are timed inside CUDA graphs.
_SMALL_SECONDS = 30e-6
_CALLS_PER_GRAPH = 16

AGAIN = "the same again"

Inputs = tuple[Any, ...]
Contestant = Callable[..., Any]
Check = Callable[[Any, Inputs], None]


@dataclass(frozen=True)
class Eager:
    """A contestant that cannot be captured in a CUDA graph, because it waits for the device or runs autograd."""

    call: Contestant

    def __call__(self, *inputs: Any) -> Any:
        return self.call(*inputs)


@dataclass(frozen=True)
class Race:
    """The fixture `race` of a benchmark.

    Args:
        benchmark: pytest-benchmark's fixture.
        backend: of the op under test; "triton" where it can run, else "reference".
        rounds: number of runs of every contestant.
    """

    benchmark: Any
    device: Device
    ceilings: Ceilings
    backend: Backend
    rounds: int

    @property
    def itemsize(self) -> int:
        """Bytes of a number: bfloat16 on a GPU, float32 on a CPU."""
        return 2 if self.device.kind == "cuda" else 4

    def on_the_cpu(self, rounds: int) -> "Race":
        """The race by the wall clock on every machine, with at most `rounds` rounds."""
        device = Device()
        ceilings = self.ceilings if self.device.kind == "cpu" else measure_ceilings(device)
        return replace(self, device=device, ceilings=ceilings, rounds=min(self.rounds, rounds))

    def note(self, bound: str, **more: Any) -> None:
        """Add `more` to the numbers; where the peer `bound` was timed, its time is the floor."""
        info = self.benchmark.extra_info
        info.update(more)
        if bound in (peers := info.get("peers", {})):
            floor = peers[bound]["median_us"]
            info.update(floor_us=floor, floor_share=floor / info["median_us"])

    def run(
        self,
        subject: Contestant,
        peers: Mapping[str, Contestant],
        *,
        make: Callable[[], Inputs],
        check: Check,
        work: Work,
    ) -> None:
        """Check and time `subject` and `peers`; the numbers go to the benchmark's extra_info.

        Args:
            subject: the op; takes what `make` returns.
            peers: by name, same arguments. A peer may return something else than the op if `check` accepts it.
            make: returns fresh random inputs.
            check: raises AssertionError if an output differs from that of float64 on the same inputs.
            work: arithmetic and bytes that the op cannot do without.
        Raises: AssertionError naming the contestant whose output is wrong.
        """
        small = self.device.kind == "cuda" and work.floor_seconds(self.ceilings) < _SMALL_SECONDS
        sets = [make() for _ in range(self.device.sets_needed(work.bytes) if small else 1)]
        contestants = {"subject": subject, AGAIN: subject, **peers}
        for name, contestant in contestants.items():
            try:
                check(contestant(*sets[0]), sets[0])
            except AssertionError as error:
                raise AssertionError(f"{name} is wrong, so nothing is timed: {error}") from error
        timers = {name: self._timer(contestant, sets, small) for name, contestant in contestants.items()}
        for timer in timers.values():  # compiles, allocates and warms up whatever is left to be
            timer()
        times: dict[str, list[float]] = {name: [] for name in timers if name != "subject"}

        def others_first() -> None:
            for name, samples in times.items():
                samples.append(timers[name]())

        self.benchmark.pedantic(
            lambda: CLOCK.advance(timers["subject"]()), setup=others_first, rounds=self.rounds, iterations=1
        )
        if self.benchmark.stats is None:  # --benchmark-disable: it has run and was right, and that is all
            return
        info = self.benchmark.extra_info
        info.update(self._report(self.benchmark.stats.stats.median, times, work))
        if small:
            info["timed_without_graph"] = [name for name, one in contestants.items() if isinstance(one, Eager)]

    def _timer(self, contestant: Contestant, sets: Sequence[Inputs], small: bool) -> Callable[[], float]:
        if small and not isinstance(contestant, Eager):
            num_calls = max(_CALLS_PER_GRAPH, len(sets))
            turns = itertools.islice(itertools.cycle(sets), num_calls)
            call = self.device.together([partial(contestant, *inputs) for inputs in turns])
            return lambda: self.device.seconds(call) / num_calls
        turn = itertools.cycle(sets)
        return lambda: self.device.seconds(partial(contestant, *next(turn)))

    def _report(self, median: float, times: Mapping[str, list[float]], work: Work) -> dict[str, Any]:
        floor = work.floor_seconds(self.ceilings)
        medians = {name: statistics.median(samples) for name, samples in times.items()}
        noise = medians.pop(AGAIN) / median
        return {
            "backend": self.backend,
            "numbers": "GPU numbers" if self.device.kind == "cuda" else "CPU numbers: no conclusion for a GPU",
            "median_us": median * 1e6,
            "floor_us": floor * 1e6,
            "floor_share": floor / median,
            "gb_per_s": work.bytes / median / 1e9,
            "tflop_per_s": work.flops / median / 1e12,
            "copy_share": work.bytes / median / self.ceilings.bytes_per_second,
            "matmul_share": work.flops / median / self.ceilings.flops_per_second,
            "noise": noise,
            "peers": {name: {"median_us": 1e6 * each, "speedup": each / median} for name, each in medians.items()},
        }


def table(
    title: str, info: Mapping[str, Any], amount: float, unit: str, beside: Mapping[str, str] | None = None
) -> str:
    """All contestants, the fastest first, with their rates; empty where nothing was timed.

    Args:
        info: extra_info of the benchmark; the subject is called as its backend.
        amount: units done per call.
        unit: printed behind the rate, such as GB/s.
        beside: more text by contestant.
    """
    if "peers" not in info:
        return ""
    micros = {info["backend"]: info["median_us"]} | {name: peer["median_us"] for name, peer in info["peers"].items()}
    lines = [f"\n{title}; noise {info['noise']:.2f}x; {info['numbers']}"]
    for name, micro in sorted(micros.items(), key=lambda entry: entry[1]):
        share = f"{info['floor_us'] / micro:7.0%} of the bound  {(beside or {}).get(name, '')}".rstrip()
        lines.append(f"{name:28}{micro / 1e3:9.2f} ms {amount / micro * 1e6:9,.1f} {unit}{share}")
    return "\n".join(lines)


def compiled(function: Contestant, kind: str) -> Contestant:
    """torch.compile for these shapes on a GPU; unchanged on a CPU, where compiling takes longer than all benchmarks."""
    return torch.compile(function, dynamic=False) if kind == "cuda" else function


def peers_of(
    name: str, function: Contestant, wrap: Callable[[Contestant], Contestant], kind: str, label: str = "compiled"
) -> dict[str, Contestant]:
    """The function as a peer, and on a GPU the same under torch.compile as a second one named `label`."""
    peers = {name: wrap(function)}
    return peers | {label: wrap(compiled(function, kind))} if kind == "cuda" else peers


def with_backward(function: Contestant) -> Contestant:
    """Forward and backward of a function of *inputs.

    Returns: a contestant (*inputs, gradient of the output or outputs) -> (*outputs, *gradients of those inputs that
        require one).
    """

    def call(*inputs: Any) -> tuple[Tensor, ...]:
        *read, upstream = inputs
        output = function(*read)
        outputs = output if isinstance(output, tuple) else (output,)
        wanted = [x for x in read if isinstance(x, Tensor) and x.requires_grad]
        return *(x.detach() for x in outputs), *torch.autograd.grad(output, wanted, upstream)

    return Eager(call)


def forward_alone(function: Contestant) -> Contestant:
    """The function without autograd, as a contestant that takes a gradient of the output too and leaves it unread."""
    return torch.no_grad()(lambda *inputs: function(*inputs[:-1]))


def dtype_of(device: str) -> torch.dtype:
    """Dtype of the inputs of a benchmark: bfloat16 on a GPU, float32 on a CPU."""
    return torch.bfloat16 if device == "cuda" else torch.float32


def close_to(want: Tensor, got: Tensor, tolerance: float) -> None:
    """Raises: AssertionError if the Frobenius norm of the difference exceeds `tolerance` times that of `want`."""
    assert got.shape == want.shape, f"got shape {list(got.shape)}, expected {list(want.shape)}"
    error = float((got.double() - want).norm() / want.norm().clamp_min(1e-30))
    assert error <= tolerance, f"relative error {error:.1e} against float64, at most {tolerance:.0e} is rounding"


# Rounding of outputs, as a share of their norm: of float32 sums, and of bf16 results.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 8e-3}
