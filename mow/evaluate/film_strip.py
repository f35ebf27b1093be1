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


@dataclass(frozen=True, eq=False)
class Strip:
    """One window of one task; n columns, of which the first were seen."""

    name: str
    real: NDArray[np.uint8]  # [n, 64, 64, 3]
    imagined: NDArray[np.uint8]  # [n, 64, 64, 3]; in the seen columns the reconstruction
    shown: NDArray[np.bool_]  # [n] there is a frame; elsewhere the episode is over and both rows stay blank
    led_to: NDArray[np.bool_]  # [n] it opens the window, or an action led here, even where no frame is shown
    real_end: NDArray[np.bool_]  # [n] the step that leads here terminated the task
    imagined_end: NDArray[np.bool_]  # [n] the world model expected it to


def one_strip(film: Film, k: int, name: str) -> Strip:
    """The longest window of task k, the first of these."""
    windows, prediction = film.windows, film.prediction
    length = windows.length[k].tolist()
    b = length.index(max(length))
    num_columns, num_actions = windows.batch.reward.shape[2], int(windows.num_actions[k, b])
    num_context = num_columns - prediction.reward.shape[2]
    imagined = torch.cat([film.reconstruction[k, b, :num_context], prediction.frame[k, b]])  # [n, 64, 64, 3]
    column = torch.arange(num_columns)
    # Column t shows where the action of step t - 1 led; none led to the first.
    real_end, imagined_end = torch.zeros(2, num_columns, dtype=torch.bool)
    real_end[1:] = windows.batch.terminated[k, b, :-1].cpu()
    imagined_end[num_context:] = prediction.terminated[k, b].cpu()
    return Strip(
        name=name,
        real=windows.batch.frame[k, b].cpu().numpy(),
        imagined=(255.0 * imagined.clamp(0.0, 1.0)).round().to(torch.uint8).cpu().numpy(),
        shown=(column < length[b]).numpy(),
        led_to=(column <= num_actions).numpy(),
        real_end=real_end.numpy(),
        imagined_end=(imagined_end & (column <= num_actions)).numpy(),
    )


def canvas(strip: Strip) -> NDArray[np.uint8]:
    """The frames of a strip, [2 ROW, n COLUMN, 3] RGB: real above, imagined below, a red bar below each end."""
    found = np.full((2, ROW, len(strip.shown), COLUMN, 3), 255, np.uint8)
    for row, (frames, ends) in enumerate(((strip.real, strip.real_end), (strip.imagined, strip.imagined_end))):
        for column, frame in enumerate(frames):
            if strip.shown[column]:
                found[row, :64, column, :64] = frame
            if ends[column]:
                found[row, 66:70, column, :64] = _RED
    return found.reshape(2 * ROW, -1, 3)


def draw_film(strips: Sequence[Strip], text: Sequence[str], *, num_context: int) -> bytes:
    """Strips of equal numbers of columns below one another, under lines of text, as a PNG file."""
    from matplotlib.figure import Figure

    wide, high = SCALE * COLUMN * len(strips[0].shown), 2 * SCALE * ROW
    top, below = _LINE * len(text), high + _HEADING
    width, height = _LABELS + wide + 10, top + below * len(strips)
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    for i, line in enumerate(text):
        figure.text(10 / width, 1 - (_LINE * (i + 0.8)) / height, line)
    for index, strip in enumerate(strips):
        bottom = 1 - (top + below * (index + 1)) / height
        axes = figure.add_axes((_LABELS / width, bottom, wide / width, high / height))
        axes.imshow(canvas(strip), interpolation="nearest", aspect="auto")
        axes.axvline(COLUMN * num_context - 1.5, color="grey")
        taken = np.flatnonzero(strip.led_to)
        axes.set_xticks(COLUMN * taken + 32, [str(column - num_context + 1) for column in taken])
        axes.set_yticks([32, ROW + 32], ["real", "imagined"])
        axes.tick_params(length=0, labeltop=True, labelbottom=False)
        axes.set_title(strip.name, loc="left", parse_math=False)
        axes.spines[:].set_visible(False)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
