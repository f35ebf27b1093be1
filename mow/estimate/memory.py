"""Memory: the least that a run needs, computed before anything is built, and one line where it was not enough."""

import contextlib
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch

from mow.config import RunConfig
from mow.estimate.plan import Plan
from mow.replay.gpu_store import fits_on_gpu
from mow.replay.packed import why_not_packed
from mow.runs.paths import resume_hint
from mow.system.machine import free_memory

_FRAME = (64, 64, 3)
_SURE = 0.85  # the estimate of an update is within 15 % of autograd's bytes (tests/estimate/test_footprint.py)
_PACKED = 20  # times that Atari's frames under random play are packed; few other tasks pack much further
# Messages of torch on the CPU, which has no error type of its own.
_MESSAGES = ("can't allocate memory", "not enough memory", "std::bad_alloc")


class Part(NamedTuple):
    """Something that takes memory."""

    name: str
    num_bytes: int
    remedy: str  # flags that make it smaller


def least_memory(
    config: RunConfig, plan: Plan, action_size: int, free_bytes: int, device: torch.device | None = None
) -> tuple[Part, tuple[Part, ...]]:
    """Lower bounds of (replay in main memory, parts on the device).

    Packable frames count at the ratio of Atari's; of the estimate of an update, its possible excess is left out.
    """
    keep = plan.activations
    raw = len(config.tasks) * config.total_steps * prod(_FRAME)
    on_gpu = config.replay.store == "gpu" or (
        config.replay.store == "auto" and not config.replay.disk and fits_on_gpu(raw, device)
    )
    frames = [Part("frames of the replay", raw, "--replay.store packed, --total-steps")] if on_gpu else []
    name, remedy = "a batch", "--batch.num-sequences, --batch.length, --optim.task-groups"
    if max(keep.rollout, keep.agent) > keep.world_model:
        name, remedy = "a rollout", "--imagination.num-sequences, --imagination.horizon"
    return _replay(config, action_size, free_bytes, on_gpu), (
        *frames,
        Part("weights, gradients, optimisers", plan.fixed, "a smaller preset (quickstart), --model.width"),
        Part(name, round(_SURE * keep.peak), remedy),
    )


def check_memory(config: RunConfig, plan: Plan, action_size: int, device: torch.device) -> str:
    """One line: the least that the run needs, and what is free.

    Args: plan: of this config; action_size: A.
    Raises: MemoryError with these numbers and the flags to change if it cannot fit.
    """
    free = free_memory()
    replay, learner = least_memory(config, plan, action_size, free, device)
    places = [("memory", free, (replay, *learner))]
    if device.type == "cuda":
        places = [("memory", free, (replay,)), (f"memory on {device}", torch.cuda.mem_get_info(device)[0], learner)]
    lines = []
    for place, there, parts in places:
        needed = sum(part.num_bytes for part in parts)
        numbers = ", ".join(f"{part.name} {part.num_bytes / 1e9:.2f}" for part in parts)
        lines.append(f"at least {needed / 1e9:.2f} GB of {place} ({numbers}), {there / 1e9:.2f} GB is free")
        if needed > there:
            largest = max(parts, key=lambda part: part.num_bytes)
            raise MemoryError(f"this run needs {lines[-1]}: change {largest.remedy}, or take a machine with more")
    return f"needs {'; '.join(lines)}"


def _replay(config: RunConfig, action_size: int, free_bytes: int, on_gpu: bool) -> Part:
    steps = len(config.tasks) * config.total_steps
    raw, beside = steps * prod(_FRAME), steps * (4 * action_size + 7)
    if on_gpu:
        return Part("replay", beside, "--total-steps")
    packs = config.replay.store == "packed" or (config.replay.store == "auto" and not why_not_packed())
    if not packs:
        return Part("replay", raw + beside, "--replay.store packed, --replay.disk FOLDER, --total-steps")
    packed = 0 if config.replay.disk else raw // _PACKED
    fits_raw = config.replay.store == "auto" and 2 * raw <= free_bytes
    return Part("replay", (raw if fits_raw else packed) + beside, "--replay.disk FOLDER, --total-steps, --tasks")


@contextlib.contextmanager
def explain_out_of_memory(folder: Path, device: torch.device) -> Iterator[None]:
    """Inside, running out of memory is a MemoryError in one line: where, what to change, what is left of the run."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        on_gpu = isinstance(error, torch.OutOfMemoryError)
        if not (on_gpu or isinstance(error, MemoryError) or any(text in str(error) for text in _MESSAGES)):
            raise
        why = str(error).partition("\n")[0].strip() or type(error).__name__
        raise MemoryError(
            f"out of memory on {device if on_gpu else 'cpu'} ({why}): start again with a smaller --batch.num-sequences "
            "or --imagination.num-sequences, a smaller preset, or packed frames on a disk (--replay.store packed "
            f"--replay.disk FOLDER); {resume_hint(folder)}"
        ) from error
