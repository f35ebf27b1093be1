"""Updates that no host read interrupts: the same as the plain ones, and what is not finite is left out and reported.

On a CPU a replay is the call itself, on the buffers that a recording would read.
"""

import copy
import dataclasses

import pytest
import torch
from torch import Tensor

from mow.batch import TransitionBatch
from mow.methods.mow.config import LossConfig, MowConfig, OptimConfig
from mow.methods.mow.config_agent import ActorCriticConfig
from mow.methods.mow.learner import Learner
from mow.nn.finite import NotFinite
from tests.host_reads import host_reads
from tests.small import MODEL, action_mask, run_config, transitions

CPU = torch.device("cpu")
CASES: dict[str, dict[str, object]] = {
    "adam": {"loss": LossConfig(reconstruct_every=2), "actor_critic": ActorCriticConfig(hidden=8, final_entropy=0.1)},
    "muon": {"optim": OptimConfig(matrices="muon", agent_matrices="muon", final_lr=0.1)},
    "noise, two parts": {
        "model": dataclasses.replace(MODEL, routing=dataclasses.replace(MODEL.routing, noise=0.5)),
        "actor_critic": ActorCriticConfig(hidden=8, rollout_epochs=2, rollout_parts=2, entropy_scale="log_actions"),
    },
}


def learners(device: torch.device = CPU, **changes: object) -> tuple[Learner, Learner]:
    """The plain one, and the one whose updates are recorded."""
    made = []
    for recorded in (False, True):
        config: MowConfig = run_config(**changes)
        config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, update_graph=recorded))
        torch.manual_seed(0)
        one = Learner(config, action_mask(), device)
        torch.manual_seed(1)
        one.regroup(one.group([transitions(seed=1).to(device), transitions(seed=2).to(device)]))
        made.append(one)
    return made[0], made[1]


def close(plain: dict[str, Tensor], ours: dict[str, Tensor], tolerance: float) -> None:
    assert plain.keys() == ours.keys()
    for name, want in plain.items():
        assert torch.allclose(ours[name], want, rtol=tolerance, atol=tolerance), name


@pytest.mark.parametrize("name", CASES)
def test_a_dozen_updates_of_each_kind_are_those_of_the_plain_path(name: str) -> None:
    plain, ours = learners(**CASES[name])
    tolerance = 1e-4 if name == "muon" else 1e-6  # Muon rounds lr times step once more
    for seed in range(12):  # of each kind
        batch, context = transitions(seed=seed), transitions(length=3, seed=100 + seed)
        close(plain.update_world_model(batch), ours.update_world_model(batch), tolerance)
        close(plain.update_agent(context), ours.update_agent(context), tolerance)
    assert torch.equal(plain.rng.seed_offset, ours.rng.seed_offset)
    for one, other in zip(plain.networks.values(), ours.networks.values(), strict=True):
        close(one.state_dict(), other.state_dict(), tolerance)
    assert len(ours.graphs.recordings) == (3 if name == "adam" else 2)  # one for each turn of the frames


@pytest.mark.parametrize("name", CASES)
def test_no_update_reads_on_the_host(name: str) -> None:
    _, made = learners(**CASES[name])
    batch, context = transitions(), transitions(length=3)
    with host_reads() as found:
        made.update_world_model(batch)
        made.update_agent(context)
    assert found == []
    with host_reads() as found:
        for _ in range(4):
            made.update_world_model(batch)
            made.update_agent(context)
    assert {read.rpartition(" in ")[2] for read in found} == {"update_graph.py:_look"}  # of the update before


def broken(batch: TransitionBatch) -> TransitionBatch:
    reward = batch.reward.clone()
    reward[1, 0, 2] = torch.nan
    return dataclasses.replace(batch, reward=reward)


def test_what_is_not_finite_is_left_out_and_reported_one_update_later() -> None:
    for optim in (OptimConfig(), OptimConfig(matrices="muon")):
        plain, ours = learners(optim=optim)
        for seed in range(4):
            plain.update_world_model(transitions(seed=seed))
            ours.update_world_model(transitions(seed=seed))
        before = {name: value.clone() for name, value in ours.world_model.named_parameters()}
        with pytest.raises(NotFinite) as at_once:
            plain.update_world_model(broken(transitions(seed=9)))
        assert not ours.update_world_model(broken(transitions(seed=9)))["optim/world_model_total"].isfinite()
        assert all(torch.equal(value, before[name]) for name, value in ours.world_model.named_parameters())
        plain.update_world_model(transitions(seed=5))
        with pytest.raises(NotFinite) as later:
            ours.update_world_model(transitions(seed=5))  # made nevertheless
        assert str(later.value) == str(at_once.value)
        close(dict(plain.world_model.named_parameters()), dict(ours.world_model.named_parameters()), 1e-4)
        ours.update_world_model(transitions(seed=6))
        assert plain.updates + 1 == ours.updates


def test_every_broken_update_is_reported_in_turn() -> None:
    _, ours = learners()
    ours.update_world_model(broken(transitions()))
    for _ in range(4):
        with pytest.raises(NotFinite):
            ours.update_world_model(broken(transitions()))


def test_the_agent_and_its_slow_critic_stay_where_a_step_is_left_out() -> None:
    _, ours = learners()
    ours.update_agent(transitions(length=3))
    before = {name: value.clone() for name, value in ours.agent.state_dict().items()}
    ours.world_model.heads.reward.output.bias.data.fill_(torch.nan)
    ours.update_agent(transitions(length=3))
    assert all(torch.equal(value, before[name]) for name, value in ours.agent.state_dict().items())
    with pytest.raises(NotFinite, match="agent"):
        ours.update_agent(transitions(length=3))


def test_a_checkpoint_goes_from_either_path_to_the_other() -> None:
    plain, ours = learners()
    for _ in range(3):
        ours.update_world_model(transitions())
    fresh, fresh_ours = (Learner(one.config, action_mask(), CPU) for one in (plain, ours))
    for one in (fresh, fresh_ours):
        one.load_state_dict(copy.deepcopy(ours.state_dict()))  # optimisers keep what they are given
    close(ours.update_world_model(transitions(seed=3)), fresh.update_world_model(transitions(seed=3)), 1e-6)
    fresh_ours.update_world_model(transitions(seed=3))
    close(dict(fresh.world_model.named_parameters()), dict(fresh_ours.world_model.named_parameters()), 1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_on_a_gpu_replayed_updates_are_the_plain_ones(name: str) -> None:
    plain, ours = learners(torch.device("cuda"), **CASES[name])
    for seed in range(8):
        batch, context = (x.to(plain.device) for x in (transitions(seed=seed), transitions(length=3, seed=100 + seed)))
        close(plain.update_world_model(batch), ours.update_world_model(batch), 1e-3)
        close(plain.update_agent(context), ours.update_agent(context), 1e-3)
    assert ours.graphs.recordings
