"""Episodes as animated GIFs, one file each: the frames of a task, with step and return below."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mow.envs.base import EnvStep, Episode, Frame
from mow.envs.vector import VectorEnv
from mow.evaluate.pictures import Draw, same

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST = 1000  # steps of an episode that are shown, its first ones
SCALE = 4  # picture pixels per frame pixel, on each side
BAR = 28  # height of the line of text under the frame
_SIDE = 64 * SCALE
_HOLD_MS = 1000  # how long the end of an episode stays
_STEP_MS = 80  # about what an Atari console takes for the frames of one step


class FilmedEnvs:
    """A wrapper of environments that keeps the results of all episodes and films the first ones of each task.

    The frame that an episode ends with is not shown, as no action follows it; the one before it is shown for a second,
    with the final return. Of an episode of more than LONGEST steps the first LONGEST are shown.

    Args:
        paths: per task, in the order of the environments, without suffix: PATH-1.gif, PATH-2.gif, ... are written.
        num_films: per task.
        draw: makes the frames, until all films are written.
    """

    def __init__(self, envs: VectorEnv, paths: Sequence[Path], num_films: int, draw: Draw = same) -> None:
        self._envs, self._paths, self._num_films, self._draw = envs, paths, num_films, draw
        self.episodes: list[list[Episode]] = [[] for _ in envs.specs]
        self._frames: list[list[tuple[Frame, float]]] = [[] for _ in envs.specs]  # of running episodes, with returns

    def __getattr__(self, name: str) -> Any:
        return getattr(self._envs, name)

    def reset(self) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        observation, is_first = self._envs.reset()
        frame = self._draw(None, observation, None) if self._num_films else observation
        for k, frames in enumerate(self._frames):
            frames[:] = [(frame[k].copy(), 0.0)]
        return observation, is_first

    def step(self, action: NDArray[np.float32]) -> EnvStep:
        step = self._envs.step(action)
        filming = any(len(episodes) < self._num_films for episodes in self.episodes)
        frame = self._draw(action, step.frame, step.reward) if filming else step.frame
        ended = {episode.index: episode for episode in step.finished}
        for k, frames in enumerate(self._frames):
            if k in ended:
                self.episodes[k].append(ended[k])
                if len(self.episodes[k]) <= self._num_films:
                    path = self._paths[k]
                    write_gif(path.with_name(f"{path.name}-{len(self.episodes[k])}.gif"), frames, ended[k])
            if step.is_first[k]:
                frames[:] = [(frame[k].copy(), 0.0)]
            elif len(frames) < LONGEST and len(self.episodes[k]) < self._num_films:
                frames.append((frame[k].copy(), frames[-1][1] + float(step.reward[k])))
        return step


def write_gif(path: Path, frames: Sequence[tuple[Frame, float]], episode: Episode) -> None:
    """Write frames [64, 64, 3] with the return before each, at most one per step. Raises: OSError."""
    from PIL import Image

    shown = frames[: episode.length]
    last = f"return {episode.episode_return:g}, ends"
    if episode.length > len(shown):
        last = f"cut; return {episode.episode_return:g} after {episode.length:,}"
    texts = [*(f"return {earned:g}" for _, earned in shown[:-1]), last]
    first, *others = (
        _picture(frame, f"step {t}: {text}").quantize(256, dither=Image.Dither.NONE)
        for t, ((frame, _), text) in enumerate(zip(shown, texts, strict=True))
    )
    milliseconds = [_STEP_MS] * len(others) + [_HOLD_MS]
    first.save(path, save_all=True, append_images=others, duration=milliseconds, loop=0)


def _picture(frame: Frame, text: str) -> "Image":
    """A frame [64, 64, 3] upscaled over a bar of text."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (_SIDE, _SIDE + BAR), (255, 255, 255))
    picture.paste(Image.fromarray(frame).resize((_SIDE, _SIDE), Image.Resampling.NEAREST), (0, 0))
    ImageDraw.Draw(picture).text((6, _SIDE + 7), text, fill=(20, 20, 20), font_size=14)
    return picture
