"""An update never waits for the device but once, to see whether its step may be made."""

import dataclasses
import warnings

import pytest
import torch

from mow.batch import TransitionBatch
from mow.methods.mow.config import LossConfig, OptimConfig
from mow.methods.mow.config_agent import ActorCriticConfig, ImaginationConfig
from mow.methods.mow.learner import Learner
from mow.runs.logger import MetricMeans
from tests.host_reads import host_reads
from tests.small import LOCAL, MODEL, action_mask, run_config, transitions

CPU = torch.device("cpu")
GUARD = {"__bool__ in finite.py:check_finite", "aten._local_scalar_dense in finite.py:check_finite",
         "aten.is_nonzero in finite.py:check_finite"}  # fmt: skip

CASES = {
    "plain": {},
    "local prior, muon": {
        "model": dataclasses.replace(LOCAL, stale_share=0.1),
        "optim": OptimConfig(matrices="muon", final_lr=0.1),
        "loss": LossConfig(reconstruct_every=2),
        "actor_critic": ActorCriticConfig(hidden=8, rollout_epochs=2, rollout_parts=2, final_entropy=0.1),
        "imagination": ImaginationConfig(num_sequences=2, context=3, horizon=3, start="posterior", ends="expected"),
    },
    "less memory": {"optim": OptimConfig(task_groups=2, checkpoint_activations="all")},
    "running mean, dropout": {
        "model": dataclasses.replace(MODEL, dropout=0.1),
        "loss": LossConfig(weighting="running_mean"),
    },
}


def learner(device: torch.device = CPU, **changes: object) -> Learner:
    torch.manual_seed(0)
    made = Learner(run_config(**changes), action_mask(), device)
    made.regroup(made.group([transitions(seed=1), transitions(seed=2)]))
    return made


def updates(made: Learner, batch: TransitionBatch, context: TransitionBatch, means: MetricMeans) -> None:
    """As the loop makes them; metrics are added up and not read."""
    means.add(made.update_world_model(batch))
    means.add(made.update_agent(context))


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_read_but_by_the_guard(name: str) -> None:
    made, means = learner(**CASES[name]), MetricMeans()
    batch, context = transitions(), transitions(length=3)
    updates(made, batch, context, means)
    with host_reads() as found:
        updates(made, batch, context, means)
    assert set(found) - GUARD == set()
    steps = 1 + made.config.actor_critic.rollout_epochs * made.config.actor_critic.rollout_parts
    assert sum(read.startswith("__bool__") for read in found) == steps
    with host_reads() as found:
        means.read()
    assert any(read.startswith("tolist") for read in found)


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: bool((x > 0).any()),
        lambda x: float(x[0]),
        lambda x: x.cpu(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.tensor([1.0]) + x,
        lambda x: x.new_zeros(3).masked_select(x > 0),
    ],
)
def test_every_way_of_waiting_is_found(read) -> None:
    x = torch.ones(3)
    with host_reads() as found:
        read(x)
    assert found
    with host_reads() as found:
        torch.where(x > 0, x, 0.0).sum()
    assert found == []


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_on_a_gpu_nothing_waits_but_the_guard(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda")
    made, means = learner(device, **CASES[name]), MetricMeans()
    batch, context = transitions().to(device), transitions(length=3).to(device)
    updates(made, batch, context, means)
    monkeypatch.setattr("mow.methods.mow.learner.check_finite", lambda *_: None)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # not every op has a deterministic form there
            updates(made, batch, context, means)
    finally:
        torch.cuda.set_sync_debug_mode("default")
