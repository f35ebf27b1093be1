import dataclasses
import math

import pytest
import torch

from mow.batch import TransitionBatch
from mow.evaluate.held_out import HeldOutWindows
from mow.evaluate.open_loop import OpenLoopPrediction, alive, open_loop_errors, predict_open_loop, reconstruct, split
from mow.kernels import PhiloxState, two_hot_decode
from mow.methods.mow.records import HeadInput
from tests.small import ARRIVAL, LOCAL, LOCAL_ARRIVAL, MODEL, TWO_FRAMES, transitions, world_model

CONTEXT, STEPS = 3, 4
FORMS = (MODEL, LOCAL, ARRIVAL, LOCAL_ARRIVAL, TWO_FRAMES)


def stream():
    return PhiloxState.from_seed(7, "cpu")


def foreseen(*, context=CONTEXT, change=None, config=MODEL):
    """A model whose heads say something, windows of one episode each, and what it foresees in them."""
    torch.manual_seed(0)
    model = world_model(config).eval()
    # A head that starts at zero would make every reward 0 and hide mistakes.
    torch.nn.init.normal_(model.heads.reward.output.weight, std=0.5)
    batch = transitions(length=context + STEPS)
    batch.is_first[:, :, 1:] = False
    if change is not None:
        change(batch)
    return model, batch, predict_open_loop(model, *split(batch, context), model.route(), stream())


def test_a_split_by_hand():
    batch = transitions(1, 1, 5)
    batch.action[:] = torch.arange(5.0).view(1, 1, 5, 1)
    context, given = split(batch, 2)
    # Frames 0 and 1 are seen; actions 2 and 3 lead to frames 3 and 4, action 1 to frame 2.
    assert torch.equal(context.frame, batch.frame[:, :, :2])
    assert context.action[0, 0, :, 0].tolist() == [0.0, 1.0]
    assert given[0, 0, :, 0].tolist() == [2.0, 3.0]


def test_shapes_and_no_gradient():
    _, _, open_loop = foreseen()
    assert open_loop.frame.shape == (3, 2, 4, 64, 64, 3)
    assert open_loop.reward.shape == open_loop.terminated.shape == (3, 2, 4)
    assert open_loop.terminated.dtype == torch.bool
    assert not open_loop.frame.requires_grad


@pytest.mark.parametrize("config", FORMS, ids=lambda c: f"{c.prior} {c.outcome} {c.prior_frames}")
@pytest.mark.parametrize("context", [1, 3])
def test_the_first_step_is_the_teacher_forced_prediction(context, config):
    """With the same draws, one step ahead open loop and one pass over the seen tokens are the same thing."""
    model, batch, open_loop = foreseen(context=context, config=config)
    rng = stream()
    posterior = model.observe(split(batch, context)[0], model.route(), rng)
    before = model.before(posterior.latent, batch.is_first[:, :, :context])
    seen = (posterior.latent, batch.action[:, :, :context], posterior.hidden, before)
    last = HeadInput(*(x[:, :, -1:] for x in seen))
    latent = model.sample(model.predict_next_latent(last)[0], rng)
    prediction = model.predict(last, latent)
    # 1e-5: float32 sums, with and without the cache of keys and values.
    torch.testing.assert_close(open_loop.frame[:, :, :1], model.decode(latent), rtol=1e-5, atol=1e-5)
    want = two_hot_decode(prediction.reward_logits)
    torch.testing.assert_close(open_loop.reward[:, :, :1], want, rtol=1e-4, atol=1e-4)
    assert torch.equal(open_loop.terminated[:, :, :1], prediction.termination_logits > 0)


