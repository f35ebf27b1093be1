import dataclasses
import math

import pytest
import torch

from mow.kernels import PhiloxState, two_hot_decode
from mow.methods.mow.imagination import imagine
from mow.methods.mow.records import HeadInput
from mow.methods.mow.world_model import WorldModel
from tests.small import ARRIVAL, LOCAL, LOCAL_ARRIVAL, MODEL, TWO_FRAMES, agent, transitions, world_model


def dream(start, horizon=4, seed=0, config=MODEL):
    torch.manual_seed(seed)
    model, policy = world_model(config).eval(), agent(config, frames=config.prior_frames)
    # Heads that start at zero would make every reward 0 and hide mistakes.
    torch.nn.init.normal_(model.heads.reward.output.weight, std=0.5)
    context = transitions(length=5)
    context.is_first[0, 0, -1] = True  # one context ends on an episode's first step, the others do not
    context.is_first[1:, :, -1] = False
    context.terminated[0, 1, -1] = True
    routing = model.route()
    rollout = imagine(model, policy, context, routing, PhiloxState.from_seed(7, "cpu"), horizon=horizon, start=start)
    return model, context, routing, rollout


def replayed_latents(model, context):
    """The posterior latents that imagine() draws first, from the same stream."""
    return model.sample(model.encode(context.frame), PhiloxState.from_seed(7, "cpu"))


@pytest.mark.parametrize(("form", "reward"), [("mean_of_symexp", 50.1), ("symexp_of_mean", 9.05)])
def test_an_uncertain_reward_is_worth_what_the_config_says(form, reward):
    """0 or 100 with p = 1/2: what a rollout pays, and what the agent takes a state to be worth."""
    config = dataclasses.replace(MODEL, num_bins=255, two_hot_form=form)
    model, policy = world_model(config).eval(), agent(config)
    bins = torch.linspace(-20, 20, 255)
    code = sum(0.5 * (1 - (bins - math.log1p(x)).abs() * 254 / 40).clamp_min(0) for x in (0.0, 100.0))
    for head in (model.heads.reward, policy.critic):
        torch.nn.init.zeros_(head.output.weight)
        head.output.bias.data.copy_(code.clamp_min(1e-30).log())
    rollout = imagine(
        model, policy, transitions(length=5), model.route(), PhiloxState.from_seed(7, "cpu"), horizon=2, start="prior"
    )
    wanted = torch.full((3, 2, 2), reward)
    torch.testing.assert_close(rollout.reward, wanted, rtol=5e-3, atol=0)  # digits as written
    state = policy.actor_critic_input(rollout.latent, rollout.hidden, rollout.latent_before)[:, :, :2]
    torch.testing.assert_close(policy.value(state, torch.ones(3, 5)), wanted, rtol=5e-3, atol=0)


@pytest.mark.parametrize("form", ["mean_of_symexp", "symexp_of_mean"])
def test_untrained_heads_expect_exactly_nothing(form):
    config = dataclasses.replace(LOCAL, num_bins=255, two_hot_form=form)
    model, policy = world_model(config).eval(), agent(config)
    rollout = imagine(
        model, policy, transitions(length=5), model.route(), PhiloxState.from_seed(7, "cpu"), horizon=2, start="prior"
    )
    assert not rollout.reward.any()
    state = policy.actor_critic_input(rollout.latent, rollout.hidden, rollout.latent_before)
    assert not policy.value(state, torch.ones(3, 5)).any()


@pytest.mark.parametrize("start", ["prior", "posterior"])
def test_shapes_and_no_gradient(start):
    _, _, _, rollout = dream(start)
    assert rollout.latent.shape == (3, 2, 5, 16)
    assert rollout.hidden.shape == (3, 2, 5, 16)
    assert rollout.before.shape == (3, 2, 1, 16)
    assert rollout.latent_before.shape == (3, 2, 5, 16)
    assert rollout.action.shape == rollout.raw_action.shape == (3, 2, 4, 6)
    assert rollout.reward.shape == rollout.terminated.shape == (3, 2, 4)
    assert not any(getattr(rollout, field.name).requires_grad for field in dataclasses.fields(rollout))


