"""The world model of pwm: normalisation, sizes, the task table."""

import math
from dataclasses import replace

import pytest
import torch

from mow.kernels import two_hot_decode, two_hot_loss
from mow.methods.pwm.config import ModelConfig
from mow.methods.pwm.model import HIGH, LOW, SimNorm, WorldModel

MT30, MT80 = {"num_tasks": 30, "observation_size": 24}, {"num_tasks": 80, "observation_size": 39}
COUNTS = [  # published sizes: MT30 with its d, MT80 with d 96
    ("1M", MT30, 96, 0, 632_101), ("1M", MT80, 96, 0, 640_741),
    ("5M", MT30, 64, 0, 1_599_717), ("5M", MT80, 96, 0, 1_650_277),
    ("19M", MT30, 64, 512, 5_603_301), ("19M", MT80, 96, 0, 6_772_837),
    ("48M", MT30, 64, 0, 18_983_909), ("48M", MT80, 96, 0, 19_188_581),
    ("317M", MT30, 96, 0, 108_280_805), ("317M", MT80, 96, 0, 108_347_045),
]  # fmt: skip


@pytest.mark.parametrize(("size", "tasks", "d", "latent", "expected"), COUNTS)
def test_parameter_counts(size: str, tasks: dict[str, int], d: int, latent: int, expected: int) -> None:
    with torch.device("meta"):
        model = WorldModel(ModelConfig(size=size, embedding_size=d, latent_size=latent), **tasks, action_size=6)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_simnorm_by_hand() -> None:
    group = torch.zeros(16)
    group[0] = math.log(2)
    expected = [2 / 9] + [1 / 9] * 7 + [1 / 8] * 8  # entries 0-7, then 8-15
    torch.testing.assert_close(SimNorm()(group), torch.tensor(expected))


def test_simnorm_bounds_the_latent() -> None:
    latent = SimNorm()(torch.randn(1000, 512) * 5)
    torch.testing.assert_close(latent.unflatten(-1, (-1, 8)).sum(-1), torch.ones(1000, 64))
    norm = latent.norm(dim=-1)
    assert (norm >= math.sqrt(8) - 1e-5).all()
    assert (norm <= 8 + 1e-5).all()


@pytest.mark.parametrize(
    ("reward", "code"),
    [
        (0.0, {50: 1.0}), (1.0, {53: 0.534264, 54: 0.465736}), (-1.0, {46: 0.465736, 47: 0.534264}),
        (2.0, {55: 0.506939, 56: 0.493061}), (20.0, {65: 0.777388, 66: 0.222612}), (3e4, {100: 1.0}),
    ],
)  # fmt: skip
def test_two_hot_code_on_the_bins_of_pwm(reward: float, code: dict[int, float]) -> None:
    logits = torch.zeros(1, 101, dtype=torch.float64, requires_grad=True)
    two_hot_loss(logits, torch.tensor([reward], dtype=torch.float64), low=LOW, high=HIGH).sum().backward()
    assert logits.grad is not None
    target = 1 / 101 - logits.grad[0]  # the gradient of a cross-entropy is softmax - target
    expected = torch.zeros(101, dtype=torch.float64)
    for place, weight in code.items():
        expected[place] = weight
    torch.testing.assert_close(target, expected, atol=1e-6, rtol=0)


