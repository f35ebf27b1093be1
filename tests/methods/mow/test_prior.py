import dataclasses

import pytest
import torch

from mow.kernels import PhiloxState, RoutePlan
from mow.methods.mow.config import LossConfig
from mow.methods.mow.config_model import PerceptionConfig, WorldModelConfig
from mow.methods.mow.local_prior import LocalPrior
from mow.methods.mow.records import HeadInput
from mow.methods.mow.split_modules import grow
from mow.methods.mow.world_model import WorldModel
from mow.methods.mow.world_model_loss import world_model_losses
from tests.small import (
    ACTION_SIZE,
    ARRIVAL,
    LOCAL,
    LOCAL_ARRIVAL,
    MODEL,
    TWO_FRAMES,
    transitions,
    world_model,
)

MODULES = (0, 0, 1)
ROUTES = torch.tensor(MODULES).unsqueeze(1)
PLAN = RoutePlan(ROUTES, 2)
KNOWN = RoutePlan(ROUTES, 2, tuple((module,) for module in MODULES))  # by the host too: then a task's rows are views
plans = pytest.mark.parametrize("plan", [PLAN, KNOWN], ids=["on the device", "known"])


def moment(config=LOCAL):
    rng = torch.Generator().manual_seed(0)
    shape = (3, 2, 1, config.perception.groups)
    latent = torch.zeros(*shape, 4).scatter_(-1, torch.randint(0, 4, (*shape, 1), generator=rng), 1.0)
    action, hidden = (torch.randn(3, 2, 1, size, generator=rng) for size in (ACTION_SIZE, config.width))
    before = latent.roll(1, dims=0).flatten(-2) if config.prior_frames == 2 else None
    return HeadInput(latent.flatten(-2), action, hidden, before)


class Unchanged(torch.nn.Module):
    def forward(self, x, plan, relu):
        return x.relu()


def test_one_cell_by_hand():
    """All weights 1, norm and all other inputs switched off: each cell counts what is in it and around it."""
    seen = PerceptionConfig(groups=16, classes=1, latent="spatial")
    config = dataclasses.replace(MODEL, width=4, prior="local", prior_width=4, perception=seen)
    prior = LocalPrior(config, 1, action_size=1, embedding_size=0)
    with torch.no_grad():
        prior.neighbours.weight.fill_(1.0)
        prior.hidden.bias.zero_()
        prior.second.weight.copy_(torch.eye(4))
        prior.second.bias.zero_()
    prior.norm = prior.second_norm = Unchanged()
    grid = torch.zeros(4, 4)
    grid[0, 0], grid[1, 2] = 1.0, 10.0
    moment = HeadInput(grid.view(1, 1, 1, 16), torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 4))
    got = prior._features(moment, RoutePlan(torch.zeros(1, 1, dtype=torch.long), 1), None)
    assert got.shape == (1, 1, 16, 4)
    assert got[0, 0, :, 0].view(4, 4).tolist() == [[1, 11, 10, 10], [1, 11, 10, 10], [0, 10, 10, 10], [0, 0, 0, 0]]


@plans
@pytest.mark.parametrize("frames", [1, 2])
def test_the_formula_cell_by_cell(plan, frames):
    torch.manual_seed(0)
    config = dataclasses.replace(LOCAL, width=8, prior_width=8, prior_frames=frames)
    prior = LocalPrior(config, 2, action_size=3, embedding_size=4).double()
    torch.nn.init.normal_(prior.place)
    torch.nn.init.normal_(prior.norm.weight)
    torch.nn.init.normal_(prior.second_norm.weight)
    latent, action, hidden, before = (torch.randn(3, 2, 1, size, dtype=torch.float64) for size in (128, 3, 8, 128))
    embedding = torch.randn(3, 4, dtype=torch.float64)
    logits, events = prior(HeadInput(latent, action, hidden, before if frames == 2 else None), plan, embedding)
    assert logits.shape == (3, 1, 2, 128)
    assert events.shape == (3, 1, 2, 4)
    for k, i in enumerate(MODULES):
        e = embedding[k]
        for n in range(2):
            a, h, seen = action[k, n, 0], hidden[k, n, 0], []
            for c in range(16):
                # The weight's columns: the nine places row by row, with all entries of the cell that is there, those of
                # the latent before behind them.
                around = torch.zeros(3, 3, 8 * frames, dtype=torch.float64)
                for y in range(3):
                    for x in range(3):
                        row, column = c // 4 + y - 1, c % 4 + x - 1
                        if 0 <= row < 4 and 0 <= column < 4:
                            places = [seen_at[k, n, 0].view(16, 8) for seen_at in (latent, before)[:frames]]
                            around[y, x] = torch.cat([place[4 * row + column] for place in places])
                total = prior.neighbours.weight[i] @ around.flatten() + prior.place[i, c]
                total += prior.action.weight[i] @ torch.outer(a, e).flatten()
                total += prior.hidden.weight[i] @ torch.cat([h, e]) + prior.hidden.bias[i]
                v = torch.nn.functional.layer_norm(total, (8,), prior.norm.weight[i], prior.norm.bias[i]).relu()
                total = prior.second.weight[i] @ v + prior.second.bias[i]
                u = torch.nn.functional.layer_norm(total, (8,), prior.second_norm.weight[i], prior.second_norm.bias[i])
                u = u.relu()
                cell = prior.next_cell.weight[i] @ torch.cat([u, e]) + prior.next_cell.bias[i]
                torch.testing.assert_close(logits[k, 0, n].view(16, 8)[c], cell)
                ahead = cell.view(2, 4).softmax(dim=-1).flatten()
                seen.append((prior.event.weight[i] @ torch.cat([u, ahead, e]) + prior.event.bias[i]).relu())
            torch.testing.assert_close(events[k, 0, n], torch.stack(seen).amax(dim=0))


