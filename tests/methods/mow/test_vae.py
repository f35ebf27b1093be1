import dataclasses

import pytest
import torch

from mow.kernels import RoutePlan
from mow.methods.mow.presets import quickstart
from mow.methods.mow.vae import BatchNorm, ChannelNorm, Decoder, Encoder, normalisation_groups
from tests.small import MODEL

MODULES = (0, 0, 1)
PLAN = RoutePlan(torch.tensor(MODULES).unsqueeze(1), 2)


def make(norm):
    config = dataclasses.replace(MODEL.perception, norm=norm)
    return Encoder(config, 2, MODULES, 5), Decoder(config, 2, MODULES, 5)


def test_groups():
    shared = normalisation_groups(MODULES, "bn_shared")
    assert [(g.tasks, g.module, g.norm_row) for g in shared] == [(slice(0, 2), 0, 0), (slice(2, 3), 1, 1)]
    own = normalisation_groups(MODULES, "bn_per_task")
    assert [(g.tasks, g.module, g.norm_row) for g in own] == [
        (slice(0, 1), 0, 0),
        (slice(1, 2), 0, 1),
        (slice(2, 3), 1, 2),
    ]


@pytest.mark.parametrize("norm", ["bn_per_task", "bn_shared", "group", "channel"])
@pytest.mark.parametrize("training", [True, False])
def test_a_grouped_batch_equals_a_loop_over_groups(norm, training):
    encoder, decoder = make(norm)
    encoder.train(training)
    decoder.train(training)
    frame = torch.randint(0, 256, (3, 4, 64, 64, 3), dtype=torch.uint8)
    embedding = torch.randn(3, 5)
    logits = encoder(frame, PLAN, embedding)
    assert logits.shape == (3, 4, 4, 4)
    latent = torch.randn(3, 4, 16)
    decoded = decoder(latent, PLAN, embedding)
    assert decoded.shape == (3, 4, 64, 64, 3)
    for group in encoder.groups:
        x = frame[group.tasks].flatten(0, 1).permute(0, 3, 1, 2) / 255.0
        for conv, bn in zip(encoder.convs, encoder.norms, strict=True):
            x = torch.nn.functional.conv2d(x, conv.weight[group.module], stride=2, padding=1)
            x = bn(x, group.norm_row, bn.affines()[group.norm_row]).relu()
        x = x.flatten(1)
        each = embedding[group.tasks].repeat_interleave(4, dim=0)
        weight, bias = encoder.posterior.weight[group.module], encoder.posterior.bias[group.module]
        want = torch.cat([x, each], dim=1) @ weight.T + bias
        # Float32 through five layers; sums run in another order.
        torch.testing.assert_close(logits[group.tasks].flatten(0, 1).flatten(1), want, rtol=1e-4, atol=1e-5)

        y = torch.cat([latent[group.tasks].flatten(0, 1), each], dim=1) @ decoder.input.weight[group.module].T
        first = decoder.norms[0]
        y = first(y.view(-1, 6, 4, 4), group.norm_row, first.affines()[group.norm_row]).relu()
        for conv, bn in zip(decoder.convs, list(decoder.norms)[1:], strict=True):
            y = torch.nn.functional.conv_transpose2d(y, conv.weight[group.module], stride=2, padding=1)
            y = bn(y, group.norm_row, bn.affines()[group.norm_row]).relu()
        last = decoder.output
        y = torch.nn.functional.conv_transpose2d(
            y, last.weight[group.module], last.bias[group.module], stride=2, padding=1
        )
        got = decoded[group.tasks].flatten(0, 1).permute(0, 3, 1, 2)
        torch.testing.assert_close(got, y, rtol=1e-4, atol=1e-5)


