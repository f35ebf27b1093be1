"""Draws and copies of recorded windows: by hand, mow._C against NumPy, fairness, what must be refused."""

import threading
import time

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chisquare

from mow.offline.draw import draw_slices, gather_rows
from mow.replay.sampler import Backend, build_info

needs_extension = pytest.mark.skipif(not build_info()["compiled"], reason="mow._C is not built")
BACKENDS = ["reference", pytest.param("compiled", marks=needs_extension)]


def sums(*counts: int) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_draw_by_hand(backend: Backend) -> None:
    # The first 64 bits are 0.39904647... of 2^64, see tests/replay/test_sampler.py. Episodes of 4, 2 and 7 rows have
    # 2, 0 and 5 windows of 3: index floor(7 * 0.399) = 2 is the first of the third episode, which begins at row 6.
    start, left = draw_slices(0, 0, 0, [sums(2, 0, 5)], [sums(4, 2, 7)], 1, backend=backend)
    assert (start.tolist(), left.tolist()) == ([[6]], [[7]])
    # Windows of 1: index floor(13 * 0.399) = 5 is the second row of the second episode, its last.
    start, left = draw_slices(0, 0, 0, [sums(4, 2, 7)], [sums(4, 2, 7)], 1, backend=backend)
    assert (start.tolist(), left.tolist()) == ([[5]], [[1]])


@needs_extension
def test_compiled_draws_equal_the_reference() -> None:
    random = np.random.default_rng(0)
    for _ in range(100):
        num_tasks, num_windows, length = (int(n) for n in random.integers(1, [5, 40, 6]))
        rows = [random.integers(1, 12, size=random.integers(1, 30)) for _ in range(num_tasks)]
        rows = [np.append(each, length) for each in rows]  # one episode holds a window
        starts = [np.maximum(each - length + 1, 0) for each in rows]
        seed, counter = (int(n) for n in random.integers(0, 2**64, size=2, dtype=np.uint64))
        args = (seed, counter, int(random.integers(0, 2**32)), [sums(*s) for s in starts], [sums(*r) for r in rows])
        expected = draw_slices(*args, num_windows, backend="reference")
        got = draw_slices(*args, num_windows, backend="compiled")
        assert [each.tolist() for each in got] == [each.tolist() for each in expected]
        assert (got[1] >= length).all(), "a window crosses the end of its episode"


@pytest.mark.parametrize("length", [1, 4])
def test_all_starts_are_equally_likely(length: int) -> None:
    rows = np.array([9, 2, 5, 3, 4])
    starts = np.maximum(rows - length + 1, 0)
    valid = np.concatenate([before + np.arange(n) for before, n in zip(sums(*rows), starts, strict=False)])
    start, _ = draw_slices(3, 1, 0, [sums(*starts)], [sums(*rows)], 100_000)
    counts = np.bincount(start[0], minlength=rows.sum())
    assert counts.sum() == counts[valid].sum()
    assert chisquare(counts[valid]).pvalue > 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_task_without_a_window_is_refused(backend: Backend) -> None:
    with pytest.raises(ValueError, match="task 1 has no episode that holds a window"):
        draw_slices(0, 0, 0, [sums(2), sums(0, 0)], [sums(4), sums(1, 1)], 1, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gathered_padding_is_zero_in_memory_of_nan(backend: Backend) -> None:
    wide, narrow = (np.arange(1.0, 1 + 6 * width, dtype=np.float32).reshape(6, width) for width in (5, 3))
    out = [np.full((3, 2, width), np.nan, np.float32) for width in (3, 2)]
    offset, width = np.array([[0, 0], [3, 2]]), np.array([[3, 2], [2, 1]])
    gather_rows([wide, narrow], offset, width, np.array([0, 1, 1]), np.array([4, 0, 4]), 2, out, backend=backend)
    assert out[0].tolist() == [
        [[21, 22, 23], [26, 27, 28]], [[1, 2, 0], [4, 5, 0]], [[13, 14, 0], [16, 17, 0]],
    ]  # fmt: skip
    assert out[1].tolist() == [[[24, 25], [29, 30]], [[3, 0], [6, 0]], [[15, 0], [18, 0]]]


@needs_extension
@pytest.mark.parametrize("num_windows", [5, 3000])  # copied by this thread, and by the pool
def test_compiled_gathers_equal_the_reference(num_windows: int) -> None:
    random = np.random.default_rng(num_windows)
    widths = np.array([[39, 6, 17], [4, 2, 6]])
    files = [random.normal(size=(200, w)).astype(np.float32) for w in widths.sum(axis=0)]
    args = (files, np.array([[0, 0, 0], widths[0]]), widths, random.integers(0, 3, num_windows),
            random.integers(0, 200 - 17 + 1, num_windows), 17)  # fmt: skip
    out = [[np.full((num_windows, 17, w), np.nan, np.float32) for w in (39, 6)] for _ in range(2)]
    gather_rows(*args, out[0], backend="reference")
    gather_rows(*args, out[1], backend="compiled")
    assert [each.tobytes() for each in out[0]] == [each.tobytes() for each in out[1]]


@needs_extension
@pytest.mark.parametrize(("file", "start", "width"), [(2, 0, 1), (-1, 0, 1), (0, 5, 1), (0, -1, 1), (0, 0, 4)])
def test_the_extension_reads_nothing_outside_of_a_file(file: int, start: int, width: int) -> None:
    files, out = [np.zeros((6, 3), np.float32)] * 2, [np.zeros((1, 2, 4), np.float32)]
    with pytest.raises(ValueError, match="expected"):
        gather_rows(files, np.array([[0, 0]]), np.array([[width, width]]), np.array([file]), np.array([start]), 2, out,
                    backend="compiled")  # fmt: skip


@needs_extension
def test_other_threads_run_meanwhile() -> None:
    files, out = [np.zeros((100, 40), np.float32)], [np.zeros((20_000, 50, 40), np.float32)]
    args = (files, np.array([[0]]), np.array([[40]]), np.zeros(20_000, np.int64), np.zeros(20_000, np.int64), 50, out)
    ticks: list[float] = []
    done = threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    ticker = threading.Thread(target=tick)
    ticker.start()
    begun = time.perf_counter()
    gather_rows(*args, backend="compiled")
    ended = time.perf_counter()
    done.set()
    ticker.join()
    assert sum(begun < at < ended for at in ticks) >= 2