@pytest.mark.parametrize(
    "config",
    [MODEL, LOCAL, ARRIVAL, LOCAL_ARRIVAL, TWO_FRAMES],
    ids=lambda c: f"{c.prior} {c.outcome} {c.prior_frames}",
)
@pytest.mark.parametrize("start", ["prior", "posterior"])
def test_the_cached_rollout_equals_the_full_forward(start, config):
    """One pass over context and imagined tokens gives every hidden state, reward and end of the rollout."""
    model, context, routing, rollout = dream(start, config=config)
    num_context = 5 if start == "prior" else 4
    past = replayed_latents(model, context)[:, :, :num_context]
    latent = torch.cat([past, rollout.latent[:, :, :-1]], dim=2)
    action = torch.cat([context.action[:, :, :num_context], rollout.action], dim=2)
    is_first = torch.zeros(3, 2, num_context + 4, dtype=torch.bool)
    is_first[:, :, :5] = context.is_first[:, :, :5]
    hidden = model.sequence_model(latent, action, model.window(is_first), routing)
    # 1e-5: float32 sums over other shapes; nothing else differs.
    torch.testing.assert_close(rollout.hidden[:, :, 1:], hidden[:, :, num_context:], rtol=1e-5, atol=1e-5)
    before = model.before(latent, is_first)
    assert torch.equal(rollout.latent_before[:, :, :-1], before[:, :, num_context:])
    # Reward t and end t are read with the latent that action t led to.
    prediction = model.predict(
        HeadInput(*(x[:, :, num_context:] for x in (latent, action, hidden, before))), rollout.latent[:, :, 1:]
    )
    torch.testing.assert_close(rollout.reward, two_hot_decode(prediction.reward_logits), rtol=1e-4, atol=1e-4)
    assert torch.equal(rollout.terminated, (prediction.termination_logits > 0).float())


@pytest.mark.parametrize("start", ["prior", "posterior"])
def test_every_latent_is_foretold_from_the_moment_before_it(start):
    moments, predict = [], WorldModel.predict_next_latent
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WorldModel, "predict_next_latent", lambda self, x: moments.append(x) or predict(self, x))
        model, context, _, rollout = dream(start, config=LOCAL)
    if start == "prior":
        first = moments.pop(0)
        assert torch.equal(first.latent, replayed_latents(model, context)[:, :, -1:])
        assert torch.equal(first.action, context.action[:, :, -1:])
        past = model.before(replayed_latents(model, context), context.is_first)
        assert torch.equal(first.before, past[:, :, -1:])
    assert len(moments) == 4
    for step, moment in enumerate(moments):
        at = slice(step, step + 1)
        assert torch.equal(moment.latent, rollout.latent[:, :, at])
        assert torch.equal(moment.action, rollout.action[:, :, at])
        assert torch.equal(moment.before, rollout.latent_before[:, :, at])
        assert torch.equal(moment.hidden, rollout.hidden[:, :, step + 1 : step + 2])


def test_a_posterior_start_is_the_last_real_state():
    model, context, _, rollout = dream("posterior")
    assert torch.equal(rollout.latent[:, :, 0], replayed_latents(model, context)[:, :, -1])
    first = context.is_first[:, :, -1]
    for past in (rollout.hidden, rollout.before):
        remembered = past[:, :, 0].abs().sum(dim=-1) > 0
        assert torch.equal(remembered, ~first)
    assert rollout.valid.all()


def test_a_prior_start_after_an_ended_context_counts_for_nothing():
    _, context, _, rollout = dream("prior")
    ended = context.terminated[:, :, -1] | context.truncated[:, :, -1]
    assert torch.equal(rollout.valid, ~ended)
    assert rollout.alive[ended].abs().sum() == 0


def test_alive_by_hand():
    _, _, _, rollout = dream("posterior")
    object.__setattr__(rollout, "terminated", torch.tensor([[[0.0, 1.0, 0.0, 0.0]]]))
    object.__setattr__(rollout, "valid", torch.tensor([[True]]))
    # The state in which the end is caused still counts, those after it do not.
    assert rollout.alive.tolist() == [[[1, 1, 0, 0, 0]]]


def test_alive_fades_with_expected_ends():
    _, _, _, rollout = dream("posterior")
    object.__setattr__(rollout, "terminated", torch.tensor([[[0.25, 0.5, 0.0, 1.0]]]))
    object.__setattr__(rollout, "valid", torch.tensor([[True]]))
    assert rollout.alive.tolist() == [[[1, 0.75, 0.375, 0.375, 0]]]