def test_a_spatial_latent_reads_and_draws_cell_by_cell():
    """Groups c * 2 and c * 2 + 1 of 32 belong to cell c of the 4x4 features, row by row; one Linear for all cells."""
    config = dataclasses.replace(MODEL.perception, groups=32, latent="spatial")
    encoder, decoder = Encoder(config, 2, MODULES, 5), Decoder(config, 2, MODULES, 5)
    assert encoder.posterior.weight.shape == (2, 2 * 4, 6 + 5)
    assert decoder.input.weight.shape == (2, 6, 2 * 4 + 5)
    frame = torch.randint(0, 256, (3, 2, 64, 64, 3), dtype=torch.uint8)
    embedding = torch.randn(3, 5)
    logits = encoder(frame, PLAN, embedding)
    feature = encoder.features(frame).view(3, 2, 4, 4, 6)
    for k, n, row, column in ((0, 1, 0, 3), (2, 0, 2, 1)):
        x = torch.cat([feature[k, n, row, column], embedding[k]])
        want = encoder.posterior.weight[MODULES[k]] @ x + encoder.posterior.bias[MODULES[k]]
        got = logits[k, n].view(4, 4, 8)[row, column]
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)  # float32 sums in another order

    # One cell's latent moves only what its transposed convolutions reach: 46 pixels, 15 beyond the cell on each side.
    latent = torch.zeros(1, 1, 128)
    other = latent.clone()
    other[0, 0, :8] = 1.0
    plan = RoutePlan(torch.zeros(1, 1, dtype=torch.long), 2)
    lone = Decoder(dataclasses.replace(config, norm="bn_per_task"), 2, (0,), 5).eval()
    moved = (lone(other, plan, embedding[:1]) - lone(latent, plan, embedding[:1])).abs().sum(dim=-1)[0, 0]
    assert moved[:16, :16].max() > 0
    assert moved[31:].max() == 0
    assert moved[:, 31:].max() == 0


@pytest.mark.parametrize(("channels", "side"), [((3, 4, 5), 4), ((3, 5), 8)])
def test_two_or_three_convolutions_begin_with_patches(channels, side):
    """The first convolution is a matmul over 4x4 patches, the last transposed one draws such patches."""
    config = dataclasses.replace(MODEL.perception, channels=channels)
    encoder, decoder = Encoder(config, 2, MODULES, 5), Decoder(config, 2, MODULES, 5)
    embedding = torch.randn(3, 5)
    frame = torch.randint(0, 256, (3, 2, 64, 64, 3), dtype=torch.uint8)
    assert encoder.features(frame).shape == (3, 2, 5 * side**2)
    assert encoder(frame, PLAN, embedding).shape == (3, 2, 4, 4)
    assert decoder(torch.randn(3, 2, 16), PLAN, embedding).shape == (3, 2, 64, 64, 3)

    image = torch.randn(1, 3, 64, 64)
    patch = image[0, :, 8:12, 20:24]  # row 2, column 5 of patches
    want = (encoder.convs[0].weight[1] * patch).sum(dim=(1, 2, 3))
    # 48 float32 products, summed in another order.
    first = encoder.convs[0]
    torch.testing.assert_close(first(image, first.kernels(converted=False)[1])[0, :, 2, 5], want, rtol=1e-5, atol=1e-5)
    small = torch.zeros(1, 3, 16, 16)
    small[0, :, 2, 5] = torch.tensor([1.0, 2.0, -1.0])
    drawn = decoder.output(small, decoder.output.kernels(converted=False)[0]) - decoder.output.bias[0].view(1, 3, 1, 1)
    want = torch.einsum("i,iohw->ohw", small[0, :, 2, 5], decoder.output.weight[0])
    torch.testing.assert_close(drawn[0, :, 8:12, 20:24], want, rtol=1e-5, atol=1e-5)
    drawn[0, :, 8:12, 20:24] = 0
    assert drawn.abs().max() == 0


def test_channel_norm_by_hand():
    norm = ChannelNorm(2, 2)
    norm.weight.data[1], norm.bias.data[1] = torch.tensor([3.0, 1.0]), torch.tensor([0.0, 10.0])
    x = torch.tensor([[[[1.0, 5.0]], [[3.0, 5.0]]]])  # two channels at two places: means 2 and 5, deviations 1 and 0
    got = norm(x, 1, norm.affines()[1])
    torch.testing.assert_close(got, torch.tensor([[[[0.0, 0.0]], [[11.0, 10.0]]]]), rtol=1e-4, atol=1e-4)  # eps


