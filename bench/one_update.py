"""Time and memory of one update by op.  python -m bench.one_update --preset atari26 --tasks 26

Random frames, one update of the world model, one of the agent (imagination, actor, critics) and one rollout alone,
each first timed and then profiled by torch: its ops by their own time on the device, how much of the time the device
was busy at all, how many calls that were. The text has the ten largest ops, the JSON all; it is written after each of
the three. The peak memory of a GPU stands beside the estimate of mow.estimate.plan; on a CPU it is not counted and
null.

    --batching light --task-groups 4          as a smaller card would train
    --graph                                   each update in one CUDA graph; on a CPU the same path without a recording
    --preset storm --tasks 1 --rounds 2       STORM's network on STORM's batches: 16 x 64 steps, 1,024 rollouts of 16
    --json FILE                               the same as JSON
"""

import argparse
import dataclasses
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bench.clock import Call, Device, this_device
from bench.learners import NUM_ACTIONS, TaskCount, action_mask, context_batch, make_learner, world_model_batch
from mow.estimate.flops import agent_update
from mow.estimate.plan import make_plan
from mow.methods.mow.config import MowConfig
from mow.methods.mow.optim import uses_bf16
from mow.methods.mow.presets import BATCHINGS, with_batching

ROWS = 10
_WARM_UP = 3  # with --graph the third is recorded


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.one_update", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=("quickstart", "atari26", "storm"), default="atari26")
    parser.add_argument("--tasks", type=int, default=26, help="how many (%(default)s)")
    parser.add_argument("--batching", choices=sorted(BATCHINGS), help="default: that of the preset")
    parser.add_argument("--task-groups", type=int, default=1, help="an update in so many parts (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="timed updates (%(default)s)")
    parser.add_argument("--graph", action="store_true", help="optim.update_graph")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(arguments)
    for name in ("tasks", "task_groups", "rounds"):
        if getattr(asked, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be 1 or more, got {getattr(asked, name)}")
    return asked


def make_config(asked: argparse.Namespace) -> MowConfig:
    config = TaskCount(asked.preset, asked.tasks).config
    if asked.batching:
        config = with_batching(config, asked.batching)
    optim = dataclasses.replace(config.optim, task_groups=asked.task_groups, update_graph=asked.graph)
    return dataclasses.replace(config, optim=optim)


def measure(config: MowConfig, device: Device, rounds: int) -> Iterator[dict[str, Any]]:
    """Updates by kind, the peak of memory on a GPU and its estimate: with one kind more each time."""
    place, on_gpu = torch.device(device.kind), device.kind == "cuda"
    held = torch.cuda.memory_allocated() if on_gpu else 0  # by the clock
    learner = make_learner(config, place)
    batch, context = world_model_batch(config, place), context_batch(config, place)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    calls: dict[str, Call] = {
        "world model": lambda: learner.update_world_model(batch),
        "agent": lambda: learner.update_agent(context),
        "imagination": lambda: learner.imagine_rollout(context),  # in evaluation mode
    }
    plan = make_plan(config, action_mask(len(config.tasks)), bf16=uses_bf16(config, place))
    parts = agent_update(config, NUM_ACTIONS, NUM_ACTIONS)
    rollout = parts["context"] + parts["imagination"]
    updates: dict[str, Any] = {}
    for (name, call), flops in zip(calls.items(), (*plan.update_flops, rollout), strict=True):
        updates[name] = {**update(call, device, rounds), "tflop": flops / 1e12}
        yield {
            "device": device.name if on_gpu else "cpu",
            "peak_gb": (torch.cuda.max_memory_allocated() - held) / 1e9 if on_gpu else None,
            "estimated_gb": plan.peak / 1e9,
            "updates": updates,
        }


def update(call: Call, device: Device, rounds: int) -> dict[str, Any]:
    """Seconds (median), then the profile of one more."""
    for _ in range(_WARM_UP):
        device.wall_seconds(call)
    seconds = statistics.median(device.wall_seconds(call) for _ in range(rounds))
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.kind == "cuda" else [])]
    with profile(activities=activities) as profiled:
        device.wall_seconds(call)
    return {"seconds": seconds, **largest(profiled, device, seconds)}


def largest(profiled: profile, device: Device, seconds: float) -> dict[str, Any]:
    """The ops with the most time of their own on the device, their shares, and the share of time that it was busy."""
    of_device = device.kind == "cuda"
    events = [
        (event.self_device_time_total if of_device else event.self_cpu_time_total, event.key, event.count)
        for event in profiled.key_averages()
        # A GPU's list has ops, their kernels and named ranges, all with the same time: count kernels and copies alone.
        if not of_device or (event.device_type.name == "CUDA" and not event.is_user_annotation)
    ]
    total = sum(time for time, _, _ in events)  # microseconds
    rows = [
        {"name": name, "ms": time / 1e3, "share": time / total, "calls": count}
        for time, name, count in sorted(events, reverse=True)
    ]
    busy = min(1.0, total * 1e-6 / seconds) if of_device else None
    return {"busy_share": busy, "calls": sum(count for _, _, count in events), "rows": rows}


def text(found: dict[str, Any]) -> str:
    peak = "not measured on a CPU" if found["peak_gb"] is None else f"{found['peak_gb']:.2f} GB"
    lines = [f"peak of memory {peak}, estimated {found['estimated_gb']:.2f} GB"]
    for name, update in found["updates"].items():
        rate = update["tflop"] / update["seconds"]
        busy = "" if update["busy_share"] is None else f", device busy {update['busy_share']:.0%}"
        lines.append(f"{name}: {update['seconds']:.4g} s, {rate:.3g} TFLOP/s{busy}, {update['calls']:,} calls")
        lines += [
            f"{row['ms']:10.2f} ms {row['share']:6.1%} {row['calls']:7,} {row['name'][:90]}"
            for row in update["rows"][:ROWS]
        ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    asked = read_arguments(arguments)
    options = {name: getattr(asked, name) for name in ("preset", "tasks", "batching", "task_groups", "graph")}
    for found in measure(make_config(asked), this_device(), asked.rounds):
        if asked.json:
            asked.json.write_text(json.dumps({**options, **found}, indent=1) + "\n", encoding="utf-8")
    print(text(found))


if __name__ == "__main__":
    main()
