"""What a rollout teaches: targets made once, taken part by part, with the paper's gradient in the first step."""

import dataclasses

import pytest
import torch

from mow.losses import entropy_bonus, value_loss
from mow.losses.returns import ReturnScale, imagined_return
from mow.methods.mow.actor_critic_loss import actor_critic_losses, compute_targets
from mow.methods.mow.config_agent import ActorCriticConfig
from mow.methods.mow.records import Imagination
from tests.small import action_mask, agent

CONFIG = ActorCriticConfig(hidden=8, discount=0.9, lam=0.8)


def rollout(seed: int = 0) -> Imagination:
    """Five sequences of four steps for three tasks, the last task continuous; some end half-way."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng)

    discrete = torch.nn.functional.one_hot(torch.randint(0, 3, (3, 5, 4), generator=rng), 4).float()
    raw = torch.cat([discrete, normal(3, 5, 4, 2)], dim=-1)
    raw[-1, ..., :4], raw[:-1, ..., 4:] = 0.0, 0.0
    return Imagination(
        before=normal(3, 5, 1, 16), latent=normal(3, 5, 5, 16), hidden=normal(3, 5, 5, 16),
        action=raw.clamp(-1, 1), raw_action=raw,
        reward=normal(3, 5, 4), terminated=(normal(3, 5, 4) > 1.0).float(), valid=torch.ones(3, 5, dtype=torch.bool),
    )


def lesson_of(policy, dream, config=CONFIG):
    return compute_targets(policy, dream, ReturnScale(3, 0.99, torch.device("cpu")), config, embedding=torch.ones(3, 5))


@pytest.fixture
def policy():
    torch.manual_seed(0)
    made = agent()
    torch.nn.init.normal_(made.critic.output.weight)  # critics start at zero, which would hide mistakes
    torch.nn.init.normal_(made.slow_critic.output.weight)
    return made


def test_targets_are_those_of_the_functions_they_are_named_after(policy):
    dream, embedding = rollout(), torch.ones(3, 5)
    lesson, metrics = lesson_of(policy, dream)
    state = policy.actor_critic_input(dream.latent, dream.hidden, dream.latent_before)
    value = policy.value(state, embedding)
    returns = imagined_return(dream.reward, dream.terminated, value, discount=0.9, lam=0.8)
    assert torch.equal(lesson.returns, returns)
    torch.testing.assert_close(
        lesson.advantage, (returns - value[:, :, :-1]) / metrics["return_range"].view(3, 1, 1), rtol=1e-6, atol=1e-6
    )
    assert torch.equal(lesson.slow_target, policy.value(state, embedding, slow=True)[:, :, :-1])
    assert torch.equal(lesson.weight, dream.alive[:, :, :-1])
    acted = policy.policy(state[:, :, :-1], embedding).log_prob(dream.raw_action)
    assert torch.equal(lesson.log_prob, acted)
    assert not any(target.requires_grad for target in lesson)
    plain, _ = lesson_of(policy, dream, dataclasses.replace(CONFIG, survival_weight=False))
    assert plain.weight.eq(1).all()


@pytest.mark.parametrize("survival_weight", [True, False])
def test_rollouts_whose_context_had_ended_teach_nothing(survival_weight, policy):
    config = dataclasses.replace(CONFIG, survival_weight=survival_weight)
    dream = rollout()
    valid = torch.ones(3, 5, dtype=torch.bool)
    valid[:, 1] = False
    lesson, metrics = lesson_of(policy, dataclasses.replace(dream, valid=valid), config)
    assert lesson.weight[:, 1].eq(0).all()
    assert lesson.weight[:, 0, 0].eq(1).all()
    others = [0, 2, 3, 4]
    rest = Imagination(**{field.name: getattr(dream, field.name)[:, others] for field in dataclasses.fields(dream)})
    mean = lesson_of(policy, rest, config)[1]["imagined_return"]
    torch.testing.assert_close(metrics["imagined_return"], mean)


def test_parts_hold_every_sequence_once(policy):
    lesson, _ = lesson_of(policy, rollout())
    parts = list(lesson.parts(2))
    assert [part.returns.shape[1] for part in parts] == [3, 2]
    assert [part.returns.shape[1] for part in lesson.parts(4)] == [2, 1, 1, 1], "as many as asked for"
    for name, whole, *columns in zip(lesson._fields, lesson, *parts, strict=True):
        assert torch.equal(torch.cat(columns, dim=1), whole), name


def test_the_first_step_has_the_papers_gradient(policy):
    """- sg(A) ln pi - eta H and the two cross-entropies, averaged with the weights of the states and over tasks."""
    lesson, _ = lesson_of(policy, rollout())
    embedding = torch.ones(3, 5)
    actor_critic_losses(policy, lesson, entropy=0.01, clip=CONFIG.clip, embedding=embedding).total.backward()
    got = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()

    acting = policy.policy(lesson.state, embedding)
    weight = lesson.weight
    score = (acting.log_prob(lesson.raw_action) * lesson.advantage * weight).sum((1, 2)) / weight.sum((1, 2))
    logits = policy.value_logits(lesson.state, embedding)
    critic = value_loss(logits, lesson.returns, weight) + value_loss(logits, lesson.slow_target, weight)
    (-score - 0.01 * entropy_bonus(acting.entropy(), weight) + critic).mean().backward()
    assert got
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            # float32: the ratio is exp of an exact 0, the sums run in another order.
            torch.testing.assert_close(got[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_the_mask_of_small_is_what_the_rollout_assumes():
    mask = action_mask()
    assert mask.discrete.sum(dim=1).tolist() == [3, 3, 0]
    assert mask.continuous.sum(dim=1).tolist() == [0, 0, 2]
