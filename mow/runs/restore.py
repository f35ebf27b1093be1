"""Restore the learner and the environments of a run from its folder, once it has been trained."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mow.config import RunConfig
from mow.envs.base import TaskSpec, spec_differences
from mow.errors import UsageError
from mow.methods.registry import get_method, read_config
from mow.runs.paths import best_path, checkpoints, folder_of, is_checkpoint

if TYPE_CHECKING:
    import torch

    from mow.envs.vector import VectorEnv
    from mow.methods.mow.learner import Learner

WEIGHTS = "model.safetensors"  # what mow.inference.export writes
CHECKPOINTS = ("newest", "best")  # of a run folder


@dataclass(frozen=True)
class SavedRun:
    """A run that can be restored, or what was exported of one."""

    folder: Path
    checkpoint: Path
    config: RunConfig


def find_run(path: Path, checkpoint: str = "newest") -> SavedRun:
    """The run at `path`: its folder, one of its checkpoints, or a folder that mow.inference.export wrote.

    Args: checkpoint: of a run folder: the newest, or the best that its training saw.
    Raises: UsageError if there is no such place, no such checkpoint in it, or no config that can be read.
    """
    if checkpoint not in CHECKPOINTS:
        raise UsageError(f"checkpoint must be {' or '.join(CHECKPOINTS)}, got {checkpoint!r}: to take another one, "
                         "name its file in place of the run")
    is_folder = os.path.isdir(path)  # Path.is_dir raises where a name is too long or a folder above cannot be entered
    if not is_folder and not (is_checkpoint(path) and os.path.exists(path)):
        raise UsageError(f"{path} is no run: name a run folder, as mow train printed it, or one of its "
                         "checkpoints/step_*.pt")
    folder = path if is_folder else folder_of(path)
    try:
        config = read_config(folder / "config.json")
    except ValueError as error:
        raise UsageError(str(error)) from error
    if not is_folder:
        return SavedRun(folder, path, config)
    if (folder / WEIGHTS).exists():
        return SavedRun(folder, folder / WEIGHTS, config)
    if checkpoint == "newest":
        return SavedRun(folder, newest_checkpoint(folder), config)
    if not best_path(folder).is_file():
        raise UsageError(f"{folder} has no checkpoints/best.pt: every task must end an episode before a checkpoint, "
                         "with keep_best on: take the newest one")
    return SavedRun(folder, best_path(folder), config)


def newest_checkpoint(folder: Path) -> Path:
    """The one with the most steps. Raises: UsageError if the run has none."""
    found = checkpoints(folder)
    if not found:
        raise UsageError(f"{folder} has no checkpoints/step_*.pt: let the run write one")
    return found[-1]


def environments(
    config: RunConfig, *, seed: int, workers: int, copies: int = 1, final_frames: bool = False,
    places: Sequence[int] | None = None,
) -> "VectorEnv":
    """Fresh environments of all tasks, or of those at some `places` in the config's list, each `copies` times in a row.

    Raises: UsageError if a simulator is missing.
    """
    from mow.envs.vector import make_vector

    slots = [copies * place + copy for place in places or range(len(config.tasks)) for copy in range(copies)]
    try:
        return make_vector(
            [config.tasks[slot // copies] for slot in slots],
            seed=seed,
            num_workers=workers,
            options=config.env.options,
            max_restarts=config.env.max_restarts,
            timeout_s=config.env.timeout_s,
            final_frames=final_frames,
            places=slots,
        )
    except (ImportError, ValueError) as error:
        raise UsageError(str(error)) from error


def check_specs(path: Path, content: Mapping[str, Any], now: Sequence[TaskSpec]) -> None:
    """Compare the tasks that a checkpoint was written with to those that there are now.

    Args: content: of the checkpoint at `path`.
    Raises: UsageError that names task and both values, if an action space, the frame skip or the protocol differs.
    """
    try:
        before = [TaskSpec(**spec) for spec in content["specs"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is no checkpoint of mow.train (its specs are not read): name another one") from error
    if differing := spec_differences(before, now):
        raise UsageError(f"{path} was written with other tasks ({'; '.join(differing)}): install the simulators that "
                         "versions.json names, or start a new run")


def restore(path: Path, config: RunConfig, envs: "VectorEnv", device: "torch.device") -> "tuple[Learner, int]":
    """The learner of a checkpoint or of exported weights, and the step it was written at; `envs` are sorted as its
    tasks are.

    Raises: UsageError if the checkpoint cannot be read or is not of this config.
    """
    import torch

    from mow.methods.base import TaskSet
    from mow.runs.checkpoint import load_checkpoint
    from mow.runs.weights import give_networks, give_weights, read_weights

    method = get_method(config.method)
    learner: Any = method.build(config, TaskSet.of(envs.specs), device)
    is_export = path.suffix == ".safetensors"
    try:
        tensors, content = read_weights(path) if is_export else ({}, load_checkpoint(path, torch.device("cpu")))
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): name another one of the run") from error
    except ValueError as error:  # of another format, or damaged
        raise UsageError(str(error)) from error
    check_specs(path, content, envs.specs)
    try:
        if is_export and method.exported:
            give_networks(learner, tensors, method.exported)
        elif is_export:
            give_weights(learner, tensors, content)
        else:
            learner.load_state_dict(content["learner"])
        order, step = [config.tasks.index(task) for task in learner.tasks], int(content["step"])
    except torch.OutOfMemoryError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        raise UsageError(f"{path} does not fit the run's config.json ({type(error).__name__}): name one of its own "
                         "checkpoints") from error
    if order != sorted(order):
        envs.reorder(tuple(order))
    return learner, step
