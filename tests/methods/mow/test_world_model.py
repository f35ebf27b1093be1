import dataclasses

import pytest
import torch

from mow.kernels import PhiloxState
from mow.methods.mow.config import LossConfig
from mow.methods.mow.config_model import ExpertsConfig, RoutingConfig, SharedConfig
from mow.methods.mow.records import HeadInput
from mow.methods.mow.split_modules import grow
from mow.methods.mow.world_model import WorldModel
from mow.methods.mow.world_model_loss import world_model_losses
from mow.nn.modular import ModularLinear
from tests.small import ACTION_SIZE, LOCAL, MODEL, transitions, world_model


def rng():
    return PhiloxState.from_seed(1, "cpu")


def shapes(model):
    batch = transitions()
    posterior = model.observe(batch, model.route(), rng())
    prediction = model.predict(HeadInput(posterior.latent, batch.action, posterior.hidden))
    return posterior, prediction, model.decode(posterior.latent)


def test_shapes_of_everything():
    posterior, prediction, frame = shapes(world_model())
    assert posterior.logits.shape == (3, 2, 6, 4, 4)
    assert posterior.latent.shape == (3, 2, 6, 16)
    assert posterior.hidden.shape == (3, 2, 6, 16)
    assert prediction.next_latent_logits.shape == (3, 2, 6, 4, 4)
    assert prediction.reward_logits.shape == (3, 2, 6, 21)
    assert prediction.termination_logits.shape == (3, 2, 6)
    assert prediction.task_logits.shape == (3, 2, 6, 3)
    assert frame.shape == (3, 2, 6, 64, 64, 3)


def replaced(**changes):
    return dataclasses.replace(MODEL, **changes)


@pytest.mark.parametrize(
    "config",
    [
        replaced(shared=SharedConfig(kind="mlp")),
        replaced(experts=ExpertsConfig(3, 1, 1), shared=SharedConfig(kind="none")),
        replaced(embedding_size=0, condition=(), routing=RoutingConfig(method="hash")),
        replaced(heads="shared", task_head=False),
        replaced(routing=RoutingConfig(method="cluster")),
        replaced(experts=ExpertsConfig(1, 1, 1)),
        replaced(condition=("decoder",)),
    ],
    ids=["mlp", "no-shared", "no-embedding", "shared-heads", "cluster-routing", "one-expert", "decoder-only"],
)
def test_every_switch_trains_every_parameter(config):
    model = world_model(config)
    posterior, prediction, frame = shapes(model)
    outputs = [posterior.logits, frame, *(x for x in vars(prediction).values() if x is not None)]
    loss = sum((x * torch.randn_like(x)).sum() for x in outputs)
    scale = model.route().scale_KJ
    loss.backward()
    # The router is reached through the straight-through scale; zero-initialised outputs hide what feeds them.
    zero_behind = ("heads.reward.linears", "heads.reward.norms", "experts.")
    for name, parameter in model.named_parameters():
        if name == "task_embedding" and not config.condition and scale is None:
            continue
        if name.startswith("experts.") or name.startswith(zero_behind):
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_task_losses_reach_router_embeddings_and_the_chosen_experts_only():
    model = world_model()
    _, prediction, _ = shapes(model)
    (prediction.termination_logits.sum() + prediction.next_latent_logits.square().sum()).backward()
    assert model.router.hidden.weight.grad.abs().sum() > 0
    assert (model.task_embedding.grad.abs().sum(dim=1) > 0).all()
    used = set(model.route().plan.routes.flatten().tolist())
    per_expert = model.experts.mixer.input.weight.grad.abs().sum(dim=(1, 2))
    assert {e for e in range(3) if per_expert[e] > 0} == used


def test_a_task_reaches_its_own_module_only():
    model = world_model()
    _, prediction, frame = shapes(model)
    (frame[:2].sum() + prediction.termination_logits[:2].sum()).backward()
    for parameter in (model.decoder.input.weight, model.heads.termination.output.weight):
        assert parameter.grad[0].abs().sum() > 0
        assert parameter.grad[1].abs().sum() == 0


