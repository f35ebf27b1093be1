import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from mow.kernels import RoutePlan
from mow.methods.mow import diagnostics as insight
from mow.methods.mow.clustering import from_labels
from mow.methods.mow.config import LossConfig, OptimConfig
from mow.methods.mow.config_model import ExpertsConfig, RoutingConfig, SharedConfig
from mow.methods.mow.diagnostics import (
    conflict,
    dormant_units,
    gradient_cosines,
    gradient_gram,
    measure,
)
from mow.methods.mow.learner import Learner
from mow.methods.mow.world_model_loss import world_model_losses
from mow.runs.logger import Logger, MetricMeans
from tests.small import MODEL, action_mask, run_config, transitions

CPU = torch.device("cpu")
PERCEPTION = MODEL.perception


def make(num_tasks=3, model=MODEL, **changes):
    torch.manual_seed(0)
    tasks = ("dummy:count-0", "dummy:count-1", "dummy:slide")[:num_tasks]
    return Learner(run_config(tasks=tasks, model=model, **changes), action_mask(num_tasks), CPU)


def grouped(learner, *labels):
    """Task k in module labels[k]."""
    learner.regroup(from_labels(np.array(labels), np.eye(len(labels))))
    return learner


def gram_of(*gradients):
    """One row that all tasks use."""
    stacked = torch.tensor(gradients, dtype=torch.float64).unsqueeze(1)
    return gradient_gram(stacked, RoutePlan(torch.zeros(len(gradients), 1, dtype=torch.long), 1))


# Gradients ------------------------------------------------------------------------------------------------------------


def test_products_by_hand():
    gradients = torch.tensor([[[1.0, 2.0], [0.0, 1.0]], [[3.0, 0.0], [1.0, 1.0]]])  # [2 tasks, 2 slots, 2 weights]
    gram = gradient_gram(gradients, RoutePlan(torch.tensor([[0, 1], [1, 3]]), 4))
    want = torch.zeros(4, 2, 2, dtype=torch.float64)
    want[0, 0, 0] = 5.0  # task 0 alone
    want[1] = torch.tensor([[1.0, 0.0], [0.0, 9.0]])  # slot 1 of task 0 meets slot 0 of task 1
    want[3, 1, 1] = 2.0  # task 1 alone; nobody uses row 2
    assert torch.equal(gram, want)


@pytest.mark.parametrize(
    ("other", "cosine", "share"), [((2.0, 0.0), 1.0, 0.0), ((-0.5, 0.0), -1.0, 1.0), ((0.0, 7.0), 0.0, 0.0)]
)
def test_two_gradients_parallel_opposite_orthogonal(other, cosine, share):
    cosines = gradient_cosines(gram_of((3.0, 0.0), other))
    assert cosines.tolist() == [[1.0, cosine], [cosine, 1.0]]
    assert [value.item() for value in conflict(cosines)] == [share, cosine]


def test_conflict_of_four_tasks_by_hand():
    cosines = gradient_cosines(gram_of((1.0, 0.0), (2.0, 0.0), (-1.0, 0.0), (0.0, 1.0)))
    share, mean = conflict(cosines)  # six pairs: 1, -1, 0, -1, 0, 0
    assert share.item() == pytest.approx(2 / 6)
    assert mean.item() == pytest.approx(-1 / 6)


def test_a_gradient_of_zero_counts_in_no_pair():
    cosines = gradient_cosines(gram_of((1.0, 0.0), (0.0, 0.0), (-1.0, 0.0)))
    assert cosines[1].isnan().all()
    assert cosines[:, 1].isnan().all()
    assert [value.item() for value in conflict(cosines)] == [1.0, -1.0]


@pytest.mark.parametrize("gradients", [((1.0, 0.0),), ((0.0, 0.0), (1.0, 1.0)), ((0.0, 0.0), (0.0, 0.0))])
def test_no_pair_no_number(gradients):
    share, mean = conflict(gradient_cosines(gram_of(*gradients)))
    assert share.isnan()
    assert mean.isnan()


