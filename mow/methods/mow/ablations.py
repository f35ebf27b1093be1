"""Ablations: a parent config with one part of the method taken out, and the baselines to compare with.

Everything here is a function of a parent MowConfig and keeps what it does not name: widths, batch, schedule, budget.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from mow.methods.mow.config import MowConfig
from mow.methods.mow.config_model import ExpertsConfig, SharedConfig


@dataclass(frozen=True)
class Ablation:
    """One part taken out: a single field of the config, or the group of fields of one component."""

    field: str  # dotted path in MowConfig
    value: Callable[[MowConfig], object]  # of the parent
    meaning: str


ABLATIONS: dict[str, Ablation] = {
    "no_experts": Ablation(
        "model.experts",
        lambda parent: replace(parent.model.experts, num_experts=1, experts_per_task=1),
        "one expert Transformer for all tasks",
    ),
    "no_shared_transformer": Ablation(
        "model.shared.kind", lambda _: "mlp", "the stem alone joins the experts, no shared Transformer"
    ),
    "no_task_head": Ablation("model.task_head", lambda _: False, "the task is not predicted from h_t"),
    "no_balance_loss": Ablation("loss.balance", lambda _: 0.0, "nothing keeps all experts in use"),
    "no_harmony": Ablation("loss.weighting", lambda _: "uniform", "the plain sum over tasks, no learned scales"),
    "random_clusters": Ablation("clustering.method", lambda _: "random", "tasks grouped at random, as many modules"),
    "one_cluster": Ablation("clustering.method", lambda _: "single", "one VAE, one set of heads, one critic"),
    "one_cluster_per_task": Ablation("clustering.method", lambda _: "identity", "every task has modules of its own"),
    "shared_critic": Ablation("actor_critic.critic", lambda _: "shared", "one critic for all tasks"),
    "shared_heads": Ablation(
        "model.heads", lambda _: "shared", "next latent, reward and termination from one set of heads"
    ),
    "transition": Ablation(
        "model.outcome", lambda _: "transition", "reward and termination without the frame that the action led to"
    ),
    "routing_dense": Ablation(
        "model.experts.experts_per_task",
        lambda parent: parent.model.experts.num_experts,
        "every task runs through all experts",
    ),
    "routing_hash": Ablation("model.routing.method", lambda _: "hash", "experts dealt out in turn, not learned"),
    "routing_cluster": Ablation("model.routing.method", lambda _: "cluster", "the tasks of a cluster share experts"),
    "no_embedding_in_vae": Ablation(
        "model.condition",
        lambda parent: tuple(place for place in parent.model.condition if place not in ("encoder", "decoder")),
        "encoder and decoder do not read the task embedding",
    ),
}

# Factor on the sizes of storm_multitask that gives it as many learned parameters as its parent, by the parent's preset.
# tests/methods/mow/test_ablations.py counts both and prints the new factor once a parent has changed.
WIDENING: dict[str, float] = {"quickstart": 2.26, "atari4": 1.76, "atari26": 4.32}


def ablation(parent: MowConfig, name: str) -> MowConfig:
    """`parent` with exactly one field replaced; its preset is called ablation_NAME.

    Raises: KeyError if the name is unknown; ValueError if the parent has that value already.
    """
    chosen = ABLATIONS[name]
    value = chosen.value(parent)
    if field_of(parent, chosen.field) == value:
        raise ValueError(
            f"{name} changes nothing: {parent.preset} has {chosen.field} = {value} already, leave {name} out"
        )
    return replace(_replaced(parent, chosen.field.split("."), value), preset=f"ablation_{name}")


def storm_single(parent: MowConfig, task: str) -> MowConfig:
    """STORM on one task at the parent's size: no embedding, no task head, one Transformer of equal depth, no warm-up.

    Without a warm-up it makes fewer world-model updates than its parent: those that would group a single task.
    Source: STORM (arXiv 2310.09615).
    """
    return replace(
        parent,
        preset="storm",
        tasks=(task,),
        model=replace(_dense(parent).model, embedding_size=0, condition=()),
        loss=replace(parent.loss, balance=0.0, weighting="uniform"),
        clustering=replace(parent.clustering, method="single"),
        schedule=replace(parent.schedule, warmup_updates=0),
    )


def storm_multitask(parent: MowConfig) -> MowConfig:
    """One STORM for all tasks, with the task embedding of the parent: one VAE, Transformer and critic.

    It keeps the parent's warm-up, so that both make the same number of updates. Source: MoW section 5 (baseline).
    """
    dense = _dense(parent)
    return replace(
        dense,
        preset="storm_multitask",
        loss=replace(parent.loss, balance=0.0, weighting="uniform"),
        clustering=replace(parent.clustering, method="single"),
        actor_critic=replace(parent.actor_critic, critic="shared"),
    )


def storm_multitask_wide(parent: MowConfig) -> MowConfig:
    """storm_multitask widened to as many learned parameters as the parent has: is it the parts, or their size?

    Width, feed-forward, hidden layers and VAE channels grow by one factor; depth and latents stay.
    Raises: ValueError if no factor is known for the parent.
    """
    if parent.preset not in WIDENING:
        raise ValueError(
            f"storm_multitask_wide has a factor for {', '.join(WIDENING)}, got {parent.preset}: "
            "add its factor to mow.methods.mow.ablations.WIDENING"
        )
    return widened(storm_multitask(parent), WIDENING[parent.preset])


def storm_vaes(parent: MowConfig) -> MowConfig:
    """storm_multitask with modules found by clustering as the parent does: several VAEs, still one Transformer."""
    return replace(storm_multitask(parent), preset="storm_vaes", clustering=parent.clustering)


def widened(config: MowConfig, factor: float) -> MowConfig:
    """All layers `factor` times as wide, rounded to what heads and norm groups divide."""
    model = config.model
    channels = tuple(_channels(factor * c) for c in model.perception.channels)
    return replace(
        config,
        preset="storm_multitask_wide",
        model=replace(
            model,
            width=_nearest_multiple(factor * model.width, 4 * model.num_heads),
            feedforward=round(factor * model.feedforward),
            prior_width=round(factor * model.prior_width),
            perception=replace(model.perception, channels=channels),
        ),
        actor_critic=replace(config.actor_critic, hidden=round(factor * config.actor_critic.hidden)),
    )


BASELINES: dict[str, Callable[[MowConfig], MowConfig]] = {
    "storm_multitask": storm_multitask,
    "storm_multitask_wide": storm_multitask_wide,
    "storm_vaes": storm_vaes,
}


# What can be compared: the parent itself, the baselines, single-task STORM, and the parent without one part.
METHODS = ("mow", *BASELINES, "storm", *ABLATIONS)


def variants(parent: MowConfig, method: str) -> tuple[MowConfig, ...]:
    """The runs that one seed of a method takes: one per task for `storm`, else a single one for all tasks.

    Raises: KeyError if the method is unknown; ValueError if it makes no sense for this parent.
    """
    if method == "mow":
        return (parent,)
    if method == "storm":
        return tuple(storm_single(parent, task) for task in parent.tasks)
    return (BASELINES[method](parent) if method in BASELINES else ablation(parent, method),)


def meaning(method: str) -> str:
    """Description of a method, in one line."""
    if method in ABLATIONS:
        return f"{ABLATIONS[method].meaning} ({ABLATIONS[method].field})"
    document = {"mow": "The parent preset, whole.", "storm": storm_single.__doc__}
    text = document[method] if method in document else BASELINES[method].__doc__
    return (text or "").splitlines()[0].removesuffix(".")


def recipes(parent: Callable[[], MowConfig]) -> dict[str, Callable[[], MowConfig]]:
    """Presets made from a parent's: the baselines for all tasks, and ablation_NAME for every ablation."""
    found = {name: _recipe(parent, baseline, baseline.__doc__) for name, baseline in BASELINES.items()}
    for name, chosen in ABLATIONS.items():
        found[f"ablation_{name}"] = _recipe(parent, partial(ablation, name=name), chosen.meaning)
    return found


