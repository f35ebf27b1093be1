"""Ablations: a parent config with one part of the method taken out, and the baselines to compare with.

Everything here is a function of a parent MowConfig and keeps what it does not name: widths, batch, schedule, budget.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from mow.methods.mow.config import MowConfig
from mow.methods.mow.config_model import ExpertsConfig, SharedConfig


class Ablation(NamedTuple):
    """One part taken out: a single field of the config, or the group of fields of one component."""

    field: str  # dotted path in MowConfig
    to: object  # its value, or a function of the parent that gives it
    meaning: str

    def value(self, parent: MowConfig) -> object:
        return self.to(parent) if callable(self.to) else self.to


def _one_expert(parent: MowConfig) -> ExpertsConfig:
    return replace(parent.model.experts, num_experts=1, experts_per_task=1)


def _all_experts(parent: MowConfig) -> int:
    return parent.model.experts.num_experts


def _outside_of_the_vae(parent: MowConfig) -> tuple[str, ...]:
    return tuple(place for place in parent.model.condition if place not in ("encoder", "decoder"))


ABLATIONS: dict[str, Ablation] = {
    "no_experts": Ablation("model.experts", _one_expert, "one expert Transformer for all tasks"),
    "no_shared_transformer": Ablation(
        "model.shared.kind", "mlp", "the stem alone joins the experts, no shared Transformer"
    ),
    "no_task_head": Ablation("model.task_head", False, "the task is not predicted from h_t"),
    "no_balance_loss": Ablation("loss.balance", 0.0, "nothing keeps all experts in use"),
    "no_harmony": Ablation("loss.weighting", "uniform", "the plain sum over tasks, no learned scales"),
    "random_clusters": Ablation("clustering.method", "random", "tasks grouped at random, as many modules"),
    "one_cluster": Ablation("clustering.method", "single", "one VAE, one set of heads, one critic"),
    "one_cluster_per_task": Ablation("clustering.method", "identity", "every task has modules of its own"),
    "shared_critic": Ablation("actor_critic.critic", "shared", "one critic for all tasks"),
    "shared_heads": Ablation("model.heads", "shared", "next latent, reward and termination from one set of heads"),
    "transition": Ablation(
        "model.outcome", "transition", "reward and termination without the frame that the action led to"
    ),
    "routing_dense": Ablation(
        "model.experts.experts_per_task", _all_experts, "every task runs through all experts"
    ),
    "routing_hash": Ablation("model.routing.method", "hash", "experts dealt out in turn, not learned"),
    "routing_cluster": Ablation("model.routing.method", "cluster", "the tasks of a cluster share experts"),
    "no_embedding_in_vae": Ablation(
        "model.condition", _outside_of_the_vae, "encoder and decoder do not read the task embedding"
    ),
}

# Factor on the sizes of storm_multitask that gives it as many learned parameters as its parent, by the parent's preset.
# tests/methods/mow/test_ablations.py counts both and prints the new factor once a parent has changed.
WIDENING: dict[str, float] = {"quickstart": 2.26, "atari4": 1.76, "atari26": 4.32}


def ablation(parent: MowConfig, name: str) -> MowConfig:
    """`parent` with exactly one field replaced; its preset is called ablation_NAME.

    Raises: KeyError if the name is unknown; ValueError if the parent has that value already.
    """
    path, value = ABLATIONS[name].field, ABLATIONS[name].value(parent)
    if field_of(parent, path) == value:
        raise ValueError(f"{name} changes nothing: {parent.preset} has {path} = {value} already, leave {name} out")
    return replace(_replaced(parent, path.split("."), value), preset=f"ablation_{name}")


def storm_single(parent: MowConfig, task: str) -> MowConfig:
    """STORM on one task at the parent's size: no embedding, no task head, one Transformer of equal depth, no warm-up.

    Without a warm-up it makes fewer world-model updates than its parent: those that would group a single task.
    Source: STORM (arXiv 2310.09615).
    """
    plain = _without_mixture(parent)
    return replace(
        plain, preset="storm", tasks=(task,), model=replace(plain.model, embedding_size=0, condition=()),
        schedule=replace(parent.schedule, warmup_updates=0),
    )  # fmt: skip


def storm_multitask(parent: MowConfig) -> MowConfig:
    """One STORM for all tasks, with the task embedding of the parent: one VAE, Transformer and critic.

    It keeps the parent's warm-up, so that both make the same number of updates. Source: MoW section 5 (baseline).
    """
    critic = replace(parent.actor_critic, critic="shared")
    return replace(_without_mixture(parent), preset="storm_multitask", actor_critic=critic)


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
    model, agent = config.model, config.actor_critic
    width = _nearest_multiple(factor * model.width, 4 * model.num_heads)
    # Group norm puts 16 channels in a group once there are 32.
    sizes = [factor * c for c in model.perception.channels]
    channels = tuple(_nearest_multiple(c, 16) if round(c) >= 32 else max(1, round(c)) for c in sizes)
    model = replace(
        model, width=width, feedforward=round(factor * model.feedforward),
        prior_width=round(factor * model.prior_width), perception=replace(model.perception, channels=channels),
    )  # fmt: skip
    agent = replace(agent, hidden=round(factor * agent.hidden))
    return replace(config, preset="storm_multitask_wide", model=model, actor_critic=agent)


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
    text = "The parent preset, whole." if method == "mow" else {**BASELINES, "storm": storm_single}[method].__doc__
    return (text or "").splitlines()[0].removesuffix(".")


def recipes(parent: Callable[[], MowConfig]) -> dict[str, Callable[[], MowConfig]]:
    """Presets made from a parent's: the baselines for all tasks, and ablation_NAME for every ablation."""

    def recipe(change: Callable[[MowConfig], MowConfig], document: str | None) -> Callable[[], MowConfig]:
        def made() -> MowConfig:
            return change(parent())

        made.__doc__ = document
        return made

    found = {name: recipe(baseline, baseline.__doc__) for name, baseline in BASELINES.items()}
    return found | {f"ablation_{name}": recipe(partial(ablation, name=name), chosen.meaning)
                    for name, chosen in ABLATIONS.items()}  # fmt: skip


