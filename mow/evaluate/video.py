"""Episodes as animated GIFs: the frames of a task, with step and return below.

Pictures are written while the episodes are played, so that memory does not grow with their length.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from mow.envs.base import ActionLayout, EnvStep, Episode, Frame, TaskSpec
from mow.envs.vector import VectorEnv
from mow.evaluate.gif_writer import GifWriter

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST = 1000  # steps of an episode that are shown, its first ones

SCALE = 4  # picture pixels per frame pixel, on each side
BAR = 28  # height of the line of text under the frame
_SIDE = 64 * SCALE
_HOLD_MS = 1000  # how long the end of an episode stays
_STEP_MS = 80  # about what an Atari console takes for the frames of one step


class EpisodeFilm:
    """The first `num_clips` whole episodes of one task in one GIF.

    The frame that ends an episode is not shown, as no action follows it; the one before it is shown for a second with
    the final return. Of an episode of more than LONGEST steps the first LONGEST are shown, then the return at its end.
    """

    def __init__(self, path: Path, num_clips: int) -> None:
        self.path, self.num_clips = path, num_clips
        self.finished = 0  # episodes that are in the file
        self.lengths: list[int] = []  # of these, steps
        self.failure = ""  # reason for which the file is incomplete
        self._gif = GifWriter(path)
        self._begun_at = 0  # size of the file when the running episode began
        self._frame: Frame | None = None  # the next one to write; None between films
        self._steps, self._earned = 0, 0.0

    def begin(self, frame: Frame) -> None:
        """Begin an episode with `frame` [64, 64, 3]; an episode that has not ended is removed from the file."""
        if self._frame is not None:
            self._write(lambda: self._gif.cut(self._begun_at))
        wanted = self.finished < self.num_clips and not self.failure
        self._frame = frame.copy() if wanted else None
        self._begun_at, self._steps, self._earned = self._gif.size, 0, 0.0

    def step(self, frame: Frame, reward: float) -> None:
        """Add a step with its reward and the frame [64, 64, 3] after it."""
        if self._frame is None:
            return
        self._steps += 1
        if self._steps < LONGEST:
            self._show(f"return {self._earned:g}", _STEP_MS)
            if self._frame is not None:
                self._frame = frame.copy()
        self._earned += reward

    def end(self, episode: Episode) -> None:
        """End the episode."""
        if self._frame is None:
            return
        self._steps += 1
        shown = f"return {episode.episode_return:g}, ends"
        if self._steps > LONGEST:
            shown = f"cut; return {episode.episode_return:g} after {self._steps:,}"
        self._show(shown, _HOLD_MS)
        if self._frame is not None:
            self.finished += 1
            self.lengths.append(self._steps)
            self._frame = None

    def close(self) -> None:
        """Write the end of the file, which does not exist if no episode has ended."""
        if self._frame is not None:
            self._write(lambda: self._gif.cut(self._begun_at))
        self._write(self._gif.close)

    @property
    def remark(self) -> str:
        """A line with the path of the file and the parts that it lacks."""
        if self.failure:
            return f"video: {self.path} is incomplete ({self.failure})"
        if not self.finished:
            return f"no video: no episode for {self.path} ended"
        cut = [f"episode {i + 1} of {length:,}" for i, length in enumerate(self.lengths) if length > LONGEST]
        return f"video: {self.path}" + (f", only the first {LONGEST:,} steps of {', '.join(cut)}" if cut else "")

    def _show(self, text: str, milliseconds: int) -> None:
        """Write the next frame with a line of text."""
        assert self._frame is not None, "an episode is filmed"
        step = min(self._steps, LONGEST) - 1
        picture = _picture(self._frame, f"episode {self.finished + 1}, step {step}: {text}")
        self._write(lambda: self._gif.add(picture, milliseconds, whole=step == 0))

    def _write(self, what: Callable[[], None]) -> None:
        """Call `what`; after an OSError the film is incomplete and the play continues."""
        try:
            what()
        except OSError as error:
            self.failure, self._frame = error.strerror or str(error), None


class WatchedEnvs:
    """A wrapper of environments that keeps the results of all episodes and films the first ones.

    Args: films: one per task, in the order of the environments; empty: none.
    """

    def __init__(self, envs: VectorEnv, films: Sequence[EpisodeFilm] = ()) -> None:
        self._envs, self.films = envs, films
        self.episodes: list[list[Episode]] = [[] for _ in envs.specs]

    @property
    def specs(self) -> tuple[TaskSpec, ...]:
        return self._envs.specs

    @property
    def layout(self) -> ActionLayout:
        return self._envs.layout

    def reset(self) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        frame, is_first = self._envs.reset()
        for k, film in enumerate(self.films):
            film.begin(frame[k])
        return frame, is_first

    def step(self, action: NDArray[np.float32]) -> EnvStep:
        self.send(action)
        return self.receive()

    def send(self, action: NDArray[np.float32]) -> None:
        self._envs.send(action)

    def receive(self) -> EnvStep:
        step = self._envs.receive()
        ended = {episode.index: episode for episode in step.finished}
        for k, episode in ended.items():
            self.episodes[k].append(episode)
        for k, film in enumerate(self.films):
            if k in ended:
                film.end(ended[k])
            if step.is_first[k]:  # also after a lost simulator, whose episode is removed
                film.begin(step.frame[k])
            elif k not in ended:
                film.step(step.frame[k], float(step.reward[k]))
        return step

    def reorder(self, order: Sequence[int] | NDArray[np.integer]) -> None:
        self._envs.reorder(order)

    def state_dict(self) -> dict[str, Any]:
        return self._envs.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> dict[int, NDArray[np.uint8]]:
        return self._envs.load_state_dict(state)

    def close(self) -> None:
        for film in self.films:
            film.close()
        self._envs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _picture(frame: Frame, text: str) -> "Image":
    """A frame [64, 64, 3] upscaled over a bar of text."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (_SIDE, _SIDE + BAR), (255, 255, 255))
    picture.paste(Image.fromarray(frame).resize((_SIDE, _SIDE), Image.Resampling.NEAREST), (0, 0))
    ImageDraw.Draw(picture).text((6, _SIDE + 7), text, fill=(20, 20, 20), font_size=14)
    return picture
