import dataclasses
import math

import numpy as np
import pytest
import torch

from mow.methods.mow.actor_critic_loss import ActorCriticTargets, actor_critic_losses
from mow.methods.mow.clustering import from_labels, gradient_evidence
from mow.methods.mow.config import ClusteringConfig, LossConfig, OptimConfig
from mow.methods.mow.config_agent import ActorCriticConfig, ImaginationConfig
from mow.methods.mow.imagination import imagine
from mow.methods.mow.learner import Learner
from mow.methods.mow.presets import quickstart
from mow.methods.mow.world_model_loss import world_model_losses
from mow.runs.checkpoint import load_checkpoint, save_checkpoint
from tests.small import MODEL, action_mask, run_config, transitions

CPU = torch.device("cpu")


def make(**changes):
    torch.manual_seed(0)
    return Learner(run_config(**changes), action_mask(), CPU)


def grouped(learner, num_batches=3):
    grouping = learner.group(transitions(seed=i) for i in range(num_batches))
    learner.regroup(grouping)
    return learner


@pytest.mark.parametrize("matrices", ["adam", "muon"])
def test_one_batch_can_be_learnt_by_heart(matrices):
    """The first thing to ask of a world model: every loss that can fall, falls, on one batch seen again and again."""
    learner = make(optim=OptimConfig(matrices=matrices))
    for optimiser in learner.world_model_optimisers:
        for group in optimiser.param_groups:
            group["lr"] = 3e-3
    batch = transitions(num_sequences=1, length=4)
    first = learner.update_world_model(batch)
    for _ in range(150):
        last = learner.update_world_model(batch)
    for name in ("reconstruction", "reward", "termination", "task"):
        assert (last[f"loss/{name}"] < 0.7 * first[f"loss/{name}"]).all(), name
    assert (last["latent/kl"] < first["latent/kl"] + 5).all()


def test_updates_move_every_part():
    learner = grouped(make(loss=LossConfig(free_bits=0.0)))  # an untrained prior is within one nat
    before = {n: p.clone() for n, p in learner.world_model.named_parameters()}
    agent_before = {n: p.clone() for n, p in learner.agent.named_parameters()}
    for i in range(3):
        learner.update_world_model(transitions(seed=i))
        learner.update_agent(transitions(seed=i, length=3))
    used = learner.routing().plan.routes.unique()
    for name, parameter in learner.world_model.named_parameters():
        old, new = before[name], parameter
        if name.startswith("experts."):
            old, new = old[used], new[used]
        assert not torch.equal(old, new), name
    for name, parameter in learner.agent.named_parameters():
        assert not torch.equal(agent_before[name], parameter), name


def test_the_agents_update_leaves_the_world_model_alone():
    learner = grouped(make())
    before = {n: t.clone() for n, t in learner.world_model.state_dict().items()}
    learner.update_agent(transitions(length=3))
    for name, tensor in learner.world_model.state_dict().items():
        assert torch.equal(before[name], tensor), name


@pytest.mark.parametrize(("epochs", "parts", "steps"), [(1, 1, 1), (3, 2, 6)])
def test_a_rollout_is_used_as_often_as_told(epochs, parts, steps):
    actor_critic = dataclasses.replace(run_config().actor_critic, rollout_epochs=epochs, rollout_parts=parts)
    learner = grouped(make(actor_critic=actor_critic))
    learner.update_agent(transitions(length=3))
    (state, *_) = learner.agent_optimisers[0].state.values()
    assert int(state["step"]) == steps


def test_the_agent_learns_from_dreams_as_the_config_has_them(monkeypatch):
    asked = []
    monkeypatch.setattr("mow.methods.mow.learner.imagine", lambda *_, **how: asked.append(how) or imagine(*_, **how))
    dreams = ImaginationConfig(num_sequences=2, horizon=3, start="posterior", ends="expected", temperature=0.5)
    make(imagination=dreams).update_agent(transitions(length=3))
    (how,) = asked
    assert {name: how[name] for name in how if name != "steps"} == {
        "horizon": 3, "start": "posterior", "ends": "expected", "temperature": 0.5
    }  # fmt: skip


