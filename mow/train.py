"""Train one agent on many tasks: python -m mow.train [PRESET] [--field VALUE ...]

Builds and wires everything, then calls the loop. Nothing heavy is imported before the command line is understood.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mow.command_line import UsageError, chatty, fail, parse, say
from mow.config import Config
from mow.console import complain, program
from mow.disk import folder_to_write, told_when_the_disk_fails
from mow.envs.base import EnvFailure
from mow.file_names import file_name
from mow.live import watched
from mow.origin import write_origin
from mow.resuming import Resumption, find_resumption, read_state, resume_command
from mow.run_folder import claimed, clear, is_unused
from mow.shell import command
from mow.threads import Threads, threads_here

if TYPE_CHECKING:
    import torch

    from mow.distributions import ActionMask
    from mow.envs.vector import VectorEnv
    from mow.replay import ReplayBuffer
    from mow.training.loop import Run
    from mow.training.wandb_mirror import WandbMirror

# Agent steps per task: a full Atari episode may last 27,000.
_LONGEST_EVALUATION = 200_000


@program("mow.train", lossy=True)
def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done or stopped in order, 1 numbers, disk or a simulator broke, 2 it cannot start, 130 killed."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if "--dry-run" in arguments:
            dry_run([word for word in arguments if word != "--dry-run"])
        elif "--resume" in arguments:
            resumption = find_resumption(arguments)
            run(resumption.config, resumption)
        else:
            run(parse(arguments))
    except UsageError as error:
        fail(error)
    except (FloatingPointError, MemoryError, OSError) as error:
        complain(f"mow.train: {error}")
        return 1
    except EnvFailure as error:
        complain(f"{error.traceback}mow.train: {error.line}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def dry_run(arguments: Sequence[str]) -> None:
    """Say what a run would take, and do nothing else. Raises: UsageError as a run would."""
    if "--resume" in arguments:
        raise UsageError("--dry-run plans a new run: leave --resume out, a run says its plan when it starts")
    config = parse(arguments)
    from mow import plan
    from mow.compiler import updates_as_asked
    from mow.memory import check_memory
    from mow.training.learner import uses_bf16

    device = pick_device(config.device)
    _free_folder(config)
    with chatty(), updates_as_asked(config, device) as how:
        with _environments(config, 0) as envs:
            layout = envs.layout
        mask = _mask(envs)
        say(f"{_plan(config, device)}\n{how}")
        say(str(_threads(config)))
        replay = _replay(dataclasses.replace(config, replay=dataclasses.replace(config.replay, disk="")), layout.size)
        size = f"{replay.memory_bytes / 1e9:.2f} GB once full"
        where = f", what outgrows memory in {config.replay.disk}" if config.replay.disk else ""
        packed = type(replay.store).__name__ == "PackedStore"
        say(f"replay: packed, at most {size}, less as far as frames pack{where}" if packed else f"replay: raw, {size}")
        bf16 = uses_bf16(config, device)
        planned = plan.make_plan(config, mask, bf16=bf16)
        try:
            say(check_memory(config, planned, layout.size, device))
        except MemoryError as error:
            say(f"it does not fit here: {error}")
        say(plan.long(planned, plan.make_pace(planned, config, mask, device, bf16=bf16)))


def run(config: Config, resumption: Resumption | None = None) -> "Run | None":
    """Wire environments, replay, learner and logger, and train.

    Args: resumption: where to go on; None starts from nothing.
    Returns: the run as it is in the end; None if it was stopped.
    Raises: UsageError if the machine cannot run it.
    """
    import torch

    from mow.memory import told_when_memory_runs_out
    from mow.report import write_report
    from mow.training.logger import duration
    from mow.training.peak_memory import process_peak
    from mow.training.stopping import Stopped, StopSwitch

    device = pick_device(config.device)
    if config.wandb:
        _check_wandb()
    folder = resumption.folder if resumption else _free_folder(config)
    state = read_state(resumption, device) if resumption else None
    torch.manual_seed(config.seed)
    with contextlib.ExitStack() as stack:
        stack.enter_context(chatty())
        stack.enter_context(told_when_the_disk_fails(folder))
        stack.enter_context(told_when_memory_runs_out(folder, device))
        envs = stack.enter_context(_environments(config, num_workers(config)))
        switch = stack.enter_context(StopSwitch())
        session = _wired(config, device, envs, folder, state is None, stack, switch.check)
        stack.enter_context(session.prefetch)
        if resumption and state is not None:
            _go_on(session, resumption, state)
        try:
            with watched(session):
                session.train()
            if config.evaluation_episodes:
                later = dataclasses.replace(config, tasks=tuple(session.tasks), seed=config.seed + 1)
                fresh = _environments(later, num_workers(config), config.evaluation_copies)
                _score(session, stack.enter_context(fresh))
            else:
                say(summary(session))
        except Stopped:
            say(f"stopped at step {session.step:,}; checkpoint: {session.save()}")
            say(f"to go on: {resume_command(folder)}")
            return None
        except EnvFailure as error:
            (folder / "failure.txt").write_text(str(error) + "\n", encoding="utf-8")
            say(f"stopped at step {session.step:,}: a simulator fails for good; checkpoint: {session.save()}")
            say(f"to go on once it is mended: {resume_command(folder)}")
            raise
        took, peak = duration(session.logger.seconds), process_peak()
    say(f"done in {took}, peak memory {peak / 1e9:.1f} GB; curves: {command('tensorboard', '--logdir', folder)}")
    if config.report:
        say(f"look: {write_report(folder, device=str(device))}")
    return session


def _wired(
    config: Config,
    device: "torch.device",
    envs: "VectorEnv",
    folder: Path,
    fresh: bool,
    stack: contextlib.ExitStack,
    check_stop: Callable[[], None],
) -> "Run":
    """All parts of a run, put together; what must be closed goes to `stack`. Args: fresh: the folder is a new one."""
    from mow import plan
    from mow.compiler import updates_as_asked
    from mow.memory import check_memory
    from mow.replay import set_num_threads
    from mow.training.collector import Collector
    from mow.training.learner import Learner, uses_bf16
    from mow.training.logger import Logger
    from mow.training.loop import Run

    schedule, mask = config.schedule, _mask(envs)
    planned = plan.make_plan(config, mask, bf16=uses_bf16(config, device))
    try:
        needs = check_memory(config, planned, envs.layout.size, device)
    except MemoryError as error:
        raise UsageError(str(error)) from error
    replay = _replay(config, envs.layout.size)
    how = stack.enter_context(updates_as_asked(config, device))
    learner = Learner(config, mask, device)
    if fresh:
        folder_to_write(folder, "--folder")
    stack.enter_context(claimed(folder))
    if fresh:
        if clear(folder):
            say(f"{folder} holds a run that ended before its first step: this one takes its place")
        write_origin(folder, config, device, [spec.protocol for spec in envs.specs])
    mirror = _mirror(config, folder) if config.wandb else None
    skip, *others = {spec.frame_skip for spec in envs.specs}
    logger = stack.enter_context(contextlib.closing(Logger(folder, None if others else skip, mirror)))
    threads = _threads(config)
    set_num_threads(threads.replay)
    for line in (_plan(config, device), plan.short(planned), needs, how, str(threads), f"run folder: {folder}"):
        say(line)
    collector = Collector(
        envs, replay, seed=config.seed, random_action=schedule.random_action, context=schedule.acting_context
    )
    return Run(config, collector, learner, logger, say, check_stop=check_stop)


def _check_wandb() -> None:
    """Before a folder is made. Raises: UsageError if wandb is not installed."""
    from mow.training.wandb_mirror import wandb_package

    try:
        wandb_package()
    except ImportError as error:
        raise UsageError(str(error)) from error


def _mirror(config: Config, folder: Path) -> "WandbMirror":
    from mow.training.wandb_mirror import WandbMirror

    mirror = WandbMirror(folder, dataclasses.asdict(config))
    say(mirror.said)
    return mirror


def _go_on(session: "Run", resumption: Resumption, state: "dict[str, Any]") -> None:
    """Put a fresh run where the checkpoint was. Raises: UsageError if the replay that went with it is not there."""
    from mow.replay import load
    from mow.training.checkpoint import checkpoints, step_of
    from mow.training.run_state import load_run_state

    for change in resumption.changes:
        say(f"changed: {change}")
    try:
        load(resumption.folder / "replay", session.collector.replay, num_steps=state["step"])
    except (ValueError, ImportError) as error:
        raise UsageError(str(error)) from error
    for task in load_run_state(session, state):
        say(f"{task}: its simulator cannot be put back where it was, a new episode begins")
    for later in checkpoints(resumption.folder):
        if step_of(later) > session.step:
            later.unlink()
            say(f"deleted: {later}, which is ahead of this one")
    session.best_score = _score_of_best(resumption.folder, session.step)
    say(f"going on from {resumption.checkpoint}")


def _score_of_best(folder: Path, step: int) -> float | None:
    """What the run's best checkpoint scored; None where there is none, or none that a run at `step` could have kept."""
    import torch

    from mow.training.checkpoint import best_path, load_checkpoint

    best = best_path(folder)
    if not best.exists():
        return None
    try:
        content = load_checkpoint(best, torch.device("cpu"))
    except ValueError as error:
        say(f"the next checkpoint takes its place: {error}")
        return None
    if content["step"] > step:
        best.unlink()
        say(f"deleted: {best}, which is ahead of this one")
        return None
    score: float | None = content.get("score")
    return score


