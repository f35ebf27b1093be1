"""Quality of a world model alone, on held-out play.  python -m bench.world_model [--game G | --tasks T ...]

A fixed recording is made on the spot (random and mixed play, bench/recording.py); the world model alone is trained on
it for some updates, and measured on held-out play (bench/world_model_measures.py). Each row is the preset with other
settings; "preset" is the preset as it is.

    --rows before preset together --seeds 0 1     some rows, two seeds
    --updates 2000 --steps 6000               how long, on how much play per task
    --json FILE                               all numbers
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.clock import Device
from bench.learners import make_learner
from bench.recording import Recording, record
from bench.world_model_measures import measure
from mow.cli.parse import override
from mow.kernels import PhiloxState
from mow.methods.mow.config import MowConfig
from mow.methods.mow.learner import Learner
from mow.methods.mow.presets import PRESETS
from mow.nn.policy import ActionMask

LENGTH, CONTEXT = 16, 2  # steps of a window in training and in measuring; steps seen before an open-loop prediction
_WINDOWS = 64  # held-out windows per task and look
_SHOWN = {
    "reconstruction/energy": "rec", "1 ahead/repeating": "1 step", "10 ahead/repeating": "10 steps", "KL": "KL",
    "KL/without past": "KL/none", "reward CE/base rate, real": "CE", "reward CE/base rate, imagined": "CE im.",
    "sign, real": "sign", "sign, imagined": "sign im.", "moving pixels kept, 10 ahead": "kept",
}  # fmt: skip


# Row -> overrides of the preset, as on the command line of mow.train.
ROWS = {
    "preset": "",
    "transition": "--model.outcome transition",
    "one-frame": "--model.prior-frames 1",
    "two-frames": "--model.prior-frames 2",
    "channel-norm": "--model.perception.norm channel",
    "groups-256": "--model.perception.groups 256",
    "groups-512": "--model.perception.groups 512 --model.perception.channels 48 96",
    "bn-per-task": "--model.perception.norm bn_per_task",
    "no-stale": "--model.stale-share 0",
    "harmony": "--loss.weighting harmony",
    "hidden-layers": "--optim.matrix-layers hidden",
    "no-decay": "--optim.matrix-decay 0",
    "together": "--model.prior-frames 2 --model.perception.groups 256",
    # The forms in use before rewards and ends were predicted from the latent that a step leads to.
    "before": "--model.outcome transition --model.prior-frames 1 --loss.weighting harmony --optim.matrix-decay 0 "
    "--model.two-hot-form symexp_of_mean",
}


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.world_model", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tasks = parser.add_mutually_exclusive_group()
    tasks.add_argument("--game", help="an Atari game, such as Boxing")
    tasks.add_argument("--tasks", nargs="+", default=["tiny:catch"], help="tasks that learn together (%(default)s)")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="quickstart")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=["preset"], help="settings to compare (%(default)s)")
    parser.add_argument("--updates", type=int, default=2000, help="of the world model (%(default)s)")
    parser.add_argument("--steps", type=int, default=6000, help="of recorded play per task (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if min(options.updates, options.steps - 2 * LENGTH) < 1:
        parser.error(f"--updates must be 1 or more and --steps above {2 * LENGTH}")
    if options.game:
        options.tasks = [f"atari:{options.game}"]
    return options


def make_config(options: argparse.Namespace, row: str, seed: int) -> MowConfig:
    """The preset with one row's overrides, the given number of updates, and as many frames per batch as the preset."""
    words = ["--tasks", *options.tasks, "--seed", str(seed), "--total-steps", str(options.updates + LENGTH + 1)]
    words += ["--schedule.prefill-steps", "0", "--schedule.warmup-updates", "0"]
    words += ["--schedule.world-model-every", "1", "--schedule.acting-context", "1"]
    preset = PRESETS[options.preset]()
    num_sequences = max(1, preset.batch.num_sequences * preset.batch.length // LENGTH)
    words += ["--batch.num-sequences", str(num_sequences), "--batch.length", str(LENGTH)]
    config = override(preset, [*words, *ROWS[row].split()])
    assert isinstance(config, MowConfig)
    return config


def train(config: MowConfig, recording: Recording, updates: int) -> tuple[Learner, float]:
    """Train a world model. Returns: its learner, and the median milliseconds of an update."""
    layout = recording.layout
    mask = ActionMask(torch.from_numpy(layout.discrete_mask), torch.from_numpy(layout.continuous_mask))
    learner = make_learner(config, torch.device("cpu"), mask)
    if config.model.perception.background != "none":
        frames = recording.windows(256, 1, 0, held_out=False).frame.flatten(1, 2)
        learner.world_model.set_background(frames)
    device, took = Device(), []
    for update in range(updates):
        batch = recording.windows(config.batch.num_sequences, config.batch.length, update, held_out=False)
        took.append(1e3 * device.seconds(partial(learner.update_world_model, batch)))
    return learner, statistics.median(took)


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One record per row and seed."""
    records = []
    for seed in options.seeds:
        recordings: dict[bool, Recording] = {}  # by whether final frames are recorded
        for row in options.rows:
            config = make_config(options, row, seed)
            final = config.final_frames
            if final not in recordings:
                recordings[final] = record(config, steps=options.steps, held_out=max(1000, options.steps // 4))
            learner, milliseconds = train(config, recordings[final], options.updates)
            seen = recordings[final].windows(512, 1, 1, held_out=False)
            rng = PhiloxState.from_seed(1, learner.device)
            found = measure(learner, recordings[final].windows(_WINDOWS, LENGTH, 2), seen, rng, context=CONTEXT)
            records.append({"row": row, "seed": seed, "ms": milliseconds, "tasks": list(config.tasks), **found})
            for k, task in enumerate(config.tasks):
                shown = "  ".join(f"{short} {found[name][k]:.3g}" for name, short in _SHOWN.items())
                print(f"{row}, seed {seed}, {task}: {shown}  {milliseconds:.0f} ms", flush=True)
    return records


def main(arguments: Sequence[str] | None = None) -> None:
    options = read_arguments(arguments)
    records = run(options)
    if options.json:
        given = {name: getattr(options, name) for name in ("preset", "updates", "steps")}
        clean = json.loads(json.dumps({**given, "records": records}), parse_constant=lambda _: None)
        options.json.write_text(json.dumps(clean, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
