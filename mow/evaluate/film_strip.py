"""Film strips: real frames above, frames that the world model imagines below, one pair of rows per task."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mow.envs.vector import VectorEnv
from mow.evaluate.held_out import HeldOutWindows, play_windows
from mow.evaluate.open_loop import (
    OpenLoopErrors,
    OpenLoopPrediction,
    open_loop_errors,
    predict_open_loop,
    reconstruct,
    split,
)
from mow.kernels import PhiloxState
from mow.methods.mow.learner import Learner

SCALE = 2  # picture pixels per frame pixel, on each side
COLUMN, ROW = 66, 72  # frame pixels from one frame to the next, and from the real row to the imagined one
_LABELS, _HEADING, _LINE = 160, 70, 26  # picture pixels: left of the frames, above a strip, of a line of text
_DPI = 100
_RED = (205, 30, 30)


@dataclass(frozen=True, eq=False)
class Film:
    """Held-out windows of C + T steps and the prediction of the world model for the last T."""

    windows: HeldOutWindows
    prediction: OpenLoopPrediction
    reconstruction: Tensor  # [K, B, C + T, 64, 64, 3] float32, 0 black to 1 white
    errors: OpenLoopErrors


def film_of(
    learner: Learner,
    envs: VectorEnv,
    *,
    context: int,
    steps: int,
    num_windows: int,
    seed: int,
    plays_at_random: bool = False,
    check_stop: Callable[[], None] = lambda: None,
) -> Film:
    """Play held-out windows of `context` + `steps` steps and imagine them from their first `context` frames.

    Args: see play_windows; seed: of all draws, which leave the learner's own stream alone.
    Raises: ValueError if the episodes of a task are too short for the windows; what `check_stop` raises.
    """
    rng = PhiloxState.from_seed(seed, learner.device)  # one stream, so that play and imagination share no draw
    windows = play_windows(
        learner, envs, num_windows=num_windows, length=context + steps, shortest=context + 1, rng=rng,
        at_random=np.random.default_rng(seed) if plays_at_random else None, check_stop=check_stop,
    )  # fmt: skip
    model = learner.world_model
    prediction = predict_open_loop(
        model, *split(windows.batch, context), learner.routing(), rng,
        temperature=learner.config.imagination.temperature,
    )  # fmt: skip
    reconstruction = reconstruct(model, windows.batch.frame, rng)
    return Film(windows, prediction, reconstruction, open_loop_errors(prediction, reconstruction, windows))


def strip(film: Film, k: int) -> tuple[NDArray[np.uint8], int]:
    """Draw the longest window of task k, the first of these, n columns of C seen and T imagined frames.

    Column t > 0 is where the action of step t - 1 led. Below a frame, a red bar: this step ended the task, or the world
    model expected it to. Behind the end of the episode it is blank.
    Returns: [2 ROW, n COLUMN, 3] RGB, real frames above, reconstructed and imagined ones below; the number of columns
        that are the first or that an action led to.
    """
    windows, prediction = film.windows, film.prediction
    lengths = windows.length[k].tolist()
    length = max(lengths)
    b = lengths.index(length)
    num_columns, num_ahead = windows.batch.reward.shape[2], prediction.reward.shape[2]
    taken = min(num_columns, int(windows.num_actions[k, b]) + 1)
    imagined = torch.cat([film.reconstruction[k, b, : num_columns - num_ahead], prediction.frame[k, b]])
    rows = (
        (windows.batch.frame[k, b], [False, *windows.batch.terminated[k, b, :-1].tolist()]),
        ((255.0 * imagined.clamp(0.0, 1.0)).round().to(torch.uint8),
         [False] * (num_columns - num_ahead) + prediction.terminated[k, b].tolist()),
    )  # fmt: skip
    picture = np.full((2, ROW, num_columns, COLUMN, 3), 255, np.uint8)
    for row, (frames, ends) in zip(picture, rows, strict=True):
        row[:64, :length, :64] = frames[:length].cpu().numpy().swapaxes(0, 1)
        row[66:70, :taken, :64][:, ends[:taken]] = _RED
    return picture.reshape(2 * ROW, -1, 3), taken


def draw_film(film: Film, tasks: Sequence[tuple[int, str]], text: Sequence[str]) -> bytes:
    """Strips of tasks (k, name) below one another, under lines of text, as a PNG file."""
    from matplotlib.figure import Figure

    num_columns, num_ahead = film.windows.batch.reward.shape[2], film.prediction.reward.shape[2]
    num_context = num_columns - num_ahead
    wide, high = SCALE * COLUMN * num_columns, 2 * SCALE * ROW
    top, below = _LINE * len(text), high + _HEADING
    width, height = _LABELS + wide + 10, top + below * len(tasks)
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    for i, line in enumerate(text):
        figure.text(10 / width, 1 - (_LINE * (i + 0.8)) / height, line)
    for index, (k, name) in enumerate(tasks):
        picture, taken = strip(film, k)
        axes = figure.add_axes((_LABELS / width, 1 - (top + below * (index + 1)) / height, wide / width, high / height))
        axes.imshow(picture, interpolation="nearest", aspect="auto")
        axes.axvline(COLUMN * num_context - 1.5, color="grey")
        axes.set_xticks(COLUMN * np.arange(taken) + 32, [str(t - num_context + 1) for t in range(taken)])
        axes.set_yticks([32, ROW + 32], ["real", "imagined"])
        axes.tick_params(length=0, labeltop=True, labelbottom=False)
        axes.set_title(name, loc="left", parse_math=False)
        axes.spines[:].set_visible(False)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