def _score(session: "Run", fresh: "VectorEnv") -> None:
    """Play in fresh environments, print the table and keep it in scores.json."""
    from mow.training.evaluator import evaluate
    from mow.training.scores import Cost, write_scores

    episodes, learner = session.config.evaluation_episodes, session.learner
    say(f"scoring {episodes} episodes per task")
    results = evaluate(learner, fresh, episodes=episodes, max_steps=_LONGEST_EVALUATION)
    seconds = session.logger.seconds, session.logger.cpu_seconds
    cost = Cost(learner.num_parameters, session.step, learner.updates, *seconds)
    say(write_scores(session.logger.folder / "scores.json", results, cost))


def _environments(config: Config, workers: int, copies: int = 1) -> "VectorEnv":
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
        )
    except (ImportError, ValueError) as error:
        raise UsageError(str(error)) from error


def _mask(envs: "VectorEnv") -> "ActionMask":
    import torch

    from mow.distributions import ActionMask

    return ActionMask(torch.from_numpy(envs.layout.discrete_mask), torch.from_numpy(envs.layout.continuous_mask))


def _replay(config: Config, action_size: int) -> "ReplayBuffer":
    """An empty one, which takes no memory yet. Raises: UsageError if frames cannot be kept as asked."""
    from mow.replay import ReplayBuffer

    try:
        return ReplayBuffer(
            len(config.tasks),
            config.total_steps,
            (64, 64, 3),
            action_size,
            seed=config.seed,
            draw=config.replay.draw,
            store=config.replay.store,
            disk=Path(config.replay.disk) if config.replay.disk else None,
        )
    except (ImportError, OSError) as error:
        raise UsageError(str(error)) from error
    except MemoryError as error:
        raise UsageError(f"no room for raw frames ({error}): take --replay.store packed") from error