def distances(norm):
    """How far a ball of 3 x 3 pixels moves the logits of its cell, with 0, 1, 4, 12 and 24 patches of 6 x 6 far away.

    On black, as frames are once the median has been taken off; the encoder of `quickstart`, untrained.
    """
    torch.manual_seed(0)
    config = dataclasses.replace(quickstart().model.perception, norm=norm)
    encoder, plan = Encoder(config, 1, (0,), 0).eval(), RoutePlan(torch.zeros(1, 1, dtype=torch.long), 1)
    places = [(24 + 7 * row, 22 + 7 * column) for row in range(5) for column in range(5)]
    found = []
    for number in (0, 1, 4, 12, 24):
        frame = torch.zeros(1, 2, 64, 64, 3, dtype=torch.uint8)
        for top, left in places[:number]:
            frame[:, :, top : top + 6, left : left + 6] = torch.tensor([200, 80, 80])
        frame[:, 1, 3:6, 3:6] = 255
        logits = encoder(frame, plan, None)[0, :, :2]  # of cell (0, 0)
        found.append((logits[1] - logits[0]).norm().item())
    return found


def test_a_balls_code_does_not_depend_on_what_is_far_away():
    alone, *others = distances("channel")
    assert others == pytest.approx([alone] * 4, rel=0.05)
    alone, *others = distances("group")
    assert others[-1] < 0.5 * others[0] < 0.5 * alone, "what this norm is for"


def test_posterior_gain_scales_the_first_logits():
    torch.manual_seed(0)
    plain = Encoder(MODEL.perception, 1, (0,), 5)
    torch.manual_seed(0)
    loud = Encoder(dataclasses.replace(MODEL.perception, posterior_gain=8.0), 1, (0,), 5)
    torch.testing.assert_close(loud.posterior.weight, 8 * plain.posterior.weight)
    torch.testing.assert_close(loud.posterior.bias, plain.posterior.bias)


def test_batch_norm_statistics_follow_each_row_alone():
    norm = BatchNorm(2, 3)
    x = torch.randn(50, 3, 4, 4) * 2 + 5
    norm(x, 1, norm.affines()[1])
    assert norm.running_mean[0].abs().max() == 0
    torch.testing.assert_close(norm.running_mean[1], 0.1 * x.mean(dim=(0, 2, 3)))
    assert norm.num_batches.tolist() == [0, 1]
    norm.eval()
    norm(x, 1, norm.affines()[1])
    assert norm.num_batches.tolist() == [0, 1]


def test_a_tasks_features_do_not_see_other_tasks_with_norm_per_task():
    encoder, _ = make("bn_per_task")
    frame = torch.randint(0, 256, (3, 4, 64, 64, 3), dtype=torch.uint8)
    before = encoder.features(frame)
    frame[1] = 0
    after = encoder.features(frame)
    torch.testing.assert_close(after[0], before[0])
    assert not torch.allclose(after[1], before[1])


def test_frames_are_scaled_to_one():
    encoder, _ = make("group")
    seen = []
    encoder.convs[0].register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    encoder.features(torch.full((3, 1, 64, 64, 3), 255, dtype=torch.uint8))
    assert all(x.max() == 1.0 for x in seen)


def test_under_autocast_frames_have_the_bits_that_a_convolution_reads():
    encoder, _ = make("group")
    seen = []
    encoder.convs[0].register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    frame = torch.arange(256, dtype=torch.uint8).repeat(48).view(1, 1, 64, 64, 3).expand(3, -1, -1, -1, -1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encoder.features(frame)
    for x in seen:
        want = (frame[0, 0].permute(2, 0, 1).float() / 255.0).bfloat16()
        assert x.dtype == torch.bfloat16
        assert all(torch.equal(each, want) for each in x)