def test_rewards_in_both_units() -> None:
    model = WorldModel(ModelConfig(width=16, latent_size=16), num_tasks=1, observation_size=3, action_size=2)
    z, a = model.encode(torch.randn(1, 4, 3)), torch.zeros(1, 4, 2)
    assert model.predict_reward(z, a).abs().max() < 1e-5, "the last layer starts at zero"
    bias = torch.full((101,), -40.0)
    bias[53], bias[54] = math.log(0.534264), math.log(0.465736)  # the code of a reward of 1
    model.reward[-1].bias.data = bias
    torch.testing.assert_close(model.predict_reward(z, a, objective="symlog"), torch.full((1, 4), 0.693147))
    torch.testing.assert_close(model.predict_reward(z, a), torch.ones(1, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(model.predict_reward(z, a), two_hot_decode(bias, low=LOW, high=HIGH).expand(1, 4))


def test_the_task_table_is_projected_and_reading_it_changes_nothing() -> None:
    config = ModelConfig(width=16, latent_size=16, embedding_size=4)
    model = WorldModel(config, num_tasks=2, observation_size=3, action_size=2)
    assert model.embedding is not None
    model.embedding.data = torch.tensor([[3.0, 0.0, 4.0, 0.0], [0.1, 0.0, 0.0, 0.0]])
    before = model.embedding.clone()
    model.encode(torch.randn(2, 4, 3))
    assert torch.equal(model.embedding, before)
    model.project()
    torch.testing.assert_close(model.embedding.data, torch.tensor([[0.6, 0.0, 0.8, 0.0], [0.1, 0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("norm", ["simnorm", "none"])
@pytest.mark.parametrize("activation", ["mish", "relu"])
def test_switches_change_the_layers(norm: str, activation: str) -> None:
    config = ModelConfig(width=16, latent_size=16, norm=norm, activation=activation, termination=True)
    model = WorldModel(config, num_tasks=2, observation_size=3, action_size=2)
    z = model.encode(torch.randn(2, 4, 3))
    groups = z.unflatten(-1, (2, 8)).sum(-1)
    assert bool((groups - 1).abs().max() < 1e-5) == (norm == "simnorm")
    assert bool((z >= 0).all()) == (norm == "simnorm" or activation == "relu")
    torch.testing.assert_close(model.continuation(z), 1 - model.termination_logit(z).sigmoid())
    without = WorldModel(replace(config, termination=False), num_tasks=2, observation_size=3, action_size=2)
    assert without.continuation(z).eq(1).all()
    with pytest.raises(TypeError, match="predicts no ends"):
        without.termination_logit(z)


def test_a_wider_task_changes_nothing_of_a_narrower_one() -> None:
    """The same weights with further input columns: outputs and gradients of the old columns are the same."""
    torch.manual_seed(0)
    config = ModelConfig(width=16, latent_size=16, embedding_size=4)
    narrow = WorldModel(config, num_tasks=1, observation_size=3, action_size=1).double()
    wide = WorldModel(config, num_tasks=1, observation_size=5, action_size=3).double()
    state = wide.state_dict()
    for name, tensor in narrow.state_dict().items():
        if name == "encoder.0.0.weight":  # [o, e]: two columns more behind o
            state[name][:, :3], state[name][:, 5:] = tensor[:, :3], tensor[:, 3:]
        elif name in ("dynamics.0.0.weight", "reward.0.0.weight"):  # [z, e, a]: two more behind a
            state[name][:, : tensor.shape[1]] = tensor
        else:
            state[name] = tensor
    wide.load_state_dict(state)
    o, a = torch.randn(1, 4, 3).double(), torch.randn(1, 4, 1).double()
    pad = torch.nn.functional.pad
    results = []
    for model, seen, action in ((narrow, o, a), (wide, pad(o, (0, 2)), pad(a, (0, 2)))):
        z = model.encode(seen)
        (model.next_latent(z, action).square().sum() + model.reward_logits(z, action)[..., 3].sum()).backward()
        results.append((z, model.next_latent(z, action), model.encoder[0][0].weight.grad))
    (z, following, gradient), (z2, following2, gradient2) = results
    torch.testing.assert_close(z2, z)
    torch.testing.assert_close(following2, following)
    torch.testing.assert_close(gradient2[:, [0, 1, 2, 5, 6, 7, 8]], gradient)
    assert gradient2[:, 3:5].eq(0).all(), "columns that a task does not use are not trained with it"


def test_standard_observations_have_mean_0_and_deviation_1_per_task() -> None:
    torch.manual_seed(0)
    model = WorldModel(ModelConfig(width=16, latent_size=16, embedding_size=4, observations="standard"), num_tasks=2,
                       observation_size=3, action_size=1)  # fmt: skip
    seen = torch.randn(2, 1000, 3) * torch.tensor([[1.0, 20.0, 0.0], [0.1, 1.0, 3.0]])[:, None] + 5.0
    model.measure(seen)
    centred = (seen - model.mean[:, None]) / model.deviation[:, None]
    plain = WorldModel(ModelConfig(width=16, latent_size=16, embedding_size=4), num_tasks=2, observation_size=3,
                       action_size=1)  # fmt: skip
    plain.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(model.encode(seen), plain.encode(centred))
    torch.testing.assert_close(centred.mean(dim=1), torch.zeros(2, 3), atol=1e-4, rtol=0)
    assert torch.equal(model.deviation[0, 2], torch.tensor(1.0)), "an entry that never changes"
    torch.testing.assert_close(centred.std(dim=1)[1], torch.ones(3), atol=1e-2, rtol=0)
