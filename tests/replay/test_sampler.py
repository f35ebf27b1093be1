"""Drawing and copying windows: the NumPy reference by hand, then mow._C against it, then what must be refused."""

import logging
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import chisquare

from mow.replay import sampler
from mow.replay.sampler import build_info, draw_windows, gather_windows, gather_windows_cuda, philox, set_num_threads

COMPILED = pytest.param(
    "compiled", marks=pytest.mark.skipif(not build_info()["compiled"], reason="mow._C is not built")
)
needs_extension = pytest.mark.skipif(not build_info()["compiled"], reason="mow._C is not built")


def int64(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


@pytest.fixture
def no_extension(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine where mow._C was not built: None in sys.modules makes its import fail."""
    monkeypatch.setitem(sys.modules, "mow._C", None)
    sampler._why_not_compiled.cache_clear()
    sampler._warn_reference.cache_clear()
    yield
    monkeypatch.undo()
    sampler._why_not_compiled.cache_clear()
    sampler._warn_reference.cache_clear()


@pytest.fixture
def restored_threads() -> Iterator[None]:
    from mow import _C

    before = _C.num_threads()
    yield
    _C.set_num_threads(before)


# Philox


# The known answers of Random123 (kat_vectors, philox4x32 with 10 rounds).
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, 0xFFFFFFFF_FFFFFFFF, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        0x299F31D0_A4093822,
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(counter: tuple[int, ...], key: int, expected: tuple[int, ...]) -> None:
    assert tuple(philox(np.array(counter, dtype=np.uint32), key)) == expected


@needs_extension
@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_compiled_philox_gives_the_known_answers(
    counter: tuple[int, int, int, int], key: int, expected: tuple[int, ...]
) -> None:
    from mow import _C

    assert tuple(_C.philox(*counter, key)) == expected


# Draws


@pytest.mark.parametrize("backend", ["reference", COMPILED])
def test_draw_by_hand(backend: sampler.Backend) -> None:
    # Seed 0, batch 0, stream 0, window 0: the first 64 bits are 0x6627E8D5E169C58D, that is 0.39904647... of 2^64.
    # 10 steps held and windows of 3 leave ages 0 to 7; the age is floor(8 * 0.399) = 3. The oldest step of a full ring
    # of 10 whose next write goes to 6 lies at 6, so the window starts at (6 + 3) mod 10 = 9 and wraps.
    start = draw_windows(0, 0, 0, int64(10), int64(6), 10, 1, 3, backend=backend)
    assert start.tolist() == [[9]]
    # A ring that is not full: 5 steps at 0 to 4, ages 0 to 2, floor(3 * 0.399) = 1.
    assert draw_windows(0, 0, 0, int64(5), int64(5), 10, 1, 3, backend=backend).tolist() == [[1]]
    # The second 64 bits are 0xBC57AC4C9B00DBD8, 0.73571279...: age floor(8 * 0.736) = 5 is the newer of the two.
    assert draw_windows(0, 0, 0, int64(10), int64(6), 10, 1, 3, recent=True, backend=backend).tolist() == [[1]]


@needs_extension
def test_compiled_draws_equal_the_reference() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        num_tasks, num_windows, capacity = (int(n) for n in random.integers(1, [6, 9, 200]))
        length = int(random.integers(1, capacity + 1))
        size = random.integers(length, capacity + 1, size=num_tasks)
        head = random.integers(0, capacity, size=num_tasks)
        seed, counter = (int(n) for n in random.integers(0, 2**64, size=2, dtype=np.uint64))
        name = (seed, counter, int(random.integers(0, 2**32)))
        args = (*name, size, head, capacity, num_windows, length)
        for recent in (False, True):
            expected = draw_windows(*args, recent=recent, backend="reference")
            got = draw_windows(*args, recent=recent, backend="compiled")
            assert got.dtype == expected.dtype
            assert got.tolist() == expected.tolist()


@needs_extension
def test_compiled_draws_equal_the_reference_where_the_product_fills_128_bits() -> None:
    capacity = 2**62  # no ring is that long, but the upper half of the product must be right in every bit
    args = (7, 2**64 - 1, 2**32 - 1, int64(capacity), int64(0), capacity, 50, 1)
    assert draw_windows(*args, backend="compiled").tolist() == draw_windows(*args, backend="reference").tolist()


@pytest.mark.parametrize("backend", ["reference", COMPILED])
def test_draws_depend_on_each_part_of_their_name_and_on_nothing_else(backend: sampler.Backend) -> None:
    def draw(seed: int, counter: int, stream: int) -> list[list[int]]:
        size, head = int64(900, 1000), int64(900, 30)
        return draw_windows(seed, counter, stream, size, head, 1000, 16, 8, backend=backend).tolist()

    base = draw(5, 6, 7)
    assert draw(5, 6, 7) == base
    # Two batches of 32 draws from 893 or more ages agree by chance with probability 893^-32.
    others = [draw(4, 6, 7), draw(5 + 2**32, 6, 7), draw(5, 5, 7), draw(5, 6 + 2**32, 7), draw(5, 6, 8)]
    assert base not in others
    assert base[0] != base[1]


@pytest.mark.parametrize("backend", ["reference", COMPILED])
def test_draws_are_uniform_over_ages(backend: sampler.Backend) -> None:
    capacity, length, num_ages = 31, 12, 20
    start = draw_windows(1, 2, 3, int64(capacity), int64(17), capacity, 20_000, length, backend=backend)
    age = (start - 17) % capacity  # the ring is full, so its oldest step lies at the head
    count = np.bincount(age.ravel(), minlength=num_ages)
    assert len(count) == num_ages
    # The seed is fixed, so this never fails by chance; 1e-4 leaves one in 10,000 seeds unusable.
    assert chisquare(count).pvalue > 1e-4


@pytest.mark.parametrize("backend", ["reference", COMPILED])
def test_recent_draws_follow_their_formula(backend: sampler.Backend) -> None:
    """Of 31 ages in a ring that has wrapped, age a comes with (2 a + 1) / 31^2."""
    capacity, length = 40, 10
    start = draw_windows(1, 2, 3, int64(capacity), int64(17), capacity, 20_000, length, recent=True, backend=backend)
    count = np.bincount((start[0] - 17) % capacity, minlength=31)
    assert len(count) == 31
    assert chisquare(count, 20_000 * (2 * np.arange(31) + 1) / 31**2).pvalue > 1e-4


@pytest.mark.parametrize("backend", ["reference", COMPILED])
def test_a_ring_that_holds_one_window_gives_that_window(backend: sampler.Backend) -> None:
    assert draw_windows(9, 9, 9, int64(4, 4), int64(4, 3), 8, 2, 4, backend=backend).tolist() == [[0, 0], [7, 7]]
    assert draw_windows(9, 9, 9, int64(8), int64(5), 8, 3, 8, backend=backend).tolist() == [[5, 5, 5]]


DRAW: dict[str, Any] = {
    "seed": 0,
    "counter": 0,
    "stream": 0,
    "size": int64(8, 8),
    "head": int64(0, 0),
    "capacity": 8,
    "num_windows": 2,
    "length": 4,
}


@pytest.mark.parametrize("backend", ["reference", COMPILED])
def test_a_draw_from_too_few_steps_is_refused(backend: sampler.Backend) -> None:
    with pytest.raises(ValueError, match="task 1 holds 3 steps, a window needs 4: collect more"):
        draw_windows(**{**DRAW, "size": int64(8, 3)}, backend=backend)


@needs_extension
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": int64(8, 3)}, r"size\[1\]: expected 4 to 8, got 3"),
        ({"head": int64(0, -1)}, r"head\[1\]: expected 0 to 7, got -1"),
        ({"head": int64(0)}, r"head: expected shape \[2\], got \[1\]"),
        ({"capacity": 0}, "capacity: expected at least 1, got 0"),
        ({"length": 0}, "length: expected at least 1, got 0"),
        ({"num_windows": 0}, "num_windows: expected at least 1, got 0"),
    ],
)
def test_the_extension_refuses_a_draw_on_its_own(change: dict[str, Any], message: str) -> None:
    from mow import _C

    with pytest.raises(ValueError, match=message):
        _C.draw_windows(**{**DRAW, "recent": False, **change})


# Gathers


@pytest.mark.parametrize("backend", ["reference", COMPILED])
def test_gather_by_hand(backend: sampler.Backend) -> None:
    ring = np.array([[0, 1, 2, 3, 4], [10, 11, 12, 13, 14]], dtype=np.uint8)  # [R=2, capacity=5]
    out = np.full((2, 2, 3), 99, dtype=np.uint8)  # [K=2, B=2, L=3]
    start = np.array([[0, 3], [4, 2]], dtype=np.int64)
    gather_windows([ring], int64(1, 0), start, 3, [out], backend=backend)
    assert out.tolist() == [[[10, 11, 12], [13, 14, 10]], [[4, 0, 1], [2, 3, 4]]]


@needs_extension
@pytest.mark.usefixtures("restored_threads")
@pytest.mark.parametrize("num_threads", [1, 2, 3, 4])
def test_compiled_gathers_equal_the_reference(num_threads: int) -> None:
    set_num_threads(num_threads)
    random = np.random.default_rng(num_threads)
    trailing = [(), (1,), (3,), (7, 5, 3), (64, 64, 3), (0,)]  # odd byte counts, a frame, and nothing at all
    dtypes = [np.uint8, np.float32, np.bool_, np.int64]
    for _ in range(40):
        num_rows, num_tasks, num_windows, capacity = (int(n) for n in random.integers(1, [4, 5, 7, 40]))
        length = capacity if random.random() < 0.2 else int(random.integers(1, capacity + 1))
        rings: list[NDArray[Any]] = []
        for _ in range(int(random.integers(1, 4))):
            shape = (num_rows, capacity, *trailing[random.integers(len(trailing))])
            rings.append(random.integers(0, 2**8, size=shape).astype(dtypes[random.integers(len(dtypes))]))
        rows = random.integers(0, num_rows, size=num_tasks)
        start = random.integers(0, capacity, size=(num_tasks, num_windows))
        out: dict[sampler.Backend, list[NDArray[Any]]] = {}
        fills: dict[sampler.Backend, int] = {"reference": 0, "compiled": 1}  # a byte that is not written differs
        for backend, fill in fills.items():
            shapes = [(num_tasks, num_windows, length, *ring.shape[2:]) for ring in rings]
            out[backend] = [np.full(s, fill, dtype=ring.dtype) for s, ring in zip(shapes, rings, strict=True)]
            gather_windows(rings, rows, start, length, out[backend], backend=backend)
        assert [o.tobytes() for o in out["compiled"]] == [o.tobytes() for o in out["reference"]]


@needs_extension
@pytest.mark.usefixtures("restored_threads")
def test_threads_share_a_large_gather_without_loss() -> None:
    """Above the size from which the pool is used, on every number of threads, many times over one pool."""
    random = np.random.default_rng(0)
    ring = random.integers(0, 256, size=(3, 50, 12_288), dtype=np.uint8)
    rows, start = int64(2, 0, 1), random.integers(0, 50, size=(3, 9))
    out = [np.empty((3, 9, 11, 12_288), dtype=np.uint8) for _ in range(2)]  # 3.6 MB
    gather_windows([ring], rows, start, 11, out[:1], backend="reference")
    for num_threads in (4, 1, 3, 2):
        set_num_threads(num_threads)
        for _ in range(25):
            out[1].fill(0)
            gather_windows([ring], rows, start, 11, out[1:], backend="compiled")
            assert np.array_equal(out[0], out[1])


@needs_extension
def test_several_python_threads_may_gather_at_once() -> None:
    ring = np.random.default_rng(0).integers(0, 256, size=(1, 64, 12_288), dtype=np.uint8)
    wrong = []

    def gather(first: int) -> None:
        start = np.full((1, 4), first, dtype=np.int64)
        out = np.zeros((1, 4, 32, 12_288), dtype=np.uint8)  # 1.6 MB: the pool takes part
        for _ in range(20):
            gather_windows([ring], int64(0), start, 32, [out], backend="compiled")
            wrong.extend([first] * (not (out == ring[:, None, first : first + 32]).all()))
            out.fill(0)

    threads = [threading.Thread(target=gather, args=(first,)) for first in (0, 10, 20, 32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


@needs_extension
@pytest.mark.usefixtures("restored_threads")
def test_a_gather_lets_other_python_threads_run() -> None:
    from mow import _C

    set_num_threads(1)  # leaves a core to the other thread
    ring = np.ones((1, 64, 12_288), dtype=np.uint8)
    start, out = np.zeros((1, 256), dtype=np.int64), np.empty((1, 256, 64, 12_288), dtype=np.uint8)  # 200 MB
    ticks: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(1e-4)

    # Python takes the GIL from a thread after the switch interval: at an hour, only giving it away helps the others.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(3600.0)
    other = threading.Thread(target=tick)
    try:
        other.start()
        begin = time.perf_counter()
        _C.gather_windows([ring], int64(0), start, 64, [out])
        end = time.perf_counter()
    finally:
        stop.set()
        other.join()
        sys.setswitchinterval(interval)
    assert any(begin < moment < end for moment in ticks)


@needs_extension
def test_a_forked_child_can_gather_and_both_can_exit() -> None:
    """The pool's threads do not exist in the child: one that waited for them would wait for ever."""
    program = """
        import os, signal
        import numpy as np
        from mow import _C

        _C.set_num_threads(3)
        ring, out = np.ones((1, 64, 12288), np.uint8), np.zeros((1, 8, 64, 12288), np.uint8)
        start, rows = np.zeros((1, 8), np.int64), np.zeros(1, np.int64)
        _C.gather_windows([ring], rows, start, 64, [out])
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # ends a child that hangs
            out[:] = 0
            _C.gather_windows([ring], rows, start, 64, [out])
            os._exit(0 if out.all() and _C.num_threads() == 3 else 1)
        assert os.waitpid(child, 0)[1] == 0
    """
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)], timeout=60, check=False)
    assert done.returncode == 0


