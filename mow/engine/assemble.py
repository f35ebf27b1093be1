"""The parts of a run, made from its config and put together."""

import dataclasses
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from mow.config import RunConfig
from mow.engine.device import threads_of
from mow.errors import UsageError
from mow.methods.registry import get_method
from mow.runs.disk import files_writable, folder_to_write
from mow.runs.folder import claimed, clear, is_unused
from mow.runs.provenance import write_origin
from mow.system.console import say
from mow.system.file_names import file_name

if TYPE_CHECKING:
    import torch

    from mow.engine.trainer import Trainer
    from mow.envs.vector import VectorEnv
    from mow.methods.base import TaskSet
    from mow.replay import ReplayBuffer
    from mow.runs.wandb import WandbMirror


def assemble(
    config: RunConfig,
    device: "torch.device",
    envs: "VectorEnv",
    folder: Path,
    stack: ExitStack,
    check_stop: Callable[[], None],
    *,
    is_new: bool,
) -> "Trainer":
    """All parts of a run; those that must be closed are entered into `stack`.

    Args: is_new: the folder is a new one.
    Raises: UsageError if the machine cannot run it.
    """
    from mow.engine.collector import Collector
    from mow.engine.trainer import Trainer
    from mow.methods.base import TaskSet
    from mow.replay import set_num_threads
    from mow.runs.logger import Logger

    method, tasks = get_method(config.method), TaskSet(tuple(envs.specs), envs.layout)
    planned = estimate(config, tasks, device)
    replay = make_replay(config, tasks, device)
    how = stack.enter_context(method.context(config, device))
    learner = method.build(config, tasks, device)
    if is_new:
        folder_to_write(folder, "--folder")
    stack.enter_context(claimed(folder))
    if is_new:
        if clear(folder):
            say(f"{folder} holds a run that ended before its first step: this one takes its place")
        write_origin(folder, config, device, [spec.protocol for spec in envs.specs])
    mirror = _mirror(config, folder) if config.wandb else None
    skip, *others = {spec.frame_skip for spec in envs.specs}
    with files_writable():
        logger = stack.enter_context(closing(Logger(folder, None if others else skip, mirror)))
    threads = threads_of(config)
    set_num_threads(threads.replay)
    for line in filter(None, (describe(config, device), *planned, how, str(threads), f"run folder: {folder}")):
        say(line)
    collector = Collector(envs, replay, seed=config.seed)
    trainer = Trainer(config, method, collector, learner, logger, say, check_stop=check_stop)
    stack.enter_context(trainer.prefetch)
    return trainer


def estimate(config: RunConfig, tasks: "TaskSet", device: "torch.device") -> tuple[str, ...]:
    """Parameters, arithmetic and memory, in lines; none for a method that is not estimated.

    Raises: UsageError if it does not fit this machine.
    """
    from mow.estimate import plan
    from mow.estimate.memory import check_memory
    from mow.estimate.of_method import plan_of

    try:
        planned = plan_of(config, tasks, device)
        if planned is None:
            return ()
        return plan.short(planned), check_memory(config, planned, tasks.layout.size, device)
    except MemoryError as error:
        raise UsageError(str(error)) from error


def describe(config: RunConfig, device: "torch.device") -> str:
    """The line that opens a run."""
    about = get_method(config.method).summary(config)
    return f"{config.preset}: {len(config.tasks)} tasks x {config.total_steps:,} steps on {device}" + (
        f"; {about}" if about else ""
    )


def check_wandb() -> None:
    """Raises: UsageError if wandb is not installed; called before a folder is made."""
    from mow.runs.wandb import wandb_package

    try:
        wandb_package()
    except ImportError as error:
        raise UsageError(str(error)) from error


def _mirror(config: RunConfig, folder: Path) -> "WandbMirror":
    from mow.runs.wandb import WandbMirror

    mirror = WandbMirror(folder, dataclasses.asdict(config))
    say(mirror.notice)
    return mirror


def make_environments(
    config: RunConfig, workers: int, copies: int = 1, *, final_frames: bool = False
) -> "VectorEnv":
    """All tasks of the config, each `copies` times in a row. Raises: UsageError if a simulator is missing."""
    from mow.envs.vector import make_vector

    try:
        return make_vector(
            [task for task in config.tasks for _ in range(copies)],
            seed=config.seed,
            num_workers=workers,
            options=config.env.options,
            max_restarts=config.env.max_restarts,
            timeout_s=config.env.timeout_s,
            final_frames=final_frames,
        )
    except (ImportError, ValueError) as error:
        raise UsageError(str(error)) from error


def make_replay(config: RunConfig, tasks: "TaskSet", device: "torch.device | None" = None) -> "ReplayBuffer":
    """An empty buffer, which takes no memory yet. Raises: UsageError where its store of frames cannot be made."""
    from mow.replay import ReplayBuffer

    try:
        return ReplayBuffer(
            len(config.tasks),
            config.total_steps,
            tasks.frame_shape,
            tasks.layout.size,
            seed=config.seed,
            draw=config.replay.draw,
            store=config.replay.store,
            disk=Path(config.replay.disk) if config.replay.disk else None,
            device=device,
            extra=get_method(config.method).columns(config, tasks.layout),
        )
    except (ImportError, OSError, ValueError) as error:
        raise UsageError(str(error)) from error
    except MemoryError as error:
        raise UsageError(f"no room for raw frames ({error}): take --replay.store packed") from error


def free_folder(config: RunConfig) -> Path:
    """The run's folder; not made yet. Raises: UsageError if something is there already."""
    now = time.strftime("%Y%m%d-%H%M%S")
    name = f"{file_name(config.preset)}-{now}-seed{config.seed}"  # seeds may start in the same second
    folder = Path(config.folder or f"runs/{name}")
    try:
        unused = is_unused(folder)
    except OSError as error:  # a name that is too long, or a folder that cannot be read
        raise UsageError(f"cannot look at {folder} ({error.strerror}): give another --folder") from error
    if not unused:
        raise UsageError(f"{folder} is not empty: give another --folder, so that no run is overwritten")
    return folder
