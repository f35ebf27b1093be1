"""Frames of what is played, for videos: the observations themselves, or drawn beside environments with states."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mow.config import RunConfig
from mow.envs import vec
from mow.envs.vector import make_vector
from mow.errors import UsageError

# (action that was taken, None for a reset; observation [K, ...]; reward [K]) -> frames [K, 64, 64, 3]
Draw = Callable[[NDArray[np.float32] | None, NDArray[Any], NDArray[np.float32] | None], NDArray[np.uint8]]


def same(action: object, observation: NDArray[Any], reward: object) -> NDArray[np.uint8]:
    """The observation, which is a frame."""
    return observation


@contextmanager
def drawing(config: RunConfig, *, seed: int, workers: int) -> Iterator[Draw]:
    """A function to call at every reset and step of the environments of a run, made with the same seed.

    Frames are returned as they are, and states of vec are drawn. Other tasks are played a second time, by the
    environments with frames. Raises: UsageError if this machine cannot draw, a simulator is missing, or the tasks are
    of vec and others; when called, if the second play differs from the first.
    """
    if config.env.obs == "frame":
        yield same
    elif all(task.startswith("vec:") for task in config.tasks):
        yield lambda action, state, reward: np.stack([vec.draw(*one) for one in zip(config.tasks, state, strict=True)])
    else:
        options = {**config.env.options, "obs": "frame"}
        try:
            twin = make_vector(config.tasks, seed=seed, num_workers=workers, options=options,
                               timeout_s=config.env.timeout_s)  # fmt: skip
        except (ImportError, ValueError) as error:
            raise UsageError(f"no videos, leave --video out: {error}") from error

        def again(action: NDArray[np.float32] | None, state: object, reward: object) -> NDArray[np.uint8]:
            if action is None:
                return twin.reset()[0]
            step = twin.step(action)
            if not np.array_equal(step.reward, np.asarray(reward)):
                raise UsageError("no videos, leave --video out: an episode played a second time has other rewards")
            return step.frame

        with twin:
            yield again