def gather_args(**change: Any) -> dict[str, Any]:
    args: dict[str, Any] = {
        "rings": [np.zeros((2, 5, 3), dtype=np.uint8), np.zeros((2, 5), dtype=np.float32)],
        "rows": int64(0, 1),
        "start": np.zeros((2, 4), dtype=np.int64),
        "length": 3,
        "out": [np.zeros((2, 4, 3, 3), dtype=np.uint8), np.zeros((2, 4, 3), dtype=np.float32)],
    }
    return {**args, **change}


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array


# One planted error each: the change, what the door says, what the extension says when it is called past the door.
PLANTED: list[tuple[dict[str, Any], str]] = [
    ({"rings": []}, "at least one, got 0 rings and 2 arrays"),
    ({"out": gather_args()["out"][:1]}, "got 2 rings and 1 arrays"),
    ({"rows": int64(0)}, r"rows: expected shape \[2\], got \[1\]"),
    ({"rows": int64(0, 2)}, r"rows\[1\]: expected 0 to 1, got 2"),
    ({"start": np.full((2, 4), -1)}, r"start\[0\]: .* 0 to 4, got -1"),
    ({"start": np.full((2, 4), 5)}, r"start\[0\]: .* 0 to 4, got 5"),
    ({"start": int64(0, 0)}, r"start: expected shape \[K, B\], got \[2\]"),
    (
        {"length": 6, "out": [np.zeros((2, 4, 6, 3), dtype=np.uint8), np.zeros((2, 4, 6), dtype=np.float32)]},
        "capacity: expected at least 6, got 5",
    ),
    ({"length": 2}, r"out\[0\]: .* shape \[2, 4, 2, 3\]"),
    ({"out": [np.zeros((2, 4, 3, 3), dtype=np.int8), gather_args()["out"][1]]}, "expected uint8, got int8"),
    (
        {"out": [np.zeros((2, 4, 3, 6), dtype=np.uint8)[..., ::2], gather_args()["out"][1]]},
        r"out\[0\]: expected a contiguous array",
    ),
    ({"out": [read_only(np.zeros((2, 4, 3, 3), dtype=np.uint8)), gather_args()["out"][1]]}, "not writeable"),
    (
        {"rings": [gather_args()["rings"][0], np.zeros((2, 6), dtype=np.float32)]},
        r"rings\[1\]: expected shape \[2, 5\], got \[2, 6\]",
    ),
    (
        {"rings": [np.zeros(5, dtype=np.uint8)], "out": [np.zeros((2, 4, 3), dtype=np.uint8)]},
        r"rings\[0\]: expected at least 2 axes, got \[5\]",
    ),
    (
        {"rings": [np.zeros((2, 5), dtype=object)], "out": [np.zeros((2, 4, 3), dtype=object)]},
        r"rings\[0\]: expected numbers, got Python objects",
    ),
]