@pytest.mark.parametrize("slots", [1, 2])
def test_a_batch_of_tasks_equals_one_task_at_a_time(slots):
    model = world_model(replaced(experts=ExpertsConfig(3, slots, 2))).eval()
    batch, routing = transitions(), model.route()
    latent = torch.randn(3, 2, 6, 16)
    together = model.sequence_model(latent, batch.action, model.window(batch.is_first), routing)
    changed = latent.clone()
    changed[1:] = 0
    alone = model.sequence_model(changed, batch.action, model.window(batch.is_first), routing)
    torch.testing.assert_close(together[0], alone[0])
    assert not torch.allclose(together[1], alone[1])


def test_the_task_head_never_reads_the_embedding():
    model = world_model()
    moment = HeadInput(torch.randn(3, 1, 1, 16), torch.randn(3, 1, 1, ACTION_SIZE), torch.randn(3, 1, 1, 16))
    before = model.predict(moment).task_logits
    with torch.no_grad():
        model.task_embedding.neg_()
    torch.testing.assert_close(model.predict(moment).task_logits, before)


def test_latents_are_one_hot_and_follow_the_logits():
    model = world_model()
    logits = torch.full((3, 1, 1, 4, 4), -50.0)
    logits[..., 2] = 50.0
    latent = model.sample(logits.expand(3, 50, 8, 4, 4), rng()).unflatten(-1, (4, 4))
    assert torch.equal(latent.sum(dim=-1), torch.ones(3, 50, 8, 4))
    # unimix 0.01 leaves each other class 0.0025: of 4,800 draws 36 +- 6 miss.
    assert 0.98 < latent[..., 2].mean() < 1.0


def test_across_episodes_changes_what_is_seen():
    batch = transitions()
    is_first = torch.zeros(3, 2, 6, dtype=torch.bool)
    is_first[:, :, [0, 3]] = True
    inside, across = world_model().eval(), world_model(across_episodes=True).eval()
    across.load_state_dict(inside.state_dict())
    latent = torch.randn(3, 2, 6, 16)
    a, b = (m.sequence_model(latent, batch.action, m.window(is_first), m.route()) for m in (inside, across))
    torch.testing.assert_close(a[:, :, :3], b[:, :, :3])
    assert not torch.allclose(a[:, :, 3:], b[:, :, 3:])


class TestGrow:
    order, modules = (2, 0, 1), (0, 1, 1)

    def make(self, norm="bn_per_task"):
        perception = dataclasses.replace(MODEL.perception, norm=norm)
        model = world_model(replaced(perception=perception), (0, 0, 0))
        model.observe(transitions(), model.route(), rng())  # moves the batch statistics
        return model

    @pytest.mark.parametrize("norm", ["bn_per_task", "bn_shared", "group"])
    def test_the_grown_model_computes_the_same_in_the_new_order(self, norm):
        model = self.make(norm).eval()
        grown = grow(model, self.order, self.modules, 2)
        batch, index = transitions(), torch.tensor(self.order)
        latent = torch.randn(3, 2, 6, 16)

        def everything(m, batch, latent):
            hidden = m.sequence_model(latent, batch.action, m.window(batch.is_first), m.route())
            prediction = m.predict(HeadInput(latent, batch.action, hidden))
            return m.encode(batch.frame), m.decode(latent), hidden, prediction

        encoded, decoded, hidden, prediction = everything(model, batch, latent)
        sorted_batch = batch.map(lambda tensor: tensor[index])
        got = everything(grown, sorted_batch, latent[index])
        for new, old in zip(got[:3], (encoded, decoded, hidden), strict=True):
            torch.testing.assert_close(new, old[index], rtol=1e-4, atol=1e-5)  # float32, other matmul shapes
        torch.testing.assert_close(got[3].task_logits, prediction.task_logits[index][..., index], rtol=1e-4, atol=1e-5)

    def test_copies_are_bit_equal_and_kept_parts_unchanged(self):
        model = self.make()
        grown = grow(model, self.order, self.modules, 2)
        for module in range(2):
            assert torch.equal(grown.encoder.posterior.weight[module], model.encoder.posterior.weight[0])
            assert torch.equal(grown.heads.reward.linears[0].weight[module], model.heads.reward.linears[0].weight[0])
        assert torch.equal(grown.task_embedding, model.task_embedding[list(self.order)])
        assert torch.equal(grown.experts.mixer.input.weight, model.experts.mixer.input.weight)
        assert torch.equal(grown.encoder.norms[0].running_mean, model.encoder.norms[0].running_mean[list(self.order)])

    @pytest.mark.parametrize("name", ["novelty", "experts.novelty"])
    def test_a_head_per_module_that_is_not_listed_is_refused(self, name, monkeypatch):
        """It would be copied to all modules without a word, and left out of what tasks are grouped by."""
        made = WorldModel.__init__

        def with_head(self, *args, **kwargs):
            made(self, *args, **kwargs)
            where, _, last = name.rpartition(".")
            self.get_submodule(where).add_module(last, ModularLinear(self.num_modules, 4, 2))

        monkeypatch.setattr(WorldModel, "__init__", with_head)
        with pytest.raises(AssertionError, match=name):
            grow(world_model(MODEL, (0, 0, 0)), self.order, self.modules, 2)

    def test_only_one_module_can_grow(self):
        with pytest.raises(AssertionError, match="only a model with one module can grow"):
            grow(world_model(), (0, 1, 2), (0, 0, 1), 2)


