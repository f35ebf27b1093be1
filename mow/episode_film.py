"""Episodes as animated GIFs: what a task showed while it was played, with its clock and its return below."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from mow.envs.base import ActionLayout, EnvStep, Episode, Frame, TaskSpec
from mow.envs.vector import VectorEnv

if TYPE_CHECKING:
    from PIL.Image import Image

SCALE = 4  # picture pixels per frame pixel, on each side
BAR = 28  # height of the line of text under the frame
_SIDE = 64 * SCALE
_HOLD_MS = 1000  # how long the end of an episode stays
_STEP_MS = 80  # about what an Atari console takes for the frames of one step


@dataclass
class Clip:
    """The frames of one episode and what had been earned when each was seen."""

    frames: list[Frame] = field(default_factory=list)
    earned: list[float] = field(default_factory=list)
    end: Episode | None = None  # None while it goes on


class WatchedEnvs:
    """Environments that hand everything on, and keep the first episodes of every task for a film.

    Args: num_clips: episodes per task whose frames are kept.
    """

    def __init__(self, envs: VectorEnv, *, num_clips: int) -> None:
        self._envs, self._num_clips = envs, num_clips
        self.episodes: list[list[Episode]] = [[] for _ in envs.specs]
        self.clips: list[list[Clip]] = [[] for _ in envs.specs]

    @property
    def specs(self) -> tuple[TaskSpec, ...]:
        return self._envs.specs

    @property
    def layout(self) -> ActionLayout:
        return self._envs.layout

    def reset(self) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        frame, is_first = self._envs.reset()
        for k in range(len(self.specs)):
            self._begin(k, frame[k])
        return frame, is_first

    def step(self, action: NDArray[np.float32]) -> EnvStep:
        self.send(action)
        return self.receive()

    def send(self, action: NDArray[np.float32]) -> None:
        self._envs.send(action)

    def receive(self) -> EnvStep:
        step = self._envs.receive()
        ended = {episode.index: episode for episode in step.finished}
        for k, clips in enumerate(self.clips):
            running = clips[-1] if clips and clips[-1].end is None else None
            if k in step.reopened:  # the rest of the episode was lost with the simulator
                if running is not None:
                    clips.pop()
                self._begin(k, step.frame[k])
            elif k in ended:
                self.episodes[k].append(ended[k])
                if running is not None:
                    running.end = ended[k]
                self._begin(k, step.frame[k])
            elif running is not None:
                running.frames.append(step.frame[k].copy())
                running.earned.append(running.earned[-1] + float(step.reward[k]))
        return step

    def _begin(self, k: int, frame: Frame) -> None:
        if len(self.clips[k]) < self._num_clips:
            self.clips[k].append(Clip([frame.copy()], [0.0]))

    def reorder(self, order: Sequence[int] | NDArray[np.integer]) -> None:
        self._envs.reorder(order)

    def state_dict(self) -> dict[str, Any]:
        return self._envs.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> dict[int, NDArray[np.uint8]]:
        return self._envs.load_state_dict(state)

    def close(self) -> None:
        self._envs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def write_gif(path: Path, clips: Sequence[Clip]) -> None:
    """The finished ones of `clips`, one after another, in an endless loop. The frame that ends an episode is never
    seen by an agent and is not shown; the one before it stays for a second with the final return.

    Raises: ValueError if none is finished; OSError if the file cannot be written.
    """
    finished = [clip for clip in clips if clip.end is not None]
    if not finished:
        raise ValueError(f"no episode for {path} ended: play longer")
    lengths = [_STEP_MS] * sum(len(clip.frames) for clip in finished)
    at = -1
    for clip in finished:
        at += len(clip.frames)
        lengths[at] = _HOLD_MS
    first, *others = _pictures(finished)
    first.save(path, save_all=True, append_images=others, duration=lengths, loop=0, disposal=1)


def _pictures(clips: Sequence[Clip]) -> "Iterator[Image]":
    """Upscaled frames over a bar of text, with a palette of their own."""
    from PIL import Image, ImageDraw

    for index, clip in enumerate(clips):
        assert clip.end is not None, "only finished episodes are shown"
        for step, (frame, earned) in enumerate(zip(clip.frames, clip.earned, strict=True)):
            picture = Image.new("RGB", (_SIDE, _SIDE + BAR), (255, 255, 255))
            picture.paste(Image.fromarray(frame).resize((_SIDE, _SIDE), Image.Resampling.NEAREST), (0, 0))
            last = step == len(clip.frames) - 1
            shown = f"return {clip.end.episode_return:g}, ends" if last else f"return {earned:g}"
            text = f"episode {index + 1}, step {step}: {shown}"
            ImageDraw.Draw(picture).text((6, _SIDE + 7), text, fill=(20, 20, 20), font_size=14)
            yield picture.quantize(256, dither=Image.Dither.NONE)