@needs_extension
@pytest.mark.parametrize(("change", "message"), PLANTED)
def test_the_extension_refuses_a_gather_on_its_own(change: dict[str, Any], message: str) -> None:
    from mow import _C

    with pytest.raises(ValueError, match=message):
        _C.gather_windows(**gather_args(**change))


@needs_extension
def test_the_extension_never_writes_into_a_converted_copy() -> None:
    from mow import _C

    with pytest.raises(TypeError, match="incompatible function arguments"):
        _C.gather_windows(**gather_args(out=[array.tolist() for array in gather_args()["out"]]))


# The choice of the backend


@pytest.mark.usefixtures("no_extension")
def test_without_the_extension_auto_says_once_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="mow"):
        for _ in range(3):
            assert draw_windows(**DRAW).shape == (2, 2)
            gather_windows(**gather_args())
    assert len(caplog.records) == 1
    assert "pip install -e ." in caplog.text


@pytest.mark.usefixtures("no_extension")
def test_without_the_extension_compiled_is_an_error_and_reference_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ImportError, match=r"needs the extension mow\._C .*pip install -e \."):
        draw_windows(**DRAW, backend="compiled")
    draw_windows(**DRAW, backend="reference")
    assert caplog.records == []


@needs_extension
def test_auto_takes_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    from mow import _C

    monkeypatch.setattr(_C, "draw_windows", lambda *args: "compiled ran")
    assert draw_windows(**DRAW) == "compiled ran"


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="backend must be one of auto, reference, compiled, got 'gpu'"):
        draw_windows(**DRAW, backend="gpu")  # type: ignore[arg-type]


