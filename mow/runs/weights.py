"""Weights as safetensors: what a trained agent needs to act and to imagine, without optimisers and replay.

One file: the tensors of the networks by name, and as metadata a JSON object with what is no tensor, and the SHA-256 of
all tensors, because a flipped bit in them would load in silence. Reading runs no code of the file.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from mow.methods.mow.clustering import Grouping
from mow.runs.precision import Precision, compact, expand
from mow.system.whole_file import flush_folder, write_whole

if TYPE_CHECKING:
    from mow.methods import base
    from mow.methods.mow.learner import Learner

FORMAT = 3  # 1: before the local prior read an action times e_k; 2: before the arrival form


def write_weights(path: Path, learner: "Learner", content: Mapping[str, Any]) -> None:
    """Write the weights and `content`, whatever JSON holds, first beside `path` and then over it.

    Raises: OSError if the file cannot be written.
    """
    tensors = {f"world_model.{name}": tensor for name, tensor in learner.world_model.state_dict().items()}
    tensors |= {f"agent.{name}": tensor for name, tensor in learner.agent.state_dict().items()}
    if learner.frozen_routes is not None:
        tensors["frozen_routes"] = learner.frozen_routes
    grouping = learner.grouping
    described = {
        **content,
        "updates": learner.updates,
        "order": None if grouping is None else list(grouping.order),
        "module_of_task": None if grouping is None else list(grouping.module_of_task),
    }
    _write(path, tensors, described)


def write_networks(
    path: Path, learner: "base.Learner", names: Sequence[str], precision: Precision, content: Mapping[str, Any]
) -> None:
    """As write_weights, of the named networks of a learner whose tasks have no groups.

    Raises: OSError if the file cannot be written; ValueError for a number that float16 cannot hold.
    """
    tensors = {f"{part}.{name}": tensor for part in names
               for name, tensor in learner.networks[part].state_dict().items()}  # fmt: skip
    _write(path, compact(tensors, precision), {**content, "precision": precision})


def _write(path: Path, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    described = {**content, "sha256": digest(tensors)}
    write_whole(path, save(tensors, metadata={"mow_format": str(FORMAT), "mow": json.dumps(described)}))
    flush_folder(path.parent)


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors on the CPU, and what was written beside them.

    Raises: ValueError if the file is not of this format, is cut off or damaged; OSError if it cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error}): export the run again") from error
    if metadata.get("mow_format") != str(FORMAT):
        raise ValueError(f"{path} has format {metadata.get('mow_format')}, this version reads {FORMAT}: use the mow "
                         "that wrote it")
    try:
        content = json.loads(metadata["mow"])
        expected = content["sha256"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no export of mow (its metadata cannot be read: {type(error).__name__}): export "
                         "the run again") from error
    if digest(tensors) != expected:
        raise ValueError(f"{path} is damaged (its tensors have another SHA-256): export the run again")
    return tensors, content


def give_weights(learner: "Learner", tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
    """Make a fresh learner (not regrouped) what was written; its optimisers stay fresh.

    Raises: KeyError or RuntimeError if the weights are not of its config.
    """
    if content["order"] is not None:
        num_tasks = len(content["order"])
        # The similarity of the tasks is not saved: acting and imagination do not use it.
        unknown = torch.eye(num_tasks, dtype=torch.float64).numpy()
        nan = float("nan")
        learner.regroup(Grouping(tuple(content["order"]), tuple(content["module_of_task"]), unknown, nan, nan))
    for prefix, module in (("world_model.", learner.world_model), ("agent.", learner.agent)):
        own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        module.load_state_dict(own)
    routes = tensors.get("frozen_routes")
    learner.frozen_routes = None if routes is None else routes.to(learner.device)
    learner.updates = int(content["updates"])


def give_networks(learner: "base.Learner", tensors: Mapping[str, Tensor], names: Sequence[str]) -> None:
    """Load what write_networks wrote into a fresh learner; its other networks and its optimisers stay fresh.

    Raises: RuntimeError if the weights are not of its config.
    """
    for part in names:
        learner.networks[part].load_state_dict(part_of(tensors, part))


def part_of(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """float32 weights of one network, by their names in it."""
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{part}.")}
    return {name.removeprefix(f"{part}."): tensor for name, tensor in expand(own).items()}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes, in the order of the names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
