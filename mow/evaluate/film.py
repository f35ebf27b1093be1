"""Frames that a trained world model imagines, beside the real ones: mow film RUN_FOLDER [--steps 16 ...]

Plays held-out episodes, shows the world model the first frames of some windows and imagines the rest along the actions
that were taken. Writes film.png (real frames above, imagined ones below) and film.json (errors). torch is imported
after the command line is parsed.
"""

import argparse
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mow.cli.parse import Parser, check_range
from mow.config.checks import LARGEST_SEED
from mow.engine.device import pick_device
from mow.errors import UsageError
from mow.evaluate.tables import Grid, number, plain
from mow.methods.mow.config import MowConfig, of_mow
from mow.runs.disk import folder_to_write
from mow.runs.failures import exit_code
from mow.runs.restore import find_run, restore
from mow.system.console import program, say
from mow.system.shell import typed_path
from mow.system.threads import limit_torch
from mow.system.whole_file import write_json, write_whole

if TYPE_CHECKING:
    from torch import Tensor

    from mow.envs.vector import VectorEnv
    from mow.evaluate.film_strip import Film

CONTEXT, STEPS = 2, 16  # frames that the world model sees and steps that it imagines, unless given
FRAME_ERRORS = ("imagined", "reconstructed", "repeated")
_TABLE_STEPS = (1, 4, 8, 16)  # steps ahead that the table shows, and the last one
_TAKEN = ("config", "versions", "scores", "evaluation")  # files of a run that a film's .json must not replace


@program("mow film")
def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 the film is written, 2 a mistake of the user (one line), 1 an error, 130 interrupted."""
    words = sys.argv[1:] if arguments is None else arguments
    return exit_code("mow film", lambda: run(read_arguments(words)))


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. Raises: UsageError in one line; SystemExit(0) after printing help."""
    about = "Film strips of real frames and of those that a trained world model imagines, and the errors of these."
    parser = Parser(prog="mow film", description=about, allow_abbrev=False)
    parser.add_argument("run_folder", type=typed_path, metavar="RUN_FOLDER", help="of a run or an export")
    parser.add_argument("--checkpoint", type=typed_path, help="default: the newest in RUN_FOLDER/checkpoints")
    parser.add_argument("--context", type=int, default=CONTEXT, help="frames that the world model sees (%(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps that it imagines (%(default)s)")
    parser.add_argument("--windows", type=int, default=8, help="per task, for the errors (%(default)s)")
    parser.add_argument("--seed", type=int, default=1000, help="of the episodes and of all draws (%(default)s)")
    parser.add_argument("--out", type=typed_path, help="picture to write; default: RUN_FOLDER/film.png")
    parser.add_argument("--policy", choices=("agent", "random"), default="agent", help="that plays (%(default)s)")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N; default: as the run")
    found = parser.parse_args(arguments)
    check_range(found, 1, 10_000, "context", "steps", "windows")
    check_range(found, 0, LARGEST_SEED, "seed")
    if not os.path.isdir(found.run_folder):
        raise UsageError(f"no folder {found.run_folder}: name a run folder, as mow train printed it")
    found.out = found.out or found.run_folder / "film.png"
    if found.out.suffix != ".png" or found.out.stem in _TAKEN or not found.out.parent.is_dir():
        raise UsageError(f"--out {found.out} must be a .png in an existing folder and not {', '.join(_TAKEN)}")
    return found


