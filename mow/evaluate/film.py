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
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mow.cli.parse import Parser, check_range
from mow.config.checks import LARGEST_SEED
from mow.engine.device import pick_device
from mow.errors import UsageError
from mow.evaluate.tables import Grid, number, plain
from mow.methods.mow.config import MowConfig, of_mow
from mow.methods.registry import read_config
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
    from mow.evaluate.past import PastUse

_TABLE_STEPS = (1, 4, 8, 16)  # steps ahead that the table shows, and the last one
_FRAME_ERRORS = ("imagined", "reconstructed", "repeated")
_STEP_ERRORS = ("reward_error", "no_reward_error", "termination_agreement")

# Files of a run folder that a film's .json must not replace.
_TAKEN = ("config", "versions", "scores", "evaluation")


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
    parser.add_argument("--context", type=int, default=2, help="frames that the world model sees (%(default)s)")
    parser.add_argument("--steps", type=int, default=16, help="steps that it imagines (%(default)s)")
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
    config = _config(options)
    # Before torch is loaded: a folder without a checkpoint is reported at once.
    path = options.checkpoint or find_run(options.run_folder).checkpoint
    folder_to_write(options.out.parent, "--out")

    import numpy as np

    from mow.evaluate.film_strip import draw_film, imagine, one_strip, png
    from mow.evaluate.held_out import play_windows
    from mow.evaluate.past import past_use
    from mow.kernels import PhiloxState
    from mow.runs.signals import Stopped, StopSwitch

    device = pick_device(options.device or config.device)
    limit_torch()
    with fresh_envs(config, options.seed) as envs, StopSwitch() as switch:
        learner, step = restore(path, config, envs, device)
        rng = PhiloxState.from_seed(options.seed, device)  # one stream, so that play and imagination share no draw
        try:
            windows = play_windows(
                learner,
                envs,
                player=options.policy,
                num_windows=options.windows,
                length=options.context + options.steps,
                shortest=options.context + 1,
                rng=rng,
                generator=np.random.default_rng(options.seed),
                check_stop=switch.check,
            )
        except Stopped:
            say("stopped while episodes were played: no film is written")
            raise KeyboardInterrupt from None
        except ValueError as error:
            raise UsageError(str(error)) from error
        played = [spec.name for spec in envs.specs]
    film = imagine(learner, windows, options.context, rng)
    longest = config.batch.length  # steps beyond it are not trained
    past = past_use(learner.world_model, learner.agent, windows, learner.routing(), rng, longest=longest)
    order = [played.index(task) for task in config.tasks]  # the learner sorts its tasks by cluster
    content: dict[str, Any] = {
        "checkpoint": str(path),
        "step": step,
        **{name: getattr(options, name) for name in ("policy", "context", "steps", "windows", "seed")},
        "tasks": {played[k]: {**summary(film, k), "past": of_past(past, k)} for k in order},
    }
    strips = [one_strip(film, k, played[k]) for k in order]
    picture = draw_film(strips, _caption(options, config, path), num_context=options.context)
    try:
        write_whole(options.out, png(picture))
        write_json(options.out.with_suffix(".json"), content)
    except OSError as error:
        raise UsageError(f"cannot write {error.filename} ({error.strerror}): name another place with --out") from error
    say(table(content["tasks"]))
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


def _config(options: argparse.Namespace) -> MowConfig:
    """The run's config. Raises: UsageError if --context, --steps or --seed do not fit it."""
    try:
        config = of_mow(read_config(options.run_folder / "config.json"))
    except ValueError as error:
        raise UsageError(str(error)) from error
    longest = config.model.max_positions
    if options.context + options.steps > longest:
        raise UsageError(
            f"--context {options.context} and --steps {options.steps} exceed the model's {longest} positions: "
            f"take at most {longest} together"
        )
    if options.seed == config.seed:
        raise UsageError(f"--seed {options.seed} is that of the run, whose episodes were trained on: take another")
    return config


def _caption(options: argparse.Namespace, config: MowConfig, path: Path) -> tuple[str, ...]:
    player = {"agent": "by the agent", "random": "at random"}[options.policy]
    return (
        f"{config.preset}, {path.name}, episodes of seed {options.seed}, played {player}",
        f"{options.context} real frames are seen, {options.steps} imagined along the actions that were taken",
        "left of the line, below: reconstructed; numbers: steps ahead",
        "blank: the episode is over; red bar: this step ends the task",
    )


# Numbers -------------------------------------------------------------------------------------------------------------


def summary(film: "Film", k: int) -> dict[str, Any]:
    """Means of task k over its windows, for film.json; None where every episode has ended before."""
    errors, num_steps = film.errors, film.errors.reward.shape[-1]
    acted = ~errors.reward[k].isnan()  # [B, T]
    really = film.windows.batch.terminated[k, :, -num_steps - 1 : -1]
    ahead = {}
    for n in sorted({n for n in _TABLE_STEPS if n <= num_steps} | {num_steps}):
        column = {name: getattr(errors, name)[k, :, n - 1] for name in _FRAME_ERRORS}
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


def of_past(past: "PastUse", k: int) -> dict[str, float | None]:
    """Effect of the past of a step on task k, for film.json."""
    return {field.name: _mean(getattr(past, field.name)[k]) for field in fields(past)}


def _mean(error: "Tensor") -> float | None:
    mean = float(error.nanmean())
    return None if math.isnan(mean) else mean


def table(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """Lines for a console: frame errors by steps ahead, then rewards and terminations, then the effect of the past."""

    def cells(found: Mapping[str, Any], names: Iterable[str]) -> tuple[str, ...]:
        return tuple(number(found[name], 5) for name in names)

    frames = [
        (task, ahead, *cells(row, _FRAME_ERRORS), str(row["windows"]))
        for task, found in tasks.items()
        for ahead, row in found["ahead"].items()
    ]
    counts = ("steps", "real_terminations", "imagined_terminations")
    steps = [(task, *cells(found, _STEP_ERRORS), *(str(found[n]) for n in counts)) for task, found in tasks.items()]
    past = [(task, *cells(found["past"], found["past"])) for task, found in tasks.items()]
    return "\n".join(
        [
            "squared error per pixel channel, frames in [0, 1], of the imagined frame, of the posterior's "
            "reconstruction, of the last seen frame repeated",
            *plain(Grid(("task", "steps ahead", *_FRAME_ERRORS, "windows"), tuple(frames))),
            "absolute error of the imagined reward and of expecting 0; share of steps whose termination is imagined "
            "right",
            *plain(Grid(("task", "reward", "0", "agreement", "steps", "ends", "imagined ends"), tuple(steps))),
            "nats: KL of the next latent from its prediction, without any past, and with that of another window; of "
            "the policy from the policy with the past of another window",
            *plain(Grid(("task", "predicted", "no past", "another", "policy"), tuple(past))),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