def test_metrics_have_one_entry_per_task():
    learner = grouped(make())
    metrics = {**learner.update_world_model(transitions()), **learner.update_agent(transitions(length=3))}
    for name in ("reconstruction", "reward", "termination", "task", "dynamics", "representation", "world_model"):
        assert metrics[f"loss/{name}"].shape == (3,)
    for name in ("policy", "value", "entropy", "imagined_return", "return_range"):
        assert metrics[f"agent/{name}"].shape == (3,)
    assert metrics["loss/balance"].shape == ()


def test_the_stacked_gradients_are_those_of_each_task_alone():
    """One backward over a copy per task gives the same features as K backward passes over the shared module."""
    learner = make(clustering=ClusteringConfig(scaling="none"))
    batch = transitions()
    (found,) = gradient_evidence(learner.world_model, [batch], learner.config, learner.weighted_losses)
    features = found.vectors
    learner.world_model.train()
    rows = []
    for k in range(3):
        routing = learner.world_model.route(temperature=learner.temperature)
        learner.rng.load(torch.tensor([0, 0]))
        losses = world_model_losses(learner.world_model, batch, routing, learner.rng, learner.config.loss)
        learner.world_model.zero_grad()
        losses.weighted(learner.config.loss)[k].sum().backward()
        parts = []
        for name, parameter in learner.world_model.named_parameters():
            if not name.startswith(("encoder.", "decoder.", "heads.")) or name.startswith("heads.task."):
                continue
            if ".norms." in name and not name.startswith("heads."):
                parts.append(parameter.grad[k])  # a row per task already
                continue
            gradient = parameter.grad[0]
            if name.startswith(("decoder.convs.", "decoder.output.")) and gradient.dim() == 4:
                gradient = gradient.transpose(0, 1)
            parts.append(gradient.flatten(1).mean(dim=1) if gradient.dim() > 1 else gradient)
        rows.append(torch.cat(parts).double().numpy())
    # Float32 gradients of losses in the thousands, added in another order.
    np.testing.assert_allclose(features, np.stack(rows), rtol=1e-3, atol=1e-3 * np.abs(features).max())


def test_gradient_evidence_changes_nothing():
    learner = make()
    before = {n: t.clone() for n, t in learner.world_model.state_dict().items()}
    learner.group([transitions(seed=1), transitions(seed=2)])
    for name, tensor in learner.world_model.state_dict().items():
        assert torch.equal(before[name], tensor), name
    assert all(p.grad is None for p in learner.world_model.parameters())


@pytest.mark.parametrize("method", ["gradient", "latent", "random", "identity", "single"])
def test_every_way_of_grouping_trains_on(method):
    learner = grouped(make(clustering=ClusteringConfig(method=method, num_modules=2, num_batches=2, restarts=3)))
    want = {"identity": 3, "single": 1}.get(method, 2)
    assert learner.grouping.num_modules == learner.world_model.num_modules == want
    assert sorted(learner.grouping.order) == [0, 1, 2]
    metrics = learner.update_world_model(transitions())
    assert metrics["loss/world_model"].isfinite().all()


def test_tasks_alike_share_a_module():
    """Two tasks see the same dark frames, one sees bright noise: the gradients must tell."""
    learner = make()

    def batches():
        for seed in range(4):
            batch = transitions(seed=seed)
            batch.frame[:2] = batch.frame[0] // 8
            batch.frame[2] = 255 - batch.frame[2] // 8
            yield batch

    for batch in batches():
        learner.update_world_model(batch)
    grouping = learner.group(batches())
    assert sorted(grouping.groups(["dark", "darker", "bright"])) == [["bright"], ["dark", "darker"]]


