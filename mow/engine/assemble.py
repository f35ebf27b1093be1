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
from mow.runs.disk import folder_to_write
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
    from mow.engine.recorded import RecordedEpisodes
    from mow.engine.trainer import Trainer
    from mow.estimate.memory import check_memory
    from mow.estimate.plan import plan_of, short
    from mow.methods.base import TaskSet
    from mow.replay import set_num_threads
    from mow.runs.logger import Logger
    from mow.runs.wandb import WandbMirror

    method, tasks, threads = get_method(config.method), TaskSet.of(envs.specs), threads_of(config)
    lines = [describe(config, device)]
    try:
        if (planned := plan_of(config, tasks, device)) is not None:
            lines += [short(planned), check_memory(config, planned, tasks.layout.size, device)]
    except MemoryError as error:
        raise UsageError(str(error)) from error
    recorded = config.recorded
    replay = RecordedEpisodes(recorded, config, folder, tasks.specs) if recorded else make_replay(config, tasks, device)
    lines += [stack.enter_context(method.context(config, device)), str(threads), f"run folder: {folder}"]
    learner = method.build(config, tasks, device)
    if is_new:
        folder_to_write(folder, "--folder")
    stack.enter_context(claimed(folder))
    if is_new:
        if clear(folder):
            say(f"{folder} holds a run that ended before its first step: this one takes its place")
        write_origin(folder, config, device, [spec.protocol for spec in envs.specs])
    mirror = WandbMirror(folder, dataclasses.asdict(config)) if config.wandb else None
    skips = {spec.frame_skip for spec in envs.specs}
    logger = stack.enter_context(closing(Logger(folder, skips.pop() if len(skips) == 1 else None, mirror)))
    set_num_threads(threads.replay)
    for line in filter(None, [*lines, mirror.notice if mirror else ""]):
        say(line)
    collector = Collector(envs, replay, seed=config.seed)
    trainer = Trainer(config, method, collector, learner, logger, say, check_stop=check_stop)
    stack.enter_context(trainer.prefetch)
    return trainer


def describe(config: RunConfig, device: "torch.device") -> str:
    """The line that opens a run."""
    about = get_method(config.method).summary(config)
    data = "from recorded episodes" if config.recorded else f"x {config.total_steps:,} steps"
    return f"{config.preset}: {len(config.tasks)} tasks {data} on {device}" + (
        f"; {about}" if about else ""
    )


def make_replay(config: RunConfig, tasks: "TaskSet", device: "torch.device | None" = None) -> "ReplayBuffer":
    """An empty buffer, which takes no memory yet. Raises: UsageError where its store of frames cannot be made."""
    from mow.replay import ReplayBuffer

    try:
        return ReplayBuffer(
            len(config.tasks),
            config.total_steps,
            tasks.observation.shape,
            tasks.layout.size,
            frame_dtype=tasks.observation.dtype,
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
    # With the seed in the name, as several may start in the same second.
    name = f"{file_name(config.preset)}-{time.strftime('%Y%m%d-%H%M%S')}-seed{config.seed}"
    folder = Path(config.folder or f"runs/{name}")
    try:
        unused = is_unused(folder)
    except OSError as error:  # a name that is too long, or a folder that cannot be read
        raise UsageError(f"cannot look at {folder} ({error.strerror}): give another --folder") from error
    if not unused:
        raise UsageError(f"{folder} is not empty: give another --folder, so that no run is overwritten")
    return folder