def test_only_rows_of_both_tasks_count():
    """They meet at row 1, where they point the same way; what each does elsewhere must not dilute it."""
    gradients = torch.tensor([[[9.0, 9.0], [1.0, 1.0]], [[2.0, 2.0], [-5.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])
    cosines = gradient_cosines(gradient_gram(gradients, RoutePlan(torch.tensor([[0, 1], [1, 2], [3, 4]]), 5)))
    assert cosines[0, 1].item() == pytest.approx(1.0)
    assert cosines[2, :2].isnan().all()  # shares no row with anyone


def test_cosines_do_not_see_the_length():
    gradients = torch.randn(4, 1, 50)
    plan = RoutePlan(torch.zeros(4, 1, dtype=torch.long), 1)
    cosines = gradient_cosines(gradient_gram(gradients, plan))
    scale = torch.tensor([1e-12, 1.0, 1e3, 1e12]).view(4, 1, 1)
    # Scaling rounds every float32 gradient once.
    torch.testing.assert_close(gradient_cosines(gradient_gram(gradients * scale, plan)), cosines, rtol=0, atol=1e-6)
    assert torch.equal(cosines, cosines.mT)


def test_rounding_takes_nothing_out_of_range():
    """Without the clamps, most parallel gradients have a cosine above 1, half the sums of nothing a negative square."""
    for _ in range(20):
        first, second = torch.randn(2, 101, dtype=torch.float64).tolist()
        parallel = [[scale * a for a in first] for scale in (1.0, 3.0, -7.0)]
        assert (gradient_cosines(gram_of(*parallel)).abs() <= 1).all()
        third = [-(a + b) for a, b in zip(first, second, strict=True)]
        metrics = insight._gradient_metrics("experts", gram_of(first, second, third))
        # The root of float64's rounding of sums near 100.
        assert 0 <= metrics["module_grad_norm/experts/0"] < 1e-5


# Units ----------------------------------------------------------------------------------------------------------------


def test_dormant_units_by_hand():
    activity = torch.tensor([[0.0, 1.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0], [0.1, 0.025, 0.024, 3.851]])
    want = [[True, False, False, False], [True] * 4, [False, True, True, False]]  # the means are 1, 0, 1
    assert dormant_units(activity.double()).tolist() == want
    assert dormant_units(activity.double() * 1e3)[:2].tolist() == want[:2]
    assert dormant_units(activity[0], tau=1.0).tolist() == [True, True, False, True]


# The world model ------------------------------------------------------------------------------------------------------


def test_norms_are_those_of_the_update():
    """One task with weight one: the update's own gradient norm is that of all parts together."""
    learner = make(
        num_tasks=1,
        loss=LossConfig(weighting="uniform", balance=0.0, reconstruct_every=2),
        model=dataclasses.replace(MODEL, routing=RoutingConfig(hidden=8, noise=0.0)),
    )
    learner.update_world_model(transitions(num_tasks=1, seed=1))  # so that the turn and the stream are not the first
    batch = transitions(num_tasks=1)
    metrics = measure(learner, batch)
    norms = torch.stack([value[0] for name, value in metrics.items() if name.startswith("insight/grad_norm/")])
    want = learner.update_world_model(batch)["optim/world_model_grad_norm"]
    # Float32 sums in another order.
    torch.testing.assert_close(norms.square().sum().sqrt(), want, rtol=1e-5, atol=0)


def test_module_norms_are_those_of_the_update():
    learner = make(
        loss=LossConfig(weighting="uniform", balance=0.0),
        optim=OptimConfig(world_model_clip=1e9),
        model=dataclasses.replace(MODEL, routing=RoutingConfig(hidden=8, noise=0.0)),
    )
    grouped(learner, 0, 1, 1)
    metrics = measure(learner, transitions())
    learner.update_world_model(transitions())
    gradients = {n: p.grad for n, p in learner.world_model.named_parameters()}
    for part, num_rows in (("encoder", 2), ("decoder", 2), ("heads", 2), ("experts", 3)):
        own = [
            g
            for n, g in gradients.items()
            if n.startswith(f"{part}.") and not n.startswith(("encoder.norms.", "decoder.norms.", "heads.task."))
        ]
        assert f"insight/module_grad_norm/{part}/{num_rows}" not in metrics
        for row in range(num_rows):
            want = torch.cat([g[row].flatten() for g in own]).norm()
            got = metrics[f"insight/module_grad_norm/{part}/{row}"]
            torch.testing.assert_close(got, want, rtol=1e-4, atol=0, msg=f"{part} {row}")  # float32, another order


def test_cosines_are_those_of_each_task_alone():
    """Against K backward passes of the plain kind, through the shared Transformer."""
    learner = make()
    gradients = []
    for k in range(3):
        model = copy.deepcopy(learner.world_model).train()
        rng = copy.deepcopy(learner.rng)
        losses = world_model_losses(
            model, transitions(), model.route(temperature=learner.temperature), rng, learner.config.loss
        )
        losses.weighted(learner.config.loss)[k].sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.shared.parameters()]))
    pairs = ((gradients[first], gradients[second]) for first, second in ((0, 1), (0, 2), (1, 2)))
    cosines = [torch.cosine_similarity(*pair, dim=0) for pair in pairs]
    metrics = measure(learner, transitions())
    # Float32 sums in another order.
    torch.testing.assert_close(metrics["insight/cosine/shared"], torch.stack(cosines).mean(), rtol=0, atol=1e-5)
    want = torch.tensor([gradient.norm() for gradient in gradients])
    torch.testing.assert_close(metrics["insight/grad_norm/shared"], want, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("mask", "pairs"), [((1.0, 0.0, 1.0), True), ((1.0, 0.0, 0.0), False)])
