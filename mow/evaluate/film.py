"""See what a trained world model imagines: mow film RUN_FOLDER [--steps 16 ...]

Plays episodes that training has never seen, lets the world model look at the first frames of some windows and imagine
the rest along the actions that were taken. Writes film.png (real above, imagined below) and film.json (the errors).
Nothing heavy is imported before the command line is understood.
"""

import argparse
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mow.cli.parse import Parser, check_range
from mow.config.checks import LARGEST_SEED
from mow.engine.device import pick_device
from mow.errors import UsageError
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

    from mow.evaluate.film_strip import Strip
    from mow.evaluate.held_out import HeldOutWindows
    from mow.evaluate.open_loop import Foresight, ForesightErrors
    from mow.evaluate.past import PastUse

_TABLE_STEPS = (1, 4, 8, 16)  # steps ahead that the table shows, and the last one

# Files of a run folder that a film's .json must not replace.
_TAKEN = ("config", "versions", "scores", "evaluation")


@program("mow film", lossy=True)
def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 the film is written, 2 it cannot be made (one line), 1 something broke, 130 interrupted."""
    words = sys.argv[1:] if arguments is None else arguments
    return exit_code("mow film", lambda: run(read_arguments(words)))


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """What is asked for. Raises: UsageError in one line; SystemExit(0) after printing help."""
    about = "Film strips of what a trained world model imagines, and how far it is from what came."
    parser = Parser(prog="mow film", description=about, allow_abbrev=False)
    parser.add_argument("run_folder", type=typed_path, metavar="RUN_FOLDER", help="of a run or an export")
    parser.add_argument("--checkpoint", type=typed_path, help="default: the newest in RUN_FOLDER/checkpoints")
    parser.add_argument("--context", type=int, default=2, help="frames that the world model sees (%(default)s)")
    parser.add_argument("--steps", type=int, default=16, help="steps that it imagines (%(default)s)")
    parser.add_argument("--windows", type=int, default=8, help="per task, for the errors (%(default)s)")
    parser.add_argument("--seed", type=int, default=1000, help="of the episodes and of all draws (%(default)s)")
    parser.add_argument("--out", type=typed_path, help="picture to write; default: RUN_FOLDER/film.png")
    parser.add_argument("--policy", choices=("agent", "random"), default="agent", help="who plays (%(default)s)")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N; default: as the run")
    found = parser.parse_args(arguments)
    check_range(found, 1, 10_000, "context", "steps", "windows")
    check_range(found, 0, LARGEST_SEED, "seed")
    if not os.path.isdir(found.run_folder):
        raise UsageError(f"no folder {found.run_folder}: name a run folder, as mow.train printed it")
    found.out = found.out or found.run_folder / "film.png"
    if found.out.suffix != ".png" or found.out.stem in _TAKEN or not found.out.parent.is_dir():
        raise UsageError(f"--out {found.out} must be a .png in an existing folder and not {', '.join(_TAKEN)}")
    return found


def run(asked: argparse.Namespace) -> None:
    """Restore, play, foresee, draw, write. Raises: UsageError if something that is asked for is not to be had."""
    config = _config(asked)
    # Before torch is loaded: a folder without a checkpoint is answered at once.
    path = asked.checkpoint or find_run(asked.run_folder).checkpoint
    folder_to_write(asked.out.parent, "--out")

    import numpy as np

    from mow.envs.vector import make_vector
    from mow.evaluate.held_out import play_windows
    from mow.evaluate.open_loop import foresee, foresight_errors, reconstruct, split
    from mow.evaluate.past import past_use
    from mow.kernels import PhiloxState
    from mow.runs.signals import Stopped, StopSwitch

    device = pick_device(asked.device or config.device)
    limit_torch()
    options = config.env.options
    try:
        envs = make_vector(
            config.tasks, seed=asked.seed, num_workers=0, options=options, max_restarts=config.env.max_restarts,
            final_frames=config.final_frames,
        )  # fmt: skip
    except (ImportError, ValueError) as error:
        raise UsageError(str(error)) from error
    with envs, StopSwitch() as switch:
        learner, step = restore(path, config, envs, device)
        rng = PhiloxState.from_seed(asked.seed, device)  # one stream, so that play and imagination share no draw
        try:
            windows = play_windows(
                learner,
                envs,
                player=asked.policy,
                num_windows=asked.windows,
                length=asked.context + asked.steps,
                shortest=asked.context + 1,
                rng=rng,
                generator=np.random.default_rng(asked.seed),
                check_stop=switch.check,
            )
        except Stopped:
            say("stopped while episodes were played: no film is written")
            raise KeyboardInterrupt from None
        except ValueError as error:
            raise UsageError(str(error)) from error
        played = [spec.name for spec in envs.specs]
    foresight = foresee(
        learner.world_model,
        *split(windows.batch, asked.context),
        learner.routing(),
        rng,
        temperature=learner.config.imagination.temperature,
    )
    reconstruction = reconstruct(learner.world_model, windows.batch.frame, rng)
    errors = foresight_errors(foresight, reconstruction, windows)
    routing, longest = learner.routing(), config.batch.length  # what lies further on in a window is not trained
    past = past_use(learner.world_model, learner.agent, windows, routing, rng, longest=longest)
    order = [played.index(task) for task in config.tasks]  # the learner sorts its tasks by cluster
    content: dict[str, Any] = {
        "checkpoint": str(path),
        "step": step,
        **{name: getattr(asked, name) for name in ("policy", "context", "steps", "windows", "seed")},
        "tasks": {played[k]: {**summary(errors, windows, foresight, k), "past": of_past(past, k)} for k in order},
    }
    strips = [one_strip(played[k], windows, foresight, reconstruction, k) for k in order]
    _write(asked, strips, content, _caption(asked, config, path))
    say(table(content["tasks"]))
    say(f"film: {asked.out}, numbers: {asked.out.with_suffix('.json')}")


def _config(asked: argparse.Namespace) -> MowConfig:
    """The run's config, if what is asked goes with it."""
    try:
        config = of_mow(read_config(asked.run_folder / "config.json"))
    except ValueError as error:
        raise UsageError(str(error)) from error
    longest = config.model.max_positions
    if asked.context + asked.steps > longest:
        raise UsageError(
            f"--context {asked.context} and --steps {asked.steps} exceed the model's {longest} positions: "
            f"take at most {longest} together"
        )
    if asked.seed == config.seed:
        raise UsageError(f"--seed {asked.seed} is that of the run, whose episodes were trained on: take another")
    return config


