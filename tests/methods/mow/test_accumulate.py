"""Updates that take less memory are the same updates: recomputed ones to the bit, divided ones but for rounding."""

import dataclasses

import pytest
import torch

from mow.methods.mow.accumulate import TaskSlice, task_parts
from mow.methods.mow.config import ClusteringConfig, LossConfig, OptimConfig
from mow.methods.mow.config_model import PerceptionConfig, RoutingConfig
from mow.methods.mow.learner import Learner
from mow.methods.mow.world_model_loss import world_model_losses
from tests.estimate.test_footprint import kept
from tests.small import LOCAL, MODEL, action_mask, run_config, transitions, world_model

CPU = torch.device("cpu")
# Float32 sums of gradients in another order.
RTOL, ATOL = 1e-4, 1e-5


def learner(model=MODEL, *, dropout=0.0, optim=None, loss=None, grouped=True):
    torch.manual_seed(0)
    model = dataclasses.replace(model, dropout=dropout)
    config = run_config(
        model=model,
        loss=loss or LossConfig(),
        optim=OptimConfig(**(optim or {})),
        clustering=ClusteringConfig(num_modules=2, num_batches=2, restarts=3, method="random"),
    )
    made = Learner(config, action_mask(), CPU)
    if grouped:
        made.regroup(made.group([]))
    return made


def updated(made, num_updates=2):
    """Gradients of the last update, and what it says of itself."""
    for seed in range(num_updates):
        torch.manual_seed(seed)
        metrics = made.update_world_model(transitions(seed=seed))
    modules = {"": made.world_model, "weights.": made.task_weights}
    gradients = {f"{a}{n}": p.grad for a, m in modules.items() for n, p in m.named_parameters() if p.grad is not None}
    buffers = {n: b.clone() for n, b in made.world_model.named_buffers()}
    return gradients, {**metrics, **buffers}


def with_norm(norm, model=MODEL):
    return dataclasses.replace(model, perception=dataclasses.replace(model.perception, norm=norm))


@pytest.mark.parametrize("norm", ["bn_per_task", "bn_shared", "group", "channel"])
@pytest.mark.parametrize("parts", ["transformers", "all"])
def test_what_is_computed_again_is_the_same_to_the_bit(norm, parts):
    plain = updated(learner(with_norm(norm), dropout=0.3))
    again = updated(learner(with_norm(norm), dropout=0.3, optim={"checkpoint_activations": parts}))
    for want, got in zip(plain, again, strict=True):
        assert want.keys() == got.keys()
        for name in want:
            assert torch.equal(want[name], got[name]), name


def bytes_kept(made):
    model, batch = made.world_model, transitions(num_sequences=4)
    with kept(*model.parameters(), *model.buffers(), batch.action, batch.frame) as blocks:
        losses = made_losses(made, batch)
    assert losses.requires_grad
    return sum(blocks.values())


def made_losses(made, batch):
    losses = world_model_losses(made.world_model, batch, made.routing(), made.rng, made.config.loss)
    return losses.weighted(made.config.loss).sum()


def test_less_is_kept():
    nothing, some, most = (
        bytes_kept(learner(optim={"checkpoint_activations": parts})) for parts in ("none", "transformers", "all")
    )
    assert some < 0.98 * nothing
    assert most < 0.6 * some


FIXED = RoutingConfig(method="hash", scale="none")
BACKGROUND = dataclasses.replace(LOCAL, perception=dataclasses.replace(LOCAL.perception, background="median"))


@pytest.mark.parametrize("weighting", ["harmony", "shared_terms", "per_term", "uniform", "running_mean"])
def test_groups_add_up_whatever_weighs_the_tasks(weighting):
    same_update(MODEL, {"loss": LossConfig(weighting=weighting)}, task_groups=3)


@pytest.mark.parametrize(
    "model",
    [
        with_norm("bn_shared"),
        with_norm("group"),
        dataclasses.replace(BACKGROUND, stale_share=0.3),
        dataclasses.replace(MODEL, routing=RoutingConfig(hidden=8, scale="plain")),
        dataclasses.replace(MODEL, routing=FIXED, task_head=False),
        dataclasses.replace(MODEL, heads="shared", embedding_size=0, condition=(), routing=FIXED),
    ],
)
@pytest.mark.parametrize("task_groups", [2, 7])
def test_groups_add_up_whatever_the_model(model, task_groups):
    same_update(model, {"loss": LossConfig(reconstruct_every=2)}, task_groups=task_groups)


def same_update(model, how, task_groups):
    (plain, told), (parts, said) = (
        updated(learner(model, optim={"task_groups": number}, **how)) for number in (1, task_groups)
    )
    assert plain.keys() == parts.keys()
    for name, want in plain.items():
        scale = float(want.abs().max())
        torch.testing.assert_close(parts[name], want, rtol=RTOL, atol=ATOL * max(scale, 1.0), msg=name)
    assert told.keys() == said.keys()
    for name, want in told.items():
        torch.testing.assert_close(said[name], want, rtol=RTOL, atol=ATOL * max(1.0, float(want.abs().max())), msg=name)


def test_both_together():
    optim = {"task_groups": 2, "checkpoint_activations": "all"}
    for (name, want), got in zip(updated(learner())[0].items(), updated(learner(optim=optim))[0].values(), strict=True):
        torch.testing.assert_close(got, want, rtol=RTOL, atol=ATOL * max(1.0, float(want.abs().max())), msg=name)


@pytest.mark.parametrize(
    ("norm", "modules", "number", "want"),
    [
        ("group", (0, 0, 0, 0), 1, [(0, 4)]),
        ("group", (0, 0, 0, 0), 2, [(0, 2), (2, 4)]),
        ("bn_per_task", (0, 0, 1), 9, [(0, 1), (1, 2), (2, 3)]),
        ("bn_shared", (0, 0, 0, 1), 2, [(0, 3), (3, 4)]),
        ("bn_shared", (0, 0, 0, 0), 4, [(0, 4)]),  # before the tasks are grouped
        ("bn_shared", (0, 1, 1, 1, 2, 2), 3, [(0, 1), (1, 4), (4, 6)]),
    ],
)
def test_where_tasks_are_parted(norm, modules, number, want):
    model = world_model(with_norm(norm), modules)
    assert [(part.start, part.stop) for part in task_parts(model, number)] == want


def test_a_part_holds_no_weights_of_its_own():
    whole = world_model(dataclasses.replace(MODEL, perception=PerceptionConfig(channels=(2, 2, 2, 2))))
    part = TaskSlice(whole, slice(1, 3))
    assert {id(p) for p in part.parameters()} == {id(p) for p in whole.parameters()}
    assert whole.num_tasks == 3
    assert part.num_tasks == 2
    assert whole.encoder.groups != part.encoder.groups