def test_a_task_without_gradient(monkeypatch, mask, pairs):
    def masked(*args, **kwargs):
        losses = world_model_losses(*args, **kwargs)
        terms = {name: loss * torch.tensor(mask) for name, loss in losses.terms.items()}
        return losses._replace(terms=terms)

    learner = make()
    monkeypatch.setattr(insight, "world_model_losses", masked)
    metrics = measure(learner, transitions())
    for part in ("encoder", "decoder", "experts", "shared", "heads", "task_head", "router", "task_embedding"):
        norms = metrics[f"insight/grad_norm/{part}"]
        assert ((norms > 0) == torch.tensor(mask).bool()).all(), part
    for part in ("encoder", "decoder", "shared", "heads", "task_head", "router"):
        assert (f"insight/conflict/{part}" in metrics) == (f"insight/cosine/{part}" in metrics) == pairs, part
    assert all(value.isfinite().all() for value in metrics.values())


def test_an_unused_expert():
    learner = make()
    learner.frozen_routes = torch.tensor([[0, 1]] * 3)
    metrics = measure(learner, transitions())
    assert metrics["insight/expert_use/2"] == 0
    assert metrics["insight/module_grad_norm/experts/2"] == 0
    assert metrics["insight/module_grad_norm/experts/0"] > 0
    assert 1 < metrics["insight/experts_in_use"] <= 2


def test_experts_in_use_of_a_fixed_routing():
    model = dataclasses.replace(MODEL, routing=RoutingConfig(method="hash"))
    metrics = measure(make(model=model), transitions())  # 0 1 | 0 2 | 1 2
    for expert in range(3):
        assert metrics[f"insight/expert_use/{expert}"].item() == pytest.approx(1 / 3)
    assert metrics["insight/experts_in_use"].item() == pytest.approx(3.0)


def make_all_speak_alike(model):
    """Every unit says 1, whatever comes in: only units planted as dead afterwards are dormant."""
    for name, layer in model.named_modules():
        if insight._RECTIFIED.search(name):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.ones_(layer.bias)


def test_planted_dead_units_are_found():
    learner = grouped(make(), 0, 1, 1)
    learner.frozen_routes = torch.tensor([[0, 1], [1, 2], [0, 2]])
    model = learner.world_model
    make_all_speak_alike(model)
    with torch.no_grad():
        model.heads.reward.norms[0].bias[1, :3] = -1.0  # 3 of the 4 x 16 units of module 1: tasks 1 and 2
        model.heads.task.norms[1].bias[0, 5] = -1.0  # 1 of 2 x 16, of everyone
        model.encoder.norms[2].bias[2, 4] = -1.0  # a channel of 3 + 4 + 5 + 6; batch norm has a row per task
        model.decoder.norms[0].bias[0, :6] = -1.0  # the whole first layer of as many
        model.experts.transformer.blocks[1].expand.bias[1, :4] = -1.0  # expert 1, of 2 slots x (16 + 24 + 24)
        model.experts.mixer.input_norm.bias[2, 0] = -1.0  # expert 2
        model.shared.transformer.blocks[0].expand.bias[0, :] = 1e-3  # they all whisper: none less than its layer
    metrics = measure(learner, transitions())
    want = {
        "heads": [0, 3 / 64, 3 / 64],
        "task_head": [1 / 32] * 3,
        "encoder": [0, 0, 1 / 18],
        "decoder": [6 / 18, 0, 0],
        "experts": [4 / 128, 5 / 128, 1 / 128],
        "shared": [0, 0, 0],
    }
    assert {name for name in metrics if "/dormant/" in name} == {f"insight/dormant/{part}" for part in want}
    for part, shares in want.items():
        assert metrics[f"insight/dormant/{part}"].tolist() == pytest.approx(shares), part