def flat(config: object, prefix: str = "") -> dict[str, object]:
    """Every field by its dotted path: {"total_steps": 4000, "model.width": 128, ...}."""
    found: dict[str, object] = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found.update(flat(value, f"{prefix}{field.name}."))
        else:
            found[prefix + field.name] = value
    return found


def field_of(config: Any, path: str) -> object:
    """The value at a dotted path."""
    for name in path.split("."):
        config = getattr(config, name)
    return config


def _replaced(config: Any, path: list[str], value: object) -> Any:
    inner = value if len(path) == 1 else _replaced(getattr(config, path[0]), path[1:], value)
    return replace(config, **{path[0]: inner})


def _dense(parent: MowConfig) -> MowConfig:
    """One Transformer, as deep as an expert and the shared part together, and nothing that chooses or joins experts."""
    model = parent.model
    shared_layers = model.shared.num_layers if model.shared.kind == "transformer" else 0
    return replace(
        parent,
        model=replace(
            model,
            condition=tuple(place for place in model.condition if place != "shared"),
            task_head=False,
            routing=replace(model.routing, method="hash", scale="none"),
            experts=ExpertsConfig(1, 1, num_layers=model.experts.num_layers + shared_layers),
            shared=SharedConfig(kind="none"),
        ),
    )


def _recipe(
    parent: Callable[[], MowConfig], change: Callable[[MowConfig], MowConfig], meaning: str | None
) -> Callable[[], MowConfig]:
    def recipe() -> MowConfig:
        return change(parent())

    recipe.__doc__ = meaning
    return recipe


def _nearest_multiple(value: float, of: int) -> int:
    return max(of, of * round(value / of))


def _channels(value: float) -> int:
    """Group norm puts 16 channels in a group once there are 32."""
    return _nearest_multiple(value, 16) if round(value) >= 32 else max(1, round(value))
