"""Export of a trained agent: mow export RUN [--out FOLDER] [--precision fp32|fp16|int8]

Writes model.safetensors (weights of world model and agent), config.json and README.md, a model card. mow.load,
`mow evaluate` and `mow film` take the folder like that of a run (of a method on states: `mow evaluate`, and of pwm
`mow extract` and `mow distill`); training cannot go on from it. torch is imported after the command line is parsed.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from mow.cli.parse import Parser
from mow.errors import UsageError
from mow.inference.model_card import OF_MOW, OF_STATES, read_scores, write_card
from mow.methods.base import num_parameters
from mow.methods.mow.config import of_mow
from mow.methods.registry import get_method
from mow.runs.failures import exit_code
from mow.runs.restore import WEIGHTS, environments, find_run, newest_checkpoint, restore
from mow.system.console import program, say
from mow.system.shell import typed_path
from mow.system.whole_file import write_json, write_whole


@program("mow export")
def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 the weights are written, 2 a mistake of the user (one line), 1 an error, 130 interrupted."""
    words = sys.argv[1:] if arguments is None else arguments
    return exit_code("mow export", lambda: run(read_arguments(words)))


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. Raises: UsageError in one line; SystemExit(0) after printing help."""
    about = "Weights of a trained agent as safetensors, with its config and a model card."
    parser = Parser(prog="mow export", description=about, allow_abbrev=False)
    parser.add_argument("run", type=typed_path, metavar="RUN", help="folder of a run, or one of its checkpoints")
    parser.add_argument("--out", type=typed_path, help="folder to write, new or empty; default: RUN/export")
    about = "of the weights, for a method on states; all are float32 again once they are loaded"
    parser.add_argument("--precision", choices=("fp32", "fp16", "int8"), default="fp32", help=about)
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Restore and write. Raises: UsageError if there is nothing to write or no place to write to."""
    saved = find_run(options.run)
    config, networks = saved.config, get_method(saved.config.method).exported
    if not networks:
        of_mow(config)
        if options.precision != "fp32":
            raise UsageError("a run of mow is exported as fp32 alone: leave --precision out")
    out: Path = options.out or saved.folder / "export"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is not empty: give another --out, so that nothing is overwritten")

    import torch

    from mow.runs.weights import write_networks, write_weights

    with environments(config, seed=0, workers=0) as envs:
        learner, step = restore(saved.checkpoint, config, envs, torch.device("cpu"))
        specs = [dataclasses.asdict(spec) for spec in envs.specs]
        tasks = [spec.name for spec in envs.specs]  # sorted by cluster
    newest = newest_checkpoint(saved.folder) if saved.checkpoint.suffix == ".pt" else saved.checkpoint
    columns: dict[str, dict[str, object]] = {}
    if networks:
        millions = sum(p.numel() for name in networks for p in learner.networks[name].parameters()) / 1e6
        made = f"{get_method(config.method).summary(config)}; {millions:.2f} M parameters, {options.precision}."
    else:
        routes = [" ".join(map(str, route)) for route in learner.routing().plan.routes.tolist()]
        columns = {"cluster": dict(zip(tasks, learner.world_model.module_of_task, strict=True)),
                   "experts": dict(zip(tasks, routes, strict=True))}  # fmt: skip
        made = (f"{step:,} environment steps per task, {learner.updates:,} world-model updates, "
                f"{num_parameters(learner) / 1e6:.2f} M learned parameters.")
    try:
        scores = read_scores(saved.folder, saved.checkpoint, newest)
        lines = write_card(config, f"{made} Exported from `{saved.checkpoint.name}`.", columns, scores,
                           saved.folder / "versions.json", OF_STATES if networks else OF_MOW)  # fmt: skip
        card = "\n".join(lines) + "\n"
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise UsageError(
            f"a .json of {saved.folder} is not as this version writes it ({error}): move scores.json, evaluation.json "
            "or versions.json away"
        ) from error
    try:
        out.mkdir(parents=True, exist_ok=True)
        content = {"step": step, "tasks": tasks, "specs": specs}
        if networks:
            write_networks(out / WEIGHTS, learner, networks, options.precision, content)
        else:
            write_weights(out / WEIGHTS, learner, content)
        write_json(out / "config.json", dataclasses.asdict(config))
        write_whole(out / "README.md", card)
    except (ImportError, ValueError) as error:
        out.rmdir()
        raise UsageError(str(error)) from error
    except OSError as error:
        raise UsageError(f"cannot write to {out} ({error.strerror}): name another place with --out") from error
    size, use = (out / WEIGHTS).stat().st_size, f"mow evaluate {out}" if networks else f"mow.load({str(out)!r})"
    say(f"written: {out / WEIGHTS} ({size / 1e6:.1f} MB), config.json and README.md; load with {use}")


if __name__ == "__main__":
    sys.exit(main())