@needs_extension
@pytest.mark.usefixtures("restored_threads")
def test_set_num_threads() -> None:
    from mow import _C

    set_num_threads(3)
    assert _C.num_threads() == 3
    with pytest.raises(ValueError, match="num_threads: expected 1 to 256, got 257"):
        _C.set_num_threads(257)


# The GPU


def cuda_args(device: str, **change: Any) -> dict[str, Any]:
    args: dict[str, Any] = {
        "ring": torch.zeros(2, 5, 3, dtype=torch.uint8, device=device),
        "rows": torch.tensor([0, 1], device=device),
        "start": torch.zeros(2, 4, dtype=torch.int64, device=device),
        "length": 3,
        "out": torch.zeros(2, 4, 3, 3, dtype=torch.uint8, device=device),
    }
    return {**args, **change}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "expected contiguous tensors on one CUDA device, got cpu, .*: call gather_windows"),
        ({"rows": torch.tensor([0])}, r"expected ring \[R, capacity, ...\], rows \[K\], .* got .* \[1\]"),
        ({"rows": torch.zeros(2)}, r"got torch\.float32, torch\.int64, torch\.uint8"),
        ({"length": 2}, r"out \[K, B, L, ...\], got .*, \[2, 4, 3, 3\] with L 2"),
        ({"length": 6, "out": torch.zeros(2, 4, 6, 3, dtype=torch.uint8)}, "with L 6"),
        ({"out": torch.zeros(2, 4, 3, 3)}, r"out of the ring's torch.uint8, got .* torch\.float32"),
    ],
)
def test_gather_cuda_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gather_windows_cuda(**cuda_args("cpu", **change))


