"""Train one agent on many tasks: python -m mow.train [PRESET] [--field VALUE ...]

Builds and wires everything, then calls the loop. Nothing heavy is imported before the command line is understood.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mow.cli.live import watched
from mow.cli.parse import chatty, check_words, parse, say
from mow.cli.resume import Resumption, files_writable, find_resumption, go_on, read_state
from mow.config import Config
from mow.engine.device import num_workers, pick_device, threads_of
from mow.envs.base import EnvFailure
from mow.errors import UsageError
from mow.runs.disk import folder_to_write, told_when_the_disk_fails
from mow.runs.failures import exit_code, failure_kept, keep_failure
from mow.runs.folder import claimed, clear, is_unused
from mow.runs.paths import checkpoint_path
from mow.runs.provenance import write_origin
from mow.runs.restore import check_specs
from mow.runs.resume_hint import resume_command
from mow.system.console import program
from mow.system.file_names import file_name
from mow.system.shell import command

if TYPE_CHECKING:
    import torch

    from mow.engine.trainer import Run
    from mow.envs.vector import VectorEnv
    from mow.nn.policy import ActionMask
    from mow.replay import ReplayBuffer
    from mow.runs.wandb import WandbMirror

# Agent steps per task: a full Atari episode may last 27,000.
_LONGEST_EVALUATION = 200_000


@program("mow.train", lossy=True)
def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done or stopped in order, 1 numbers, disk, a simulator or mow itself broke, 130 killed.

    Raises: SystemExit(2) if the run cannot start, after one line that says why.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    code = exit_code("mow.train", lambda: _command(words))
    if code == 2:
        raise SystemExit(2)
    return code


def _command(words: list[str]) -> None:
    check_words(words)
    if "--dry-run" in words:
        dry_run([word for word in words if word != "--dry-run"])
    elif "--resume" in words:
        resumption = find_resumption(words)
        run(resumption.config, resumption)
    else:
        run(parse(words))


def dry_run(arguments: Sequence[str]) -> None:
    """Say what a run would take, and do nothing else. Raises: UsageError as a run would."""
    if "--resume" in arguments:
        raise UsageError("--dry-run plans a new run: leave --resume out, a run says its plan when it starts")
    config = parse(arguments)
    from mow.engine.compile import updates_as_asked
    from mow.estimate import plan
    from mow.estimate.memory import check_memory
    from mow.methods.mow.learner import uses_bf16

    device = pick_device(config.device)
    _free_folder(config)
    with chatty(), updates_as_asked(config, device) as how:
        with _environments(config, 0) as envs:
            layout = envs.layout
        mask = _mask(envs)
        say(f"{_plan(config, device)}\n{how}")
        say(str(threads_of(config)))
        in_memory = dataclasses.replace(config, replay=dataclasses.replace(config.replay, disk=""))
        replay = _replay(in_memory, layout.size, device)
        size = f"{replay.memory_bytes / 1e9:.2f} GB once full"
        where = f", what outgrows memory in {config.replay.disk}" if config.replay.disk else ""
        packed = f"packed, at most {size}, less as far as frames pack{where}"
        lines = {"PackedStore": packed, "RawStore": f"raw, {size}", "GpuStore": f"frames on {device}, all else {size}"}
        say(f"replay: {lines[type(replay.store).__name__]}")
        bf16 = uses_bf16(config, device)
        try:
            planned = plan.make_plan(config, mask, bf16=bf16)
        except MemoryError as error:
            raise UsageError(str(error)) from error
        try:
            say(check_memory(config, planned, layout.size, device))
        except MemoryError as error:
            say(f"it does not fit here: {error}")
        say(plan.long(planned, plan.make_pace(planned, config, mask, device, bf16=bf16)))


def run(config: Config, resumption: Resumption | None = None) -> "Run | None":
    """Wire environments, replay, learner and logger, and train.

    Args: resumption: where to go on; None starts from nothing.
    Returns: the run as it is in the end; None if it was stopped.
    Raises: UsageError if the machine cannot run it. The traceback of any other error is in failure.txt of the folder.
    """
    import torch

    from mow.engine.peak_memory import process_peak
    from mow.estimate.memory import told_when_memory_runs_out
    from mow.runs.logger import duration
    from mow.runs.signals import Stopped, StopSwitch

    device = pick_device(config.device)
    if config.wandb:
        _check_wandb()
    folder = resumption.folder if resumption else _free_folder(config)
    torch.manual_seed(config.seed)
    with contextlib.ExitStack() as stack:
        stack.enter_context(chatty())
        stack.enter_context(failure_kept(folder))
        stack.enter_context(told_when_the_disk_fails(folder))
        stack.enter_context(told_when_memory_runs_out(folder, device))
        state = read_state(resumption) if resumption else None
        envs = stack.enter_context(_environments(config, num_workers(config), final_frames=config.final_frames))
        switch = stack.enter_context(StopSwitch())
        if resumption and state is not None:
            check_specs(resumption.checkpoint, state, envs.specs)
        session = _wired(config, device, envs, folder, state is None, stack, switch.check)
        stack.enter_context(session.prefetch)
        if resumption and state is not None:
            for line in go_on(session, resumption, state):
                say(line)
            state = None  # as large as the model and its optimisers
        try:
            with watched(session):
                session.train()
        except Stopped:
            say(f"stopped at step {session.step:,}; checkpoint: {session.save()}")
            say(f"to go on: {resume_command(folder)}")
            return None
        except EnvFailure:
            say(f"stopped at step {session.step:,}: a simulator fails for good; checkpoint: {session.save()}")
            say(f"to go on once it is mended: {resume_command(folder)}")
            raise
        if not config.evaluation_episodes:
            say(summary(session))
        elif not _score(session, stack, switch.check):
            return None
        took, peak = duration(session.logger.seconds), process_peak()
    say(f"done in {took}, peak memory {peak / 1e9:.1f} GB; curves: {command('tensorboard', '--logdir', folder)}")
    if config.report:
        say(_report(folder, str(device)))
    return session


def _report(folder: Path, device: str) -> str:
    """Write report.html of a finished run. Returns: where it is, or why there is none: the run is whole without."""
    from mow.report.__main__ import write_report

    try:
        return f"look: {write_report(folder, device=device)}"
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the run has ended well
        if not isinstance(error, UsageError | KeyboardInterrupt):
            keep_failure(error, folder)
        why = " ".join(str(error).split()) or type(error).__name__
        return f"no report ({why}): {command('python', '-m', 'mow.report', folder)} makes it later"


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
    from mow.engine.collector import Collector
    from mow.engine.compile import updates_as_asked
    from mow.engine.trainer import Run
    from mow.estimate import plan
    from mow.estimate.memory import check_memory
    from mow.methods.mow.learner import Learner, uses_bf16
    from mow.replay import set_num_threads
    from mow.runs.logger import Logger

    schedule, mask = config.schedule, _mask(envs)
    try:
        planned = plan.make_plan(config, mask, bf16=uses_bf16(config, device))
        needs = check_memory(config, planned, envs.layout.size, device)
    except MemoryError as error:
        raise UsageError(str(error)) from error
    replay = _replay(config, envs.layout.size, device)
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
    with files_writable():
        logger = stack.enter_context(contextlib.closing(Logger(folder, None if others else skip, mirror)))
    threads = threads_of(config)
    set_num_threads(threads.replay)
    for line in (_plan(config, device), plan.short(planned), needs, how, str(threads), f"run folder: {folder}"):
        say(line)
    collector = Collector(
        envs, replay, seed=config.seed, random_action=schedule.random_action, context=schedule.acting_context
    )
    return Run(config, collector, learner, logger, say, check_stop=check_stop)


def _check_wandb() -> None:
    """Before a folder is made. Raises: UsageError if wandb is not installed."""
    from mow.runs.wandb import wandb_package

    try:
        wandb_package()
    except ImportError as error:
        raise UsageError(str(error)) from error


def _mirror(config: Config, folder: Path) -> "WandbMirror":
    from mow.runs.wandb import WandbMirror

    mirror = WandbMirror(folder, dataclasses.asdict(config))
    say(mirror.said)
    return mirror


def _score(session: "Run", stack: contextlib.ExitStack, check_stop: Callable[[], None]) -> bool:
    """Play in fresh environments, print the table and keep it in scores.json; the run is saved already.

    Args: stack: closes the environments. check_stop: called before every step of all tasks.
    Returns: False if `check_stop` raised Stopped.
    Raises: EnvFailure if the environments cannot be made or fail for good.
    """
    from mow.engine.evaluator import evaluate
    from mow.engine.scores import Cost, write_scores
    from mow.engine.scoring_progress import ScoringProgress
    from mow.runs.signals import Stopped

    config, learner, folder = session.config, session.learner, session.logger.folder
    saved, episodes = checkpoint_path(folder, session.step), config.evaluation_episodes
    how = f"to score it later: {command('python', '-m', 'mow.evaluate', folder)}"
    later = dataclasses.replace(config, tasks=tuple(session.tasks), seed=config.seed + 1)
    say(f"scoring {episodes} episodes per task")
    progress = ScoringProgress(len(session.tasks), episodes, say, check_stop)
    try:
        if not saved.exists():  # the disk was full at the last step
            say(f"checkpoint: {session.save()}")
        fresh = stack.enter_context(_environments(later, num_workers(config), config.evaluation_copies))
        results = evaluate(
            learner, fresh, episodes=episodes, max_steps=_LONGEST_EVALUATION, on_episode=progress.episode,
            check_stop=progress.step,
        )  # fmt: skip
    except Stopped:
        say(f"stopped while scoring ({progress.line}); training is complete: {saved}\n{how}")
        return False
    except (UsageError, EnvFailure) as error:
        say(f"not scored; training is complete: {saved}\n{how}")
        raise error if isinstance(error, EnvFailure) else EnvFailure(str(error)) from error
    cost = Cost(
        learner.num_parameters, session.step, learner.updates, session.logger.seconds, session.logger.cpu_seconds
    )
    say(write_scores(folder / "scores.json", results, cost))
    return True


def _environments(config: Config, workers: int, copies: int = 1, *, final_frames: bool = False) -> "VectorEnv":
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


def _mask(envs: "VectorEnv") -> "ActionMask":
    import torch

    from mow.nn.policy import ActionMask

    return ActionMask(torch.from_numpy(envs.layout.discrete_mask), torch.from_numpy(envs.layout.continuous_mask))


def _replay(config: Config, action_size: int, device: "torch.device") -> "ReplayBuffer":
    """An empty buffer, which takes no memory yet. Raises: UsageError where its store of frames cannot be made."""
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
            device=device,
        )
    except (ImportError, OSError, ValueError) as error:
        raise UsageError(str(error)) from error
    except MemoryError as error:
        raise UsageError(f"no room for raw frames ({error}): take --replay.store packed") from error


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


def _free_folder(config: Config) -> Path:
    """Where the run goes; not made yet. Raises: UsageError if something is there already."""
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


def _plan(config: Config, device: "torch.device") -> str:
    """What is about to happen, in a line."""
    return (
        f"{config.preset}: {len(config.tasks)} tasks x {config.total_steps:,} steps, {config.world_model_updates:,} "
        f"world-model updates ({config.warmup_updates:,} of them warm-up) on {device}; {config.num_modules} modules"
    )


if __name__ == "__main__":
    sys.exit(main())
