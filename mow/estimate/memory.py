"""Memory: what a run needs at least, worked out before anything is built, and one line where it was not enough."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from mow.config import RunConfig
from mow.estimate.plan import Plan
from mow.replay.gpu_store import fits_on_gpu
from mow.replay.packed import why_not_packed
from mow.runs.paths import resume_hint
from mow.system.machine import free_memory

_FRAME = (64, 64, 3)
# Of the estimate of what an update keeps: within 15 % of what autograd keeps (tests/estimate/test_footprint.py).
_SURE = 0.85
# Of Atari's frames under random play (README, Replay); other tasks may be packed further, and few are by much.
_PACKED = 20
# What torch says on the CPU, which has no error of its own for it.
_SAID_BY_TORCH = ("can't allocate memory", "not enough memory", "std::bad_alloc")


@dataclass(frozen=True)
class Part:
    """Something that takes memory, and what makes it smaller."""

    name: str
    num_bytes: int
    remedy: str


def least_memory(
    config: RunConfig, plan: Plan, action_size: int, free_bytes: int, device: torch.device | None = None
) -> tuple[Part, tuple[Part, ...]]:
    """(replay in main memory, parts on the device), lower bounds.

    Packable frames count at the ratio of Atari's; of the estimate of an update, its possible excess is left out.
    """
    keep = plan.activations
    dream = "a rollout, which its CUDA graph holds" if keep.held else "a rollout"
    raw = len(config.tasks) * config.total_steps * prod(_FRAME)
    on_gpu = config.replay.store == "gpu" or (
        config.replay.store == "auto" and not config.replay.disk and fits_on_gpu(raw, device)
    )
    frames = [Part("frames of the replay", raw, "--replay.store packed, --total-steps")] if on_gpu else []
    return _replay(config, action_size, free_bytes, on_gpu), (
        *frames,
        Part("weights, gradients, optimisers", plan.fixed, "a smaller preset (quickstart), --model.width"),
        Part("a batch", round(_SURE * keep.world_model), "--batch.num-sequences, --batch.length, --optim.task-groups, "
                                                         "--optim.checkpoint-activations"),
        Part(dream, round(_SURE * max(keep.rollout, keep.lesson)), "--imagination.num-sequences, "
                                                                   "--imagination.horizon"),
    )  # fmt: skip


def check_memory(config: RunConfig, plan: Plan, action_size: int, device: torch.device) -> str:
    """One line: what the run will need at least, and what is free.

    Args: plan: of this config; action_size: A.

    Raises: MemoryError with these numbers and the flags to change if it cannot fit.
    """
    free = free_memory()
    replay, learner = least_memory(config, plan, action_size, free, device)
    if device.type == "cuda":
        places = [("memory", free, (replay,)), (f"memory on {device}", torch.cuda.mem_get_info(device)[0], learner)]
    else:
        places = [("memory", free, (replay, *learner))]
    lines = []
    for place, there, parts in places:
        needed = _needed(parts)
        numbers = ", ".join(f"{part.name} {part.num_bytes / 1e9:.2f}" for part in parts)
        lines.append(f"at least {needed / 1e9:.2f} GB of {place} ({numbers}), {there / 1e9:.2f} GB is free")
        if needed > there:
            largest = max(parts, key=lambda part: part.num_bytes)
            raise MemoryError(f"this run needs {lines[-1]}: change {largest.remedy}, or take a machine with more")
    return f"needs {'; '.join(lines)}"


def _needed(parts: Sequence[Part]) -> int:
    """A batch and a rollout are never held at once, unless a graph holds the rollout."""
    in_turn = [part.num_bytes for part in parts if part.name in ("a batch", "a rollout")]
    return sum(part.num_bytes for part in parts) - (min(in_turn) if len(in_turn) > 1 else 0)


def _replay(config: RunConfig, action_size: int, free_bytes: int, on_gpu: bool) -> Part:
    steps = len(config.tasks) * config.total_steps
    raw, beside = steps * prod(_FRAME), steps * (4 * action_size + 7)
    if on_gpu:
        return Part("replay", beside, "--total-steps")
    packs = config.replay.store == "packed" or (config.replay.store == "auto" and not why_not_packed())
    if not packs:
        remedy = "--replay.store packed, --replay.disk FOLDER, --total-steps"
        return Part("replay", raw + beside, remedy)
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
        if not (on_gpu or isinstance(error, MemoryError) or any(text in str(error) for text in _SAID_BY_TORCH)):
            raise
        if on_gpu:
            remedy = ("start again with a smaller --batch.num-sequences or --imagination.num-sequences, a larger "
                      "--loss.reconstruct-every, or a smaller preset")
        else:
            remedy = ("start again with a smaller --batch.num-sequences or --imagination.num-sequences, or a smaller "
                      "preset; or give packed frames a disk (--replay.store packed --replay.disk FOLDER)")
        where = f"{device if on_gpu else 'cpu'} ({_first_line(error)})"
        raise MemoryError(f"out of memory on {where}: {remedy}; {resume_hint(folder)}") from error


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].strip() or type(error).__name__