@pytest.mark.gpu
@pytest.mark.parametrize("step_shape", [(), (3,), (64, 64, 3)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("device", range(min(2, torch.cuda.device_count())))
def test_gather_cuda_equals_the_reference(step_shape: tuple[int, ...], dtype: torch.dtype, device: int) -> None:
    random = np.random.default_rng(0)
    ring = torch.from_numpy(random.integers(0, 256, size=(3, 50, *step_shape))).to(dtype)
    rows, start = int64(2, 0), random.integers(0, 50, size=(2, 9))
    expected = torch.empty(2, 9, 20, *step_shape, dtype=dtype)
    gather_windows([ring.numpy()], rows, start, 20, [expected.numpy()], backend="reference")
    here = torch.device("cuda", device)
    for stream in (torch.cuda.default_stream(here), torch.cuda.Stream(here)):
        with torch.cuda.device(here), torch.cuda.stream(stream):
            arrays = [ring.to(here), torch.from_numpy(rows).to(here), torch.from_numpy(start).to(here)]
            out = torch.full_like(expected, 1, device=here)
            gather_windows_cuda(arrays[0], arrays[1], arrays[2], 20, out)
            assert torch.equal(out.cpu(), expected)
    assert torch.cuda.current_device() == 0


@pytest.mark.gpu
def test_gather_cuda_refuses_an_index_out_of_range() -> None:
    """In its own process, as a device-side assertion leaves the GPU's context unusable."""
    program = """
        import torch
        from mow.replay import gather_windows_cuda

        torch.set_default_device("cuda")
        gather_windows_cuda(torch.zeros(1, 5), torch.tensor([0]), torch.tensor([[5]]), 2, torch.zeros(1, 1, 2))
        torch.cuda.synchronize()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "device-side assert" in done.stderr
