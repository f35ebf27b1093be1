"""Diagnostics of the world model: gradient norm and conflict per task, effective rank, dormant units.

    g_km = gradient of L_k (a task's weighted losses, summed) at the weights of module, expert or part m

Everything about gradients is read off their inner products <g_km, g_lm>. `measure` works on a copy of the world model
and on a copy of the random stream, so a run that is measured takes the same steps as one that is not.
"""

import copy
import re
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mow.batch import TransitionBatch
from mow.kernels import PhiloxState, RoutePlan
from mow.losses import expert_use
from mow.methods.base import Metrics
from mow.methods.mow.learner import Learner
from mow.methods.mow.router import Routing
from mow.methods.mow.world_model import WorldModel
from mow.methods.mow.world_model_loss import world_model_losses
from mow.nn.effective_rank import effective_count, effective_rank

STACKED = ("encoder", "decoder", "experts", "heads")  # parts with a module axis: each row is worth a curve of its own
# Layers whose output goes through a ReLU and nothing else; where it has been through one, another changes nothing.
_RECTIFIED = re.compile(r"(\.norms\.\d+|\.input_norm|\.expand|\.prior\.norm|\.prior\.second_norm|\.prior\.event)$")
_CONVOLUTIONAL = ("encoder", "decoder")


def gradient_gram(gradients: Tensor, plan: RoutePlan) -> Tensor:
    """Inner products of the tasks' gradients, for every row m (module, expert) of a part.

        gram_mkl = <g_km, g_lm>,   0 where task k or l does not use row m

    Args:
        gradients: [K, J, P], of task k at the row that it uses in slot j.
        plan: routes [K, J], the row of every (task, slot).
    Returns: [M, K, K] float64: sums of millions of squares, of which conflict reads the sign.
    """
    num_tasks = gradients.shape[0]
    gram = gradients.new_zeros(plan.num_experts, num_tasks, num_tasks, dtype=torch.float64)
    for row in range(plan.num_experts):
        task, slot = (plan.routes == row).nonzero(as_tuple=True)
        pull = gradients[task, slot].double()  # [n, P]
        gram[row, task[:, None], task] = pull @ pull.mT
    return gram


def gradient_cosines(gram: Tensor) -> Tensor:
    """Cosine between the gradients of every two tasks, taken over the rows where both have one.

        cos_kl = sum_m <g_km, g_lm> / sqrt(n_kl n_lk),   n_kl = sum over m with g_lm != 0 of ||g_km||^2

    Args: gram: [M, K, K], see gradient_gram.
    Returns: [K, K] in [-1, 1]; nan where no row has a gradient of both: a task whose gradient is zero, or tasks that
        share no module or expert.
    Source: Yu et al., Gradient Surgery for Multi-Task Learning (arXiv 2001.06782), definition 1. Differs: rows that
        only one of the two tasks uses are left out.
    """
    square = gram.diagonal(dim1=1, dim2=2)  # [M, K]
    norm = torch.einsum("mk,ml->kl", square, (square > 0).to(square.dtype))  # [K, K] n_kl
    return (gram.sum(dim=0) / (norm * norm.mT).sqrt()).clamp(-1.0, 1.0)


def conflict(cosines: Tensor) -> tuple[Tensor, Tensor]:
    """Share and mean of gradient conflicts between two tasks.

        share = #{k < l : cos_kl < 0} / #{k < l},   mean = mean of cos_kl over k < l

    Args: cosines: [K, K]; a pair that is nan counts in neither.
    Returns: share in [0, 1] and mean in [-1, 1], scalars; both nan where no pair counts.
    Source: Yu et al. (arXiv 2001.06782), definition 1 (conflict: a cosine below 0).
    """
    pairs = cosines[torch.ones_like(cosines, dtype=torch.bool).triu(1)]
    pairs = pairs[~pairs.isnan()]
    return (pairs < 0).to(pairs.dtype).mean(), pairs.mean()


def dormant_units(activity: Tensor, tau: float = 0.025) -> Tensor:
    """Dormant units of a layer.

        unit u is dormant where a_u <= tau * mean over the layer of a,   a_u = mean of |activation u| over inputs

    Args: activity: [..., U], the a_u of one layer.
    Returns: [..., U] bool; all of them where every a_u is 0.
    Source: Sokar et al., The Dormant Neuron Phenomenon (arXiv 2302.12902), definition 3.1.
    """
    return activity <= tau * activity.mean(dim=-1, keepdim=True)


def measure(learner: Learner, batch: TransitionBatch) -> Metrics:
    """Gradients per task, conflict, rank of h_t, dormant units and use of experts, on one batch; changes nothing.

    The losses are those of the next update, batch statistics included, but without dropout and routing noise, which
    would count as directions of h_t. L_bal and the harmony scales are no task's own and are left out. Costs a forward
    pass and K backward passes, a copy of the world model, and K gradients of what one task uses.
    """
    model = copy.deepcopy(learner.world_model).train()
    for dropping in (model.experts, model.shared):
        if dropping is not None:
            dropping.eval()
    activity, hidden = _watch(model)
    loss, rng = learner.config.loss, PhiloxState(learner.rng.seed_offset.clone())
    with learner.autocast():
        routing = model.route(temperature=learner.temperature, frozen=learner.frozen_routes)
        losses = world_model_losses(model, batch.to(learner.device), routing, rng, loss, turn=learner.updates)
    plans = _plans(model, routing)
    metrics = {"effective_rank": effective_rank(torch.cat(hidden).flatten(1, 2))}  # [K]
    metrics.update(_dormant_metrics(activity, model.num_tasks))
    metrics.update(_expert_metrics(routing))
    for part, gradient in _task_gradients(model, losses.weighted(loss).sum(dim=1), plans).items():
        metrics.update(_gradient_metrics(part, gradient_gram(gradient, plans[part])))
    return {f"insight/{name}": value.float() for name, value in metrics.items()}


