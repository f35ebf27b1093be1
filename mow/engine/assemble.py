"""The parts of a run, made from its config and put together."""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from mow.config import RunConfig
from mow.engine.device import threads_of
from mow.envs.base import TaskSpec
from mow.errors import UsageError
from mow.methods.registry import get_method
from mow.runs.disk import folder_to_write
from mow.runs.folder import claimed, clear, is_unused
from mow.runs.provenance import write_origin
from mow.runs.restore import environments
from mow.system.console import say
from mow.system.file_names import file_name

if TYPE_CHECKING:
    import torch

    from mow.engine.parallel import Ranks
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
    ranks: "Ranks | None" = None,
) -> "Trainer":
    """All parts of a run; those that must be closed are entered into `stack`.

    Args: envs: of this rank's tasks. is_new: the folder is a new one. ranks: where there are several.
    Raises: UsageError if the machine cannot run it.
    """
    from mow.engine.collector import Collector
    from mow.engine.recorded import RecordedEpisodes
    from mow.engine.shared_log import SharedLogger
    from mow.engine.trainer import Trainer
    from mow.estimate.memory import check_memory
    from mow.estimate.plan import plan_of, short
    from mow.methods.base import TaskSet
    from mow.replay import set_num_threads
    from mow.runs.logger import Logger
    from mow.runs.wandb import WandbMirror

    method, tasks, threads = get_method(config.method), TaskSet.of(all_specs(envs, ranks)), threads_of(config)
    own = slice(0, len(config.tasks)) if ranks is None else ranks.own
    lines = [describe(config, device), *([] if ranks is None else [ranks.describe()])]
    try:
        # On several ranks the estimate of one process would mislead: mow train --dry-run --ranks has one.
        if ranks is None and (planned := plan_of(config, tasks, device)) is not None:
            lines += [short(planned), check_memory(config, planned, tasks.layout.size, device)]
    except MemoryError as error:
        raise UsageError(str(error)) from error
    replay: ReplayBuffer | RecordedEpisodes
    if config.recorded:
        replay = RecordedEpisodes(config.recorded, config, folder, tasks.specs)
    else:
        replay = make_replay(config, tasks, device, own)
    lines += [stack.enter_context(method.context(config, device)), str(threads), f"run folder: {folder}"]
    if ranks is None:
        learner = method.build(config, tasks, device)
    else:
        assert method.build_on_ranks is not None, "the launch was checked"
        learner = method.build_on_ranks(config, tasks, device, ranks)
    writes = ranks is None or ranks.rank == 0
    if writes and is_new:
        folder_to_write(folder, "--folder")
    if writes:
        stack.enter_context(claimed(folder))
    if writes and is_new:
        if clear(folder):
            say(f"{folder} holds a run that ended before its first step: this one takes its place")
        write_origin(folder, config, device, [spec.protocol for spec in tasks.specs])
    if ranks is not None:
        ranks.check_folder(folder)
    mirror = WandbMirror(folder, dataclasses.asdict(config)) if config.wandb and writes else None
    skips = {spec.frame_skip for spec in tasks.specs}
    frame_skip = skips.pop() if len(skips) == 1 else None
    made = Logger(folder, frame_skip, mirror) if ranks is None else SharedLogger(folder, frame_skip, mirror, ranks)
    logger = stack.enter_context(closing(made))
    set_num_threads(threads.replay)
    for line in filter(None, [*lines, mirror.notice if mirror else ""]):
        say(line)

    def make_tasks(names: Sequence[str], own: slice) -> Collector:
        order = [config.tasks.index(name) for name in names]
        fresh = environments(config, seed=config.seed, workers=threads.workers, final_frames=config.final_frames,
                             places=order[own])  # fmt: skip
        buffer = make_replay(config, tasks, device, own)
        return Collector(fresh, buffer, seed=config.seed, layout=tasks.layout.rows(order), own=own)

    collector = Collector(envs, replay, seed=config.seed, layout=None if ranks is None else tasks.layout, own=own)
    trainer = Trainer(config, method, collector, learner, logger, say, check_stop=check_stop, ranks=ranks,
                      make_tasks=make_tasks)  # fmt: skip
    stack.callback(lambda: trainer.collector.envs.close())
    stack.enter_context(trainer.prefetch)
    return trainer


def all_specs(envs: "VectorEnv", ranks: "Ranks | None") -> "tuple[TaskSpec, ...]":
    """All tasks of the run, in the order of the config, where `envs` are those of this rank."""
    if ranks is None:
        return envs.specs
    texts = ranks.texts(json.dumps([dataclasses.asdict(spec) for spec in envs.specs]))
    return tuple(TaskSpec(**spec) for text in texts for spec in json.loads(text))


def describe(config: RunConfig, device: "torch.device") -> str:
    """The line that opens a run."""
    about = get_method(config.method).summary(config)
    data = "from recorded episodes" if config.recorded else f"x {config.total_steps:,} steps"
    return f"{config.preset}: {len(config.tasks)} tasks {data} on {device}" + (
        f"; {about}" if about else ""
    )


def make_replay(
    config: RunConfig, tasks: "TaskSet", device: "torch.device | None" = None, own: slice | None = None
) -> "ReplayBuffer":
    """An empty buffer of all tasks, or of those of a rank, which takes no memory yet.

    Raises: UsageError where its store of frames cannot be made.
    """
    from mow.replay import ReplayBuffer

    own = slice(0, len(config.tasks)) if own is None else own
    try:
        buffer = ReplayBuffer(
            own.stop - own.start,
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
        buffer.places, buffer.num_drawn = own, len(config.tasks)
        return buffer
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