def test_regroup_sorts_whatever_belongs_to_a_task():
    learner = make()
    learner.update_world_model(transitions())
    sigma = learner.task_weights.log_sigma.detach().clone()
    mask = learner.mask.continuous.clone()
    routes = torch.tensor([[0, 1], [0, 2], [1, 2]])
    learner.frozen_routes = routes
    grouping = dataclasses.replace(learner.group([transitions()] * 2), order=(2, 0, 1), module_of_task=(0, 1, 1))
    learner.regroup(grouping)
    index = torch.tensor([2, 0, 1])
    torch.testing.assert_close(learner.task_weights.log_sigma, sigma[index])
    assert torch.equal(learner.mask.continuous, mask[index])
    assert torch.equal(learner.frozen_routes, routes[index])
    assert torch.equal(learner.agent.mask.continuous, mask[index])
    assert learner.world_model.module_of_task == (0, 1, 1)


def test_harmony_starts_from_the_losses_after_warm_up():
    learner = make()
    terms = learner.weighted_terms(transitions())
    learner.regroup(learner.group([transitions()] * 2), terms)
    want = terms.sum(dim=1).log1p()[list(learner.grouping.order)]
    torch.testing.assert_close(learner.task_weights.log_sigma.detach(), want)


@pytest.mark.parametrize("weighting", ["harmony", "shared_terms", "per_term", "uniform", "running_mean"])
def test_every_weighting_trains(weighting):
    learner = grouped(make(loss=LossConfig(weighting=weighting)))
    for i in range(2):
        metrics = learner.update_world_model(transitions(seed=i))
    assert metrics["optim/world_model_total"].isfinite()


def test_entropy_is_worth_less_and_less():
    """Half-way through the fall, at its end and after it; what the loss is told is what it is worth then."""
    learner = grouped(make(actor_critic=ActorCriticConfig(entropy=0.04, final_entropy=0.25, entropy_updates=12)))
    told = []
    for learner.updates in (0, 6, 12, 24):
        told.append(learner.entropy)
    assert told == pytest.approx([0.04, 0.025, 0.01, 0.01])
    assert make().entropy == make().config.actor_critic.entropy  # nothing falls unless it is asked to


def test_the_actor_is_told_what_entropy_is_worth():
    told = []

    def record(*args, entropy, clip, **how):
        told.append((entropy.tolist(), clip))
        return actor_critic_losses(*args, entropy=entropy, clip=clip, **how)

    learner = grouped(make(actor_critic=ActorCriticConfig(entropy=0.04, final_entropy=0.25, clip=0.1)))
    learner.steps = learner.steps._replace(actor_critic_losses=record)
    learner.updates = learner.config.world_model_updates
    learner.update_agent(transitions(length=3))
    assert told == [(pytest.approx([0.01] * 3), 0.1)]


def test_entropy_of_more_actions_is_worth_less():
    """Two tasks of three actions and one of two dimensions; after the tasks are sorted, each keeps its own."""
    config = ActorCriticConfig(entropy=0.04, entropy_scale="log_actions")
    learner = make(actor_critic=config)
    learner.mask.discrete[0, 3] = True  # a fourth action
    wanted = [0.04 / math.log(4), 0.04 / math.log(3), 0.02]
    assert learner.entropy_of_tasks.tolist() == pytest.approx(wanted)
    learner.regroup(from_labels(np.array([0, 1, 0]), np.eye(3)))
    order = learner.grouping.order
    assert order != (0, 1, 2)
    assert learner.entropy_of_tasks.tolist() == pytest.approx([wanted[k] for k in order])
    metrics = learner.update_agent(transitions(length=3))
    assert metrics["agent/entropy"].shape == (3,)


