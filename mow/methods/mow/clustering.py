"""Clusters of tasks: those whose losses pull the shared module in like directions share a module ever after.

    g_k = the tensors of the gradient of L_k on the warm-up module, each averaged per output channel and scaled to
          length 1, joined; summed over batches and scaled to length 1;
    tasks are grouped by spherical k-means on the g_k, no group empty, none above ceil(2 K / N_m) tasks.

Source: MoW section 4 (per-task gradients of VAE and predictors, averaged layer by layer, cosine similarity). Differs:
k-means with a size cap is inferred, the paper names no algorithm. Addition of this package: the scaling of single
tensors (clustering.scaling none leaves it out). Without it the tensor with the largest gradient decides, such as the
decoder's output bias, three numbers: the mean error of red, green and blue.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from mow.batch import TransitionBatch
from mow.methods.mow.config import MowConfig
from mow.methods.mow.split_modules import PER_MODULE, grow
from mow.methods.mow.world_model import WorldModel

Vectors = NDArray[np.float64]  # [K, F]
Labels = NDArray[np.int64]  # [K]
Part = Callable[[WorldModel], WorldModel]
Gather = Callable[[Tensor], Tensor]  # rows of some tasks -> rows of all [K, ...]
LossesOf = Callable[[WorldModel, TransitionBatch], Tensor]  # weighted losses [K, terms] of a model on a batch


@dataclass(frozen=True)
class Grouping:
    """Module of every task, and the order that makes each module's tasks neighbours."""

    order: tuple[int, ...]  # task k of the sorted run is the old task order[k]
    module_of_task: tuple[int, ...]  # in the new order, ascending
    similarity: Vectors  # [K, K] cosines between the tasks' features, in the old order
    silhouette: float  # -1 to 1, how much nearer tasks are to their own group; nan where it is undefined
    stability: float  # adjusted Rand index between groupings of two halves of the evidence; nan where there is none
    # Tensor -> its share of the features' squared length, mean over tasks, largest first; empty without gradients.
    shares: Mapping[str, float] = field(default_factory=dict)

    @property
    def num_modules(self) -> int:
        return max(self.module_of_task) + 1

    def groups(self, names: Sequence[str]) -> list[list[str]]:
        """Task names per module; `names` in the old order."""
        groups: list[list[str]] = [[] for _ in range(self.num_modules)]
        for task, module in zip(self.order, self.module_of_task, strict=True):
            groups[module].append(names[task])
        return groups

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and lists of them, for a checkpoint."""
        lists = {"order": list(self.order), "module_of_task": list(self.module_of_task)}
        return {**vars(self), **lists, "similarity": torch.from_numpy(self.similarity), "shares": dict(self.shares)}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> "Grouping":
        """From a state_dict()."""
        tuples = {"order": tuple(state["order"]), "module_of_task": tuple(state["module_of_task"])}
        return cls(**{**state, **tuples, "similarity": state["similarity"].cpu().numpy()})

    def describe(self, names: Sequence[str]) -> str:
        """The groups in a line, with what is known of their quality; `names` in the old order."""
        groups = " | ".join(f"{i}: {', '.join(group)}" for i, group in enumerate(self.groups(names)))
        if math.isnan(self.silhouette):
            return f"modules: {groups}"
        detail = f"silhouette {self.silhouette:.2f}, stability {self.stability:.2f}"
        for name, share in list(self.shares.items())[:1]:
            detail += f", the largest part of the features is {name} with {share:.0%}"
        return f"modules: {groups} ({detail})"

    @property
    def shades(self) -> NDArray[np.uint8]:
        """The similarities as an image: [K, K, 3], black for -1, white for 1."""
        shades = (127.5 * (1.0 + np.clip(self.similarity, -1, 1))).astype(np.uint8)
        return np.repeat(shades[:, :, None], 3, axis=2)


def grouping_of(
    model: WorldModel, batches: Iterable[TransitionBatch], config: MowConfig, losses_of: LossesOf,
    part: Part = lambda model: model, gather: Gather = lambda rows: rows,
) -> Grouping:  # fmt: skip
    """The clusters by the config's method, of a model after its warm-up, from `batches` of replay; changes nothing.

    Args: part, gather: where batches hold the rows of some tasks only: the view of a model on these, and the rows of
        all tasks from theirs.
    Raises: FloatingPointError if the model's weights are broken.
    """
    num_tasks, num_modules, method = model.num_tasks, config.num_modules, config.clustering.method
    if num_modules in (1, num_tasks) or method == "random":
        labels = np.arange(num_tasks) % num_modules
        if method == "random":
            np.random.default_rng(config.seed).shuffle(labels)
        return from_labels(labels, np.eye(num_tasks))
    sizes: Mapping[str, int] = {}
    if method == "gradient":
        found = gradient_evidence(model, batches, config, losses_of, part, gather)
        evidence, sizes = [features.vectors for features in found], found[0].sizes
    else:
        evidence = latent_evidence(part(model), batches, gather)
    if not all(np.isfinite(vectors).all() for vectors in evidence):
        raise FloatingPointError("the gradients that tasks are grouped by are not finite: start again with a lower "
                                 "optim.world_model_lr")
    grouping = group_tasks(evidence, num_modules, restarts=config.clustering.restarts, seed=config.seed)
    return replace(grouping, shares=tensor_shares(np.sum(evidence, axis=0), sizes) if sizes else {})


def gradient_evidence(
    model: WorldModel, batches: Iterable[TransitionBatch], config: MowConfig, losses_of: LossesOf,
    part: Part = lambda model: model, gather: Gather = lambda rows: rows,
) -> "list[GradientFeatures]":
    """Gradients of each task's loss on the warm-up module, one entry per batch.

    Every task gets its own copy of the module, so one backward pass of sum_k L_k leaves exactly the gradient of L_k
    in copy k. (With batch norm shared by a module the copies see one task's statistics each, not the mixture.)
    """
    tasks = range(model.num_tasks)
    probe = part(grow(model, tasks, tasks, model.num_tasks)).train()
    own = slice(probe.first_task, probe.first_task + probe.num_tasks)
    # Heads that all tasks share have one gradient for all: it does not separate tasks.
    per_task = PER_MODULE if config.model.heads == "cluster" else tuple(n for n in PER_MODULE if n[:6] != "heads.")
    module_parameters = [(n, p) for n, p in probe.named_parameters() if n.startswith(per_task)]
    evidence = []
    for batch in batches:
        losses = losses_of(probe, batch)
        probe.zero_grad(set_to_none=True)
        losses.sum().backward()
        gradients = {n: _output_channel_first(n, p.grad) for n, p in module_parameters if p.grad is not None}
        features = gradient_features(gradients, config.clustering.features, config.clustering.scaling)
        evidence.append(features._replace(vectors=gather(torch.from_numpy(features.vectors[own])).numpy()))
    return evidence


@torch.no_grad()
def latent_evidence(
    model: WorldModel, batches: Iterable[TransitionBatch], gather: Gather = lambda rows: rows
) -> list[Vectors]:
    """Mean encoder features of each task, less their mean over tasks, one entry per batch."""
    model.eval()
    evidence = []
    for batch in batches:
        frame = batch.frame.to(model.plan.routes.device).flatten(1, 2)
        feature = gather(model.encoder.features(frame, model.background).float().mean(dim=1))  # [K, F]
        evidence.append(unit_rows((feature - feature.mean(dim=0)).double().cpu().numpy()))
    return evidence


def _output_channel_first(name: str, gradient: Tensor) -> Tensor:
    """Transposed convolutions store [K, in, out, ...]; all else has the output channel at axis 1 already."""
    transposed = name.startswith(("decoder.convs.", "decoder.output.")) and gradient.dim() == 5
    return gradient.transpose(1, 2) if transposed else gradient


class GradientFeatures(NamedTuple):
    """One vector per task, and which of its entries belong to which tensor."""

    vectors: Vectors  # [K, F]
    sizes: Mapping[str, int]  # tensor -> number of entries, in the order in which they are joined; sum to F


def gradient_features(
    gradients: Mapping[str, Tensor],
    averaging: Literal["layer_mean", "tensor_mean"],
    scaling: Literal["per_tensor", "none"],
) -> GradientFeatures:
    """Gradients of named tensors stacked per task, [K, out, ...] each -> one vector per task.

    Args:
        averaging: layer_mean keeps one number per output channel of every tensor, tensor_mean one per tensor.
        scaling: per_tensor scales what is kept of a tensor to length 1, task by task, so that no tensor decides by
            the size of its gradient; zeros stay zeros.
    """
    parts: dict[str, Vectors] = {}
    for name, gradient in gradients.items():
        mean = gradient.flatten(2).mean(dim=2) if gradient.dim() > 2 else gradient  # [K, out]
        if averaging == "tensor_mean":
            mean = gradient.flatten(1).mean(dim=1, keepdim=True)
        mean = mean.double()
        if scaling == "per_tensor":
            mean = F.normalize(mean, dim=1, eps=torch.finfo(mean.dtype).tiny)
        parts[name] = mean.cpu().numpy()
    sizes = {name: part.shape[1] for name, part in parts.items()}
    return GradientFeatures(np.concatenate(list(parts.values()), axis=1), sizes)


def tensor_shares(vectors: Vectors, sizes: Mapping[str, int]) -> dict[str, float]:
    """Share of each tensor in the squared length of features [K, F], mean over tasks; the largest first.

    Args: sizes: as in GradientFeatures.
    """
    parts = np.split(unit_rows(vectors) ** 2, np.cumsum(list(sizes.values()))[:-1], axis=1)
    shares = {name: float(part.sum(axis=1).mean()) for name, part in zip(sizes, parts, strict=True)}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def unit_rows(vectors: Vectors) -> Vectors:
    """Each row scaled to length 1; a row of zeros stays zero."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length > 0, length, 1.0)


def group_tasks(features: Sequence[Vectors], num_modules: int, *, restarts: int, seed: int) -> Grouping:
    """Group K tasks by the sum of all `features`; two or more entries also measure stability.

    Args:
        features: evidence from separate batches, [K, F] each.
        num_modules: N_m, at most K.
    """
    unit = unit_rows(np.sum(features, axis=0))
    labels = spherical_kmeans(unit, num_modules, restarts=restarts, seed=seed)
    stability = math.nan
    if len(features) > 1:
        middle = len(features) // 2
        halves = (np.sum(features[:middle], axis=0), np.sum(features[middle:], axis=0))
        first, second = (spherical_kmeans(unit_rows(h), num_modules, restarts=restarts, seed=seed) for h in halves)
        stability = adjusted_rand_index(first, second)
    return from_labels(labels, unit @ unit.T, stability)


def from_labels(labels: Labels, similarity: Vectors, stability: float = math.nan) -> Grouping:
    """Sort tasks by group; groups are numbered by their first task, so that the numbering has no randomness left."""
    _, first_task = np.unique(labels, return_index=True)
    rank = {int(labels[task]): module for module, task in enumerate(sorted(first_task))}
    modules = np.array([rank[int(label)] for label in labels])
    order = np.argsort(modules, kind="stable")
    sorted_modules = tuple(modules[order].tolist())
    return Grouping(tuple(order.tolist()), sorted_modules, similarity, silhouette(similarity, modules), stability)


def spherical_kmeans(unit: Vectors, num_clusters: int, *, restarts: int, seed: int) -> Labels:
    """k-means by cosine on unit vectors [K, F]: the best of `restarts`, no empty cluster, a cap on the largest.

        maximise sum_k <g_k, c_{label(k)}>,   |cluster| in [1, ceil(2 K / N)],   1 <= N <= K
    """
    num_tasks = unit.shape[0]
    cap = math.ceil(2 * num_tasks / num_clusters)
    rng = np.random.default_rng(seed)
    best_score, best_labels = -np.inf, np.zeros(num_tasks, dtype=np.int64)
    for _ in range(restarts):
        centre = unit[_spread_out(unit, num_clusters, rng)]
        score = -np.inf
        while True:
            labels = _assign(unit @ centre.T, cap)
            centre = unit_rows(np.stack([unit[labels == c].sum(axis=0) for c in range(num_clusters)]))
            reached = float((unit * centre[labels]).sum())
            # Only a rise counts: where groupings tie, rounding could swap them for ever.
            if reached <= score + 1e-9:
                break
            score = reached
        if score > best_score + 1e-12:
            best_score, best_labels = score, labels
    return best_labels


def _spread_out(unit: Vectors, num_clusters: int, rng: np.random.Generator) -> list[int]:
    """First centres by k-means++: each next task with probability proportional to its distance from those chosen."""
    chosen = [int(rng.integers(len(unit)))]
    while len(chosen) < num_clusters:
        distance = np.clip(1.0 - (unit @ unit[chosen].T).max(axis=1), 0.0, None)
        distance[chosen] = 0.0
        rest = np.setdiff1d(np.arange(len(unit)), chosen)
        total = distance.sum()
        chosen.append(int(rng.choice(len(unit), p=distance / total)) if total > 0 else int(rng.choice(rest)))
    return chosen


def _assign(similarity: Vectors, cap: int) -> Labels:
    """The best assignment of tasks to clusters with 1 to `cap` members: [K, N] cosines -> [K].

    Each cluster offers `cap` seats; a bonus above any cosine difference fills every first seat.
    """
    num_tasks, num_clusters = similarity.shape
    bonus = np.zeros((num_clusters, cap))
    bonus[:, 0] = 4.0 * num_tasks  # moving one task costs at most 2, a chain of moves at most 2 K
    seats = (similarity[:, :, None] + bonus[None]).reshape(num_tasks, num_clusters * cap)
    tasks, taken = linear_sum_assignment(seats, maximize=True)
    return taken[np.argsort(tasks)] // cap


def silhouette(similarity: Vectors, labels: Labels) -> float:
    """Mean of (b - a) / max(a, b) over tasks, on distances 1 - cosine: a to the own group, b to the nearest other.

    Undefined (nan) where there is one group only or every task is alone. Source: Rousseeuw (1987).
    """
    distance, groups = 1.0 - similarity, np.unique(labels)
    if len(groups) < 2 or len(groups) == len(labels):
        return math.nan
    scores = []
    for k, own in enumerate(labels):
        mates = (labels == own) & (np.arange(len(labels)) != k)
        a = distance[k, mates].mean() if mates.any() else math.nan
        b = min(distance[k, labels == other].mean() for other in groups if other != own)
        scores.append((b - a) / max(a, b, 1e-12) if mates.any() else 0.0)
    return float(np.mean(scores))


def adjusted_rand_index(first: Labels, second: Labels) -> float:
    """Agreement of two groupings beyond chance: 1 for the same groups, about 0 for unrelated ones.

    Source: Hubert and Arabie (1985).
    """
    table = np.array([[np.sum((first == i) & (second == j)) for j in np.unique(second)] for i in np.unique(first)])
    counts = table.ravel(), table.sum(axis=1), table.sum(axis=0)
    pairs, rows, columns = (sum(math.comb(int(n), 2) for n in count) for count in counts)
    expected = rows * columns / max(1, math.comb(len(first), 2))
    most = (rows + columns) / 2
    return 1.0 if most == expected else (pairs - expected) / (most - expected)