def flat(config: object, prefix: str = "") -> dict[str, object]:
    """Every field by its dotted path: {"total_steps": 4000, "model.width": 128, ...}."""
    found: dict[str, object] = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value, path = getattr(config, field.name), f"{prefix}{field.name}"
        found |= flat(value, f"{path}.") if dataclasses.is_dataclass(value) else {path: value}
    return found


def field_of(config: Any, path: str) -> object:
    """The value at a dotted path."""
    for name in path.split("."):
        config = getattr(config, name)
    return config


def _replaced(config: Any, path: list[str], value: object) -> Any:
    inner = value if len(path) == 1 else _replaced(getattr(config, path[0]), path[1:], value)
    return replace(config, **{path[0]: inner})


def _without_mixture(parent: MowConfig) -> MowConfig:
    """One module, and one Transformer as deep as an expert and the shared part together; a plain sum over tasks."""
    model = parent.model
    shared_layers = model.shared.num_layers if model.shared.kind == "transformer" else 0
    model = replace(
        model,
        condition=tuple(place for place in model.condition if place != "shared"),
        task_head=False,
        routing=replace(model.routing, method="hash", scale="none"),
        experts=ExpertsConfig(1, 1, num_layers=model.experts.num_layers + shared_layers),
        shared=SharedConfig(kind="none"),
    )
    loss = replace(parent.loss, balance=0.0, weighting="uniform")
    return replace(parent, model=model, loss=loss, clustering=replace(parent.clustering, method="single"))


def _nearest_multiple(value: float, of: int) -> int:
    return max(of, of * round(value / of))