class CountingReLU(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += getattr(func, "__name__", "") in ("relu", "relu_")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("prior", ["dense", "local"])
@pytest.mark.parametrize("norm", ["bn_per_task", "bn_shared", "group", "channel"])
def test_every_relu_is_watched(norm, prior):
    """The layers before a ReLU are known by name; a new one must be added there."""
    perception = dataclasses.replace(PERCEPTION, norm=norm, groups=16, latent="spatial")
    learner = grouped(make(model=dataclasses.replace(MODEL, perception=perception, prior=prior)), 0, 1, 1)
    model = learner.world_model
    with CountingReLU() as relus:
        world_model_losses(model, transitions(), model.route(), learner.rng, learner.config.loss)
    activity, hidden = insight._watch(model)
    world_model_losses(model, transitions(), model.route(), learner.rng, learner.config.loss)
    assert [h.shape for h in hidden] == [(3, 2, 6, 16)]
    assert sum(len(calls) for calls in activity.values()) == relus.count - 1  # the router's: one row per task only


MODELS = {
    "as_is": MODEL,
    "hash": dataclasses.replace(MODEL, routing=RoutingConfig(method="hash")),
    "one_expert": dataclasses.replace(MODEL, experts=ExpertsConfig(num_experts=1, experts_per_task=1)),
    "no_task_head": dataclasses.replace(MODEL, task_head=False),
    "heads_shared": dataclasses.replace(MODEL, heads="shared"),
    "shared_mlp": dataclasses.replace(MODEL, shared=SharedConfig(kind="mlp")),
    "no_shared": dataclasses.replace(
        MODEL, shared=SharedConfig(kind="none"), experts=ExpertsConfig(num_experts=3, experts_per_task=1)
    ),
    "told_nothing": dataclasses.replace(
        MODEL, embedding_size=0, condition=(), routing=RoutingConfig(method="cluster")
    ),
    "bn_shared": dataclasses.replace(MODEL, perception=dataclasses.replace(PERCEPTION, norm="bn_shared")),
    "group_norm": dataclasses.replace(MODEL, perception=dataclasses.replace(PERCEPTION, norm="group")),
    "router_without_gradient": dataclasses.replace(MODEL, routing=RoutingConfig(hidden=8, scale="none")),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("labels", [(0,), (0, 0, 0), (0, 1, 1)], ids=str)
def test_every_model_can_be_measured(name, labels, tmp_path):
    learner, num_tasks = make(num_tasks=len(labels), model=MODELS[name]), len(labels)
    learner.update_world_model(transitions(num_tasks, seed=1))
    if max(labels):
        grouped(learner, *labels)
    metrics = measure(learner, transitions(num_tasks))
    for key, value in metrics.items():
        room, kind, *_ = key.split("/")
        assert room == "insight"
        assert value.shape == ((num_tasks,) if kind in ("grad_norm", "effective_rank", "dormant") else ()), key
        assert value.dtype == torch.float32
        assert not value.requires_grad
        assert value.isfinite().all(), key
        if kind in ("dormant", "conflict", "expert_use"):
            assert ((value >= 0) & (value <= 1)).all(), key
    rank = metrics["insight/effective_rank"]
    assert ((rank > 1) & (rank <= MODEL.width)).all()
    assert any("/conflict/" in key for key in metrics) == (num_tasks > 1)
    # What the logger cannot write, such as a nan, it raises.
    means = MetricMeans()
    means.add(metrics)
    logger = Logger(tmp_path, frame_skip=1)
    logger.metrics(0, 1, means.read(), [str(k) for k in range(num_tasks)])
    logger.close()


def test_a_broken_model_is_for_the_logger_to_report():
    learner = make()
    with torch.no_grad():
        learner.world_model.shared.stem.output.weight[0, 0, 0] = torch.nan
    metrics = measure(learner, transitions())
    assert metrics["insight/effective_rank"].isnan().all()
    assert metrics["insight/grad_norm/shared"].isnan().all()


def test_where_conflict_is_measured():
    """Modules of one task have nobody to quarrel with; what belongs to one task alone never has."""

    def places(learner):
        return {name.split("/")[2] for name in measure(learner, transitions()) if "/conflict/" in name}

    by_all = {"experts", "shared", "task_head", "router"}
    assert places(make()) == {"encoder", "decoder", "heads", *by_all}
    assert places(grouped(make(), 0, 1, 1)) == {"encoder", "decoder", "heads", *by_all}
    assert places(grouped(make(), 0, 1, 2)) == by_all
    assert places(grouped(make(model=MODELS["heads_shared"]), 0, 1, 2)) == {"heads", *by_all}


def test_bf16_autocast_is_measured():
    for name, value in measure(make(optim=OptimConfig(precision="bf16")), transitions()).items():
        assert value.dtype == torch.float32, name
        assert value.isfinite().all(), name


# Nothing changes ------------------------------------------------------------------------------------------------------


def everything(learner):
    """All that a learner carries from update to update, and what a careless reader could leave in its model."""
    model, routes = learner.world_model, learner.frozen_routes
    tensors = {}
    for owner in (model, learner.agent, learner.task_weights):
        tensors |= {f"{type(owner).__name__}.{name}": value.clone() for name, value in owner.state_dict().items()}
    for number, optimiser in enumerate([*learner.world_model_optimisers, *learner.agent_optimisers]):
        for index, state in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{index}.{name}": value.clone() for name, value in state.items()}
    tensors |= {f"{name}.grad": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return tensors | {
        "rng": learner.rng.state(),
        "torch": torch.get_rng_state(),
        "routes": torch.zeros(0) if routes is None else routes.clone(),
        "updates": torch.tensor(learner.updates),
        "training": torch.tensor([layer.training for layer in model.modules()]),
        "hooks": torch.tensor([len(x._forward_hooks) + len(x._forward_pre_hooks) for x in model.modules()]),
    }


def same(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_measuring_changes_nothing(precision):
    learner = make(model=dataclasses.replace(MODEL, dropout=0.1), optim=OptimConfig(precision=precision))
    for mode in (True, False):
        learner.world_model.train(mode)
        before = everything(learner)
        measure(learner, transitions())
        same(before, everything(learner))
        learner.update_world_model(transitions())


@pytest.mark.parametrize("norm", ["bn_per_task", "bn_shared"])
def test_a_measured_run_is_the_same_run(norm):
    """Through warm-up, grouping and the freezing of the routes, with dropout and routing noise."""
    perception = dataclasses.replace(PERCEPTION, norm=norm)
    model = dataclasses.replace(MODEL, dropout=0.1, perception=perception)

    def run(measured):
        learner = make(model=model, loss=LossConfig(weighting="running_mean"))
        for update in range(8):
            if update == 3:
                learner.regroup(learner.group(transitions(seed=i) for i in range(2)))
            if measured:
                measure(learner, transitions(seed=update))
            learner.update_world_model(transitions(seed=update))
            if measured:
                measure(learner, transitions(seed=update + 1))
            learner.update_agent(transitions(seed=update, length=3))
        return learner

    plain = run(measured=False)
    assert plain.frozen_routes is not None  # the case is in
    same(everything(plain), everything(run(measured=True)))


def test_dropout_stays_out():
    """The same batch gives the same numbers, and with dropout those of the model without."""
    plain, dropping = (make(model=dataclasses.replace(MODEL, dropout=dropout)) for dropout in (0.0, 0.5))
    want = measure(plain, transitions())
    for _ in range(2):
        same(want, measure(dropping, transitions()))


def test_recomputed_activations_change_no_measure():
    """Each of the K backward passes goes through the same graph, and recomputes it."""
    plain, again = (make(optim=OptimConfig(checkpoint_activations=parts)) for parts in ("none", "all"))
    same(measure(plain, transitions()), measure(again, transitions()))