@pytest.mark.parametrize("config", FORMS, ids=lambda c: f"{c.prior} {c.outcome} {c.prior_frames}")
def test_every_step_is_one_pass_over_its_own_latents(config):
    """The cached rollout, redone without a cache: rewards and ends of all steps from one forward."""
    model, batch, open_loop = foreseen(config=config)
    rng, drawn = stream(), []
    sample = model.sample

    def keep(logits, generator):
        drawn.append(sample(logits, generator))
        return drawn[-1]

    model.sample = keep
    predict_open_loop(model, *split(batch, CONTEXT), model.route(), rng)
    latent, arrived = torch.cat(drawn, dim=2)[:, :, :-1], torch.cat(drawn, dim=2)[:, :, 1:]
    window = model.window(batch.is_first[:, :, :-1])
    hidden = model.sequence_model(latent, batch.action[:, :, :-1], window, model.route())
    tokens = (latent, batch.action[:, :, :-1], hidden, model.before(latent, batch.is_first[:, :, :-1]))
    prediction = model.predict(HeadInput(*(x[:, :, CONTEXT - 1 :] for x in tokens)), arrived[:, :, CONTEXT - 1 :])
    # As above.
    torch.testing.assert_close(open_loop.reward, two_hot_decode(prediction.reward_logits), rtol=1e-4, atol=1e-4)
    assert torch.equal(open_loop.terminated, prediction.termination_logits > 0)


def test_a_low_temperature_foresees_the_likeliest():
    model, batch, _ = foreseen()
    model.config = dataclasses.replace(MODEL, perception=dataclasses.replace(MODEL.perception, unimix=0.0))
    context, given = split(batch, 1)
    first = model.sample(model.encode(context.frame), stream())
    hidden = model.sequence_model(first, context.action, model.window(context.is_first), model.route())
    logits, _ = model.predict_next_latent(HeadInput(first, context.action, hidden))
    likeliest = torch.nn.functional.one_hot(logits.argmax(dim=-1), 4).flatten(-2).float()
    cold = predict_open_loop(model, context, given, model.route(), stream(), temperature=1e-4)
    # As above: with and without the cache.
    torch.testing.assert_close(cold.frame[:, :, :1], model.decode(likeliest), rtol=1e-5, atol=1e-5)
    assert not torch.equal(predict_open_loop(model, context, given, model.route(), stream()).frame, cold.frame)


def test_no_later_frame_is_seen_and_every_action_counts():
    _, _, before = foreseen()

    def other_frames(batch):
        batch.frame[:, :, CONTEXT:] = 255 - batch.frame[:, :, CONTEXT:]
        batch.reward[:, :, CONTEXT - 1 :] += 1
        batch.action[:, :, -1] = 0  # taken after the last imagined frame

    _, _, after = foreseen(change=other_frames)
    assert torch.equal(before.frame, after.frame)
    assert torch.equal(before.reward, after.reward)
    for t in range(CONTEXT - 1, CONTEXT + STEPS - 1):

        def other_action(batch, t=t):
            batch.action[:, :, t] = batch.action[:, :, t].flip(-1)

        _, _, after = foreseen(change=other_action)
        step = t - CONTEXT + 1  # the first that follows the action
        assert torch.equal(before.reward[:, :, :step], after.reward[:, :, :step])
        assert not torch.equal(before.reward[:, :, step], after.reward[:, :, step])


def test_reconstruction_is_encoder_draw_decoder():
    model, batch, _ = foreseen()
    rng = stream()
    first = model.decode(model.sample(model.encode(batch.frame[:, :, :1]), rng))
    got = reconstruct(model, batch.frame, stream())
    assert got.shape == batch.frame.shape
    # Same operations on the same numbers.
    assert torch.equal(got[:, :, :1], first)