def test_expected_ends_are_probabilities_of_the_same_dream():
    model, context, routing, hard = dream("posterior")
    stream = PhiloxState.from_seed(7, "cpu")
    soft = imagine(model, agent(), context, routing, stream, horizon=4, start="posterior", ends="expected")
    logits = model.predict(HeadInput(soft.latent[:, :, :-1], soft.action, soft.hidden[:, :, 1:])).termination_logits
    torch.testing.assert_close(soft.terminated, 1 / (1 + (-logits).exp()))
    assert torch.equal(((soft.terminated > 0.5) == (logits > 0)).all(), torch.tensor(True))
    assert set(hard.terminated.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("start", ["prior", "posterior"])
def test_a_low_temperature_takes_the_likeliest_class(start):
    """At 1e-4, and without a uniform share, nothing is left to chance."""
    model = world_model(MODEL)
    no_mix = dataclasses.replace(MODEL.perception, unimix=0.0)
    model.config = dataclasses.replace(MODEL, perception=no_mix)
    seen = []
    predict = WorldModel.predict_next_latent
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WorldModel, "predict_next_latent", lambda self, x: seen.append(predict(self, x)) or seen[-1])
        stream = PhiloxState.from_seed(7, "cpu")
        cold = imagine(
            model, agent(), transitions(), model.route(), stream, horizon=4, start=start, temperature=1e-4
        )
    drawn = cold.latent if start == "prior" else cold.latent[:, :, 1:]  # a posterior start is a real one
    assert len(seen) == drawn.shape[2]
    for step, (logits, _) in enumerate(seen):
        likeliest = torch.nn.functional.one_hot(logits.argmax(dim=-1), 4).flatten(-2)
        assert torch.equal(drawn[:, :, step : step + 1], likeliest.float())


def test_the_same_stream_gives_the_same_dream():
    first, second = dream("posterior")[3], dream("posterior")[3]
    assert torch.equal(first.latent, second.latent)
    assert torch.equal(first.hidden, second.hidden)
    assert torch.equal(first.action, second.action)


def test_a_context_of_one_step_can_open_a_posterior_dream():
    model, policy = world_model().eval(), agent()
    stream = PhiloxState.from_seed(7, "cpu")
    rollout = imagine(model, policy, transitions(length=1), model.route(), stream, horizon=2, start="posterior")
    assert rollout.hidden[:, :, 0].abs().sum() == 0
    assert rollout.hidden[:, :, 1].abs().sum() > 0
    assert rollout.before.abs().sum() == 0
    assert torch.equal(rollout.latent_before[:, :, 1:], rollout.latent[:, :, :-1])


def test_a_rollout_keeps_nothing_for_a_backward_pass_and_draws_no_picture(monkeypatch):
    """Encoding the contexts costs about as much as all imagined steps, so it must be forward alone."""
    kept, model, policy = [], world_model().eval(), agent()
    context, routing, rng = transitions(length=5), model.route(), PhiloxState.from_seed(7, "cpu")
    monkeypatch.setattr(WorldModel, "decode", lambda *_: pytest.fail("nothing asks for frames"))
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape), lambda tensor: tensor):
        rollout = imagine(model, policy, context, routing, rng, horizon=2, start="prior")
    assert kept == []
    assert all(getattr(rollout, field.name).grad_fn is None for field in dataclasses.fields(rollout))


def test_contexts_are_encoded_in_the_precision_of_autocast(monkeypatch):
    dtypes = []
    conv2d = torch.nn.functional.conv2d

    def noted(*arguments, **how):
        output = conv2d(*arguments, **how)
        dtypes.append(output.dtype)
        return output

    monkeypatch.setattr("torch.nn.functional.conv2d", noted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        dream("prior")
    assert set(dtypes) == {torch.bfloat16}


@pytest.mark.parametrize("start", ["prior", "posterior"])
def test_nothing_is_imagined_after_a_final_frame(start):
    torch.manual_seed(0)
    model, policy = world_model(ARRIVAL).eval(), agent(ARRIVAL)
    context = transitions(length=5)
    context.is_last[1, 0, -1] = True
    context.is_last[2, 1, -2] = True  # the next episode has begun since
    routing, rng = model.route(), PhiloxState.from_seed(7, "cpu")
    ended = (context.terminated | context.truncated)[:, :, -1] if start == "prior" else torch.zeros(3, 2).bool()
    valid = imagine(model, policy, context, routing, rng, horizon=2, start=start).valid
    ended[1, 0] = True
    assert torch.equal(valid, ~ended)