# Numbers -------------------------------------------------------------------------------------------------------------


def summary(
    errors: "ForesightErrors", windows: "HeldOutWindows", foresight: "Foresight", k: int
) -> dict[str, Any]:
    """Means of task k over the windows that live, for film.json; None where none does."""
    num_steps = errors.reward.shape[-1]
    acted = ~errors.reward[k].isnan()  # [B, T]
    really = windows.batch.terminated[k, :, -num_steps - 1 : -1]
    ahead = {}
    for n in sorted({n for n in _TABLE_STEPS if n <= num_steps} | {num_steps}):
        column = {name: getattr(errors, name)[k, :, n - 1] for name in ("imagined", "reconstructed", "repeated")}
        count = int((~column["imagined"].isnan()).sum())
        ahead[str(n)] = {**{name: _mean(error) for name, error in column.items()}, "windows": count}
    return {
        "ahead": ahead,
        "reward_error": _mean(errors.reward[k]),
        "no_reward_error": _mean(errors.no_reward[k]),
        "termination_agreement": _mean(errors.agrees[k]),
        "steps": int(acted.sum()),
        "real_terminations": int((really & acted).sum()),
        "imagined_terminations": int((foresight.terminated[k] & acted).sum()),
    }


def of_past(past: "PastUse", k: int) -> dict[str, float | None]:
    """What the past of a step decides in task k, for film.json."""
    return {field.name: _mean(getattr(past, field.name)[k]) for field in fields(past)}


def _mean(error: "Tensor") -> float | None:
    mean = float(error.nanmean())
    return None if math.isnan(mean) else mean


