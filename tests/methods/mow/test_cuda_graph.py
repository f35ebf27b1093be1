"""A replayed rollout is the plain one, with other contexts, weights and experts; and it is recorded anew in time.

On a CPU a graph is stood in for by a call whose results are copied to where those of the first call lay.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import fields

import pytest
import torch

from mow.methods.mow.config import OptimConfig
from mow.methods.mow.cuda_graph import RolloutGraph
from mow.methods.mow.learner import Learner
from mow.methods.mow.records import Imagination
from tests.host_reads import host_reads
from tests.small import action_mask, run_config, transitions

CPU = torch.device("cpu")
GRAPH = OptimConfig(cuda_graph=True)


def record_by_calling(call: Callable[[], Imagination], device: torch.device):
    made = call()

    def replay() -> None:
        again = call()
        for field in fields(made):
            getattr(made, field.name).copy_(getattr(again, field.name))

    return replay, made


def learner(device: torch.device = CPU, **changes: object) -> Learner:
    torch.manual_seed(0)
    made = Learner(run_config(**changes), action_mask(), device)
    if made.rollout_graph is not None and device.type == "cpu":
        made.rollout_graph = RolloutGraph(record_by_calling)
    return made


def context(seed: int, device: torch.device = CPU):
    return transitions(length=3, seed=seed).to(device)


def same(want: dict[str, torch.Tensor], got: dict[str, torch.Tensor]) -> bool:
    return want.keys() == got.keys() and all(torch.equal(want[name], got[name]) for name in want)


def check_a_run(device: torch.device, **changes: object) -> None:
    """Updates of both kinds, tasks grouped in between: every number of the two learners is the same to the bit."""
    plain, replayed = learner(device, **changes), learner(device, optim=GRAPH, **changes)
    for phase, modules in enumerate((1, 2)):
        for update in range(3 - phase):
            batch = transitions(seed=10 * phase + update).to(device)
            dreamt = context(20 + 10 * phase + update, device)
            assert same(plain.update_world_model(batch), replayed.update_world_model(batch))
            assert same(plain.update_agent(dreamt), replayed.update_agent(dreamt))
            assert torch.equal(plain.rng.seed_offset, replayed.rng.seed_offset)
        assert replayed.world_model.num_modules == modules
        assert replayed.rollout_graph.records == phase + 1  # once for each set of modules
        for one in (plain, replayed):
            if phase == 0:
                torch.manual_seed(1)  # for the new agents
                one.regroup(one.group([transitions(seed=1).to(device), transitions(seed=2).to(device)]))
    for name, weight in plain.agent.state_dict().items():
        assert torch.equal(weight, replayed.agent.state_dict()[name]), name


def test_replays_are_what_the_plain_rollout_dreams() -> None:
    check_a_run(CPU)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu_replays_are_what_the_plain_rollout_dreams(precision: str) -> None:
    plain = learner(torch.device("cuda"), optim=OptimConfig(precision=precision))
    replayed = learner(torch.device("cuda"), optim=OptimConfig(cuda_graph=True, precision=precision))
    for seed in range(4):
        batch, dreamt = transitions(seed=seed).to(plain.device), context(seed, plain.device)
        replayed.update_world_model(batch)  # weights move, here and there by the same numbers
        plain.world_model.load_state_dict(replayed.world_model.state_dict())
        plain.agent.load_state_dict(replayed.agent.state_dict())
        plain.rng.load(replayed.rng.state())
        plain.updates = replayed.updates
        plain.world_model.eval()
        replayed.world_model.eval()
        want, got = plain.imagine_rollout(dreamt), replayed.imagine_rollout(dreamt)
        for field in fields(want):
            assert torch.equal(getattr(want, field.name), getattr(got, field.name)), field.name
    assert replayed.rollout_graph.records == 1


@pytest.mark.gpu
def test_on_a_gpu_a_grown_model_is_recorded_anew() -> None:
    device = torch.device("cuda")
    made = learner(device, optim=GRAPH)
    made.update_agent(context(0, device))
    made.regroup(made.group([transitions(seed=1).to(device), transitions(seed=2).to(device)]))
    made.update_agent(context(1, device))
    made.update_agent(context(2, device))
    assert made.rollout_graph.records == 2


def roll(made: Learner, seed: int, num_sequences: int = 2) -> Imagination:
    made.world_model.eval()
    return made.imagine_rollout(transitions(num_sequences=num_sequences, length=3, seed=seed))


def test_results_lie_where_they_lay_and_follow_context_weights_and_stream() -> None:
    made = learner(optim=GRAPH)
    state = made.rng.state()
    dream = roll(made, seed=0)
    where, first = dream.latent.data_ptr(), dream.latent.clone()
    made.rng.load(state)
    assert torch.equal(roll(made, seed=0).latent, first)  # from the same counter the same
    assert roll(made, seed=0).latent.data_ptr() == where
    assert not torch.equal(roll(made, seed=0).latent, first)  # the counter has moved
    made.rng.load(state)
    assert not torch.equal(roll(made, seed=1).latent, first)  # another context
    made.rng.load(state)
    with torch.no_grad():
        for weight in made.world_model.heads.parameters():
            weight.add_(torch.randn_like(weight))  # in place, as optimisers do
    assert not torch.equal(roll(made, seed=0).latent, first)
    assert made.rollout_graph.records == 1


def test_other_shapes_and_moved_weights_are_recorded_anew() -> None:
    made = learner(optim=GRAPH)
    roll(made, seed=0)
    assert roll(made, seed=0, num_sequences=3).latent.shape[1] == 3
    assert made.rollout_graph.records == 2
    weight = made.world_model.heads.reward.output.weight
    weight.data = weight.data.clone()
    roll(made, seed=0, num_sequences=3)
    roll(made, seed=0, num_sequences=3)
    assert made.rollout_graph.records == 3


def test_a_rollout_reads_nothing_on_the_host() -> None:
    """What could not be recorded is not there: no value is read, no shape follows from one."""
    made = learner()
    made.world_model.eval()
    routing = made.routing()
    with host_reads() as found:
        made._imagine(context(0), routing)
    assert found == []


def test_autocast_must_be_inside() -> None:
    made = learner(optim=GRAPH)
    with pytest.raises(AssertionError, match="enters autocast by itself"), torch.autocast("cpu", dtype=torch.bfloat16):
        roll(made, seed=0)


def test_the_graph_holds_on_to_a_rollout() -> None:
    from mow.estimate.footprint import activations

    config = run_config()
    plain = activations(config, 6, bf16=True)
    held = activations(dataclasses.replace(config, optim=GRAPH), 6, bf16=True)
    assert plain.peak == max(plain.world_model, plain.rollout, plain.agent)
    assert held.peak == plain.rollout + max(plain.world_model, plain.agent)