def run(options: argparse.Namespace) -> None:
    """Restore, play, imagine, draw, write. Raises: UsageError if a checkpoint, simulator or device is missing."""
    saved = find_run(options.run_folder)
    config, path = of_mow(saved.config), options.checkpoint or saved.checkpoint
    longest = config.model.max_positions
    if options.context + options.steps > longest:
        raise UsageError(
            f"--context {options.context} and --steps {options.steps} exceed the model's {longest} positions: "
            f"take at most {longest} together"
        )
    if options.seed == config.seed:
        raise UsageError(f"--seed {options.seed} is that of the run, whose episodes were trained on: take another")
    folder_to_write(options.out.parent, "--out")

    from mow.evaluate.film_strip import draw_film, film_of
    from mow.runs.signals import Stopped, StopSwitch

    device = pick_device(options.device or config.device)
    limit_torch()
    with fresh_envs(config, options.seed) as envs, StopSwitch() as switch:
        learner, step = restore(path, config, envs, device)
        try:
            film = film_of(
                learner, envs, context=options.context, steps=options.steps, num_windows=options.windows,
                seed=options.seed, plays_at_random=options.policy == "random", check_stop=switch.check,
            )  # fmt: skip
        except Stopped:
            say("stopped while episodes were played: no film is written")
            raise KeyboardInterrupt from None
        except ValueError as error:
            raise UsageError(str(error)) from error
        played = [spec.name for spec in envs.specs]
    order = [played.index(task) for task in config.tasks]  # the learner sorts its tasks by cluster
    tasks = {played[k]: summary(film, k) for k in order}
    settings = {name: getattr(options, name) for name in ("policy", "context", "steps", "windows", "seed")}
    player = {"agent": "by the agent", "random": "at random"}[options.policy]
    caption = (
        f"{config.preset}, {path.name}, episodes of seed {options.seed}, played {player}",
        f"{options.context} real frames are seen, {options.steps} imagined along the actions that were taken",
        "left of the line, below: reconstructed; blank: the episode is over; red bar: this step ends the task",
    )
    try:
        write_whole(options.out, draw_film(film, [(k, played[k]) for k in order], caption))
        content = {"checkpoint": str(path), "step": step, **settings, "tasks": tasks}
        write_json(options.out.with_suffix(".json"), content)
    except OSError as error:
        raise UsageError(f"cannot write {error.filename} ({error.strerror}): name another place with --out") from error
    say(table(tasks))
    say(f"film: {options.out}, numbers: {options.out.with_suffix('.json')}")


def fresh_envs(config: MowConfig, seed: int) -> "VectorEnv":
    """Environments of a run's tasks in this process. Raises: UsageError if a simulator is not installed."""
    from mow.envs.vector import make_vector

    try:
        return make_vector(
            config.tasks, seed=seed, num_workers=0, options=config.env.options, max_restarts=config.env.max_restarts,
            final_frames=config.final_frames,
        )  # fmt: skip
    except (ImportError, ValueError) as error:
        raise UsageError(str(error)) from error


def summary(film: "Film", k: int) -> dict[str, Any]:
    """Means of task k over its windows, for film.json; None where every episode has ended before."""
    errors, num_steps = film.errors, film.errors.reward.shape[-1]
    acted = ~errors.reward[k].isnan()  # [B, T]
    really = film.windows.batch.terminated[k, :, -num_steps - 1 : -1]
    ahead = {}
    for n in sorted({n for n in _TABLE_STEPS if n <= num_steps} | {num_steps}):
        column = {name: getattr(errors, name)[k, :, n - 1] for name in FRAME_ERRORS}
        count = int((~column["imagined"].isnan()).sum())
        ahead[str(n)] = {**{name: _mean(error) for name, error in column.items()}, "windows": count}
    return {
        "ahead": ahead,
        "reward_error": _mean(errors.reward[k]),
        "no_reward_error": _mean(errors.no_reward[k]),
        "termination_agreement": _mean(errors.agrees[k]),
        "steps": int(acted.sum()),
        "real_terminations": int((really & acted).sum()),
        "imagined_terminations": int((film.prediction.terminated[k] & acted).sum()),
    }


def _mean(error: "Tensor") -> float | None:
    mean = float(error.nanmean())
    return None if math.isnan(mean) else mean


def table(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """Lines for a console: frame errors by steps ahead, then rewards and terminations."""

    def cells(found: Mapping[str, Any], names: Iterable[str]) -> tuple[str, ...]:
        return tuple(number(found[name], 5) for name in names)

    frames: Grid = [("task", "steps ahead", *FRAME_ERRORS, "windows")]
    steps: Grid = [("task", "reward", "0", "agreement", "steps", "ends", "imagined ends")]
    for task, found in tasks.items():
        for ahead, row in found["ahead"].items():
            frames.append((task, ahead, *cells(row, FRAME_ERRORS), str(row["windows"])))
        counts = (str(found[name]) for name in ("steps", "real_terminations", "imagined_terminations"))
        steps.append((task, *cells(found, ("reward_error", "no_reward_error", "termination_agreement")), *counts))
    return "\n".join(
        [
            "squared error per pixel channel, frames in [0, 1], of the imagined frame, of the posterior's "
            "reconstruction, of the last seen frame repeated",
            *plain(frames),
            "absolute error of the imagined reward and of expecting 0; share of steps whose termination is imagined "
            "right",
            *plain(steps),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