def table(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """The numbers for eyes: frames by steps ahead, then rewards and terminations."""
    lines = [
        "squared error per pixel channel, frames in [0, 1], of the imagined frame, of the posterior's reconstruction, "
        "of the last seen frame repeated",
        f"{'task':<24}{'steps ahead':>12}{'imagined':>12}{'reconstructed':>15}{'repeated':>12}{'windows':>9}",
    ]
    for task, numbers in tasks.items():
        for ahead, row in numbers["ahead"].items():
            shown = f"{_number(row['imagined'], 12)}{_number(row['reconstructed'], 15)}{_number(row['repeated'], 12)}"
            lines.append(f"{task:<24}{ahead:>12}{shown}{row['windows']:>9}")
    lines += [
        "absolute error of the imagined reward and of expecting 0; share of steps whose termination is imagined right",
        f"{'task':<24}{'reward':>12}{'0':>12}{'agreement':>12}{'steps':>8}{'ends':>7}{'imagined ends':>15}",
    ]
    for task, numbers in tasks.items():
        shown = "".join(
            _number(numbers[name], 12) for name in ("reward_error", "no_reward_error", "termination_agreement")
        )
        ends = f"{numbers['real_terminations']:>7}{numbers['imagined_terminations']:>15}"
        lines.append(f"{task:<24}{shown}{numbers['steps']:>8}{ends}")
    lines += [
        "nats: KL of the next latent from what was foretold, without any past, and with that of another window; of the "
        "policy from the policy with the past of another window",
        f"{'task':<24}{'foretold':>12}{'no past':>12}{'another':>12}{'policy':>12}",
    ]
    for task, numbers in tasks.items():
        lines.append(f"{task:<24}{''.join(_number(value, 12) for value in numbers['past'].values())}")
    return "\n".join(lines)


def _number(value: float | None, width: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.5f}"


# Pictures ------------------------------------------------------------------------------------------------------------


def one_strip(
    name: str, windows: "HeldOutWindows", foresight: "Foresight", reconstruction: "Tensor", k: int
) -> "Strip":
    """The window of task k that lives longest, the first of these."""
    import torch

    from mow.evaluate.film_strip import Strip

    length = windows.length[k].tolist()
    b = length.index(max(length))
    num_columns, num_steps = windows.batch.reward.shape[2], foresight.reward.shape[2]
    num_context = num_columns - num_steps
    imagined = torch.cat([reconstruction[k, b, :num_context], foresight.frame[k, b]])  # [n, 64, 64, 3]
    column, num_actions = torch.arange(num_columns), int(windows.num_actions[k, b])
    # Column t shows where the action of step t - 1 led; none led to the first.
    real_end, imagined_end = torch.zeros(2, num_columns, dtype=torch.bool)
    real_end[1:] = windows.batch.terminated[k, b, :-1].cpu()
    imagined_end[num_context:] = foresight.terminated[k, b].cpu()
    return Strip(
        name=name,
        real=windows.batch.frame[k, b].cpu().numpy(),
        imagined=(255.0 * imagined.clamp(0.0, 1.0)).round().to(torch.uint8).cpu().numpy(),
        shown=(column < length[b]).numpy(),
        led_to=(column <= num_actions).numpy(),
        real_end=real_end.numpy(),
        imagined_end=(imagined_end & (column <= num_actions)).numpy(),
    )


def _caption(asked: argparse.Namespace, config: MowConfig, path: Path) -> tuple[str, ...]:
    player = {"agent": "by the agent", "random": "at random"}[asked.policy]
    return (
        f"{config.preset}, {path.name}: {asked.context} real frames are seen, then {asked.steps} imagined along the "
        f"actions that were taken ({player}, in episodes of seed {asked.seed})",
        "numbers: steps ahead; below, left of the line: reconstructed; blank: the episode is over; "
        "red bar: the task ends in this step, really or as imagined",
    )


def _write(asked: argparse.Namespace, strips: "list[Strip]", content: dict[str, Any], text: tuple[str, ...]) -> None:
    """film.png and film.json."""
    import cv2

    from mow.evaluate.film_strip import draw_film

    picture = draw_film(strips, text, num_context=asked.context)
    _, encoded = cv2.imencode(".png", picture[:, :, ::-1])
    try:
        write_whole(asked.out, encoded.tobytes())
        write_json(asked.out.with_suffix(".json"), content)
    except OSError as error:
        raise UsageError(f"cannot write {error.filename} ({error.strerror}): name another place with --out") from error


if __name__ == "__main__":
    sys.exit(main())
