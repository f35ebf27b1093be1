"""Progress lines while episodes are played for a score."""

import time
from collections.abc import Callable

SAY_SECONDS = 30.0  # between two lines


class ScoringProgress:
    """Counts episodes and steps, and prints a line now and then.

    `episode` and `step` are what `evaluate` takes as `on_episode` and `check_stop`.

    Args:
        num_tasks: K.
        episodes: that count, per task.
        say: prints a line.
        check_stop: called before every step of all tasks; raises to stop.
    """

    def __init__(
        self,
        num_tasks: int,
        episodes: int,
        say: Callable[[str], None],
        check_stop: Callable[[], None] = lambda: None,
    ) -> None:
        self.total = num_tasks * episodes
        self.ended = 0  # episodes
        self.steps = 0  # of all tasks
        self._say, self._check_stop, self._said = say, check_stop, time.monotonic()

    @property
    def line(self) -> str:
        """`12 of 60 episodes, 3,400 steps`."""
        return f"{self.ended:,} of {self.total:,} episodes, {self.steps:,} steps"

    def episode(self, k: int) -> None:
        """One more episode of task k has ended."""
        self.ended += 1

    def step(self) -> None:
        """A step of all tasks begins. Raises: what `check_stop` raises."""
        self._check_stop()
        if time.monotonic() - self._said >= SAY_SECONDS:
            self._said = time.monotonic()
            self._say(self.line)
        self.steps += 1
