"""An ablation changes the one thing that it names, can be trained, and the wide baseline is as large as its parent."""

import dataclasses
import functools
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from mow.config import EnvConfig
from mow.envs.vector import SerialVectorEnv
from mow.methods.mow.ablations import (
    ABLATIONS,
    BASELINES,
    WIDENING,
    ablation,
    field_of,
    flat,
    storm_multitask,
    storm_multitask_wide,
    storm_single,
    storm_vaes,
    widened,
)
from mow.methods.mow.config import BatchConfig
from mow.methods.mow.config_agent import ImaginationConfig
from mow.methods.mow.config_model import SharedConfig
from mow.methods.mow.presets import PRESETS, quickstart
from mow.train import run
from tests.small import ARRIVAL, meta_models, run_config

SMALL = run_config(
    model=ARRIVAL,
    total_steps=17,
    log_every=17,
    checkpoint_every=17,
    device="cpu",
    env=EnvConfig(num_workers=0),
    batch=BatchConfig(num_sequences=1, length=4),
    imagination=ImaginationConfig(num_sequences=2, context=2, horizon=2),
    schedule=dataclasses.replace(run_config().schedule, prefill_steps=5, warmup_updates=2, acting_context=3),
)
VARIANTS = {
    "mow": SMALL,
    "storm_single": storm_single(SMALL, "dummy:slide"),
    **{name: baseline(SMALL) for name, baseline in BASELINES.items()},
    **{name: ablation(SMALL, name) for name in ABLATIONS},
}


def changed(parent, config):
    """Dotted fields in which two configs differ, the name of the recipe aside."""
    old, new = flat(parent), flat(config)
    return {name for name in old if old[name] != new[name]} - {"preset"}


def test_flat_by_hand():
    config = quickstart()
    found = flat(config)
    assert found["total_steps"] == config.total_steps
    assert found["model.perception.unimix"] == config.model.perception.unimix
    assert found["actor_critic.critic"] == "cluster"
    assert "model" not in found
    assert field_of(config, "model.perception.unimix") == 0.001


def test_every_ablation_is_a_preset():
    assert {f"ablation_{name}" for name in ABLATIONS} | set(BASELINES) <= set(PRESETS)
    for name in ABLATIONS:
        assert PRESETS[f"ablation_{name}"]() == ablation(quickstart(), name)
    for name, baseline in BASELINES.items():
        assert PRESETS[name]() == baseline(quickstart())


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_changes_the_field_that_it_names_and_no_other(name):
    parent, config = quickstart(), PRESETS[f"ablation_{name}"]()
    path = ABLATIONS[name].field
    differing = changed(parent, config)
    assert differing
    assert all(field == path or field.startswith(f"{path}.") for field in differing), differing
    assert field_of(config, path) == ABLATIONS[name].value(parent)


def test_an_ablation_of_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"no_task_head changes nothing: .* has model\.task_head = False already"):
        ablation(ablation(quickstart(), "no_task_head"), "no_task_head")
    with pytest.raises(KeyError, match="no_head"):
        ablation(quickstart(), "no_head")


def test_values_that_depend_on_the_parent():
    parent = quickstart()
    assert ablation(parent, "routing_dense").model.experts.experts_per_task == parent.model.experts.num_experts
    assert ablation(parent, "no_experts").model.experts.num_layers == parent.model.experts.num_layers
    told = ablation(parent, "no_embedding_in_vae").model.condition
    assert told == ("heads", "mixer", "shared", "actor", "critic")


def test_storm_has_the_depth_of_its_parent():
    parent = quickstart()  # experts of 1 layer, then 1 shared layer
    assert storm_single(parent, "tiny:goal").model.experts.num_layers == 2
    no_shared = dataclasses.replace(
        parent, model=dataclasses.replace(parent.model, shared=SharedConfig(kind="mlp", num_layers=5))
    )
    assert storm_multitask(no_shared).model.experts.num_layers == 1


def test_storm_single_is_the_preset_storm_at_another_size():
    """The same switches as the preset of the paper's size; the sizes are those of the parent."""
    config, paper = storm_single(quickstart(), "tiny:goal"), PRESETS["storm"]()
    assert config.tasks == ("tiny:goal",)
    for path in (
        "model.embedding_size", "model.condition", "model.task_head", "model.routing.method", "model.routing.scale",
        "model.experts.num_experts", "model.experts.experts_per_task", "model.shared.kind", "loss.balance",
        "loss.weighting", "clustering.method", "schedule.warmup_updates",
    ):  # fmt: skip
        assert field_of(config, path) == field_of(paper, path), path
    for path in ("total_steps", "model.width", "model.perception.channels", "batch.length", "schedule.agent_every"):
        assert field_of(config, path) == field_of(quickstart(), path), path


def test_baselines_are_a_ladder():
    """Each differs from its neighbour in one thing: width, or how many modules there are."""
    parent = quickstart()
    assert changed(storm_multitask(parent), storm_vaes(parent)) == {"clustering.method"}
    assert changed(storm_multitask(parent), storm_multitask_wide(parent)) == {
        "model.width", "model.feedforward", "model.prior_width", "model.perception.channels", "actor_critic.hidden",
    }  # fmt: skip
    assert storm_multitask(parent).model.condition == ("encoder", "decoder", "heads", "mixer", "actor", "critic")
    assert storm_multitask(parent).world_model_updates == parent.world_model_updates


