"""`--dry-run`: what a run would take, without starting it."""

import dataclasses
from collections.abc import Sequence

from mow.cli.parse import parse, taken
from mow.engine.device import pick_device, threads_of
from mow.errors import UsageError
from mow.methods.registry import get_method
from mow.system.console import log_to_console, say


def dry_run(words: Sequence[str]) -> None:
    """Print parameters, memory, arithmetic and hours of the run of these arguments. Raises: UsageError as it would."""
    if "--resume" in words:
        raise UsageError("--dry-run plans a new run: leave --resume out, a run prints its plan when it starts")
    words = [word for word in words if word != "--dry-run"]
    number = taken(words, "--ranks")
    config = parse(words)
    if number is not None and not (number.isdecimal() and 1 <= int(number) <= len(config.tasks)):
        raise UsageError(f"--ranks must be 1 to the number of tasks, {len(config.tasks)}, got {number!r}")
    from mow.engine.assemble import describe, free_folder, make_replay
    from mow.estimate.memory import check_memory
    from mow.estimate.plan import plan_of
    from mow.estimate.ranks import hours_of
    from mow.methods.base import TaskSet
    from mow.runs.restore import environments

    device = pick_device(config.device)
    free_folder(config)
    with log_to_console(), get_method(config.method).context(config, device) as how:
        with environments(config, seed=config.seed, workers=0) as envs:
            tasks = TaskSet.of(envs.specs)
        say(f"{describe(config, device)}\n{how}")
        say(str(threads_of(config)))
        if config.recorded:
            say("replay: none, windows are read from the files of recorded episodes")
        else:
            in_memory = dataclasses.replace(config, replay=dataclasses.replace(config.replay, disk=""))
            replay = make_replay(in_memory, tasks, device)
            size = f"{replay.memory_bytes / 1e9:.2f} GB once full"
            where = f", what outgrows memory in {config.replay.disk}" if config.replay.disk else ""
            packed = f"packed, at most {size}, less as far as frames pack{where}"
            lines = {"PackedStore": packed, "RawStore": f"raw, {size}",
                     "GpuStore": f"frames on {device}, all else {size}"}  # fmt: skip
            say(f"replay: {lines[type(replay.store).__name__]}")
        try:
            planned = plan_of(config, tasks, device)
        except MemoryError as error:
            raise UsageError(str(error)) from error
        if planned is None:
            say(f"parameters, memory and hours are not estimated for the method {config.method}")
            return
        try:
            say(check_memory(config, planned, tasks.layout.size, device))
        except MemoryError as error:
            say(f"it does not fit here: {error}")
        say(hours_of(planned, config, tasks, device, int(number or 1)))