def planted(length, *, num_context=1, num_steps=2):
    """One task; frames of one grey level per step, and a foresight that is off by a known amount everywhere."""
    num_windows, size = len(length), num_context + num_steps
    grey = 51 * torch.arange(size, dtype=torch.uint8)  # 0, 0.2, 0.4, ... on the scale of [0, 1]
    frame = grey.view(1, 1, -1, 1, 1, 1).expand(1, num_windows, -1, 64, 64, 3)
    flags = torch.zeros(1, num_windows, size, dtype=torch.bool)
    terminated = flags.clone()
    reward = torch.arange(1.0, size + 1).expand(1, num_windows, -1).clone()
    for b, n in enumerate(length):
        terminated[0, b, n - 1] = n < size
        reward[0, b, n:] = 1e6  # behind the end: must reach no mean
    batch = TransitionBatch(frame, torch.zeros(1, num_windows, size, 2), reward, terminated, flags, flags, flags)
    windows = HeldOutWindows(batch, torch.tensor([length]))
    came = frame.float() / 255.0
    open_loop = OpenLoopPrediction(
        frame=came[:, :, num_context:] + 0.5,
        reward=torch.zeros(1, num_windows, num_steps),
        terminated=torch.zeros(1, num_windows, num_steps, dtype=torch.bool),
    )
    return open_loop, came + 0.1, windows


def test_errors_by_hand():
    open_loop, reconstruction, windows = planted([3])
    errors = open_loop_errors(open_loop, reconstruction, windows)
    # 1e-6: grey levels are multiples of 1/255, rounded to float32.
    torch.testing.assert_close(errors.imagined[0, 0], torch.tensor([0.25, 0.25]), rtol=0, atol=1e-6)
    torch.testing.assert_close(errors.reconstructed[0, 0], torch.tensor([0.01, 0.01]), rtol=0, atol=1e-6)
    torch.testing.assert_close(errors.repeated[0, 0], torch.tensor([0.04, 0.16]), rtol=0, atol=1e-6)
    # Rewards 1, 2, 3 stand beside their actions: the first two belong to the two imagined steps.
    assert errors.reward[0, 0].tolist() == [1.0, 2.0]
    assert errors.no_reward[0, 0].tolist() == [1.0, 2.0]
    assert errors.agrees[0, 0].tolist() == [1.0, 1.0]


def test_only_what_lives_is_compared():
    open_loop, reconstruction, windows = planted([4, 2, 3], num_steps=3)
    errors = open_loop_errors(open_loop, reconstruction, windows)
    shown = [[True, True, True], [True, False, False], [True, True, False]]
    for name in ("imagined", "reconstructed", "repeated"):
        assert (~getattr(errors, name)[0].isnan()).tolist() == shown
    # The ending step has a reward and an end, but no frame.
    acted = [[True, True, True], [True, True, False], [True, True, True]]
    for name in ("reward", "no_reward", "agrees"):
        assert (~getattr(errors, name)[0].isnan()).tolist() == acted
    assert errors.reward[0].nanmean().item() == pytest.approx((1 + 2 + 3 + 1 + 2 + 1 + 2 + 3) / 8)
    # No end was foreseen, so only the two ending steps disagree.
    assert errors.agrees[0].nansum(dim=0).tolist() == [3.0, 2.0, 1.0]
    assert math.isnan(errors.agrees[0, 1, 2])


def test_alive_at_the_edges():
    _, _, windows = planted([2, 3, 5], num_context=2, num_steps=3)
    shown, acted = alive(windows, num_context=2, num_steps=3)
    assert shown[0].tolist() == [[False, False, False], [True, False, False], [True, True, True]]
    assert acted[0].tolist() == [[True, False, False], [True, True, False], [True, True, True]]


def test_a_final_frame_is_compared_and_leads_nowhere():
    _, _, windows = planted([2, 4, 5], num_context=2, num_steps=3)
    is_last = torch.zeros(1, 3, 5, dtype=torch.bool)
    is_last[0, 1, 3] = True
    windows = HeldOutWindows(dataclasses.replace(windows.batch, is_last=is_last), windows.length)
    shown, acted = alive(windows, num_context=2, num_steps=3)
    assert shown[0].tolist() == [[False, False, False], [True, True, False], [True, True, True]]
    assert acted[0].tolist() == [[True, False, False], [True, True, False], [True, True, True]]
