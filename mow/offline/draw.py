"""Windows of recorded episodes: the NumPy reference and mow._C, which return the same bytes.

Letters: K tasks, B windows per task, N windows, L rows per window, E episodes of a file, W numbers per row.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mow.replay.sampler import Backend, Int64Array, philox, takes_compiled

FloatArray = NDArray[np.float32]


def draw_slices(
    seed: int,
    counter: int,
    stream: int,
    starts: Sequence[Int64Array],
    rows: Sequence[Int64Array],
    num_windows: int,
    *,
    backend: Backend = "auto",
) -> tuple[Int64Array, Int64Array]:
    """Draw where windows start, uniformly over all starts of a file from which they end within their episode.

        index ~ Uniform{0, ..., starts[E] - 1},  starts[e] <= index < starts[e + 1],  row = rows[e] + index - starts[e]

    Window b of task k takes its 64 random bits as mow.replay.sampler.draw_windows does.

    Args:
        seed, counter, stream: see draw_windows.
        starts: per task int64 [E + 1], the window starts in all episodes before episode e, 0 first.
        rows: per task int64 [E + 1], the rows of all episodes before episode e, 0 first.
        num_windows: B.
    Returns: two int64 [K, B]: the first row of each window, and the rows from there to the end of its episode.
    Raises: ValueError for a task without a start; ImportError for backend "compiled" without the extension.
    """
    if empty := [k for k, sums in enumerate(starts) if sums[-1] < 1]:
        raise ValueError(f"task {empty[0]} has no episode that holds a window: shorten the window, or record longer "
                         "episodes")
    if takes_compiled(backend):
        from mow import _C

        return _C.draw_slices(seed, counter, stream, starts, rows, num_windows)
    words = np.zeros((len(starts) * num_windows, 4), np.uint32)
    words[:, 0] = np.arange(len(words))
    words[:, 1:] = stream, counter & 0xFFFFFFFF, counter >> 32
    random = philox(words, seed).astype(np.uint64)
    bits = (random[:, 0] << np.uint64(32) | random[:, 1]).reshape(len(starts), num_windows)
    start, left = np.empty(bits.shape, np.int64), np.empty(bits.shape, np.int64)
    for k, (sums, before) in enumerate(zip(starts, rows, strict=True)):
        index = np.array([bit * int(sums[-1]) >> 64 for bit in bits[k].tolist()], np.int64)  # [B]
        episode = np.searchsorted(sums, index, side="right") - 1  # [B]
        start[k] = before[episode] + index - sums[episode]
        left[k] = before[episode + 1] - start[k]
    return start, left


def gather_rows(
    files: Sequence[FloatArray],
    offset: Int64Array,
    width: Int64Array,
    file: Int64Array,
    start: Int64Array,
    length: int,
    out: Sequence[FloatArray],
    *,
    backend: Backend = "auto",
) -> None:
    """Copy columns of windows out of files of rows; zeros follow where a file's column is narrower than its output.

        out[c][n, i] = files[f][start[n] + i, offset[c, f] : offset[c, f] + width[c, f]], 0, ..., 0,   f = file[n]

    Args:
        files: of each task float32 [rows, W], contiguous, such as a memory map.
        offset, width: int64 [columns, files].
        file, start: int64 [N], the file and the first row of each window.
        length: L.
        out: of each column float32 [N, L, its largest width], contiguous, writeable; all of it is written.
    Raises: ValueError where an array or an index does not fit (compiled); ImportError as draw_slices.
    """
    if takes_compiled(backend):
        from mow import _C

        _C.gather_rows(files, offset, width, file, start, length, out)
        return
    for c, column in enumerate(out):
        column[...] = 0.0
        for n, (f, first) in enumerate(zip(file.tolist(), start.tolist(), strict=True)):
            window = files[f][first : first + length, offset[c, f] : offset[c, f] + width[c, f]]
            column[n, :, : width[c, f]] = window
