"""Scores of trained runs: mow evaluate RUN [RUN ...] [--episodes 20 ...]

Plays whole held-out episodes of every task, with actions drawn from the policy. Several runs are treated as seeds of
one method. Writes evaluation.json and evaluation.md, and with --video the first episodes as GIFs. torch is imported
after the command line is parsed.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from mow.cli.parse import Parser, check_range
from mow.config.checks import LARGEST_SEED
from mow.config.run import SEED_FIELDS
from mow.engine.device import num_workers, pick_device
from mow.errors import UsageError
from mow.evaluate.aggregates import summarise
from mow.evaluate.tables import Run, TaskRow, as_json, compare, grids, markdown, normalised_scores, plain, task_rows
from mow.evaluate.video import LONGEST
from mow.methods.mow.ablations import flat
from mow.runs.disk import folder_to_write
from mow.runs.failures import exit_code
from mow.runs.restore import CHECKPOINTS, SavedRun, environments, find_run, restore
from mow.system.console import program, say
from mow.system.file_names import file_name
from mow.system.shell import typed_path
from mow.system.whole_file import write_json, write_whole

if TYPE_CHECKING:
    import torch

# Agent steps of a full Atari episode at most.
_LONGEST_EPISODE = 27_000


@program("mow evaluate")
def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 the scores are written, 2 a mistake of the user (one line), 1 an error, 130 interrupted."""
    words = sys.argv[1:] if arguments is None else arguments
    return exit_code("mow evaluate", lambda: run(read_arguments(words)))


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. Raises: UsageError in one line; SystemExit(0) after printing help."""
    about = "Scores of trained runs in fresh environments; several runs are treated as seeds of one method."
    parser = Parser(prog="mow evaluate", description=about, allow_abbrev=False)
    parser.add_argument(
        "runs", type=typed_path, nargs="+", metavar="RUN", help="folder that mow train wrote, or one of its checkpoints"
    )
    parser.add_argument("--checkpoint", choices=CHECKPOINTS, default="newest", help="of each folder (%(default)s)")
    parser.add_argument("--episodes", type=int, default=20, help="per task and run (%(default)s)")
    parser.add_argument("--seed", type=int, default=1000, help="of the episodes and of all draws (%(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s)")
    about = f"film the first N episodes of each task, of each the first {LONGEST:,} steps"
    parser.add_argument("--video", type=int, default=0, metavar="N", help=about)
    about = "folder for the results; default: the run's, or with several the first one's parent"
    parser.add_argument("--out", type=typed_path, help=about)
    found = parser.parse_args(arguments)
    check_range(found, 1, 1_000_000, "episodes")
    check_range(found, 0, LARGEST_SEED, "seed")
    if not 0 <= found.video <= found.episodes:
        raise UsageError(f"--video must be 0 to --episodes {found.episodes}, got {found.video}")
    return found


def run(options: argparse.Namespace) -> None:
    """Restore, play, tabulate, write. Raises: UsageError if a checkpoint, simulator or device is missing."""
    runs = comparable([find_run(path, options.checkpoint) for path in options.runs], options.seed)
    out = options.out or (runs[0].folder if len(runs) == 1 else runs[0].folder.parent)
    device = pick_device(options.device)
    if len(runs) > 1:
        for one in runs:  # a broken one is reported before the first is played
            with environments(one.config, seed=options.seed, workers=0) as envs:
                restore(one.checkpoint, one.config, envs, device)
    folder_to_write(out, "--out")
    played = []
    for i, one in enumerate(runs):
        say(f"run {i + 1} of {len(runs)}: {one.checkpoint}, {options.episodes} episodes of each task")
        folder = out / "videos" if len(runs) == 1 else out / "videos" / f"{i + 1}-{one.folder.name}"
        played.append(_play(one, options, device, folder))
    rows = task_rows(played, runs[0].config.tasks)
    found = summarise(normalised_scores(rows))
    notes = remarks(runs, played, rows, options)
    text = ["# Evaluation", "", *(f"- {note}" for note in notes)]
    for grid in grids(rows, found):
        text += ["", *markdown(grid)]
        say("\n".join(["", *plain(grid)]))
    say("\n" + "\n".join(notes))
    settings = {"episodes": options.episodes, "seed": options.seed}
    write_json(out / "evaluation.json", {**settings, **as_json(played, rows, found)})
    write_whole(out / "evaluation.md", "\n".join(text) + "\n")
    say(f"written: {out / 'evaluation.json'} and evaluation.md")


def comparable(runs: list[SavedRun], seed: int) -> list[SavedRun]:
    """Check runs and return them. Raises: UsageError if they cannot be compared, or one was trained with `seed`."""
    first = runs[0]
    for i, one in enumerate(runs):
        # Not Path.resolve, which raises where a link leads to itself.
        if os.path.realpath(one.checkpoint) in [os.path.realpath(other.checkpoint) for other in runs[:i]]:
            raise UsageError(f"{one.folder} is named twice: a run counts once")
        if sorted(one.config.tasks) != sorted(first.config.tasks):
            raise UsageError(
                f"{one.folder} has other tasks ({', '.join(one.config.tasks)}) than {first.folder} "
                f"({', '.join(first.config.tasks)}): evaluate them one by one"
            )
        if one.config.env.options != first.config.env.options:
            raise UsageError(
                f"{one.folder} has another protocol or action set than {first.folder}: evaluate them one by one"
            )
        if one.config.seed == seed:
            raise UsageError(
                f"--seed {seed} is that of {one.folder}, whose episodes were trained on: take another --seed"
            )
    return runs


def remarks(
    runs: Sequence[SavedRun], played: Sequence[Run], rows: Sequence[TaskRow], options: argparse.Namespace
) -> list[str]:
    """Lines about the runs, the protocol and the limits of the numbers."""
    lines = [
        f"run {i}: {one['preset']}, seed {one['seed']}, {one['step']:,} environment steps per task, {one['checkpoint']}"
        for i, one in enumerate(played, start=1)
    ]
    protocols = sorted({words for one in played for words in one["protocols"].values()})
    lines.append(
        f"{options.episodes} episodes per task and run, of seed {options.seed}; actions drawn from the policy; "
        f"protocol: {'; '.join(protocols)}"
    )
    lines.append("normalised: 0 is random play, 1 the reference (an expert or a human); std: of single episodes")
    if len(runs) == 1:
        lines.append("no intervals: they need two or more runs that differ in their seed")
    else:
        lines.append(
            f"intervals: 95 %, stratified bootstrap over {len(runs)} runs within each task; coarse with few runs, "
            "and they treat the tasks of a run as independent"
        )
    configs = [flat(one.config) for one in runs]
    differing = sorted({k for one in configs for k, value in one.items() if value != configs[0][k]} - SEED_FIELDS)
    if differing:
        lines.append(f"the runs are treated as seeds of one method, but they differ in {', '.join(differing)}")
    if compare(rows):
        lines.append(
            "published returns: one model per game, means over 5 seeds after 100,000 steps per game, their IQM and "
            "optimality gap taken over these means"
        )
    return lines


def _play(one: SavedRun, options: argparse.Namespace, device: "torch.device", videos: Path) -> Run:
    """Play all episodes of one run and write its GIFs to the folder `videos`.

    Raises: UsageError if it cannot be restored or the folder cannot be written; KeyboardInterrupt, after a line, at
        SIGINT or SIGTERM.
    """
    from mow.engine.evaluator import ScoringProgress, evaluate
    from mow.evaluate.pictures import drawing, same
    from mow.evaluate.video import FilmedEnvs
    from mow.runs.signals import Stopped, StopSwitch

    if options.video:
        folder_to_write(videos, "--out")
    longest = options.episodes * _LONGEST_EPISODE
    workers = num_workers(one.config)
    drawn = drawing(one.config, seed=options.seed, workers=workers) if options.video else nullcontext(same)
    with drawn as draw, environments(one.config, seed=options.seed, workers=workers) as envs, StopSwitch() as switch:
        learner, step = restore(one.checkpoint, one.config, envs, device)
        learner.reseed(options.seed)
        # After restoring, which sorts the tasks by cluster.
        filmed = FilmedEnvs(envs, [videos / file_name(spec.name) for spec in envs.specs], options.video, draw)
        progress = ScoringProgress(len(one.config.tasks), options.episodes, say, switch.check)
        try:
            results = evaluate(
                learner,
                filmed,  # type: ignore[arg-type]  # it has the methods of the environments that it wraps
                episodes=options.episodes,
                max_steps=longest,
                on_episode=progress.episode,
                check_stop=progress.step,
            )
        except Stopped:
            say(f"stopped after {progress.line}: no scores are written, the same command plays from the start")
            raise KeyboardInterrupt from None
        tasks = {
            result.task: {
                "returns": result.returns,
                "lengths": result.lengths,
                "successes": [episode.success for episode in episodes[: len(result.returns)]],
                "final_successes": [episode.final_success for episode in episodes[: len(result.returns)]],
            }
            for result, episodes in zip(results, filmed.episodes, strict=True)
        }
        protocols = {spec.name: spec.protocol for spec in envs.specs}
    if progress.ended < progress.total:
        say(f"stopped at the limit of {longest:,} steps with {progress.line}")
    if options.video:
        say(f"videos: {videos}, of each episode the first {LONGEST:,} steps")
    return {
        "folder": str(one.folder), "checkpoint": str(one.checkpoint), "step": step, "preset": one.config.preset,
        "seed": one.config.seed, "protocols": protocols, "tasks": tasks,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
