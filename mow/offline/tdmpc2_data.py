"""Reader of the multi-task data that TD-MPC2 publishes (mt30, mt80): chunks of a folder to recorded episodes.

A chunk is a TensorDict written by torch.save: obs [E, T, D], action [E, T, A], reward [E, T], task [E, T], where row t
holds o_t and the action and reward that led to it; those of row 0 are filler. No code of the file is executed: its
pickle may name tensors and plain containers, and classes of tensordict become inert records.

Source: Hansen et al. 2024, TD-MPC2, arXiv 2310.16828; the order of its tasks from its repository.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from mow.errors import UsageError
from mow.offline.files import RecordedEpisode, StoredTask, Writer

FIELDS = ("obs", "action", "reward", "task")
EPISODES_AT_ONCE = 500  # of one task; bounds the memory that a chunk takes

# (observation, action) sizes of the bodies
_SIZES = {
    "walker": (24, 6), "cheetah": (17, 6), "fish": (24, 5), "hopper": (15, 4), "finger-spin": (9, 2),
    "finger-turn": (12, 2), "cup": (8, 2), "reacher-three": (8, 3), "reacher": (6, 2), "acrobot": (6, 1),
    "cartpole": (5, 1), "pendulum": (3, 1), "mw": (39, 4),
}  # fmt: skip
_DMC = """
    walker-stand walker-walk walker-run cheetah-run reacher-easy reacher-hard acrobot-swingup pendulum-swingup
    cartpole-balance cartpole-balance-sparse cartpole-swingup cartpole-swingup-sparse cup-catch finger-spin
    finger-turn-easy finger-turn-hard fish-swim hopper-stand hopper-hop walker-walk-backwards walker-run-backwards
    cheetah-run-backwards cheetah-run-front cheetah-run-back cheetah-jump hopper-hop-backwards reacher-three-easy
    reacher-three-hard cup-spin pendulum-spin
"""
_METAWORLD = """
    assembly basketball button-press-topdown button-press-topdown-wall button-press button-press-wall coffee-button
    coffee-pull coffee-push dial-turn disassemble door-open door-close drawer-close drawer-open faucet-open faucet-close
    hammer handle-press-side handle-press handle-pull-side handle-pull lever-pull peg-insert-side peg-unplug-side
    pick-out-of-hole pick-place pick-place-wall plate-slide plate-slide-side plate-slide-back plate-slide-back-side
    push-back push push-wall reach reach-wall shelf-place soccer stick-push stick-pull sweep-into sweep window-open
    window-close bin-picking box-close door-lock door-unlock hand-insert