@plans
def test_task_by_task_is_all_at_once(plan):
    torch.manual_seed(0)
    prior = LocalPrior(TWO_FRAMES, 2, action_size=ACTION_SIZE, embedding_size=4).double()
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter)
    given = moment(TWO_FRAMES)
    read = (given.latent, given.action, given.hidden, given.before, torch.randn(3, 4))
    inputs = [x.double().requires_grad_() for x in read]
    *of_moment, embedding = inputs
    outputs = [form(HeadInput(*of_moment), plan, embedding) for form in (prior, prior._ahead)]
    torch.testing.assert_close(*outputs)
    ups = [torch.randn_like(y) for y in outputs[0]]
    learnt = [*inputs, *prior.parameters()]
    for ours, theirs in zip(*(torch.autograd.grad(y, learnt, ups) for y in outputs), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "config", [MODEL, LOCAL, ARRIVAL, LOCAL_ARRIVAL], ids=["dense", "local", "dense arrival", "local arrival"]
)
def test_the_parts_are_the_whole(config):
    model, given = world_model(config), moment(config)
    arrived = given.latent.roll(1, dims=1)
    whole = model.predict(given, arrived)
    logits, events = model.predict_next_latent(given)
    torch.testing.assert_close(logits, whole.next_latent_logits)
    reward_logits, termination_logits = model.predict_reward_and_end(given.hidden, events, arrived)
    torch.testing.assert_close(reward_logits, whole.reward_logits)
    torch.testing.assert_close(termination_logits, whole.termination_logits)


@pytest.mark.parametrize("field", ["latent", "before"])
@pytest.mark.parametrize(("cell", "seen_by"), [(0, {0, 1, 4, 5}), (6, {1, 2, 3, 5, 6, 7, 9, 10, 11})])
def test_the_prior_of_a_cell_sees_its_neighbours_only(cell, seen_by, field):
    model, before = world_model(TWO_FRAMES), moment(TWO_FRAMES)
    latent = getattr(before, field).clone().view(3, 2, 1, 16, 8)
    latent[:, :, :, cell] = latent[:, :, :, cell].roll(1, dims=-1)
    after = dataclasses.replace(before, **{field: latent.flatten(-2)})
    moved = (model.predict_next_latent(before)[0] != model.predict_next_latent(after)[0]).view(3, 2, 1, 16, 8)
    assert {c for c in range(16) if moved[:, :, :, c].any()} == seen_by


def test_two_convolutions_leave_8x8_cells():
    fine = PerceptionConfig(channels=(4, 6), groups=64, classes=4, latent="spatial")
    model = world_model(dataclasses.replace(MODEL, prior="local", perception=fine))
    before = moment(model.config)
    latent = before.latent.clone().view(3, 2, 1, 64, 4)
    latent[:, :, :, 19] = latent[:, :, :, 19].roll(1, dims=-1)  # row 2, column 3
    after = dataclasses.replace(before, latent=latent.flatten(-2))
    moved = (model.predict_next_latent(before)[0] != model.predict_next_latent(after)[0]).view(3, 2, 1, 64, 4)
    assert {c for c in range(64) if moved[:, :, :, c].any()} == {10, 11, 12, 18, 19, 20, 26, 27, 28}
    assert model.decode(before.latent).shape == (3, 2, 1, 64, 64, 3)


@pytest.mark.parametrize("field", ["action", "hidden"])
def test_action_and_memory_reach_every_cell(field):
    model, before = world_model(LOCAL), moment()
    after = dataclasses.replace(before, **{field: getattr(before, field) + 1.0 * torch.eye(3)[0].view(3, 1, 1, 1)})
    moved = (model.predict_next_latent(before)[0] != model.predict_next_latent(after)[0]).view(3, 2, 16, 8).any(dim=-1)
    assert moved[0].all()
    assert not moved[1:].any(), "a task saw another one's"