def test_one_task_many_times_over_moves_its_critic_as_one_does():
    """26 copies with a critic each, where the loss is their mean: within 5 % of the step that one task takes alone.

    With Adam's eps at 1e-5 the copies' critics move less than that.
    """

    def moved(num_tasks):
        torch.manual_seed(0)
        tasks = tuple(f"dummy:count-{k}" for k in range(num_tasks))
        agent = dataclasses.replace(ActorCriticConfig(hidden=64), critic="per_task")
        config = run_config(tasks=tasks, actor_critic=agent, optim=quickstart().optim)
        learner = Learner(config, action_mask(2).reorder(torch.zeros(num_tasks, dtype=torch.long)), CPU)
        rng = torch.Generator().manual_seed(1)
        for parameter in learner.agent.critic.parameters():
            shape = parameter.shape[1:]
            parameter.data.copy_(0.1 * torch.randn(shape, generator=rng).expand(num_tasks, *shape))
        before = [p.detach().clone() for p in learner.agent.critic.parameters()]
        for _ in range(5):
            state = torch.randn(1, 8, 5, MODEL.perception.latent_size + MODEL.width, generator=rng)
            number = 0.01 * torch.randn(1, 8, 5, generator=rng)
            zero = torch.zeros(num_tasks, 8, 5)
            many = [x.expand(num_tasks, *x.shape[1:]) for x in (state, number)]
            action = torch.zeros(num_tasks, 8, 5, 6)
            learner._agent_step(ActorCriticTargets(many[0], action, zero, zero, many[1], many[1], zero + 1.0), None)
        after = learner.agent.critic.parameters()
        return torch.cat([(new - old)[0].flatten() for new, old in zip(after, before, strict=True)])

    one, many = moved(1), moved(26)
    assert (many - one).norm() < 0.05 * one.norm()


@pytest.mark.parametrize("ends", [(5.0, 1.0), (3.0, 0.7), (2.0, 0.1), (0.3, 0.1), (1.0, 1.0)])
def test_the_choice_is_frozen_whatever_the_temperatures(ends):
    routing = dataclasses.replace(MODEL.routing, temperature_start=ends[0], temperature_end=ends[1], anneal_updates=7)
    learner = make(model=dataclasses.replace(MODEL, routing=routing))
    learner.updates = 5
    learner.update_world_model(transitions())
    assert learner.frozen_routes is None
    learner.update_world_model(transitions())  # the seventh
    assert learner.temperature == ends[1]  # exactly, so that the noise is 0
    assert torch.equal(learner.frozen_routes, learner.routing(explore=True).plan.routes)


@pytest.mark.parametrize("task_groups", [1, 2])
def test_no_loss_moves_router_and_embedding_by_routes_that_are_frozen(task_groups):
    optim = OptimConfig(task_groups=task_groups)
    learner = make(model=dataclasses.replace(MODEL, condition=()), loss=LossConfig(balance=10.0), optim=optim)
    model = learner.world_model
    learner.frozen_routes = learner.routing().plan.routes
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    assert learner.update_world_model(transitions())["loss/balance"].isfinite()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert {"encoder.posterior.weight", "decoder.output.weight", "shared.stem.input.weight"} <= moved
    assert not {name for name in moved if name.startswith(("router.", "task_embedding"))}


def test_temperature_falls_then_the_choice_is_frozen():
    learner = make()
    routing = learner.config.model.routing
    assert learner.temperature == routing.temperature_start
    learner.updates = round(0.1 * learner.config.world_model_updates)
    assert routing.temperature_end < learner.temperature < routing.temperature_start
    assert learner.frozen_routes is None
    learner.updates = learner.config.world_model_updates - 1
    assert learner.temperature == pytest.approx(routing.temperature_end)
    learner.update_world_model(transitions())
    routes = learner.routing(explore=True).plan.routes
    assert torch.equal(learner.frozen_routes, routes)
    with torch.no_grad():
        learner.world_model.router.output.bias.copy_(torch.randn(3) * 50)
    assert torch.equal(learner.routing().plan.routes, routes)


def test_reading_the_routes_changes_nothing():
    learner = make()
    learner.updates = learner.config.world_model_updates
    before = learner.state_dict()
    learner.routing()
    learner.routing(explore=True)
    assert learner.frozen_routes is None
    assert torch.equal(before["rng"], learner.state_dict()["rng"])


def test_routes_are_frozen_whatever_the_rounding_of_the_temperature():
    routing = dataclasses.replace(MODEL.routing, temperature_start=0.3, temperature_end=0.1)  # 0.3 + (0.1 - 0.3) < 0.1
    learner = make(model=dataclasses.replace(MODEL, routing=routing))
    learner.updates = learner.config.world_model_updates
    learner.update_world_model(transitions())
    assert learner.frozen_routes is not None


