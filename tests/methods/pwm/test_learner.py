"""The learner of pwm: tasks side by side, frozen model, masks, exact resume."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mow.envs.base import ActionLayout, TaskSpec
from mow.errors import UsageError
from mow.methods.base import ObservationSpec, TaskSet
from mow.methods.pwm.config import DistillConfig, ScheduleConfig
from mow.methods.pwm.diagnostics import measure
from mow.methods.pwm.learner import Learner
from mow.methods.pwm.policies import clip_per_row
from mow.nn.finite import NotFinite
from tests.methods.pwm.tiny import NARROW, WIDE, batch_of, config_of, double, learner_of, rows_of, with_end


def weights(learner: Learner) -> dict[str, Tensor]:
    return {f"{part}.{name}": tensor.clone() for part, module in learner.networks.items()
            for name, tensor in module.state_dict().items()}  # fmt: skip


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("policy", [{}, {"form": "shared"}, {"feedback": "full", "objective": "symexp", "lam": 0.0}])
@pytest.mark.parametrize("termination", [False, True])
def test_both_updates_train(policy: dict[str, Any], termination: bool) -> None:
    learner = learner_of(policy={**policy, "behaviour": 0.1}, model={"termination": termination})
    for kind, changed in (("world_model", {"world model"}), ("policy", {"actors", "critics"})):
        before = weights(learner)
        metrics = learner.update(kind, batch_of())
        after = weights(learner)
        assert all(value.isfinite().all() for value in metrics.values())
        assert {name.split(".")[0] for name in before if not before[name].equal(after[name])} == changed


def test_extraction_leaves_the_model_bit_identical() -> None:
    learner = learner_of()
    for counter in range(3):
        learner.update("world_model", batch_of(seed=counter))
    before = weights(learner)
    for counter in range(5):
        learner.update("policy", batch_of(seed=counter))
    after = weights(learner)
    assert all(before[name].equal(after[name]) for name in before if name.startswith("world model"))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in learner.world_model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tasks_together_are_as_one_by_one_in_any_order(dtype: torch.dtype) -> None:
    """Policies and critics of both, from one frozen model, after three updates."""
    torch.set_default_dtype(dtype)
    try:
        tasks = (("vec:one", 3), ("vec:two", 3))
        both = learner_of(tasks)
        batches = [batch_of(seed=counter) for counter in range(3)]
        batches = [double(batch) if dtype == torch.float64 else batch for batch in batches]
        alone = [learner_of((task,)) for task in tasks]
        turned = learner_of(tasks[::-1])
        model = both.world_model.state_dict()
        turned.world_model.load_state_dict({**model, "embedding": model["embedding"].flip(0)})
        for k, learner in enumerate(alone):
            learner.world_model.load_state_dict({**model, "embedding": model["embedding"][k : k + 1]})
        for batch in batches:
            both.update("policy", batch)
            turned.update("policy", batch.map(lambda tensor: tensor.flip(0)))
            for k, learner in enumerate(alone):
                learner.update("policy", rows_of(batch, k))
        close = {"rtol": 0, "atol": 1e-5 if dtype == torch.float32 else 1e-10}
        for part, count in (("actors", 1), ("critics", 3)):
            for name, tensor in both.networks[part].state_dict().items():
                assert tensor.dtype == dtype
                apart = torch.cat([learner.networks[part].state_dict()[name] for learner in alone])
                torch.testing.assert_close(tensor, apart, **close)  # type: ignore[arg-type]
                backward = turned.networks[part].state_dict()[name].unflatten(0, (2, count)).flip(0).flatten(0, 1)
                torch.testing.assert_close(tensor, backward, **close)  # type: ignore[arg-type]
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_wider_task_leaves_a_narrow_ones_draws_and_padding_alone() -> None:
    both, alone = learner_of((NARROW, WIDE)), learner_of((NARROW,))
    noise = both.noise(4, 2)
    assert torch.equal(noise[0, :, :, :1], alone.noise(4, 2)[0])
    assert noise[0, :, :, 1:].eq(0).all()
    before = weights(both)
    for counter in range(3):
        both.update("policy", batch_of(seed=counter))
        rollout = both.imagine(batch_of(seed=counter))
        assert rollout.action[0, :, :, 1:].eq(0).all()
        assert rollout.action[1].abs().gt(0).all()
    after = weights(both)
    for name in ("actors.log_std", "actors.mlp.9.bias", "actors.mlp.9.weight"):
        own, padding = (before[name][0] != after[name][0]), after[name][0]
        if name.endswith("weight"):
            assert own[0].any()
            assert not own[1:].any()
        else:
            assert own[0, 0]
            assert not own[0, 1:].any(), padding


def test_the_gradient_of_each_task_is_clipped_alone() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(4, 1, 2))]
    small, huge = torch.tensor([0.1, 0.0, 0.0]), torch.tensor([3e6, 0.0, 0.0])
    of_critics = torch.zeros(4, 1, 2)
    of_critics[2:] = 1e6
    norm = clip_per_row(parameters, [torch.stack([small, huge]), of_critics], 2, 1.0)
    assert norm.tolist() == pytest.approx([0.1, (9e12 + 4e12) ** 0.5])
    assert parameters[0].grad is not None
    assert parameters[1].grad is not None
    assert torch.equal(parameters[0].grad[0], small)
    clipped = torch.cat([parameters[0].grad[1], parameters[1].grad[2:].flatten()])
    assert clipped.norm().item() == pytest.approx(1.0, abs=1e-6)


def test_a_resumed_learner_goes_on_as_it_would_have() -> None:
    def train(learner: Learner, counters: range) -> None:
        for counter in counters:
            learner.update("world_model", batch_of(seed=counter))
            learner.update("policy", batch_of(seed=100 + counter))
            learner.actor().act(torch.zeros(2, 5), torch.ones(2, dtype=torch.bool))

    straight, first, second = learner_of(), learner_of(), learner_of(seed=7)
    train(straight, range(4))
    train(first, range(2))
    second.load_state_dict(first.state_dict())
    train(second, range(2, 4))
    assert same(weights(straight), weights(second))
    assert second.policy_updates == 4
    assert torch.equal(second.noise(3), straight.noise(3))


def test_the_step_size_falls_to_its_end() -> None:
    learner, sizes = learner_of(), []
    for _ in range(6):
        learner.update("policy", batch_of())
        sizes.append(learner.actor_optimiser.param_groups[0]["lr"])
    assert sizes == pytest.approx([5e-4, 5e-4 * 0.75 + 1e-5 * 0.25, 2.55e-4, 5e-4 * 0.25 + 1e-5 * 0.75, 1e-5, 1e-5])
    assert [group["lr"] for group in learner.world_model_optimiser.param_groups] == pytest.approx([9e-5, 3e-4])


def test_the_spread_has_a_floor() -> None:
    learner = learner_of()
    assert learner.actors.log_std.eq(-1.0).all()
    with torch.no_grad():
        learner.actors.log_std.fill_(-5.0)
    learner.update("policy", batch_of())
    torch.testing.assert_close(learner.actors.log_std.exp(), torch.full((2, 1, 3), 0.240028))


def test_actions_of_the_actor() -> None:
    learner = learner_of()
    for shape in ((2,), (2, 6)):
        frame, first = torch.randn(*shape, 5), torch.ones(shape, dtype=torch.bool)
        calm, lively = learner.actor(explore=False), learner.actor()
        action = calm.act(frame, first).action
        assert action.shape == (*shape, 3)
        assert action[0, ..., 1:].eq(0).all(), "padding"
        assert torch.equal(calm.act(frame, first).action, action)
        assert not torch.equal(lively.act(frame, first).action, action)
        assert lively.act(frame, first).action.abs().max() <= 1
        calm.record(action)
        calm.load_state_dict(calm.state_dict())
    single = torch.randn(2, 5)
    many = learner.actor(explore=False).act(single.unsqueeze(1), first[:, :1]).action[:, 0]
    torch.testing.assert_close(learner.actor(explore=False).act(single, first[:, 0]).action, many)


def test_the_term_of_behaviour_draws_actions_to_the_data() -> None:
    learner = learner_of(policy={"behaviour": 10.0, "lr": 0.003, "final_lr": 0.003})
    batch = batch_of(windows=8, length=1)
    batch = replace(batch, action=torch.tensor([0.8, -0.8, 0.8]).expand_as(batch.action))
    before = learner.distance_to_data(learner.imagine(batch), batch)
    for _ in range(20):
        learner.update("policy", batch)
    assert (learner.distance_to_data(learner.imagine(batch), batch) < 0.5 * before).all()


def test_the_last_row_of_an_episode_has_no_action_to_imitate() -> None:
    learner, batch = learner_of(), batch_of(length=1)
    last = torch.zeros_like(batch.is_last)
    last[:, 1:] = True
    ended = replace(batch, is_last=last)
    rollout = learner.imagine(batch)
    expected = (rollout.action[1, 0, 0] - batch.action[1, 0, 0]).square().mean()
    assert learner.distance_to_data(rollout, ended)[1].item() == pytest.approx(expected.item(), rel=1e-5)


def test_an_update_that_would_break_the_weights_is_not_made() -> None:
    learner, batch = learner_of(), batch_of()
    broken = batch.frame.clone()
    broken[1, 0, 0] = torch.nan
    before = weights(learner)
    for kind in ("world_model", "policy"):
        with pytest.raises(NotFinite, match="vec:wide"):
            learner.update(kind, replace(batch, frame=broken))
    assert same(before, weights(learner))


def test_guards_by_hand() -> None:
    learner = learner_of()
    batch = with_end(batch_of(windows=8), window=0, at=2)
    found = measure(learner, batch)
    assert {*found} == {"insight/rank", "insight/rollout_error_1", "insight/rollout_error_4", "insight/reward_r2"}
    assert all(value.shape == (2,) for value in found.values())
    assert (found["insight/rank"] > 1.5).all()
    with torch.no_grad():
        learner.world_model.encoder[0][0].weight.zero_()
    assert measure(learner, batch)["insight/rank"].tolist() == [0.0, 0.0], "all latents are the same"


@pytest.mark.parametrize(
    ("discrete", "shape", "says"),
    [(True, (4,), "vec:a has discrete actions"), (False, (64, 64, 3), "--env.obs state")],
)
def test_tasks_that_cannot_be_learnt(discrete: bool, shape: tuple[int, ...], says: str) -> None:
    specs = (TaskSpec("vec:a", discrete, 2, (True, True), 1, "test"),)
    tasks = TaskSet(specs, ActionLayout.from_tasks(specs), ObservationSpec(shape, "float32"))
    with pytest.raises(UsageError, match=says) as error:
        Learner(config_of(["vec:a"]), tasks, torch.device("cpu"))
    assert "\n" not in str(error.value)


def test_the_model_fits_eight_windows() -> None:
    """Under 5 % of the first loss in 500 updates; the latent does not collapse, and the actions matter."""
    learner = learner_of(((*NARROW,),), model={"width": 64, "latent_size": 64, "embedding_size": 0})
    torch.manual_seed(0)
    state = torch.randn(1, 8, 5)
    batch = batch_of(num_tasks=1, windows=8, action_size=1)
    rows = [state]
    for t in range(4):
        rows.append(rows[-1] + batch.action[:, :, t] * torch.tensor([1.0, -1.0, 0.5, 0.0, 2.0]))
    frame = torch.stack(rows, dim=2)
    batch = replace(batch, frame=frame, reward=frame[..., 0])
    first = learner.update("world_model", batch)["loss/world_model"].item()
    for _ in range(499):
        last = learner.update("world_model", batch)
    assert last["loss/world_model"].item() < 0.05 * first + 0.1 * 0.7, "less than the entropy of the two-hot codes"
    shuffled = learner.update("world_model", replace(batch, action=batch.action.flip(1)))
    assert shuffled["loss/consistency"] > 3 * last["loss/consistency"]
    assert measure(learner, batch)["insight/rank"].item() > 1.5


@pytest.mark.parametrize("form", ["per_task", "shared"])
def test_policies_are_drawn_to_those_of_a_larger_run(form: str) -> None:
    """One policy for all toward one per task, or one; the same policies are at distance 0, and none draws none."""
    large = learner_of(policy={"form": form, "width": 24}, model={"latent_size": 32})
    distill = DistillConfig(run="large", policy=30.0, teacher=large.config.model, teacher_policy=large.config.policy)
    shape = {"form": "shared", "lr": 0.003, "final_lr": 0.003}
    learner, without = learner_of(distill=distill, policy=shape), learner_of(policy=shape)
    batch = batch_of(windows=16, length=1)
    with pytest.raises(NotFinite):  # until the weights are given
        learner.update("policy", batch)
    assert learner.teacher is not None
    assert learner.teacher_actors is not None
    learner.teacher.load_state_dict(large.world_model.state_dict())
    learner.teacher_actors.load_state_dict(large.actors.state_dict())
    far = [learner.distance_to_teacher(learner.imagine(batch), batch)]
    aim = large.actor(explore=False).act(batch.frame[:, :, 0], batch.is_first[:, :, 0]).action
    own = learner.actor(explore=False).act(batch.frame[:, :, 0], batch.is_first[:, :, 0]).action
    torch.testing.assert_close(far[0], (aim - own).square().sum(dim=(1, 2)) / torch.tensor([16.0, 48.0]))
    for _ in range(30):
        learner.update("policy", batch)
    far.append(learner.distance_to_teacher(learner.imagine(batch), batch))
    assert (far[1] < 0.5 * far[0]).all()
    assert all(torch.equal(one, other) for one, other in zip(large.actors.parameters(),
               learner.teacher_actors.parameters(), strict=True))  # fmt: skip
    assert "teacher_actors" in learner.state_dict()
    assert without.teacher is None
    same_one = learner_of(distill=replace(distill, teacher=without.config.model, teacher_policy=without.config.policy),
                          policy=shape)  # fmt: skip
    assert same_one.teacher is not None
    assert same_one.teacher_actors is not None
    same_one.teacher.load_state_dict(same_one.world_model.state_dict())
    same_one.teacher_actors.load_state_dict(same_one.actors.state_dict())
    assert same_one.distance_to_teacher(same_one.imagine(batch), batch).abs().max() < 1e-10


def test_observations_are_measured_before_the_first_update_and_by_no_run_that_extracts() -> None:
    learner = learner_of(model={"observations": "standard"})
    assert [phase.name for phase in learner.phases] == ["measure", "pretrain", "extract"]
    seen = batch_of(windows=64, length=1)
    learner.end_phase("measure", lambda num_sequences, length, *, counter, stream: seen)
    assert torch.equal(learner.world_model.mean, seen.frame.flatten(1, 2).mean(dim=1))
    before = weights(learner)
    learner.end_phase("pretrain", lambda num_sequences, length, *, counter, stream: batch_of(seed=1))
    assert same(before, weights(learner))
    frozen = learner_of(model={"observations": "standard"}, schedule=ScheduleConfig(0, policy_updates=5))
    assert [phase.name for phase in frozen.phases] == ["pretrain", "extract"]