def test_reward_and_end_follow_from_what_happens_anywhere():
    model, before = world_model(LOCAL), moment()
    torch.nn.init.normal_(model.heads.reward.output.weight)  # starts at zero
    for cell in range(16):
        latent = before.latent.clone().view(3, 2, 1, 16, 8)
        latent[:, :, :, cell] = 5.0
        after = model.predict(dataclasses.replace(before, latent=latent.flatten(-2)))
        assert not torch.equal(after.reward_logits, model.predict(before).reward_logits), cell
        assert not torch.equal(after.termination_logits, model.predict(before).termination_logits), cell


def test_an_action_may_mean_the_opposite_in_two_tasks_of_one_module():
    """The action alone, and no sum of it and e_k, says what comes next."""
    prior = LocalPrior(dataclasses.replace(LOCAL, prior_width=8), 1, action_size=2, embedding_size=2)
    torch.nn.init.zeros_(prior.action.weight)
    for parameter in (prior.neighbours.weight, prior.hidden.weight, prior.hidden.bias, prior.place):
        torch.nn.init.zeros_(parameter)
    prior.norm = Unchanged()
    with torch.no_grad():
        meaning = prior.action.weight[0, 0].view(2, 2)  # [A, d]
        meaning.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
        prior.second.weight.copy_(torch.eye(8))
        prior.second.bias.zero_()
    prior.second_norm = Unchanged()
    left, right = torch.eye(2)
    action = torch.stack([left, right, left, right]).view(2, 2, 1, 2)
    empty = torch.zeros(2, 2, 1, 16 * 8), torch.zeros(2, 2, 1, LOCAL.width)
    given = HeadInput(empty[0], action, empty[1])
    features = prior._features(given, RoutePlan(torch.zeros(2, 1, dtype=torch.long), 1), torch.eye(2))
    assert features[:, 0, ::16, 0].tolist() == [[1.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize("size", [0, 1, 64])
def test_an_action_starts_as_loud_whatever_the_size_of_the_embedding(size):
    torch.manual_seed(0)
    prior = LocalPrior(dataclasses.replace(LOCAL, prior_width=4096), 1, action_size=3, embedding_size=size)
    embedding = torch.nn.functional.normalize(torch.randn(max(size, 1)), dim=0)
    said = prior.action.weight[0].detach() @ torch.outer(torch.eye(3)[1], embedding).flatten()  # [4096]
    # Sums of unit length of weights that are uniform within 1/sqrt(3) have a spread of 1/3; 4096 tell it to about 1 %.
    assert float(said.std()) == pytest.approx(1 / 3, rel=0.05)


def test_every_cluster_gets_a_copy():
    model = world_model(LOCAL, (0, 0, 0))
    grown = grow(model, (0, 1, 2), MODULES, 2)
    assert grown.heads.prior.neighbours.weight.shape[0] == 2
    # 1e-5: float32.
    want, got = (each.predict_next_latent(moment())[0] for each in (model, grown))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_the_latent_before_is_of_the_same_episode():
    model, batch = world_model(TWO_FRAMES), transitions()
    across = world_model(TWO_FRAMES, across_episodes=True)
    batch.is_first[0, 1, 3] = True
    latent = torch.randn(3, 2, 6, 128)
    before, blind = model.before(latent, batch.is_first), across.before(latent, batch.is_first)
    for k, b, t in torch.cartesian_prod(*(torch.arange(n) for n in (3, 2, 6))).tolist():
        none = torch.zeros(128)
        earlier = latent[k, b, t - 1] if t else none
        assert torch.equal(blind[k, b, t], earlier)  # as STORM's windows run on
        assert torch.equal(before[k, b, t], none if batch.is_first[k, b, t] else earlier)


DENSE = dataclasses.replace(MODEL, prior_frames=2)  # which it leaves unread


@pytest.mark.parametrize("config", [LOCAL, DENSE, TWO_FRAMES], ids=["one frame", "dense", "two frames"])
def test_training_reads_the_token_before_where_the_prior_does(config, monkeypatch):
    model, batch = world_model(config), transitions()
    moments, predict = [], WorldModel.predict
    monkeypatch.setattr(
        WorldModel, "predict", lambda self, moment, *more: moments.append(moment) or predict(self, moment, *more)
    )
    world_model_losses(model, batch, model.route(), PhiloxState.from_seed(0, "cpu"), LossConfig())
    (read,) = moments
    if config is not TWO_FRAMES:
        assert read.before is None
    else:
        assert torch.equal(read.before, model.before(read.latent, batch.is_first))


def test_a_dense_latent_has_no_cells():
    with pytest.raises(ValueError, match=r"prior local needs perception\.latent spatial"):
        dataclasses.replace(MODEL, prior="local")
    assert (WorldModelConfig().prior, WorldModelConfig().prior_frames) == ("dense", 1)
    with pytest.raises(ValueError, match="prior_frames must be 1 or 2, got 3"):
        dataclasses.replace(LOCAL, prior_frames=3)