"""


def _task(name: str) -> StoredTask:
    body = next(body for body in _SIZES if name.startswith(body))
    protocol = "TD-MPC2's data: action repeat 2" + (", Meta-World V2" if body == "mw" else "")
    if body == "mw":
        ours = f"metaworld:{name.removeprefix('mw-')}-v3"
    else:
        ours = f"dmc:{name}".replace("cup", "ball_in_cup").replace("-sparse", "_sparse").replace("turn-", "turn_")
    return StoredTask(ours, *_SIZES[body], protocol)


TASKS = tuple(_task(name) for name in (*_DMC.split(), *(f"mw-{name}" for name in _METAWORLD.split())))


class _Inert:
    """Takes the place of a class or function of tensordict: keeps what it is given and does nothing."""

    given: tuple[Any, ...] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.given = (args, kwargs)

    def __setstate__(self, state: Any) -> None:
        self.given = (*self.given, state)


_ADMITTED: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,  # type: ignore[attr-defined]
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("collections", "OrderedDict"): OrderedDict,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "tensordict":
            return _Inert
        if (module, name) in _ADMITTED:
            return _ADMITTED[module, name]
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no data needs")


def read_chunk(path: Path) -> dict[str, torch.Tensor]:
    """The four fields of a chunk, memory-mapped. Raises: UsageError for any other file; none of its code is run."""
    reader = SimpleNamespace(__name__="restricted", Unpickler=_Unpickler)
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=False, pickle_module=reader)
        found = next((each for each in _mappings(content) if set(FIELDS) <= each.keys()), None)
    except (pickle.UnpicklingError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        raise UsageError(f"{path} is not read: {' '.join(str(error).split())[:200]}") from error
    if found is None or not all(isinstance(found[name], torch.Tensor) for name in FIELDS):
        raise UsageError(f"{path} holds no tensors named {', '.join(FIELDS)}: name a folder of TD-MPC2's chunk_*.pt")
    chunk = {name: found[name] for name in FIELDS}
    shape = chunk["reward"].shape
    fits = len(shape) == 2 and shape[1] > 1 and all(each.shape[:2] == shape for each in chunk.values())
    fits = fits and [each.dim() for each in chunk.values()] == [3, 3, 2, 2]
    if not fits or {chunk[name].dtype for name in FIELDS[:3]} != {torch.float32}:
        got = ", ".join(f"{name} {each.dtype} {[*each.shape]}" for name, each in chunk.items())
        raise UsageError(f"{path} has {got}: expected float32 obs [E, T, D], action [E, T, A], reward [E, T] and task "
                         "[E, T] of mt30 or mt80")
    return chunk


def _mappings(content: Any) -> Iterator[dict[str, Any]]:
    """All dicts within dicts, lists and inert records."""
    inside: Any = content if isinstance(content, list | tuple) else getattr(content, "given", ())
    if isinstance(content, dict):
        yield content
        inside = content.values()
    for each in inside:
        yield from _mappings(each)


def read_tdmpc2(
    source: Path, folder: Path, only: Sequence[str] = (), progress: Callable[[str], None] = lambda name: None
) -> tuple[StoredTask, ...]:
    """Write the episodes of all chunks in `source` to a folder of recorded episodes, chunk by chunk.

    Args: only: names of tasks to take; empty: all. progress: called with the name of every chunk once it is read.
    Raises: UsageError for a file that is none, an unknown task, padding that is not 0, numbers that are not finite.
    """
    paths = sorted(source.glob("chunk_*.pt"), key=lambda path: (len(path.name), path.name))
    if not paths:
        raise UsageError(f"{source} holds no chunk_*.pt: name the folder mt30 or mt80 of TD-MPC2's data")
    indices = {path: _indices(path) for path in paths}
    held = {index: TASKS[index] for each in indices.values() for index in each.unique().tolist()}
    taken = {index: held[index] for index in sorted(held) if not only or held[index].name in only}
    if missing := set(only) - {task.name for task in taken.values()}:
        raise UsageError(f"{source} holds nothing of {', '.join(sorted(missing))}: it holds "
                         f"{', '.join(task.name for task in held.values())}")
    writer = Writer(folder, [*taken.values()])
    try:
        for path in paths:
            chunk = read_chunk(path)
            for index, task in taken.items():
                for part in torch.nonzero(indices[path] == index)[:, 0].split(EPISODES_AT_ONCE):
                    writer.append(task.name, _episodes(path, chunk, part, task))
            progress(path.name)
    except ValueError as error:
        raise UsageError(f"{source}: {error}") from error
    finally:
        writer.close()
    return tuple(writer.tasks.values())


def _indices(path: Path) -> torch.Tensor:
    """[E] task of each episode. Raises: UsageError for an index without a task, or one that changes."""
    task = read_chunk(path)["task"]
    if bad := [index for index in task[:, 0].unique().tolist() if not 0 <= index < len(TASKS)]:
        raise UsageError(f"{path} has task {bad[0]}, known are 0 to {len(TASKS) - 1}: it is not of mt30 or mt80")
    if (task != task[:, :1]).any():
        raise UsageError(f"{path} has an episode of several tasks: it is not of mt30 or mt80")
    return task[:, 0]


def _episodes(
    path: Path, chunk: dict[str, torch.Tensor], part: torch.Tensor, task: StoredTask
) -> list[RecordedEpisode]:
    obs, action, reward = (chunk[name][part].numpy() for name in FIELDS[:3])  # [n, T, ...]
    size, used, action, reward = task.state_size, task.action_size, action[:, 1:], reward[:, 1:]
    if obs.shape[2] < size or action.shape[2] < used or np.any(obs[..., size:]) or np.any(action[..., used:]):
        raise UsageError(f"{path}: {task.name} has {size} state and {used} action numbers, zeros must follow: it is "
                         "not of mt30 or mt80")
    return [RecordedEpisode(obs[i, :, :size], action[i, :, :used], reward[i], False, "TD-MPC2 agents in training")
            for i in range(len(part))]
