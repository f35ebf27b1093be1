"""The optional TD head: sizes, targets and slow copy by hand, what it trains and what it leaves alone."""

from dataclasses import replace

import pytest
import torch

from mow.kernels import PhiloxState
from mow.methods.pwm.config import ModelConfig
from mow.methods.pwm.learner import Learner
from mow.methods.pwm.losses import world_model_losses
from mow.methods.pwm.model import WorldModel
from mow.methods.pwm.td_head import TdHead, discount_of
from tests.methods.pwm.test_learner import same, weights
from tests.methods.pwm.test_model import COUNTS
from tests.methods.pwm.tiny import batch_of, config_of, learner_of, with_end

WITH_HEAD = (1_426_427, 1_435_067, 5_241_066, 5_389_930, 16_031_210, 18_970_218, 48_242_410, 48_791_146, 317_316_889,
             317_383_129)  # fmt: skip
ON = {"model": {"td_head": True}}


@pytest.mark.parametrize(("case", "expected"), [*zip(COUNTS, WITH_HEAD, strict=True)])
def test_parameter_counts(case: tuple[str, dict[str, int], int, int, int], expected: int) -> None:
    size, tasks, d, latent, _ = case
    config = ModelConfig(size=size, embedding_size=d, latent_size=latent)
    with torch.device("meta"):
        model = WorldModel(config, **tasks, action_size=6)
        head = TdHead(config, model, torch.ones(tasks["num_tasks"], 6), (500,))
    trained = [p for module in (model, head) for p in module.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == expected


@pytest.mark.parametrize(("steps", "gamma"), [(1, 0.95), (100, 0.95), (150, 0.96667), (200, 0.975), (500, 0.99),
                                              (1000, 0.995), (9000, 0.995)])  # fmt: skip
def test_discounts(steps: int, gamma: float) -> None:
    assert discount_of(steps) == pytest.approx(gamma, abs=1e-5)


def td_head_of(learner: Learner) -> TdHead:
    assert learner.td_head is not None
    return learner.td_head


def test_targets_by_hand() -> None:
    """Slow members that are constant: 1, 3; both are drawn, the least counts. y = r + gamma (1 - d) 1."""
    learner = learner_of(**ON, loss=replace(config_of("a").loss, episode_steps=(150, 500)))
    head = td_head_of(learner)
    assert head.slow.count == 2
    for member, value in enumerate((1.0, 3.0)):
        code = (torch.tensor(value).log1p() + 10.0) / 0.2
        low = int(code)
        head.slow.last.bias.data[member] = -60.0
        head.slow.last.bias.data[member, 0, low] = (low + 1 - code).log()
        head.slow.last.bias.data[member, 0, low + 1] = (code - low).log()
    reward = torch.tensor([[[0.5, -2.0]], [[0.0, 4.0]]])
    ended = torch.tensor([[[False, True]], [[False, False]]])
    found = head.targets(learner.world_model, torch.rand(2, 1, 2, 16), reward, ended, learner.td_rng)
    expected = torch.tensor([[[0.5 + 0.966667, -2.0]], [[0.99, 4.99]]])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_the_slow_copy_by_hand() -> None:
    head = td_head_of(learner_of(**ON))
    fast, slow = head.q.first.weight, head.slow.first.weight
    fast.data.fill_(2.0)
    slow.data.fill_(1.0)
    for expected in (1.01, 1.0199):
        head.follow()
        torch.testing.assert_close(slow, torch.full_like(slow, expected))
    assert not slow.requires_grad


def test_the_first_value_loss_is_that_of_equal_logits() -> None:
    learner, batch = learner_of(**ON), batch_of()
    losses = world_model_losses(learner.world_model, batch, rho=1.0, td=(td_head_of(learner), learner.td_rng))
    assert losses.value is not None
    assert losses.value.tolist() == pytest.approx([4.615121, 4.615121])


def test_steps_behind_an_end_count_nothing_for_values() -> None:
    learner, batch = learner_of(**ON), with_end(batch_of(), window=0, at=2)
    values = []
    for reward in (0.0, 50.0):
        changed = batch.reward.clone()
        changed[:, 0, 2:] = reward
        head = td_head_of(learner)
        head.q.last.weight.data.normal_(generator=torch.Generator().manual_seed(1))
        td = (head, PhiloxState.from_seed(0, "cpu"))
        values.append(world_model_losses(learner.world_model, replace(batch, reward=changed), rho=0.9, td=td).value)
    assert torch.equal(values[0], values[1])


def test_it_trains_and_shapes_the_encoder() -> None:
    learner = learner_of(**ON)
    batch = batch_of()
    metrics = learner.update("world_model", batch)
    assert {"loss/value", "loss/td_policy"} <= metrics.keys()
    before = weights(learner)
    metrics = learner.update("world_model", batch)
    moved = {name for name, tensor in weights(learner).items() if not torch.equal(tensor, before[name])}
    parts = ("q.last.weight", "slow.last.weight", "pi.2.weight")
    assert {f"TD head.{part}" for part in parts} <= moved
    assert metrics["loss/world_model"].isfinite().all()
    head = td_head_of(learner)
    loss = world_model_losses(learner.world_model, batch, rho=0.9, td=(head, learner.td_rng)).value
    assert loss is not None
    gradient = torch.autograd.grad(loss.sum(), learner.world_model.encoder[0][0].weight)[0]
    assert gradient.abs().sum() > 0


def test_padded_entries_of_its_actions_are_zero() -> None:
    learner = learner_of(**ON)
    action, density = td_head_of(learner).act(learner.world_model, torch.rand(2, 4, 3, 16), learner.td_rng)
    assert action.shape == (2, 4, 3, 3)
    assert density.shape == (2, 4, 3)
    assert action[0, ..., 1:].eq(0).all()
    assert action[1].ne(0).all()


def test_extraction_reads_none_of_it_and_off_draws_nothing() -> None:
    on, off = learner_of(**ON), learner_of()
    assert on.world_model.state_dict().keys() == off.world_model.state_dict().keys()
    before = weights(on)
    for learner in (on, off):
        learner.update("policy", batch_of())
    kept, other = weights(on), weights(off)
    assert all(torch.equal(kept[name], before[name]) for name in before if name.startswith("TD head"))
    assert all(torch.equal(kept[name], other[name]) for name in other)
    assert "td_head" not in off.state_dict()
    assert "TD head" not in off.networks


def test_a_resumed_learner_goes_on_as_it_would_have() -> None:
    straight, first, second = learner_of(**ON), learner_of(**ON), learner_of(seed=7, **ON)
    for counter in range(4):
        straight.update("world_model", batch_of(seed=counter))
    for counter in range(2):
        first.update("world_model", batch_of(seed=counter))
    second.load_state_dict(first.state_dict())
    for counter in range(2, 4):
        second.update("world_model", batch_of(seed=counter))
    assert same(weights(straight), weights(second))


def test_numbers_of_steps_must_fit_the_tasks() -> None:
    with pytest.raises(ValueError, match=r"loss.episode_steps must hold 1 number or 3, one per task, got 2"):
        config_of(("vec:a", "vec:b", "vec:c"), loss=replace(config_of("a").loss, episode_steps=(1, 2)))
    with pytest.raises(ValueError, match="episode_steps must be above 0"):
        replace(config_of("a").loss, episode_steps=(0,))
