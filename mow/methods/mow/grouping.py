"""Clusters of tasks that share a module, from features of each task after the warm-up. Source: MoW section 3."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mow.batch import TransitionBatch
from mow.kernels import PhiloxState
from mow.methods.mow.clustering import (
    GradientFeatures,
    Grouping,
    Vectors,
    from_labels,
    gradient_features,
    group_tasks,
    tensor_shares,
    unit_rows,
)
from mow.methods.mow.config import MowConfig
from mow.methods.mow.split_modules import PER_MODULE, grow
from mow.methods.mow.world_model import WorldModel
from mow.methods.mow.world_model_loss import world_model_losses


@dataclass(frozen=True)
class WarmedUp:
    """A world model after its warm-up, and what its losses are computed with."""

    model: WorldModel
    config: MowConfig
    device: torch.device
    rng: PhiloxState
    temperature: float  # of the router
    frozen_routes: Tensor | None
    autocast: Callable[[], AbstractContextManager[object]]


def grouping_of(learner: WarmedUp, batches: Iterable[TransitionBatch]) -> Grouping:
    """The clusters by the config's method, from `batches` of replay; changes nothing.

    Raises: FloatingPointError if the model's weights are broken.
    """
    config, num_tasks = learner.config, learner.model.num_tasks
    num_modules = config.num_modules
    method = config.clustering.method
    if num_modules in (1, num_tasks) or method == "random":
        labels = np.arange(num_tasks) % num_modules
        if method == "random":
            np.random.default_rng(config.seed).shuffle(labels)
        return from_labels(labels, np.eye(num_tasks))
    sizes: Mapping[str, int] = {}
    if method == "gradient":
        found = gradient_evidence(learner, batches)
        evidence, sizes = [features.vectors for features in found], found[0].sizes
    else:
        evidence = latent_evidence(learner, batches)
    if not all(np.isfinite(vectors).all() for vectors in evidence):
        raise FloatingPointError("the gradients that tasks are grouped by are not finite: start again with a lower "
                                 "optim.world_model_lr")
    grouping = group_tasks(evidence, num_modules, restarts=config.clustering.restarts, seed=config.seed)
    return replace(grouping, shares=tensor_shares(np.sum(evidence, axis=0), sizes) if sizes else {})


def gradient_evidence(learner: WarmedUp, batches: Iterable[TransitionBatch]) -> list[GradientFeatures]:
    """Gradients of each task's loss on the warm-up module, one entry per batch.

    Every task gets its own copy of the module, so one backward pass of sum_k L_k leaves exactly the gradient of L_k
    in copy k. (With batch norm shared by a module the copies see one task's statistics each, not the mixture.)
    """
    model, config = learner.model, learner.config
    tasks = range(model.num_tasks)
    probe = grow(model, tasks, tasks, model.num_tasks).train()
    # Heads that all tasks share have one gradient for all: it does not separate tasks.
    own = PER_MODULE if config.model.heads == "cluster" else tuple(n for n in PER_MODULE if n[:6] != "heads.")
    module_parameters = [(n, p) for n, p in probe.named_parameters() if n.startswith(own)]
    evidence = []
    for batch in batches:
        with learner.autocast():
            routing = probe.route(temperature=learner.temperature, frozen=learner.frozen_routes)
            losses = world_model_losses(probe, batch.to(learner.device), routing, learner.rng, config.loss)
        probe.zero_grad(set_to_none=True)
        losses.weighted(config.loss).sum().backward()
        gradients = {n: _output_channel_first(n, p.grad) for n, p in module_parameters if p.grad is not None}
        evidence.append(gradient_features(gradients, config.clustering.features, config.clustering.scaling))
    return evidence


@torch.no_grad()
def latent_evidence(learner: WarmedUp, batches: Iterable[TransitionBatch]) -> list[Vectors]:
    """Mean encoder features of each task, less their mean over tasks, one entry per batch."""
    model = learner.model.eval()
    evidence = []
    for batch in batches:
        frame = batch.frame.to(learner.device).flatten(1, 2)
        feature = model.encoder.features(frame, model.background)  # [K, N, F]
        feature = feature.float().mean(dim=1)  # [K, F]
        evidence.append(unit_rows((feature - feature.mean(dim=0)).double().cpu().numpy()))
    return evidence


def _output_channel_first(name: str, gradient: Tensor) -> Tensor:
    """Transposed convolutions store [K, in, out, ...]; all else has the output channel at axis 1 already."""
    transposed = name.startswith(("decoder.convs.", "decoder.output.")) and gradient.dim() == 5
    return gradient.transpose(1, 2) if transposed else gradient
