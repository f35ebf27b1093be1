"""Reader of a run's checkpoint: modules, experts, similarity of the tasks, films of real and imagined frames."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mow.engine.device import pick_device
from mow.evaluate.film import fresh_envs
from mow.methods.mow.config import MowConfig
from mow.report.data import Film, ModelView, Similarity
from mow.runs.restore import newest_checkpoint, restore
from mow.system.threads import limit_torch

if TYPE_CHECKING:
    from mow.envs.vector import VectorEnv
    from mow.methods.mow.learner import Learner

_CONTEXT, _STEPS = 2, 16  # frames of a film that the world model sees; steps that it imagines at most


def read_model(folder: Path, config: MowConfig, *, checkpoint: Path | None, device: str, num_windows: int) -> ModelView:
    """Restore a checkpoint and describe its model.

    Args:
        checkpoint: None: the newest one.
        num_windows: of held-out play per task, for the films; 0: no films.
    Raises: UsageError in one line if there is no checkpoint, if it cannot be read or if a simulator is missing.
    """
    path = checkpoint or newest_checkpoint(folder)
    seed = config.seed + 1000  # neither the seed of training nor the next one, which the scores were played with
    with fresh_envs(config, seed) as envs:
        limit_torch()
        learner, step = restore(path, config, envs, pick_device(device))
        tasks = tuple(spec.name for spec in envs.specs)  # sorted by module now
        films, no_films = dict[str, Film](), "The film strips are switched off (--windows 0)."
        try:
            if num_windows:
                films, no_films = make_films(learner, envs, num_windows=num_windows, seed=seed), ""
        except ValueError as error:
            no_films = f"No film strips: {error}."
    routing = learner.routing()
    routes, weight = routing.plan.routes.cpu().numpy(), routing.weight_KJ  # [K, J], [K, J] or None
    share = np.zeros((len(tasks), routing.plan.num_experts))
    chosen = 1.0 / routes.shape[1] if weight is None else weight.detach().float().cpu().numpy()
    np.put_along_axis(share, routes, chosen, axis=1)
    return ModelView(
        checkpoint=path.name,
        step=step,
        tasks=tasks,
        module_of_task=learner.world_model.module_of_task,
        expert_share=share,
        learned_routing=weight is not None,
        similarity=_similarity(learner),
        weights=_weights(learner, tasks),
        films=films,
        no_films=no_films,
    )


_EVIDENCE = {"gradient": "gradients of the tasks' losses on the warm-up module", "latent": "mean encoder features"}


def _similarity(learner: "Learner") -> Similarity | None:
    """Cosines of what the clustering compared; where it measured nothing, of the task embeddings."""
    grouping = learner.grouping
    if len(learner.world_model.module_of_task) < 2:
        return None
    # A grouping that was not measured has the identity as its similarity.
    if grouping is not None and not np.array_equal(grouping.similarity, np.eye(len(grouping.similarity))):
        order = np.array(grouping.order)
        of = f"{_EVIDENCE.get(learner.config.clustering.method, 'the features')}, by which they were grouped"
        cosine = grouping.similarity[np.ix_(order, order)]
        return Similarity(of, cosine, grouping.silhouette, grouping.stability, grouping.shares)
    embedding = learner.world_model.task_embedding
    if embedding is None:
        return None
    rows = embedding.detach().double().cpu().numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    of = "learned task embeddings (the grouping itself measured nothing)"
    return Similarity(of, rows @ rows.T, float("nan"), float("nan"), {})


def _weights(learner: "Learner", tasks: tuple[str, ...]) -> dict[str, float] | None:
    """1 / sigma_k; with a scale per term, its mean over the terms."""
    scales = learner.task_weights.state_dict().get("log_sigma")
    if scales is None:
        return None
    weight = (-scales.float()).exp().cpu().numpy().reshape(len(tasks), -1).mean(axis=1)
    return dict(zip(tasks, weight.tolist(), strict=True))


def make_films(learner: "Learner", envs: "VectorEnv", *, num_windows: int, seed: int) -> dict[str, Film]:
    """Play held-out windows and imagine them from their first frames.

    Raises: ValueError if the episodes of a task are too short or the model has no position for one imagined step.
    """
    from mow.evaluate.film_strip import HEADING, draw_film, imagine, one_strip, png
    from mow.evaluate.held_out import play_windows
    from mow.kernels import PhiloxState

    longest = learner.config.model.max_positions
    num_steps = min(_STEPS, longest - _CONTEXT)
    if num_steps < 1:
        raise ValueError(f"model.max_positions {longest} leaves no step to imagine")
    rng = PhiloxState.from_seed(seed, learner.device)
    windows = play_windows(
        learner, envs, player="agent", num_windows=num_windows, length=_CONTEXT + num_steps, shortest=_CONTEXT + 1,
        rng=rng, generator=np.random.default_rng(seed),
    )  # fmt: skip
    film = imagine(learner, windows, _CONTEXT, rng)
    found = {}
    for k, spec in enumerate(envs.specs):
        picture = draw_film([one_strip(film, k, "")], (), num_context=_CONTEXT)[HEADING // 2 :]  # room for the name
        kinds = ("imagined", "reconstructed", "repeated")
        errors = {kind: tuple(getattr(film.errors, kind)[k].nanmean(dim=0).tolist()) for kind in kinds}
        found[spec.name] = Film(png(picture), _CONTEXT, errors, num_windows)
    return found
