"""Recorded episodes to Minari datasets on this machine and back: HDF5, one dataset per task. Needs minari[hdf5].

What Minari has no field for (name of the task, protocol, behaviour, noise, success) is in its metadata, and is read
from there; of a dataset of others, success is read from the infos.
"""

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mow.errors import UsageError
from mow.offline.files import RecordedEpisode, StoredTask, Writer, read_episodes, read_manifest

EPISODES_AT_ONCE = 500
_TASK, _PROTOCOL, _REFERENCES = "mow_task", "mow_protocol", "mow_references"  # in the metadata of a dataset


def write_minari(folder: Path, name: str) -> tuple[str, ...]:
    """Write the tasks of a folder as new datasets SUITE/TASK/NAME-v0. Returns: their ids.

    Raises: UsageError if Minari is missing, or has such a dataset.
    """
    tasks = read_manifest(folder)
    with _plain_errors():
        return tuple(_write_task(folder, task, name) for task in tasks.values() if task.episodes)


def read_minari(ids: Sequence[str], folder: Path) -> tuple[StoredTask, ...]:
    """Read datasets of this machine into a folder of recorded episodes.

    Raises: UsageError if Minari or a dataset is missing, or its observations or actions are not vectors of floats.
    """
    with _plain_errors():
        import minari

        sets = [minari.load_dataset(each) for each in ids]
        writer = Writer(folder, [_task_of(each) for each in sets])
        try:
            for task, each in zip([*writer.tasks], sets, strict=True):
                for number in range(0, each.total_episodes, EPISODES_AT_ONCE):
                    part = each.episode_indices[number : number + EPISODES_AT_ONCE]
                    writer.append(task, _episodes(each, part))
        finally:
            writer.close()
        return tuple(writer.tasks.values())


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Inside, Minari does not warn about what it need not have, and what it raises is one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    except UsageError:
        raise
    except ImportError as error:
        raise UsageError(f"Minari datasets need Minari ({error}): pip install -e '.[offline]'") from error
    except (ValueError, OSError, KeyError) as error:
        raise UsageError(f"Minari: {' '.join(str(error).split())}") from error


def _write_task(folder: Path, task: StoredTask, name: str) -> str:
    import minari
    from gymnasium.spaces import Box
    from minari.data_collector import EpisodeBuffer

    index = read_episodes(folder, task)
    rows: Any = np.memmap(folder / task.rows_file, "<f4", "r", shape=(task.rows, task.width))
    ends = np.cumsum(index["steps"] + 1).tolist()
    dataset, size = None, task.state_size
    identity = re.sub(r"[^-\w/]", "-", f"{task.name.replace(':', '/')}/{name}-v0")
    for first in range(0, len(index), EPISODES_AT_ONCE):
        buffers, notes = [], []
        for record, end in zip(index[first:][:EPISODES_AT_ONCE], ends[first:], strict=False):
            steps = int(record["steps"])
            episode = np.array(rows[end - steps - 1 : end])
            terminated, last = bool(record["terminated"]), np.arange(steps) == steps - 1
            buffers.append(EpisodeBuffer(
                seed=int(record["seed"]), observations=episode[:, :size], actions=episode[:-1, size:-2],
                rewards=episode[:-1, -2], terminations=last & terminated, truncations=last & (not terminated),
            ))  # fmt: skip
            notes.append({"behaviour": task.behaviours[record["behaviour"]]}
                         | {key: record[key].item() for key in ("noise", "success", "final_success")})
        if dataset is None:
            dataset = minari.create_dataset_from_buffers(
                identity, buffers, observation_space=Box(-np.inf, np.inf, (size,), np.float32),
                action_space=Box(-1.0, 1.0, (task.action_size,), np.float32), algorithm_name=task.behaviour,
                data_format="hdf5", description=f"{task.name}: {task.protocol}",
            )  # fmt: skip
            dataset.storage.update_metadata({_TASK: task.name, _PROTOCOL: task.protocol, _REFERENCES: task.references})
        else:
            dataset.update_dataset_from_buffer(buffers)
        total = dataset.storage.total_episodes
        dataset.storage.update_episode_metadata(notes, range(total - len(notes), total))
    return identity


def _task_of(dataset: Any) -> StoredTask:
    spaces = dataset.observation_space, dataset.action_space
    if not all(getattr(space, "dtype", None) in (np.float32, np.float64) and len(space.shape) == 1 for space in spaces):
        raise UsageError(f"{dataset.id} has {spaces[0]} and {spaces[1]}: only vectors of floats are read")
    if not spaces[1].is_bounded():
        raise UsageError(f"{dataset.id} has actions without bounds: they are not scaled to [-1, 1]")
    held = dataset.storage.metadata
    return StoredTask(held.get(_TASK, f"minari:{dataset.id}"), spaces[0].shape[0], spaces[1].shape[0],
                      held.get(_PROTOCOL, f"Minari {dataset.id}"), tuple(held.get(_REFERENCES, ())))


def _episodes(dataset: Any, part: NDArray[np.int_]) -> list[RecordedEpisode]:
    low, high = dataset.action_space.low, dataset.action_space.high
    is_unit = (low == -1.0).all() and (high == 1.0).all()
    found = []
    notes = dataset.storage.get_episode_metadata(part)
    for episode, note in zip(dataset.iterate_episodes(part), notes, strict=True):
        action = episode.actions if is_unit else 2.0 * (episode.actions - low) / (high - low) - 1.0
        if "success" in note:
            success, final = (None if note[key] < 0 else bool(note[key]) for key in ("success", "final_success"))
        else:
            flags = np.asarray((episode.infos or {}).get("success", ()))[1:].astype(bool)  # [0] is of the reset
            success, final = (bool(flags.any()), bool(flags[-1])) if len(flags) else (None, None)
        numbers = episode.observations, action, episode.rewards
        state, action, reward = (np.asarray(each, np.float32) for each in numbers)
        found.append(RecordedEpisode(
            state, action, reward, bool(episode.terminations[-1]), str(note.get("behaviour", dataset.id)),
            noise=float(note.get("noise", 0.0)), seed=int(note.get("seed") or 0), success=success, final_success=final,
        ))  # fmt: skip
    return found
