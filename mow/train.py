"""Train one agent on many tasks: python -m mow.train [PRESET] [--field VALUE ...]

Builds and wires everything, then calls the loop. Nothing heavy is imported before the command line is understood.
"""

import contextlib
import dataclasses
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mow import __version__
from mow.command_line import UsageError, chatty, fail, parse, say
from mow.config import Config
from mow.resuming import Resumption, claimed, find_resumption, read_state

if TYPE_CHECKING:
    import torch

    from mow.envs.vector import VectorEnv
    from mow.training.loop import Run
    from mow.training.wandb_mirror import WandbMirror


# Agent steps per task: a full Atari episode may last 27,000.
_LONGEST_EVALUATION = 200_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done or stopped in order, 1 its numbers or its disk broke, 2 it cannot start, 130 killed at once."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if "--resume" in arguments:
            resumption = find_resumption(arguments)
            run(resumption.config, resumption)
        else:
            run(parse(arguments))
    except UsageError as error:
        fail(error)
    except (FloatingPointError, MemoryError, OSError) as error:
        print(f"mow.train: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def run(config: Config, resumption: Resumption | None = None) -> "Run | None":
    """Wire environments, replay, learner and logger, and train.

    Args: resumption: where to go on; None starts from nothing.
    Returns: the run as it is in the end; None if it was stopped.
    Raises: UsageError if the machine cannot run it.
    """
    import torch

    from mow.envs.vector import make_vector
    from mow.memory import told_when_memory_runs_out
    from mow.report import write_report
    from mow.training.logger import duration
    from mow.training.stopping import Stopped, StopSwitch

    device = pick_device(config.device)
    folder = resumption.folder if resumption else _free_folder(config)
    state = read_state(resumption, device) if resumption else None
    torch.manual_seed(config.seed)
    with contextlib.ExitStack() as stack:
        stack.enter_context(chatty())
        stack.enter_context(told_when_memory_runs_out(folder, device))
        options = {"protocol": config.env.protocol, "action_set": config.env.action_set}
        try:
            envs = stack.enter_context(
                make_vector(config.tasks, seed=config.seed, num_workers=num_workers(config), options=options)
            )
        except (ImportError, ValueError) as error:
            raise UsageError(str(error)) from error
        switch = stack.enter_context(StopSwitch())
        session = _wired(config, device, envs, folder, state is None, stack, switch.check)
        stack.enter_context(session.prefetch)
        if resumption and state is not None:
            _go_on(session, resumption, state)
        try:
            session.train()
            if config.evaluation_episodes:
                fresh = stack.enter_context(
                    make_vector(session.tasks, seed=config.seed + 1, num_workers=num_workers(config), options=options)
                )
                _score(session, fresh)
            else:
                say(summary(session))
        except Stopped:
            say(f"stopped at step {session.step:,}; checkpoint: {session.save()}")
            say(f"to go on: python -m mow.train --resume {folder}")
            return None
        took, peak = duration(session.logger.seconds), peak_memory_gb()
    say(f"done in {took}, peak memory {peak:.1f} GB; curves: tensorboard --logdir {folder}")
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
    import torch

    from mow.distributions import ActionMask
    from mow.memory import check_memory
    from mow.replay import ReplayBuffer
    from mow.training.collector import Collector
    from mow.training.learner import Learner
    from mow.training.logger import Logger
    from mow.training.loop import Run

    layout, schedule = envs.layout, config.schedule
    mask = ActionMask(torch.from_numpy(layout.discrete_mask), torch.from_numpy(layout.continuous_mask))
    try:
        needs = check_memory(config, mask, device)
        replay = ReplayBuffer(
            len(config.tasks),
            config.total_steps,
            (64, 64, 3),
            layout.size,
            seed=config.seed,
            draw=config.replay.draw,
            store=config.replay.store,
            disk=Path(config.replay.disk) if config.replay.disk else None,
        )
    except (ImportError, MemoryError, OSError) as error:
        raise UsageError(str(error)) from error
    learner = Learner(config, mask, device)
    folder.mkdir(parents=True, exist_ok=True)
    stack.enter_context(claimed(folder))
    if fresh:
        _describe(folder, config, device, [spec.protocol for spec in envs.specs])
    mirror = _mirror(config, folder) if config.wandb else None
    logger = stack.enter_context(contextlib.closing(Logger(folder, envs.specs[0].frame_skip, mirror)))
    say(_plan(config, learner, device))
    say(needs)
    say(f"run folder: {folder}")
    collector = Collector(
        envs, replay, seed=config.seed, random_action=schedule.random_action, context=schedule.acting_context
    )
    return Run(config, collector, learner, logger, say, check_stop=check_stop)


def _mirror(config: Config, folder: Path) -> "WandbMirror":
    """Raises: UsageError if wandb is not installed."""
    from mow.training.wandb_mirror import WandbMirror

    try:
        mirror = WandbMirror(folder, dataclasses.asdict(config))
    except ImportError as error:
        raise UsageError(str(error)) from error
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


def num_workers(config: Config) -> int:
    """Processes for the environments: as told, else one per spare core; one alone would gain nothing."""
    if config.env.num_workers >= 0:
        return config.env.num_workers
    spare = len(os.sched_getaffinity(0)) - 1
    return min(spare, len(config.tasks)) if spare > 1 else 0


def peak_memory_gb() -> float:
    """Largest resident memory of this process so far, 10^9 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def summary(session: "Run") -> str:
    """What was learnt, per task: world-model loss and return at the end."""
    lines = [f"{'task':<24}{'episodes':>9}{'return, last 10':>17}{'world-model loss, first -> last':>34}"]
    first, last = session.first_loss or [], session.last_loss or []
    for k, task in enumerate(session.tasks):
        score = session.collector.scores[task]
        mean = score.mean()
        shown = "-" if mean is None else f"{mean:.1f}"
        loss = f"{first[k]:.1f} -> {last[k]:.1f}" if first and last else "-"
        lines.append(f"{task:<24}{score.episodes:>9}{shown:>17}{loss:>34}")
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
    folder = Path(config.folder or f"runs/{config.preset}-{time.strftime('%Y%m%d-%H%M%S')}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not empty: give another --folder, so that no run is overwritten")
    return folder


def _plan(config: Config, learner: Any, device: "torch.device") -> str:
    """What is about to happen, in a few lines."""
    millions = sum(p.numel() for p in learner.world_model.parameters()) / 1e6
    updates = config.world_model_updates
    return (
        f"{config.preset}: {len(config.tasks)} tasks x {config.total_steps:,} steps, {updates:,} world-model updates "
        f"({config.warmup_updates:,} of them warm-up) on {device}\n"
        f"world model {millions:.1f} M parameters before grouping into {config.num_modules} modules"
    )


def _describe(folder: Path, config: Config, device: "torch.device", protocols: list[str]) -> None:
    """config.json and versions.json: enough to know later what ran."""
    import numpy
    import torch

    from mow.replay import build_info

    described = dataclasses.asdict(config)
    versions = {
        "mow": __version__,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "cpu_threads": torch.get_num_threads(),
        "extension": build_info(),
        "protocol": dict(zip(config.tasks, protocols, strict=True)),
    }
    for name, content in (("config", described), ("versions", versions)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _git_commit() -> str | None:
    """Commit of the checkout that this package runs from; None for an installed wheel."""
    here = Path(__file__).resolve().parent
    if not (here.parent / ".git").exists():
        return None
    found = subprocess.run(
        ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"], capture_output=True, text=True
    )
    return found.stdout.strip() or None


if __name__ == "__main__":
    sys.exit(main())