def test_widened_by_hand():
    wide = widened(storm_multitask(quickstart()), 2.0)
    assert (wide.model.width, wide.model.feedforward, wide.actor_critic.hidden) == (256, 512, 256)
    assert (wide.model.prior_width, wide.model.perception.channels) == (256, (64, 128))
    # 1.3 x 128 = 166.4: four heads take multiples of 16; 1.3 x 32 = 41.6 and 1.3 x 64 = 83.2 lie nearest to 48 and 80.
    wide = widened(storm_multitask(quickstart()), 1.3)
    assert (wide.model.width, wide.model.prior_width) == (160, 166)
    assert wide.model.perception.channels == (48, 80)


def test_a_parent_that_nobody_has_measured_is_refused():
    with pytest.raises(ValueError, match=r"got storm: add its factor to mow\.methods\.mow\.ablations\.WIDENING"):
        storm_multitask_wide(PRESETS["storm"]())


def learned_parameters(config):
    """Of world model and agent once the tasks are grouped."""
    discrete, continuous = 18, 0  # Atari
    if config.tasks[0].startswith("tiny:"):
        layout = SerialVectorEnv(config.tasks, seed=0, options={}).layout
        discrete, continuous = layout.num_discrete, layout.num_continuous
    models = meta_models(config, discrete, continuous)
    return sum(p.numel() for module in models for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", WIDENING)
def test_the_wide_baseline_is_as_large_as_its_parent(name):
    parent = PRESETS[name]()
    goal, got = learned_parameters(parent), learned_parameters(storm_multitask_wide(parent))
    if abs(got / goal - 1) > 0.05:
        narrow = storm_multitask(parent)
        factors = [hundredths / 100 for hundredths in range(50, 800)]
        best = min(factors, key=lambda factor: abs(learned_parameters(widened(narrow, factor)) - goal))
        pytest.fail(
            f"{name} has {goal:,} learned parameters, storm_multitask_wide {got:,}: "
            f'write "{name}": {best} in mow.methods.mow.ablations.WIDENING'
        )


def test_the_wide_baseline_would_be_too_small_without_its_factor():
    """Else the test above could not fail."""
    assert learned_parameters(storm_multitask(quickstart())) < 0.95 * learned_parameters(quickstart())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """name -> (finished run, its folder) of a variant of the small parent; each is run once, when first asked for."""
    root = tmp_path_factory.mktemp("variants")

    @functools.cache
    def train(name):
        return run(dataclasses.replace(VARIANTS[name], folder=str(root / name))), root / name

    return train


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_trains(name, trained):
    """Over 20 updates in all, prefill and grouping included, and every number finite."""
    session, folder = trained(name)
    config = VARIANTS[name]
    assert session.step == 17
    assert session.learner.updates == config.world_model_updates >= 12
    assert session.counts["agent"] == 12
    assert session.last_loss is not None
    assert all(math.isfinite(loss) for loss in session.last_loss)
    for module in (session.learner.world_model, session.learner.agent):
        assert all(p.isfinite().all() for p in module.parameters())
    saved = json.loads((folder / "config.json").read_text())
    assert saved["model"]["experts"] == dataclasses.asdict(config.model.experts)


# What the switch does to the model (m) and the agent (a); three tasks, two modules, two of three experts per task.
BUILT = {
    "mow": lambda m, a: (m.num_modules, m.num_head_sets, a.num_critics) == (2, 2, 2)
    and None not in (m.router, m.task_embedding, m.shared.transformer, m.heads.task),
    "storm_single": lambda m, a: m.task_embedding is None and m.shared is None and a.num_critics == 1,
    "storm_multitask": lambda m, a: m.num_modules == a.num_critics == 1 and m.shared is None,
    "storm_multitask_wide": lambda m, a: m.num_modules == 1 and m.config.width > 16,
    "storm_vaes": lambda m, a: (m.num_modules, a.num_critics) == (2, 1) and m.shared is None,
    "no_experts": lambda m, a: m.router is None and m.experts.mixer.input.weight.shape[0] == 1,
    "no_shared_transformer": lambda m, a: m.shared is not None and m.shared.transformer is None,
    "no_task_head": lambda m, a: m.heads.task is None,
    "one_cluster": lambda m, a: m.num_modules == a.num_critics == 1,
    "one_cluster_per_task": lambda m, a: m.num_modules == a.num_critics == 3,
    "random_clusters": lambda m, a: m.num_modules == 2,
    "shared_critic": lambda m, a: (m.num_modules, a.num_critics) == (2, 1),
    "shared_heads": lambda m, a: (m.num_modules, m.num_head_sets) == (2, 1),
    "routing_dense": lambda m, a: m.route().plan.routes.tolist() == [[0, 1, 2]] * 3,
    "routing_hash": lambda m, a: m.route().plan.routes.tolist() == [[0, 1], [0, 2], [1, 2]],
    "routing_cluster": lambda m, a: m.route().plan.routes.tolist()
    == [[[0, 1], [0, 2]][module] for module in m.module_of_task],
    "no_embedding_in_vae": lambda m, a: m.encoder.posterior.weight.shape[2] == 6 * 16,  # channels x 4 x 4, no e_k
}


@pytest.mark.parametrize("name", BUILT)
def test_what_was_built(name, trained):
    session, _ = trained(name)
    assert BUILT[name](session.learner.world_model, session.learner.agent)


def test_losses_without_their_part(trained):
    assert list(trained("no_harmony")[0].learner.task_weights.parameters()) == []
    assert len(list(trained("mow")[0].learner.task_weights.parameters())) == 1
    logged = (trained("no_task_head")[1] / "metrics.jsonl").read_text()
    assert "loss/reward/" in logged
    assert "loss/task/" not in logged
    assert "loss/task/" in (trained("mow")[1] / "metrics.jsonl").read_text()


def test_recipes_need_no_torch():
    code = "import sys, mow.methods.mow.ablations, mow.methods.mow.presets; sys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=False)
    assert done.returncode == 0
