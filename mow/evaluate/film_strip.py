"""Film strips: real frames above, frames that the world model imagines below, one pair of rows per task."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mow.evaluate.held_out import HeldOutWindows
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

Picture = NDArray[np.uint8]  # [H, W, 4] RGB and opacity

SCALE = 2  # picture pixels per frame pixel, on each side
FRAME = 64 * SCALE  # side of a frame in the picture
COLUMN = FRAME + 4  # from one frame's left edge to the next one's
MARGIN = 20  # around everything
LABELS = 130  # left of the frames, for the names of the rows
SEAM = 10  # between the last seen column and the first imagined one, with a line in it
HEADING = 76  # above the frames of a strip: task and step numbers
ROW = FRAME + 12  # from one frame's top edge to the next one's; the end marks lie between
STRIP = HEADING + 2 * ROW + 16  # from one strip's top to the next one's
LINE = 34  # height of a line of text

_FONT, _TEXT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.85
# Grey on nothing can be read on a light and on a dark page, and on white where a program drops the opacity.
_PAPER, _INK, _RED = (255, 255, 255, 0), (118, 118, 118, 255), (205, 30, 30, 255)


@dataclass(frozen=True, eq=False)
class Film:
    """Held-out windows of C + T steps and what the world model predicts of the last T."""

    windows: HeldOutWindows
    prediction: OpenLoopPrediction
    reconstruction: Tensor  # [K, B, C + T, 64, 64, 3] float32, 0 black to 1 white
    errors: OpenLoopErrors

    @property
    def num_context(self) -> int:
        """C, the number of frames that the world model sees."""
        return self.windows.batch.reward.shape[2] - self.prediction.reward.shape[2]


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


def imagine(learner: Learner, windows: HeldOutWindows, num_context: int, rng: PhiloxState) -> Film:
    """Imagine the windows from their first `num_context` frames, along the actions that were taken.

    Args: learner: its world model in evaluation mode, as play_windows leaves it.
    """
    model, temperature = learner.world_model, learner.config.imagination.temperature
    context, action = split(windows.batch, num_context)
    prediction = predict_open_loop(model, context, action, learner.routing(), rng, temperature=temperature)
    reconstruction = reconstruct(model, windows.batch.frame, rng)
    return Film(windows, prediction, reconstruction, open_loop_errors(prediction, reconstruction, windows))


def one_strip(film: Film, k: int, name: str) -> Strip:
    """The longest window of task k, the first of these."""
    windows, prediction, num_context = film.windows, film.prediction, film.num_context
    length = windows.length[k].tolist()
    b = length.index(max(length))
    num_columns, num_actions = windows.batch.reward.shape[2], int(windows.num_actions[k, b])
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


# Pictures ------------------------------------------------------------------------------------------------------------


def png(picture: Picture) -> bytes:
    """A picture as a PNG file."""
    # The default level of cv2 gives files four times as large.
    _, encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGBA2BGRA), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    return encoded.tobytes()


def corner(strip: int, row: int, column: int, *, num_context: int, num_lines: int) -> tuple[int, int]:
    """(y, x) of the upper left pixel of a frame; row 0 is the real one.

    Args: num_lines: of text above the first strip.
    """
    y = MARGIN + num_lines * LINE + strip * STRIP + HEADING + row * ROW
    x = MARGIN + LABELS + column * COLUMN + (SEAM if column >= num_context else 0)
    return y, x


def draw_film(strips: Sequence[Strip], text: Sequence[str], *, num_context: int) -> Picture:
    """Draw strips below one another, under lines of text.

    Raises: ValueError if there is no strip or if they differ in their number of columns.
    """
    widths = {len(strip.shown) for strip in strips}
    if len(widths) != 1:
        raise ValueError(f"strips need one number of columns, got {sorted(widths)}: cut them from equal windows")
    width = max([LABELS + widths.pop() * COLUMN + SEAM, *map(_text_width, text)])
    height = len(text) * LINE + len(strips) * STRIP
    picture = np.full((height + 2 * MARGIN, width + 2 * MARGIN, 4), _PAPER, np.uint8)
    for i, line in enumerate(text):
        _write(picture, line, MARGIN, MARGIN + i * LINE + 22)
    for index, strip in enumerate(strips):
        _draw_strip(picture, strip, index, num_context, len(text))
    return picture


def _draw_strip(picture: Picture, strip: Strip, index: int, num_context: int, num_lines: int) -> None:
    def place(row: int, column: int) -> tuple[int, int]:
        return corner(index, row, column, num_context=num_context, num_lines=num_lines)

    top, _ = place(0, 0)
    _write(picture, strip.name, MARGIN, top - HEADING + 34)
    for column, led_to in enumerate(strip.led_to):
        number = str(column - num_context + 1)  # steps ahead: the last seen frame is step 0, those before it count down
        if led_to:
            _write(picture, number, place(0, column)[1] + (FRAME - _text_width(number)) // 2, top - 10)
    rows = (("real", strip.real, strip.real_end), ("imagined", strip.imagined, strip.imagined_end))
    for row, (name, frames, ends) in enumerate(rows):
        _write(picture, name, MARGIN, place(row, 0)[0] + FRAME // 2 + 6)
        for column, frame in enumerate(frames):
            y, x = place(row, column)
            if strip.shown[column]:
                picture[y : y + FRAME, x : x + FRAME, :3] = frame.repeat(SCALE, axis=0).repeat(SCALE, axis=1)
                picture[y : y + FRAME, x : x + FRAME, 3] = 255
            if ends[column]:
                picture[y + FRAME + 2 : y + FRAME + 8, x : x + FRAME] = _RED
    line = place(0, num_context)[1] - SEAM // 2 - 2
    picture[top - HEADING // 2 : top + ROW + FRAME, line - 1 : line + 2] = _INK


def _write(picture: Picture, text: str, x: int, y: int) -> None:
    """Text whose baseline begins at (x, y)."""
    cv2.putText(picture, text, (x, y), _FONT, _TEXT_SCALE, _INK, 1, cv2.LINE_AA)


def _text_width(text: str) -> int:
    (width, _), _ = cv2.getTextSize(text, _FONT, _TEXT_SCALE, 1)
    return int(width)