def test_memory_holds_a_whole_rollout():
    model = world_model()
    memory = model.new_memory(4, 7)
    assert memory.experts.keys[0].shape == (3, 2, 4, 2, 7, 8)  # [K, J, B, heads, capacity, D / heads]
    assert memory.shared.keys[0].shape == (3, 1, 4, 2, 7, 8)
    assert len(memory.experts.keys) == 2
    assert len(memory.shared.keys) == 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.new_memory(1, 1).experts.keys[0].dtype == torch.bfloat16


def test_action_size_is_part_of_the_token():
    assert world_model().experts.mixer.input.in_features == 16 + ACTION_SIZE


class TestBackground:
    config = dataclasses.replace(MODEL, perception=dataclasses.replace(MODEL.perception, background="median"))

    def test_it_is_the_median_of_each_task(self):
        model = world_model(self.config)
        frame = torch.randint(0, 256, (3, 5, 64, 64, 3), dtype=torch.uint8)
        model.set_background(frame)
        assert model.background.dtype == torch.uint8
        want = frame.sort(dim=1).values[:, 2]
        assert torch.equal(model.background, want)

    def test_off_before_the_encoder_and_back_after_the_decoder(self):
        """A picture that is the background looks like black did, and black's latent decodes to the background."""
        with_one, without = world_model(self.config).eval(), world_model().eval()
        background = torch.randint(0, 256, (3, 1, 64, 64, 3), dtype=torch.uint8)
        with_one.load_state_dict({**without.state_dict(), "background": background[:, 0]})
        black = torch.zeros(3, 2, 4, 64, 64, 3, dtype=torch.uint8)
        seen = background.unsqueeze(1).expand_as(black)
        # Exact: x / 255 - x / 255 is 0 as 0 / 255 is.
        assert torch.equal(with_one.encode(seen), without.encode(black))
        latent = torch.randn(3, 2, 4, 16)
        torch.testing.assert_close(with_one.decode(latent), without.decode(latent) + background.unsqueeze(1) / 255.0)

    def test_every_task_keeps_its_own_when_tasks_are_sorted(self):
        model = world_model(self.config, (0, 0, 0))
        model.set_background(torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1, 1).expand(3, 1, 64, 64, 3))
        grown = grow(model, (2, 0, 1), (0, 0, 1), 2)
        assert grown.background[:, 0, 0, 0].tolist() == [2, 0, 1]

    def test_a_model_without_one_says_so(self):
        with pytest.raises(AssertionError, match="no background"):
            world_model().set_background(torch.zeros(3, 1, 64, 64, 3, dtype=torch.uint8))
        assert "background" not in world_model().state_dict()


def stale(share, *, training=True, is_first=None):
    torch.manual_seed(0)
    model = world_model(dataclasses.replace(MODEL, stale_share=share)).train(training)
    batch = transitions()
    if is_first is not None:
        batch.is_first[:] = is_first
    return model.observe(batch, model.route(), rng()), batch


