"""What a run's newest checkpoint says of the model: who uses which expert and module, how alike the tasks are, and how
what it imagines compares with what comes."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mow.engine.device import pick_device
from mow.errors import UsageError
from mow.evaluate.film import one_strip
from mow.methods.mow.config import MowConfig
from mow.report.data import Film, ModelView, Similarity
from mow.report.film import picture
from mow.runs.restore import newest_checkpoint, restore
from mow.system.threads import limit_torch

if TYPE_CHECKING:
    from mow.envs.vector import VectorEnv
    from mow.evaluate.film_strip import Strip
    from mow.methods.mow.learner import Learner

_CONTEXT, _STEPS = 2, 16  # frames that a film's world model sees, and the most that it imagines


def read_model(folder: Path, config: MowConfig, *, checkpoint: Path | None, device: str, num_windows: int) -> ModelView:
    """Restore the checkpoint and look at it.

    Args:
        checkpoint: None: the newest one.
        num_windows: of held-out play per task, for the films; 0: no films.
    Raises: UsageError in one line if there is no checkpoint, if it cannot be read, or if the environments that it
        needs cannot be made.
    """
    path = checkpoint or newest_checkpoint(folder)
    from mow.envs.vector import make_vector

    # Not the seed of training, nor the next one, with which the scores were played.
    seed = config.seed + 1000
    options = config.env.options
    try:
        envs = make_vector(
            config.tasks, seed=seed, num_workers=0, options=options, max_restarts=config.env.max_restarts,
            final_frames=config.final_frames,
        )  # fmt: skip
    except (ImportError, ValueError) as error:
        raise UsageError(str(error)) from error
    limit_torch()
    with envs:
        learner, step = restore(path, config, envs, pick_device(device))
        view = look(learner, tuple(spec.name for spec in envs.specs), checkpoint=path.name, step=step)
        if num_windows == 0:
            return replace(view, no_films="The film strips were not asked for (--windows 0).")
        try:
            films = make_films(learner, envs, num_windows=num_windows, seed=seed)
        except ValueError as error:
            return replace(view, no_films=f"No film strips: {error}.")
    return replace(view, films=films)


# Modules, experts, likeness ------------------------------------------------------------------------------------------


def look(learner: "Learner", tasks: tuple[str, ...], *, checkpoint: str, step: int) -> ModelView:
    """All but the films. Args: tasks: names in the learner's order."""
    routing = learner.routing()
    share = np.zeros((len(tasks), routing.plan.num_experts))
    routes = routing.plan.routes.cpu().numpy()  # [K, J]
    learned = routing.weight_KJ is not None
    slots = routes.shape[1]
    chosen = np.full(routes.shape, 1.0 / slots)
    if routing.weight_KJ is not None:
        chosen = routing.weight_KJ.detach().float().cpu().numpy()
    np.put_along_axis(share, routes, chosen, axis=1)
    return ModelView(
        checkpoint=checkpoint,
        step=step,
        tasks=tasks,
        module_of_task=learner.world_model.module_of_task,
        expert_share=share,
        learned_routing=learned,
        similarity=_similarity(learner),
        weights=_weights(learner, tasks),
        films={},
        no_films="",
    )


_EVIDENCE = {"gradient": "gradients of the tasks' losses on the warm-up module", "latent": "mean encoder features"}


def _similarity(learner: "Learner") -> Similarity | None:
    """Of what the tasks were grouped by; where nothing was measured, of the task embeddings."""
    grouping = learner.grouping
    if len(learner.world_model.module_of_task) < 2:
        return None
    # A grouping that was not measured holds ones on the diagonal and exact zeros beside it.
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
    """1 / sigma_k as it stands; with a scale per term, the mean over the terms."""
    scales = learner.task_weights.state_dict().get("log_sigma")
    if scales is None:
        return None
    weight = (-scales.float()).exp().cpu().numpy()
    weight = weight.mean(axis=1) if weight.ndim > 1 else weight
    return dict(zip(tasks, weight.tolist(), strict=True))


# Films ---------------------------------------------------------------------------------------------------------------


def make_films(learner: "Learner", envs: "VectorEnv", *, num_windows: int, seed: int) -> dict[str, Film]:
    """Play windows, look at their first frames and imagine the rest along the actions that were taken.

    Raises: ValueError if the episodes of a task are too short or the model has no positions for one imagined step.
    """
    from mow.evaluate.held_out import play_windows
    from mow.evaluate.open_loop import foresee, foresight_errors, reconstruct, split
    from mow.kernels import PhiloxState

    num_steps = min(_STEPS, learner.config.model.max_positions - _CONTEXT)
    if num_steps < 1:
        raise ValueError(f"model.max_positions {learner.config.model.max_positions} leaves no step to imagine")
    rng = PhiloxState.from_seed(seed, learner.device)
    windows = play_windows(
        learner, envs, player="agent", num_windows=num_windows, length=_CONTEXT + num_steps, shortest=_CONTEXT + 1,
        rng=rng, generator=np.random.default_rng(seed),
    )  # fmt: skip
    temperature = learner.config.imagination.temperature
    seen = split(windows.batch, _CONTEXT)
    foresight = foresee(learner.world_model, *seen, learner.routing(), rng, temperature=temperature)
    reconstruction = reconstruct(learner.world_model, windows.batch.frame, rng)
    errors = foresight_errors(foresight, reconstruction, windows)
    kinds = ("imagined", "reconstructed", "repeated")
    films = {}
    for k, spec in enumerate(envs.specs):
        strip = one_strip(spec.name, windows, foresight, reconstruction, k)
        means = {kind: tuple(getattr(errors, kind)[k].nanmean(dim=0).tolist()) for kind in kinds}
        films[spec.name] = _film(strip, means, num_windows)
    return films


def _film(strip: "Strip", errors: Mapping[str, tuple[float, ...]], num_windows: int) -> Film:
    return Film(
        real=picture(strip.real, strip.shown, _CONTEXT),
        imagined=picture(strip.imagined, strip.shown, _CONTEXT),
        num_columns=len(strip.shown),
        num_context=_CONTEXT,
        real_end=tuple(np.flatnonzero(strip.real_end).tolist()),
        imagined_end=tuple(np.flatnonzero(strip.imagined_end).tolist()),
        errors=errors,
        num_windows=num_windows,
    )
