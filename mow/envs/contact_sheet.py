"""Frames of many tasks in one picture, so that a person can look."""

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mow.envs.base import FRAME_SHAPE, ActionLayout, Frame
from mow.envs.guarded import GuardedEnv

_SCALE = 2  # each pixel of a frame is so many of the sheet, a side
_TITLE = 16  # pixels above a frame
_GAP = 6
_WIDTH_TO_HEIGHT = 1.6  # of the sheet, about


def frame_after(task: str, *, num_steps: int, seed: int) -> Frame:
    """Frame of a task after `num_steps` random steps, over as many episodes as that takes: [64, 64, 3].

    Raises: ValueError, ImportError as GuardedEnv.
    """
    env = GuardedEnv(task, seed=seed, options={})
    layout, rng = ActionLayout.from_tasks([env.task]), np.random.default_rng(seed)
    with closing(env):
        frame = env.reset(seed=seed)[0]
        for _ in range(num_steps):
            frame, _, terminated, truncated, _ = env.step(layout.decode(0, layout.random(rng)[0]))
            if terminated or truncated:
                frame = env.reset()[0]
    return frame


def contact_sheet(frames: Sequence[Frame], titles: Sequence[str]) -> NDArray[np.uint8]:
    """All frames, named, in rows: [height, width, 3]. Raises: ImportError without OpenCV."""
    import cv2

    cell_height, cell_width = FRAME_SHAPE[0] * _SCALE + _TITLE + _GAP, FRAME_SHAPE[1] * _SCALE + _GAP
    columns = max(1, round((len(frames) * _WIDTH_TO_HEIGHT * cell_height / cell_width) ** 0.5))
    rows = -(-len(frames) // columns)
    sheet = np.full((rows * cell_height + _GAP, columns * cell_width + _GAP, 3), 255, np.uint8)
    for number, (frame, title) in enumerate(zip(frames, titles, strict=True)):
        row, column = divmod(number, columns)
        top, left = _GAP + row * cell_height, _GAP + column * cell_width
        # Half the width of a letter at this size is about 3.5 pixels; what is too long for its cell is drawn smaller.
        size = min(0.42, 0.42 * cell_width / (7.2 * len(title)))
        cv2.putText(sheet, title, (left, top + _TITLE - 5), cv2.FONT_HERSHEY_SIMPLEX, size, (0, 0, 0), 1, cv2.LINE_AA)
        place = sheet[top + _TITLE :, left:][: FRAME_SHAPE[0] * _SCALE, : FRAME_SHAPE[1] * _SCALE]
        place[...] = frame.repeat(_SCALE, axis=0).repeat(_SCALE, axis=1)
    return sheet


def write_sheet(
    tasks: Sequence[str], path: Path, *, num_steps: int, seed: int, say: Callable[[str], None]
) -> None:
    """Play and draw; report frames of one colour. Raises: OSError where the file cannot be written."""
    import cv2

    frames = [frame_after(task, num_steps=num_steps, seed=seed) for task in tasks]
    for task, frame in zip(tasks, frames, strict=True):
        if (frame == frame[0, 0]).all():
            say(f"{task} shows nothing but one colour after {num_steps} steps")
    suites = {task.partition(":")[0] for task in tasks}
    titles = [task.partition(":")[2] if len(suites) == 1 else task for task in tasks]
    sheet = contact_sheet(frames, titles)
    encoded, png = cv2.imencode(".png", sheet[..., ::-1])
    assert encoded, sheet.shape
    path.write_bytes(png.tobytes())
