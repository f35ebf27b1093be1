"""Small folders of recorded episodes, whose numbers tell where they lie."""

from pathlib import Path

import numpy as np

from mow.offline.files import RecordedEpisode, StoredTask, Writer

WIDE, NARROW = StoredTask("vec:wide", 3, 2, "states"), StoredTask("vec:narrow", 2, 1, "states")


def episode(task: StoredTask, steps: int, number: int, *, terminated: bool = False) -> RecordedEpisode:
    """State entry d of row i is 1000 number + 10 i + d, actions and rewards are the same and negative."""
    row = 1000.0 * number + 10.0 * np.arange(steps + 1, dtype=np.float32)[:, None]
    action = -(row[:-1] + np.arange(task.action_size, dtype=np.float32))
    return RecordedEpisode(
        row + np.arange(task.state_size, dtype=np.float32), action, -row[:-1, 0] - 5.0, terminated, "random",
        success=number % 2 == 0, final_success=False, seed=number,
    )  # fmt: skip


def record(folder: Path, lengths: dict[StoredTask, list[int]], *, terminated: bool = False) -> None:
    """Episodes of so many steps of each task."""
    writer = Writer(folder, [*lengths])
    for task, steps in lengths.items():
        for number, n in enumerate(steps):
            writer.append(task.name, [episode(task, n, number, terminated=terminated)])
    writer.close()