def _plans(model: WorldModel, routing: Routing) -> dict[str, RoutePlan]:
    """Part -> the rows of its weights that each task uses."""
    everyone = model.shared_plan
    own = RoutePlan(torch.arange(model.num_tasks, device=everyone.routes.device).unsqueeze(1), model.num_tasks)
    heads = model.plan if model.config.heads == "cluster" else everyone
    return {
        "encoder": model.plan, "decoder": model.plan, "experts": routing.plan, "shared": everyone, "heads": heads,
        "task_head": everyone, "router": everyone, "task_embedding": own, "batch_norm": own,
    }  # fmt: skip


def _part(name: str) -> str:
    """The part of the model that a layer or parameter belongs to."""
    return "task_head" if name.startswith("heads.task.") else name.partition(".")[0]


def _task_gradients(model: WorldModel, losses: Tensor, plans: Mapping[str, RoutePlan]) -> dict[str, Tensor]:
    """Losses [K] -> part -> gradients [K, J, P] of each task at the rows that it uses; it has none elsewhere."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    parts = [_part(name) for name in names]
    if model.config.perception.norm == "bn_per_task":  # it has no module axis, and is a part by itself
        own = [".norms." in name and part in _CONVOLUTIONAL for name, part in zip(names, parts, strict=True)]
        parts = ["batch_norm" if of_task else part for of_task, part in zip(own, parts, strict=True)]
    kept: dict[str, list[Tensor]] = defaultdict(list)
    for k in range(model.num_tasks):
        last = k + 1 == model.num_tasks
        gradients = torch.autograd.grad(losses[k], parameters, retain_graph=not last, materialize_grads=True)
        pieces: dict[str, list[Tensor]] = defaultdict(list)
        for part, gradient in zip(parts, gradients, strict=True):
            stacked = gradient.unsqueeze(0) if part == "router" else gradient  # the router has no module axis
            pieces[part].append(stacked[plans[part].routes[k]].flatten(1))
        for part, of_task in pieces.items():
            kept[part].append(torch.cat(of_task, dim=1))  # [J, P]
    return {part: torch.stack(of_tasks) for part, of_tasks in kept.items()}


def _gradient_metrics(part: str, gram: Tensor) -> Metrics:
    """Norms per task and per module, and conflict where two tasks can meet: from the products [M, K, K] of a part."""
    metrics = {f"grad_norm/{part}": gram.sum(dim=0).diagonal().sqrt()}
    if part in STACKED:
        # || sum_k g_km ||; where the tasks cancel each other, rounding can leave less than nothing.
        for module, square in enumerate(gram.sum(dim=(1, 2)).clamp_min(0.0)):
            metrics[f"module_grad_norm/{part}/{module}"] = square.sqrt()
    share, mean = conflict(gradient_cosines(gram))
    if not mean.isnan():  # a curve without a point here, rather than a number for pairs that do not exist
        metrics[f"conflict/{part}"], metrics[f"cosine/{part}"] = share, mean
    return metrics


def _expert_metrics(routing: Routing) -> Metrics:
    load = routing.load()
    if load is None:  # fixed routing: every slot weighs the same
        routes = routing.plan.routes
        load = torch.zeros(len(routes), routing.plan.num_experts, device=routes.device).scatter(1, routes, 1.0)
    use = expert_use(load)  # [E]
    metrics = {f"expert_use/{expert}": share for expert, share in enumerate(use)}
    return {**metrics, "experts_in_use": effective_count(use)}


def _watch(model: WorldModel) -> tuple[dict[str, list[Tensor]], list[Tensor]]:
    """Make a throw-away model note what its units do, by name of the layer, and the h_t [K, B, L, D] it comes to."""
    activity: dict[str, list[Tensor]] = defaultdict(list)
    hidden: list[Tensor] = []

    def note(name: str, layer: Any, inputs: Any, output: Tensor) -> None:
        # Feature maps [n, C, H, W] -> [n, C]; rows of a (task, slot) pair [K, J, R, U] -> [K, J, U].
        axes = (2, 3) if _part(name) in _CONVOLUTIONAL else (2,)
        activity[name].append(output.detach().float().relu().mean(dim=axes))

    for name, layer in model.named_modules():
        if _RECTIFIED.search(name):
            layer.register_forward_hook(partial(note, name))
    model.heads.register_forward_pre_hook(lambda heads, inputs: hidden.append(inputs[0].hidden.detach()))
    return activity, hidden


def _dormant_metrics(activity: Mapping[str, list[Tensor]], num_tasks: int) -> Metrics:
    """Share of dormant units per part and task: [K]. A unit is an output of a ReLU (in a convolution: a channel) of the
    module or expert that the task runs through, over the inputs of that task alone.
    """
    dormant: dict[str, list[Tensor]] = defaultdict(list)
    for name, noted in activity.items():
        part, units = _part(name), torch.cat(noted)
        if part in _CONVOLUTIONAL:
            # The calls of a layer follow the order of the tasks, and every task has as many frames.
            units = units.unflatten(0, (num_tasks, -1)).mean(dim=1).unsqueeze(1)  # [K, 1, C]
        dormant[part].append(dormant_units(units))  # [K, J, U]
    return {f"dormant/{part}": torch.cat(units, dim=2).float().mean(dim=(1, 2)) for part, units in dormant.items()}