def _threads(config: Config) -> Threads:
    return threads_here(len(config.tasks), config.env.num_workers)


def num_workers(config: Config) -> int:
    """Processes for the environments."""
    return _threads(config).workers


def summary(session: "Run") -> str:
    """What was learnt, per task: world-model loss and return at the end."""
    lines = [f"{'task':<24}{'episodes':>9}{'return, last 10':>17}{'loss, first -> last':>24}"]
    first, last = session.first_loss or [], session.last_loss or []
    for k, task in enumerate(session.tasks):
        score = session.collector.scores[task]
        mean = score.mean()
        shown = "-" if mean is None else f"{mean:.1f}"
        loss = f"{first[k]:.1f} -> {last[k]:.1f}" if first and last else "-"
        lines.append(f"{task:<24}{score.episodes:>9}{shown:>17}{loss:>24}")
    return "\n".join(lines)


def pick_device(name: str) -> "torch.device":
    """The device of a name on the command line. Raises: UsageError if it is unknown or not here."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device {name!r} is not supported: use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"no {name} here ({torch.cuda.device_count()} CUDA devices found): use --device cpu")
    return device


def _free_folder(config: Config) -> Path:
    """Where the run goes; not made yet. Raises: UsageError if something is there already."""
    now = time.strftime("%Y%m%d-%H%M%S")
    name = f"{file_name(config.preset)}-{now}-seed{config.seed}"  # seeds may start in the same second
    folder = Path(config.folder or f"runs/{name}")
    if not is_unused(folder):
        raise UsageError(f"{folder} is not empty: give another --folder, so that no run is overwritten")
    return folder


def _plan(config: Config, device: "torch.device") -> str:
    """What is about to happen, in a line."""
    return (
        f"{config.preset}: {len(config.tasks)} tasks x {config.total_steps:,} steps, {config.world_model_updates:,} "
        f"world-model updates ({config.warmup_updates:,} of them warm-up) on {device}; {config.num_modules} modules"
    )


if __name__ == "__main__":
    sys.exit(main())
