"""Time and memory of one update by op.  python -m bench.one_update --preset atari26 --tasks 26

Random frames, one update of the world model, one of the agent (imagination, actor, critics) and one rollout alone,
each first timed and then watched by torch's profiler: its ten largest ops by their own time on the device, how much of
the time the device was busy at all, how many calls that were. The peak memory of a GPU stands beside the estimate of
mow.estimate.plan; on a CPU it is not counted and null.

    --batching light --task-groups 4          as a smaller card would train
    --preset storm --tasks 1 --rounds 2       STORM's network on STORM's batches: 16 x 64 steps, 1,024 rollouts of 16
    --json FILE                               the same as JSON
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bench.learners import NUM_ACTIONS, TaskCount, make_learner, random_batch
from mow.estimate.flops import agent_update
from mow.estimate.plan import make_plan
from mow.methods.mow.config import MowConfig
from mow.methods.mow.optim import uses_bf16
from mow.methods.mow.presets import BATCHINGS, with_batching
from mow.nn.policy import ActionMask

ROWS = 10
_WARM_UP = 2


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.one_update", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=("quickstart", "atari26", "storm"), default="atari26")
    parser.add_argument("--tasks", type=int, default=26, help="how many (%(default)s)")
    parser.add_argument("--batching", choices=sorted(BATCHINGS), help="default: that of the preset")
    parser.add_argument("--task-groups", type=int, default=1, help="an update in so many parts (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="timed updates (%(default)s)")
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
    return dataclasses.replace(config, optim=dataclasses.replace(config.optim, task_groups=asked.task_groups))


def measure(config: MowConfig, device: torch.device, rounds: int) -> dict[str, Any]:
    """Updates by kind, the peak of memory on a GPU and its estimate."""
    num_tasks, how = len(config.tasks), config.imagination
    learner = make_learner(config, device)
    batch = random_batch(num_tasks, config.batch.num_sequences, config.batch.length, device)
    context = random_batch(num_tasks, how.num_sequences, how.context, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    updates = {
        "world model": update(lambda: learner.update_world_model(batch), device, rounds),
        "agent": update(lambda: learner.update_agent(context), device, rounds),
        "imagination": update(lambda: learner.imagine_rollout(context), device, rounds),  # in evaluation mode
    }
    mask = ActionMask(torch.ones(num_tasks, NUM_ACTIONS, dtype=torch.bool), torch.zeros(num_tasks, 0, dtype=torch.bool))
    plan = make_plan(config, mask, bf16=uses_bf16(config, device))
    parts = agent_update(config, NUM_ACTIONS, NUM_ACTIONS)
    rollout = parts["context"] + parts["imagination"]
    for found, flops in zip(updates.values(), (*plan.update_flops, rollout), strict=True):
        found["tflop"] = flops / 1e12
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None,
        "estimated_gb": plan.peak / 1e9,
        "updates": updates,
    }


def update(call: Callable[[], object], device: torch.device, rounds: int) -> dict[str, Any]:
    """Seconds (median), then the profile of one more."""
    for _ in range(_WARM_UP):
        seconds_of(call, device)
    seconds = statistics.median(seconds_of(call, device) for _ in range(rounds))
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as watched:
        seconds_of(call, device)
    return {"seconds": seconds, **largest(watched, device, seconds)}


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Seconds until the device has finished a call."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def largest(watched: profile, device: torch.device, seconds: float) -> dict[str, Any]:
    """The ops with the most time of their own on the device, their shares, and the share of time that it was busy."""
    of_device = device.type == "cuda"
    events = [
        (event.self_device_time_total if of_device else event.self_cpu_time_total, event.key, event.count)
        for event in watched.key_averages()
        # On a GPU an op stands there beside the kernels that it launches, and a name that someone gave to a stretch of
        # time beside both, all with the same time: only kernels and copies count.
        if not of_device or (event.device_type.name == "CUDA" and not event.is_user_annotation)
    ]
    total = sum(time for time, _, _ in events)  # microseconds
    rows = [
        {"name": name, "ms": time / 1e3, "share": time / total, "calls": count}
        for time, name, count in sorted(events, reverse=True)[:ROWS]
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
            f"{row['ms']:10.2f} ms {row['share']:6.1%} {row['calls']:7,} {row['name'][:90]}" for row in update["rows"]
        ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    asked = read_arguments(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    asks = {name: getattr(asked, name) for name in ("preset", "tasks", "batching", "task_groups")}
    found = {**asks, **measure(make_config(asked), device, asked.rounds)}
    print(text(found))
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
