"""The benchmark of replay: every contestant is right on a small shape, and one that is wrong is not timed."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from bench import bench_replay, recorded, replay_peers
from bench.bench_replay import WindowShape
from bench.clock import Device
from bench.floors import Ceilings
from bench.race import Race, table
from mow.replay import build_info, set_num_threads
from mow.replay.packed import PackedStore, why_not_packed
from mow.replay.stores import RawStore

SMALL = WindowShape(K=2, B=3, L=10, N=32)


class QuietBenchmark:
    """The part of pytest-benchmark's fixture that a race uses when nothing is to be timed."""

    def __init__(self) -> None:
        self.extra_info: dict[str, Any] = {}
        self.stats = None

    def pedantic(self, target: Callable[[], None], setup: Callable[[], None], rounds: int, iterations: int) -> None:
        setup()
        target()


@pytest.fixture(autouse=True)
def _sprites_and_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No emulator; and the benchmark's threads are its own affair."""
    monkeypatch.setattr(recorded, "emulator_is_here", lambda: False)
    bench_replay.record.cache_clear()
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    if build_info()["compiled"]:
        set_num_threads(2)
    bench_replay.record.cache_clear()


def run(test: Callable[..., None]) -> dict[str, Any]:
    benchmark = QuietBenchmark()
    test(Race(benchmark, Device(), Ceilings(1e9, 1e9), "reference", rounds=1), SMALL)
    return benchmark.extra_info


@pytest.mark.parametrize("test", [bench_replay.test_windows, bench_replay.test_add])
def test_every_contestant_passes_its_check(test: Callable[..., None]) -> None:
    info = run(test)
    assert info["backend"] == ("raw" if why_not_packed() else "packed")
    assert info["frames"] == "synthetic sprites (ale_py is missing), 2 x 32 frames"
    assert info["ratio"]["raw"] == 1.0


@pytest.mark.parametrize("store", [RawStore, PackedStore])
def test_a_store_that_is_wrong_in_one_byte_is_not_timed(store: type, monkeypatch: pytest.MonkeyPatch) -> None:
    if store is PackedStore and why_not_packed():
        pytest.skip(why_not_packed())
    gather = store.gather

    def broken(self: Any, rows: Any, first: Any, length: int, out: Any) -> None:
        gather(self, rows, first, length, out)
        out[-1, -1, -1, -1, -1, -1] ^= 1

    monkeypatch.setattr(store, "gather", broken)
    complaints = {bench_replay.test_windows: "window 2 of task 1 differs", bench_replay.test_add: "newest"}
    for test, complaint in complaints.items():
        with pytest.raises(AssertionError, match=f"is wrong, so nothing is timed: .*{complaint}"):
            run(test)


def test_the_table_by_hand() -> None:
    info = {
        "backend": "packed", "median_us": 2000.0, "floor_us": 1000.0, "noise": 1.0, "numbers": "CPU numbers",
        "peers": {"flat copy, torch": {"median_us": 1000.0}, "raw": {"median_us": 1250.0}},
    }  # fmt: skip
    assert table("a batch", info, 5e-3, "GB/s", {"raw": "as it is"}).splitlines() == [
        "",
        "a batch; noise 1.00x; CPU numbers",
        "flat copy, torch                 1.00 ms       5.0 GB/s   100% of the bound",
        "raw                              1.25 ms       4.0 GB/s    80% of the bound  as it is",
        "packed                           2.00 ms       2.5 GB/s    50% of the bound",
    ]
    assert table("a batch", {}, 1.0, "GB/s") == ""


def test_what_a_peer_drew_is_checked() -> None:
    frames, out = np.random.default_rng(0).integers(0, 256, size=(2, 9, 1, 1, 3), dtype=np.uint8), np.empty(0)
    task, step = np.array([[1, 1, 1], [0, 0, 0]]), np.array([[2, 3, 4], [0, 1, 2]])

    def check(**change: Any) -> None:
        drawn = {"frame": frames[task, step], "task": task, "step": step, **change}
        bench_replay.check_windows(frames, out, replay_peers.Drawn(**drawn), ())

    check()
    with pytest.raises(AssertionError, match="a window with a gap"):
        check(step=step * 2)
    with pytest.raises(AssertionError, match="a window of two tasks"):
        check(task=np.array([[1, 1, 0], [0, 0, 0]]))
    with pytest.raises(AssertionError, match="a frame is not that of its step"):
        check(step=step + 1)


def test_real_frames_are_repeated_in_memory_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "_PLAYED", 8)
    frames, source = recorded.recorded_frames(2, 20)
    assert source == "synthetic sprites (ale_py is missing), 2 x 20 frames, 8 of them repeated"
    assert (frames[:, 8:16] == frames[:, :8]).all()
    assert (frames[:, 16:] == frames[:, :4]).all()
    assert (frames[:, 0] != frames[:, 1]).any()


def test_libraries_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(frames: Any, out: Any) -> Any:
        raise ImportError("No module named 'torchrl'")

    monkeypatch.setattr(replay_peers, "LIBRARIES", {"torchrl SliceSampler": missing})
    assert run(bench_replay.test_windows)["not_installed"] == {"torchrl SliceSampler": "No module named 'torchrl'"}


@pytest.mark.parametrize("name", replay_peers.LIBRARIES)
def test_a_library_that_is_there_gives_the_right_windows(name: str) -> None:
    frames, _ = recorded.recorded_frames(SMALL.K, SMALL.N)
    out = np.empty((SMALL.K, SMALL.B, SMALL.L, *frames.shape[2:]), dtype=np.uint8)
    try:
        peer = replay_peers.LIBRARIES[name](frames, out)
    except ImportError as error:
        pytest.skip(str(error))
    rows, first = bench_replay.make_windows(SMALL)
    bench_replay.check_windows(frames, out, peer(rows, first), (rows, first))
