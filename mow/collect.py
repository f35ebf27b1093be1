"""Record episodes, or read and write those of others: mow collect TASK... --out FOLDER --episodes N --policy P

torch is imported where a trained run plays, or where a file of torch is read.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from mow import envs
from mow.cli.parse import Parser, check_range
from mow.config import EnvConfig
from mow.config.checks import LARGEST_SEED
from mow.errors import UsageError
from mow.offline.behaviours import POLICIES, Numbers, Policy
from mow.offline.collect import Job, collect
from mow.offline.files import MANIFEST, StoredTask, read_episodes
from mow.runs.failures import exit_code
from mow.system.console import program, say
from mow.system.shell import typed_path

PROGRESS_S = 10.0  # seconds between two lines while episodes are recorded


@program("mow collect")
def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 the episodes are recorded, 2 a mistake of the user (one line), 1 an error, 130 interrupted."""
    words = sys.argv[1:] if arguments is None else arguments
    return exit_code("mow collect", lambda: run(read_arguments(words)))


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. Raises: UsageError in one line; SystemExit(0) after printing help."""
    parser = Parser(prog="mow collect", description="Record episodes of continuous tasks, as states.",
                    allow_abbrev=False)  # fmt: skip
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="like metaworld:reach-v3, or a set of tasks")
    parser.add_argument("--out", type=typed_path, required=True, help="folder, new or of recorded episodes")
    parser.add_argument("--episodes", type=int, default=100, help="to add per task (%(default)s)")
    parser.add_argument("--policy", default="mixed", metavar="P[,P]",
                        help=f"{POLICIES} (%(default)s: 60 %% scripted with noise, 40 %% random)")  # fmt: skip
    parser.add_argument("--noise", default="", metavar="S[,S]", help="standard deviations added to actions, in turn")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes, 0: this one (%(default)s); changes no byte")
    for name in ("metaworld_repeat", "dmc_repeat"):
        default = getattr(EnvConfig(), name)
        parser.add_argument(f"--env.{name.replace('_', '-')}", dest=name, type=int, default=default,
                            help="steps of the simulator per action (%(default)s)")  # fmt: skip
    parser.add_argument("--time-limit", type=int, help="agent steps of an episode at most; default: the task's own")
    parser.add_argument("--from", dest="source", nargs="+", default=[], metavar="KIND:NAME",
                        help="read episodes instead: minari:ID ... (datasets of this machine), or tdmpc2:FOLDER")
    parser.add_argument("--to-minari", metavar="NAME", help="write --out as Minari datasets SUITE/TASK/NAME-v0 too; "
                        "without tasks: only this")
    found = parser.parse_args(arguments)
    check_range(found, 1, 100_000_000, "episodes")
    check_range(found, 0, LARGEST_SEED, "seed")
    check_range(found, 0, 1000, "workers")
    return found


def run(options: argparse.Namespace) -> None:
    """Record and report. Raises: UsageError if something cannot be recorded."""
    tasks = envs.expand(options.tasks)
    if options.source:
        report(options.out, _convert(options.source, options.out, tasks))
    elif tasks:
        report(options.out, _record(options, tasks))
    elif not options.to_minari:
        raise UsageError("name the tasks to record: mow collect TASK... --out FOLDER")
    if options.to_minari:
        from mow.offline.minari_data import write_minari

        say(f"written: {', '.join(write_minari(options.out, options.to_minari))}")


def _convert(sources: Sequence[str], out: Path, tasks: Sequence[str]) -> tuple[StoredTask, ...]:
    """Read the episodes of others into a new folder. Raises: UsageError."""
    kinds, names = zip(*(source.partition(":")[::2] for source in sources), strict=True)
    if (out / MANIFEST).exists():
        raise UsageError(f"{out} holds episodes: name a new folder for those of {sources[0]}")
    if set(kinds) == {"minari"} and not tasks:
        from mow.offline.minari_data import read_minari

        return read_minari(names, out)
    if kinds == ("tdmpc2",):
        from mow.offline.tdmpc2_data import read_tdmpc2

        return read_tdmpc2(typed_path(names[0]), out, tasks, lambda name: say(f"read: {name}"))
    raise UsageError(f"--from takes minari:ID ... without tasks, or one tdmpc2:FOLDER, got {' '.join(sources)}")


def _record(options: argparse.Namespace, tasks: Sequence[str]) -> tuple[StoredTask, ...]:
    """Play. Raises: UsageError."""
    try:
        noise = [float(each) for each in options.noise.split(",") if each]
    except ValueError as error:
        raise UsageError(f"--noise must be numbers separated by commas, got {options.noise!r}") from error
    settings: dict[str, object] = {name: getattr(options, name) for name in ("metaworld_repeat", "dmc_repeat")}
    if options.time_limit is not None:
        settings["time_limit"] = options.time_limit
        for task in tasks:
            suite = envs.SUITES.get(task.partition(":")[0])
            if suite is not None and "time_limit" not in suite.options:
                raise UsageError(f"{task} takes no --time-limit: leave it out, or record it alone")
    shown = time.monotonic()

    def progress(job: Job) -> None:
        nonlocal shown
        if time.monotonic() > shown + PROGRESS_S:
            shown = time.monotonic()
            say(f"{job[0]}: episode {job[1] + 1:,}")

    return collect(tasks, options.out, options.episodes, options.policy, noise=noise, seed=options.seed,
                   workers=options.workers, options=settings, open_run=open_run, progress=progress)  # fmt: skip


def report(folder: Path, stored: Sequence[StoredTask]) -> None:
    """Print episodes, share of rows, returns and success per task and behaviour."""
    total = sum(task.rows for task in stored)
    for task in stored:
        index = read_episodes(folder, task)
        say(f"{task.name}: {task.episodes:,} episodes, {task.rows:,} rows ({task.rows / total:.0%} of all), state "
            f"{task.state_size}, action {task.action_size}")
        for number, noise in dict.fromkeys(zip(index["behaviour"].tolist(), index["noise"].tolist(), strict=True)):
            part = index[(index["behaviour"] == number) & (index["noise"] == np.float32(noise))]
            returns = part["episode_return"]
            label = task.behaviours[number] + (f" with noise {noise:g}" if noise else "")
            success = f", success {part['success'].mean():.0%} (at the last step {part['final_success'].mean():.0%})"
            share = (part["steps"] + 1).sum() / task.rows
            say(f"  {label:<24}{len(part):>7,} episodes, {share:>4.0%} of its rows, return {returns.mean():.4g} "
                f"({returns.min():.4g} to {returns.max():.4g}){'' if task.success is None else success}")
    say(f"written: {folder}")


def open_run(run: str, task: str, seed: int) -> Policy:
    """A trained run at the start of an episode. Raises: UsageError if there is none, or it does not play the task."""
    import torch

    learner, specs, layout = _restored(run)
    names = [spec.name for spec in specs]
    if task not in names:
        raise UsageError(f"run {run} does not play {task}: it plays {', '.join(names)}")
    k, sizes = names.index(task), [spec.state_size for spec in specs]
    if None in sizes:
        raise UsageError(f"run {run} observes frames: name one that was trained with --env.obs state")
    learner.reseed(seed)
    actor, is_first = learner.actor(), torch.ones(len(specs), dtype=torch.bool)

    @torch.no_grad()
    def act(state: Numbers) -> Numbers:
        frame = torch.zeros(len(specs), max(sizes))  # the rows of the other tasks mean nothing
        frame[k, : sizes[k]] = torch.from_numpy(state)
        action = actor.act(frame, is_first).action
        actor.record(action)
        is_first[:] = False
        chosen: Numbers = layout.decode(k, action[k].numpy())
        return chosen

    return act


@cache
def _restored(run: str) -> tuple[Any, Any, Any]:
    """Learner, specs and action layout of RUN or RUN@CHECKPOINT."""
    import torch

    from mow.runs.restore import CHECKPOINTS, environments, find_run, restore

    path, _, name = run.partition("@")
    folder, is_kind = typed_path(path), name in ("", *CHECKPOINTS)
    saved = find_run(folder, name or "newest") if is_kind else find_run(folder / "checkpoints" / name)
    with environments(saved.config, seed=0, workers=0) as played:
        learner, _ = restore(saved.checkpoint, saved.config, played, torch.device("cpu"))
        return learner, tuple(played.specs), played.layout