def test_all_stale_is_the_step_before():
    """Share 1: every token is the latent before it, but for those that open an episode."""
    posterior, batch = stale(1.0)
    for t in range(1, posterior.latent.shape[2]):
        want = torch.where(batch.is_first[:, :, t, None], posterior.latent[:, :, t], posterior.latent[:, :, t - 1])
        assert torch.equal(posterior.token[:, :, t], want)
    assert torch.equal(posterior.token[:, :, 0], posterior.latent[:, :, 0])
    assert not torch.equal(posterior.token, posterior.latent)


def test_whole_groups_are_stale_as_often_as_asked():
    is_first = torch.zeros(6, dtype=torch.bool)
    moved, kept = 0, 0
    for seed in range(40):
        torch.manual_seed(seed)
        model = world_model(dataclasses.replace(MODEL, stale_share=0.3)).train()
        latent = torch.nn.functional.one_hot(torch.randint(0, 4, (3, 2, 6, 4)), 4).flatten(-2).float()
        first = is_first.expand(3, 2, 6)
        token = model._stale_in_part(latent, first, PhiloxState.from_seed(seed, "cpu")).unflatten(-1, (4, 4))
        groups = latent.unflatten(-1, (4, 4))
        differs = (groups[:, :, 1:] != groups[:, :, :-1]).any(dim=-1)
        is_old = (token[:, :, 1:] == groups[:, :, :-1]).all(dim=-1)
        is_new = (token[:, :, 1:] == groups[:, :, 1:]).all(dim=-1)
        assert (is_old | is_new).all(), "a group is one or the other, never a mixture"
        moved += int((is_old & differs).sum())
        kept += int((is_new & differs).sum())
    # Some 3,600 groups that differ from the step before: standard deviation of the share 0.008.
    assert abs(moved / (moved + kept) - 0.3) < 4 * 0.008


@pytest.mark.parametrize(("share", "training"), [(0.0, True), (1.0, False)])
def test_nothing_is_stale_unless_asked_and_learning(share, training):
    posterior, _ = stale(share, training=training)
    assert posterior.token is posterior.latent


def test_what_is_remembered_is_the_token():
    torch.manual_seed(0)
    model = world_model(dataclasses.replace(MODEL, stale_share=0.5)).train()
    batch = transitions()
    posterior = model.observe(batch, model.route(), rng())
    seen, routing = model.window(batch.is_first), model.route()
    assert torch.equal(posterior.hidden, model.sequence_model(posterior.token, batch.action, seen, routing))
    assert not torch.equal(posterior.hidden, model.sequence_model(posterior.latent, batch.action, seen, routing))


def test_what_goes_stale_is_drawn_anew_each_time():
    model = world_model(dataclasses.replace(MODEL, stale_share=0.5)).train()
    latent = torch.nn.functional.one_hot(torch.randint(0, 4, (3, 2, 6, 4)), 4).flatten(-2).float()
    stream, first = rng(), torch.zeros(3, 2, 6, dtype=torch.bool)
    once, again = model._stale_in_part(latent, first, stream), model._stale_in_part(latent, first, stream)
    assert not torch.equal(once, again)


def test_the_heads_read_the_token():
    torch.manual_seed(0)
    model = world_model(dataclasses.replace(LOCAL, stale_share=1.0)).train()
    batch = transitions()
    batch.is_first[:, :, 1:] = False
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        predict = WorldModel.predict
        patch.setattr(WorldModel, "predict", lambda self, *of: seen.append(of[0]) or predict(self, *of))
        world_model_losses(model, batch, model.route(), rng(), LossConfig())
    (moment,) = seen
    again = model.observe(batch, model.route(), rng())
    assert torch.equal(moment.latent, again.token)
    assert not torch.equal(moment.latent, again.latent)


def test_the_decoder_reads_what_was_seen_not_the_token():
    torch.manual_seed(0)
    model = world_model(dataclasses.replace(MODEL, stale_share=1.0)).train()
    batch, read = transitions(), []
    with pytest.MonkeyPatch.context() as patch:
        decode = WorldModel.decode
        patch.setattr(WorldModel, "decode", lambda self, latent: read.append(latent) or decode(self, latent))
        world_model_losses(model, batch, model.route(), rng(), LossConfig())
    again = model.observe(batch, model.route(), rng())
    assert torch.equal(read[0], again.latent)
    assert not torch.equal(read[0], again.token)
