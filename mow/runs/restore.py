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
    from torch import Tensor

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

    @property
    def env_options(self) -> dict[str, object]:
        """Options that its environments were made with."""
        return self.config.env.options


def find_run(path: Path, checkpoint: str = "newest") -> SavedRun:
    """The run at `path`: its folder, one of its checkpoints, or a folder that mow.inference.export wrote.

    Args: checkpoint: of a run folder: the newest, or the best that its training saw.
    Raises: UsageError if there is no such place, no such checkpoint in it, or no config that can be read.
    """
    if checkpoint not in CHECKPOINTS:
        raise UsageError(
            f"checkpoint must be {' or '.join(CHECKPOINTS)}, got {checkpoint!r}: to take another one, name its file in "
            "place of the run"
        )
    if not os.path.exists(path):  # Path.exists raises where a name is too long or a folder above cannot be entered
        raise UsageError(f"no folder {path}: name a run folder, as mow train printed it")
    is_folder = os.path.isdir(path)
    if not is_folder and not is_checkpoint(path):
        raise UsageError(f"{path} is no run: name a run folder, or one of its checkpoints/step_*.pt")
    folder = path if is_folder else folder_of(path)
    try:
        config = read_config(folder / "config.json")
    except ValueError as error:
        raise UsageError(str(error)) from error
    if not is_folder:
        return SavedRun(folder, path, config)
    exported = folder / WEIGHTS
    if exported.exists():
        return SavedRun(folder, exported, config)
    return SavedRun(folder, best_checkpoint(folder) if checkpoint == "best" else newest_checkpoint(folder), config)


def environments(run: SavedRun, *, seed: int, workers: int) -> "VectorEnv":
    """Fresh environments of all tasks of a run. Raises: UsageError if a simulator is not installed."""
    from mow.envs.vector import make_vector

    try:
        return make_vector(
            run.config.tasks,
            seed=seed,
            num_workers=workers,
            options=run.env_options,
            max_restarts=run.config.env.max_restarts,
            timeout_s=run.config.env.timeout_s,
        )
    except (ImportError, ValueError) as error:
        raise UsageError(str(error)) from error


def newest_checkpoint(folder: Path) -> Path:
    """The one with the most steps. Raises: UsageError if the run has none."""
    found = checkpoints(folder)
    if not found:
        raise UsageError(f"{folder} has no checkpoints/step_*.pt: let the run write one")
    return found[-1]


def best_checkpoint(folder: Path) -> Path:
    """The one with the best recent returns. Raises: UsageError if the run has kept none."""
    found = best_path(folder)
    if not found.is_file():
        raise UsageError(
            f"{folder} has no checkpoints/best.pt: every task must end an episode before a checkpoint, with keep_best "
            "on: take the newest one"
        )
    return found


def check_specs(path: Path, content: Mapping[str, Any], now: Sequence[TaskSpec]) -> None:
    """Compare the tasks that a checkpoint was written with to those that there are now.

    One that is older than the field `specs` is not compared.

    Args: content: of the checkpoint at `path`.
    Raises: UsageError that names task and both values, if an action space, the frame skip or the protocol differs.
    """
    if "specs" not in content:
        return
    try:
        before = [TaskSpec(**spec) for spec in content["specs"]]
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path} is no checkpoint of mow.train (its specs are not read): name another one") from error
    if differing := spec_differences(before, now):
        raise UsageError(
            f"{path} was written with other tasks ({'; '.join(differing)}): install the simulators that versions.json "
            "names, or start a new run"
        )


def restore(path: Path, config: RunConfig, envs: "VectorEnv", device: "torch.device") -> "tuple[Learner, int]":
    """The learner of a checkpoint or of exported weights, and the step it was written at; `envs` are sorted as its
    tasks are.

    Raises: UsageError if the checkpoint cannot be read or is not of this config.
    """
    import torch

    from mow.methods.base import TaskSet
    from mow.runs.checkpoint import load_checkpoint
    from mow.runs.weights import give_weights, read_weights

    learner: Any = get_method(config.method).build(config, TaskSet(tuple(envs.specs), envs.layout), device)
    tensors: dict[str, Tensor] = {}
    try:
        if path.suffix == ".safetensors":
            tensors, content = read_weights(path)
        else:
            content = load_checkpoint(path, torch.device("cpu"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): name another one of the run") from error
    except (ValueError, ImportError) as error:  # of another format, damaged, or a package is missing
        raise UsageError(str(error)) from error
    tasks = content.get("tasks")
    if not isinstance(tasks, list | tuple) or sorted(map(str, tasks)) != sorted(config.tasks):
        of = ", ".join(map(str, tasks)) if isinstance(tasks, list | tuple) else "no tasks"
        raise UsageError(f"{path} is of {of}, not of this run: name one of its own checkpoints")
    check_specs(path, content, envs.specs)
    try:
        if path.suffix == ".safetensors":
            give_weights(learner, tensors, content)
        else:
            learner.load_state_dict(content["learner"])
        step = int(content["step"])
    except torch.OutOfMemoryError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        raise UsageError(
            f"{path} does not fit the run's config.json ({type(error).__name__}): name one of its own checkpoints"
        ) from error
    order = tuple(config.tasks.index(task) for task in learner.tasks)
    if order != tuple(range(len(order))):
        envs.reorder(order)
    return learner, step
