"""Reader of a run's checkpoint: modules, experts, similarity of the tasks, films of real and imagined frames."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mow.engine.device import pick_device
from mow.evaluate.film import CONTEXT, FRAME_ERRORS, STEPS, fresh_envs
from mow.methods.mow.config import MowConfig
from mow.report.data import Film, ModelView, Similarity
from mow.runs.restore import newest_checkpoint, restore
from mow.system.threads import limit_torch

if TYPE_CHECKING:
    from mow.envs.vector import VectorEnv
    from mow.methods.mow.learner import Learner


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
        similarity=_similarity(learner),
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
        return Similarity(of, grouping.similarity[np.ix_(order, order)])
    embedding = learner.world_model.task_embedding
    if embedding is None:
        return None
    rows = embedding.detach().double().cpu().numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return Similarity("learned task embeddings (the grouping itself measured nothing)", rows @ rows.T)


def make_films(learner: "Learner", envs: "VectorEnv", *, num_windows: int, seed: int) -> dict[str, Film]:
    """Play held-out windows and imagine them from their first frames.

    Raises: ValueError if the episodes of a task are too short or the model has no position for one imagined step.
    """
    from mow.evaluate.film_strip import draw_film, film_of

    num_steps = min(STEPS, learner.config.model.max_positions - CONTEXT)
    if num_steps < 1:
        raise ValueError(f"model.max_positions {learner.config.model.max_positions} leaves no step to imagine")
    film = film_of(learner, envs, context=CONTEXT, steps=num_steps, num_windows=num_windows, seed=seed)
    found = {}
    for k, spec in enumerate(envs.specs):
        errors = {kind: tuple(getattr(film.errors, kind)[k].nanmean(dim=0).tolist()) for kind in FRAME_ERRORS}
        found[spec.name] = Film(draw_film(film, [(k, "")], ()), errors)
    return found
