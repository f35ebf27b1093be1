"""Has the world model learnt its task?  python -m bench.world_model [--game Boxing | --tasks tiny:bounce ...]

A fixed recording is made on the spot (random and mixed play, bench/recording.py); the world model alone is trained on
it for some updates, and measured on held-out play (bench/world_model_measures.py). Each row is the preset with other
settings; "preset" is the preset as it is.

    --rows before preset together --seeds 0 1     some rows, two seeds
    --updates 2000 --steps 6000               how long, on how much play per task
    --json FILE                               all numbers
"""

import argparse
import dataclasses
import functools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.recording import Recording, record
from bench.world_model_measures import Measured, mean_code, measure
from mow.kernels import PhiloxState
from mow.methods.mow.clustering import from_labels
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


def _perception(**changes: Any) -> Callable[[MowConfig], MowConfig]:
    def changed(config: MowConfig) -> MowConfig:
        perception = dataclasses.replace(config.model.perception, **changes)
        return dataclasses.replace(config, model=dataclasses.replace(config.model, perception=perception))

    return changed


def _part(name: str, **changes: Any) -> Callable[[MowConfig], MowConfig]:
    """Other values in one part of the config, as loss or optim."""

    def changed(config: MowConfig) -> MowConfig:
        return dataclasses.replace(config, **{name: dataclasses.replace(getattr(config, name), **changes)})

    return changed


def _in_turn(*changes: Callable[[MowConfig], MowConfig]) -> Callable[[MowConfig], MowConfig]:
    return lambda config: functools.reduce(lambda made, change: change(made), changes, config)


ROWS: dict[str, Callable[[MowConfig], MowConfig]] = {
    "preset": lambda config: config,
    "transition": _part("model", outcome="transition"),
    "one-frame": _part("model", prior_frames=1),
    "two-frames": _part("model", prior_frames=2),
    "channel-norm": _perception(norm="channel"),
    "groups-256": _perception(groups=256),
    "groups-512": _perception(groups=512, channels=(48, 96)),
    "bn-per-task": _perception(norm="bn_per_task"),
    "no-stale": _part("model", stale_share=0.0),
    "harmony": _part("loss", weighting="harmony"),
    "hidden-layers": _part("optim", matrix_layers="hidden"),
    "no-decay": _part("optim", matrix_decay=0.0),
}
# The forms before rewards and ends were read with the latent that a step leads to.
ROWS["before"] = _in_turn(
    ROWS["transition"], ROWS["one-frame"], ROWS["harmony"], ROWS["no-decay"],
    _part("model", two_hot_form="symexp_of_mean"),
)  # fmt: skip
ROWS["together"] = _in_turn(ROWS["two-frames"], ROWS["groups-256"])


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
    asked = parser.parse_args(arguments)
    if min(asked.updates, asked.steps - 2 * LENGTH) < 1:
        parser.error(f"--updates must be 1 or more and --steps above {2 * LENGTH}")
    if asked.game:
        asked.tasks = [f"atari:{asked.game}"]
    return asked


def make_config(asked: argparse.Namespace, row: str, seed: int) -> MowConfig:
    """The preset with one row's settings, as many updates as asked, and as many frames in a batch as the preset has."""
    config = PRESETS[asked.preset]()
    frames = config.batch.num_sequences * config.batch.length
    config = dataclasses.replace(
        config,
        tasks=tuple(asked.tasks),
        seed=seed,
        total_steps=asked.updates + LENGTH + 1,
        batch=dataclasses.replace(config.batch, num_sequences=max(1, frames // LENGTH), length=LENGTH),
        schedule=dataclasses.replace(
            config.schedule, prefill_steps=0, warmup_updates=0, world_model_every=1, acting_context=1
        ),
    )
    return ROWS[row](config)


def train(config: MowConfig, recording: Recording, updates: int) -> tuple[Learner, list[float]]:
    """A world model after its updates, and the milliseconds of each."""
    torch.manual_seed(config.seed)
    layout = recording.layout
    mask = ActionMask(torch.from_numpy(layout.discrete_mask), torch.from_numpy(layout.continuous_mask))
    learner = Learner(config, mask, torch.device("cpu"))
    if config.model.perception.background != "none":
        frames = recording.windows(256, 1, 0, held_out=False).frame.flatten(1, 2)
        learner.world_model.set_background(frames)
    labels = np.arange(len(config.tasks)) * config.num_modules // len(config.tasks)
    learner.regroup(from_labels(labels, np.eye(len(config.tasks))))
    took = []
    for update in range(updates):
        batch = recording.windows(config.batch.num_sequences, config.batch.length, update, held_out=False)
        began = time.perf_counter()
        learner.update_world_model(batch)
        took.append(1e3 * (time.perf_counter() - began))
    return learner, took


@torch.no_grad()
def look(learner: Learner, recording: Recording) -> dict[str, list[float]]:
    """The measures on held-out windows."""
    learner.world_model.eval()
    train_windows = recording.windows(512, 1, 1, held_out=False)
    rewards, num_bins = train_windows.reward.flatten(1), learner.config.model.num_bins
    background = train_windows.frame.flatten(1, 2).median(dim=1).values.float() / 255.0
    batch = recording.windows(_WINDOWS, LENGTH, 2)
    at = Measured(learner.world_model, learner.routing(), batch, background, PhiloxState.from_seed(1, learner.device))
    base_rate = [mean_code(of_task, num_bins) for of_task in rewards]
    temperature = learner.config.imagination.temperature
    return measure(at, learner.agent, context=CONTEXT, temperature=temperature, base_rate=base_rate)


def run(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """One record per row and seed."""
    records = []
    for seed in asked.seeds:
        recordings: dict[bool, Recording] = {}
        for row in asked.rows:
            config = make_config(asked, row, seed)
            final = config.final_frames
            if final not in recordings:
                recordings[final] = record(config, steps=asked.steps, held_out=max(1000, asked.steps // 4))
            recording = recordings[final]
            learner, took = train(config, recording, asked.updates)
            found = look(learner, recording)
            milliseconds = statistics.median(took)
            records.append({"row": row, "seed": seed, "ms": milliseconds, "tasks": list(asked.tasks), **found})
            for k, task in enumerate(asked.tasks):
                shown = "  ".join(f"{short} {found[name][k]:.3g}" for name, short in _SHOWN.items())
                print(f"{row}, seed {seed}, {task}: {shown}  {milliseconds:.0f} ms", flush=True)
    return records


def main(arguments: Sequence[str] | None = None) -> None:
    asked = read_arguments(arguments)
    records = run(asked)
    if asked.json:
        asks = {name: getattr(asked, name) for name in ("preset", "updates", "steps")}
        clean = json.loads(json.dumps({**asks, "records": records}), parse_constant=lambda _: None)
        asked.json.write_text(json.dumps(clean, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
