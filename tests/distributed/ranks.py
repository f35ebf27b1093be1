"""What the processes of these tests run: a rank beside the learner of one process, and the differences between them."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mow.engine.parallel import Ranks
from mow.methods.mow.clustering import from_labels
from mow.methods.mow.config import MowConfig
from mow.methods.mow.learner import Learner
from mow.methods.mow.sharded import ShardedLearner
from tests.small import MODEL, action_mask, run_config, transitions

CPU = torch.device("cpu")
TASKS = tuple(f"dummy:count-{k}" for k in range(5))


def config_of(norm: str, weighting: str) -> MowConfig:
    config = run_config(
        tasks=TASKS, model=dataclasses.replace(MODEL, perception=dataclasses.replace(MODEL.perception, norm=norm))
    )
    return dataclasses.replace(config, loss=dataclasses.replace(config.loss, weighting=weighting))


def worst(one: Any, other: Any) -> float:
    """Largest difference of two nested states."""
    if isinstance(one, dict):
        return max((worst(value, other[key]) for key, value in one.items()), default=0.0)
    if isinstance(one, list | tuple):
        return max((worst(*pair) for pair in zip(one, other, strict=True)), default=0.0)
    if isinstance(one, torch.Tensor) and one.numel():
        return float((one.double() - other.double()).abs().max())
    return 0.0


def updates(rank: int, size: int, folder: str, config: MowConfig, labels: list[int], number: int) -> None:
    """Each update begins from the state of one process, which runs in every rank too; half of them before grouping."""
    torch.set_num_threads(1)
    ranks = Ranks(dist.FileStore(f"{folder}/store", size), rank, size, len(TASKS), CPU, 60.0)
    torch.manual_seed(0)
    alone = Learner(config, action_mask(5), CPU)
    torch.manual_seed(0)
    learner = ShardedLearner(config, action_mask(5), CPU, ranks)
    found: dict[str, Any] = {"world_model": 0.0, "agent": 0.0, "clusters": [], "cut": 0}

    def own(batch: Any) -> Any:
        return batch.map(lambda tensor: tensor[learner.own])

    for update in range(number):
        if update == number // 2:
            probes = [transitions(5, seed=500 + i) for i in range(2)]
            found["clusters"] = [alone.group(probes), learner.group(map(own, probes))]
            grouping, fresh = from_labels(np.array(labels), np.eye(5)), transitions(5, seed=600)
            terms = alone.weighted_terms(fresh), learner.weighted_terms(own(fresh))
            alone.regroup(grouping, terms[0])
            learner.regroup(grouping, terms[1])
            found["cut"] = len(learner.cut)
        Learner.load_state_dict(learner, {**copy.deepcopy(Learner.state_dict(alone)), "grouping": None})
        batch, context = transitions(5, seed=update), transitions(5, length=3, seed=100 + update)
        for one, these in ((alone, (batch, context)), (learner, (own(batch), own(context)))):
            one.update_world_model(these[0])
            one.update_agent(these[1])
        states = alone.state_dict(), learner.state_dict()
        for part in ("world_model", "agent"):
            found[part] = max(found[part], worst(*(state[part] for state in states)))
    found["rest"] = worst(*states)
    found["bits"] = ranks.texts(str([float(t.double().sum()) for t in learner.world_model.state_dict().values()]))
    torch.save(found, Path(folder) / f"found-{rank}")
    ranks.close()


def run(size: int, folder: Path, *arguments: Any) -> list[dict[str, Any]]:
    """What `updates` found on every rank."""
    mp.spawn(updates, (size, str(folder), *arguments), nprocs=size)
    return [torch.load(folder / f"found-{rank}", weights_only=False) for rank in range(size)]