def test_checkpoint_round_trip(tmp_path):
    learner = grouped(make())
    for i in range(2):
        learner.update_world_model(transitions(seed=i))
        learner.update_agent(transitions(seed=i, length=3))
    save_checkpoint(tmp_path / "a.pt", {"learner": learner.state_dict()})
    again = make()
    again.load_state_dict(load_checkpoint(tmp_path / "a.pt", CPU)["learner"])
    for old, new in ((learner, again),):
        for i in range(2, 4):
            a = {**old.update_world_model(transitions(seed=i)), **old.update_agent(transitions(seed=i, length=3))}
            b = {**new.update_world_model(transitions(seed=i)), **new.update_agent(transitions(seed=i, length=3))}
            for name in a:
                assert torch.equal(a[name], b[name]), name
    assert again.grouping.order == learner.grouping.order


def test_bf16_autocast_trains():
    optim = dataclasses.replace(run_config().optim, precision="bf16")
    learner = grouped(make(optim=optim))
    wm, ac = learner.update_world_model(transitions()), learner.update_agent(transitions(length=3))
    assert wm["loss/world_model"].dtype == torch.float32
    assert all(value.isfinite().all() for value in {**wm, **ac}.values())


def test_storm_architecture_trains():
    from mow.methods.mow.presets import storm

    model = dataclasses.replace(
        storm().model, **{name: getattr(MODEL, name) for name in ("width", "num_heads", "feedforward", "max_positions")}
    )
    perception = dataclasses.replace(MODEL.perception, norm="bn_shared")
    config = run_config(
        tasks=("dummy:count-0",), model=dataclasses.replace(model, perception=perception), storm_compat=True,
        loss=storm().loss, clustering=storm().clustering,
    )
    learner = grouped(Learner(config, action_mask(2).reorder(torch.tensor([0])), CPU))
    metrics = learner.update_world_model(transitions(num_tasks=1))
    learner.update_agent(transitions(num_tasks=1, length=3))
    assert "loss/task" not in metrics
    assert "loss/balance" not in metrics


def test_step_sizes_fall_to_their_share():
    learner = make(optim=OptimConfig(matrices="muon", final_lr=0.2))
    total = learner.config.world_model_updates

    def sizes():
        optimisers = (*learner.world_model_optimisers, *learner.agent_optimisers)
        return [group["lr"] for optimiser in optimisers for group in optimiser.param_groups]

    before = sizes()
    for update in range(total):
        learner.update_world_model(transitions())
        want = [lr * (1 - 0.8 * (update + 1) / total) for lr in before]
        assert sizes() == pytest.approx(want)
    learner.update_world_model(transitions())  # as a caller may who counts otherwise
    assert sizes() == pytest.approx([0.2 * lr for lr in before])


def test_muon_moves_the_hidden_layers_of_the_agent_and_adam_the_rest():
    learner = grouped(make(optim=OptimConfig(agent_matrices="muon")))
    adam, muon = ({id(p) for group in optimiser.param_groups for p in group["params"]}
                  for optimiser in learner.agent_optimisers)  # fmt: skip
    trained = {name: id(p) for name, p in learner.agent.named_parameters() if p.requires_grad}
    hidden = {trained[f"{part}.linears.{layer}.weight"] for part in ("actor", "critic") for layer in range(2)}
    assert muon == hidden
    assert adam == set(trained.values()) - hidden
    before = learner.agent.actor.linears[0].weight.clone()
    learner.update_agent(transitions(length=3))
    assert not torch.equal(learner.agent.actor.linears[0].weight, before)


def test_step_sizes_go_on_falling_after_a_restart(tmp_path):
    learner = make(optim=OptimConfig(final_lr=0.0))
    learner.update_world_model(transitions())
    resumed = make(optim=OptimConfig(final_lr=0.0))
    resumed.load_state_dict(learner.state_dict())
    for other in (learner, resumed):
        other.update_world_model(transitions(seed=1))
    (one,), (two,) = learner.world_model_optimisers, resumed.world_model_optimisers
    assert one.param_groups[0]["lr"] == two.param_groups[0]["lr"] < 1e-4
