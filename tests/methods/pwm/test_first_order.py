"""First-order policy learning: hand numbers, finite differences, estimators of the same gradient."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mow.kernels import PhiloxState
from mow.methods.pwm.first_order import (
    Rollout,
    RunningVariance,
    critic_targets,
    frozen,
    objective_of,
    permutation,
    roll_out,
)
from mow.nn.policy import normal
from tests.methods.pwm.tiny import NARROW, batch_of, double, learner_of


class Quadratic:
    """x' = x + u, reward -(x^2 + u^2)."""

    def next_latent(self, latent: Tensor, action: Tensor) -> Tensor:
        return latent + action

    def predict_reward(self, latent: Tensor, action: Tensor, *, objective: str) -> Tensor:
        return -(latent.square() + action.square()).sum(dim=-1)

    def continuation(self, latent: Tensor) -> Tensor:
        return latent.new_ones(latent.shape[:-1])


def lq(k: Tensor, p: float, horizon: int, discount: float, feedback: str) -> Tensor:
    """J of u = -k x from x = 1, with the last value -p x^2."""
    start, noise = torch.ones(1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, horizon, 1, dtype=torch.float64)
    rollout = roll_out(Quadratic(), lambda x, eps: -k * x, start, noise, feedback=feedback)
    return objective_of(rollout, -p * rollout.latent[:, :, -1, 0].square(), discount=discount)[0, 0]


def slope(k: float, p: float, horizon: int, discount: float, feedback: str) -> tuple[float, float]:
    at = torch.tensor(k, dtype=torch.float64, requires_grad=True)
    j = lq(at, p, horizon, discount, feedback)
    j.backward()
    assert at.grad is not None
    return j.item(), at.grad.item()


P1, P99 = (1 + math.sqrt(5)) / 2, 1.6152512457


@pytest.mark.parametrize("feedback", ["cut", "full"])
@pytest.mark.parametrize(("k", "p", "discount"), [(P1 - 1, P1, 1.0), (0.6152512457, P99, 0.99)])
def test_both_gradients_vanish_at_the_optimum(k: float, p: float, discount: float, feedback: str) -> None:
    assert slope(k, p, 16, discount, feedback)[1] == pytest.approx(0.0, abs=1e-8)


@pytest.mark.parametrize(
    ("k", "full", "cut"), [(0.3, 4.5327489893, 7.5718087120), (0.9, -1.4524154752, -1.5960450188)]
)
def test_gradients_of_linear_control(k: float, full: float, cut: float) -> None:
    assert slope(k, P99, 16, 0.99, "full")[1] == pytest.approx(full, abs=1e-9)
    assert slope(k, P99, 16, 0.99, "cut")[1] == pytest.approx(cut, abs=1e-9)
    above, below = (slope(k + h, P99, 16, 0.99, "full")[0] for h in (1e-5, -1e-5))
    assert (above - below) / 2e-5 == pytest.approx(full, abs=1e-7)


def test_two_steps_by_hand() -> None:
    assert slope(0.5, 0.0, 2, 0.99, "full") == pytest.approx((-1.559375, -0.01))
    assert slope(0.5, 0.0, 2, 0.99, "cut") == pytest.approx((-1.559375, -0.2575))


def test_the_last_value_is_discounted_as_often_as_there_are_steps() -> None:
    """gamma^T: with V = 1 and no rewards J is gamma^T; ends before it take their share."""
    ones = torch.ones(1, 1, 3, dtype=torch.float64)
    nothing = Rollout(torch.zeros(1, 1, 4, 1), torch.zeros(1, 1, 3, 1), 0 * ones, ones)
    assert objective_of(nothing, torch.ones(1, 1).double(), discount=0.9).item() == pytest.approx(0.9**3)
    ended = nothing._replace(reward=ones, continuation=torch.tensor([[[0.5, 0.0, 1.0]]], dtype=torch.float64))
    assert objective_of(ended, torch.ones(1, 1).double(), discount=0.9).item() == pytest.approx(1 + 0.9 * 0.5)


@pytest.mark.parametrize("feedback", ["cut", "full"])
def test_adam_finds_the_optimal_gain(feedback: str) -> None:
    k = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([k], betas=(0.7, 0.95))
    for step in range(250):
        optimiser.param_groups[0]["lr"] = 0.05 * 0.93 ** max(0, step - 100)
        optimiser.zero_grad()
        (-lq(k, P99, 16, 0.99, feedback)).backward()
        optimiser.step()
    assert k.item() == pytest.approx(0.6152512457, abs=1e-6)


@pytest.mark.parametrize(
    ("lam", "ends", "expected"),
    [
        (0.5, [1.0, 1.0, 1.0, 1.0], [17.43625, 26.525, 34.5, 40.0]), (0.0, [1.0] * 4, [10.0, 20.0, 30.0, 40.0]),
        (0.5, [1.0, 0.0, 1.0, 1.0], [6.4, 2.0, 34.5, 40.0]),
    ],
)  # fmt: skip
def test_lambda_returns_by_hand(lam: float, ends: list[float], expected: list[float]) -> None:
    def as_row(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64).view(1, 1, -1)

    rollout = Rollout(torch.zeros(1, 1, 5, 1), torch.zeros(1, 1, 4, 1), as_row([1, 2, 3, 4]), as_row(ends))
    found = critic_targets(rollout, as_row([99, 10, 20, 30, 40]), discount=0.9, lam=lam)
    assert found.flatten().tolist() == pytest.approx(expected)


def test_the_running_variance_is_that_of_all_samples() -> None:
    running, rng = RunningVariance(2, torch.device("cpu")), np.random.default_rng(0)
    batches = [rng.normal(3.0, 2.0, (2, 50)) * np.array([[1.0], [100.0]]) for _ in range(3)]
    for batch in batches:
        scale = running.update(torch.from_numpy(batch))
    joined = np.concatenate(batches, axis=1)
    np.testing.assert_allclose(running.variance.numpy(), joined.var(axis=1), rtol=1e-4)  # it began as 1e-4 samples
    torch.testing.assert_close(scale, (running.variance + 1e-5).sqrt())
    other = RunningVariance(2, torch.device("cpu"))
    other.load_state_dict(running.state_dict())
    assert torch.equal(other.update(torch.ones(2, 3)), running.update(torch.ones(2, 3)))


def loss_of(learner, batch, feedback: str, noise: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    start = learner.world_model.encode(batch.frame[:, :, 0]).detach()
    rollout = roll_out(learner.world_model, lambda z, eps: learner.actors(z, eps), start, noise, feedback=feedback)
    return -objective_of(rollout, learner.critics.least(rollout.latent[:, :, -1]), discount=0.99).mean()


def rough(learner):  # type: ignore[no-untyped-def]
    """Weights with which rewards and dynamics depend on actions by much."""
    generator = torch.Generator().manual_seed(1)
    for parameter in learner.world_model.parameters():
        if parameter.dim() == 2:
            parameter.data = torch.randn(parameter.shape, generator=generator) / parameter.shape[1] ** 0.5
    for module in (learner.world_model, learner.actors, learner.critics):
        module.double()
    return learner


def test_the_full_gradient_is_that_of_finite_differences() -> None:
    learner, batch = rough(learner_of(model={"termination": True})), double(batch_of())
    noise = torch.randn(2, 4, 4, 3, dtype=torch.float64)
    parameters = dict(learner.actors.named_parameters())
    gradients = torch.autograd.grad(loss_of(learner, batch, "full", noise), [*parameters.values()])
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            flat = parameter.view(-1)
            for place in rng.choice(len(flat), min(4, len(flat)), replace=False):
                kept, sides = flat[place].item(), []
                for h in (1e-6, -1e-6):
                    flat[place] = kept + h
                    sides.append(loss_of(learner, batch, "full", noise).item())
                flat[place] = kept
                expected = gradient.reshape(-1)[place].item()
                assert (sides[0] - sides[1]) / 2e-6 == pytest.approx(expected, rel=1e-5, abs=1e-8), name


def test_the_cut_gradient_takes_the_policys_input_for_a_constant() -> None:
    """A plain loop whose policy reads recorded states, and in which nothing else is detached."""
    learner, batch = rough(learner_of()), double(batch_of())
    noise = torch.randn(2, 4, 4, 3, dtype=torch.float64)
    parameters, model = list(learner.actors.parameters()), learner.world_model
    start = model.encode(batch.frame[:, :, 0]).detach()
    with torch.no_grad():
        states = roll_out(model, lambda z, eps: learner.actors(z, eps), start, noise).latent
    z, total = start, torch.zeros(2, 4, dtype=torch.float64)
    for i in range(4):
        action = learner.actors(states[:, :, i], noise[:, :, i])
        total = total + 0.99**i * (model.reward_logits(z, action).softmax(-1) * model.bins).sum(-1)
        z = model.next_latent(z, action)
    total = total + 0.99**4 * learner.critics(z).min(dim=1).values
    expected = torch.autograd.grad(-total.mean(), parameters)
    found = torch.autograd.grad(loss_of(learner, batch, "cut", noise), parameters)
    full = torch.autograd.grad(loss_of(learner, batch, "full", noise), parameters)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.allclose(found[0], full[0], rtol=1e-3)


class Smooth(Quadratic):
    """x' = sin(x + u), reward cos(2 x) + u x."""

    def next_latent(self, latent: Tensor, action: Tensor) -> Tensor:
        return (latent + action).sin()

    def predict_reward(self, latent: Tensor, action: Tensor, *, objective: str) -> Tensor:
        return ((2 * latent).cos() + action * latent).sum(dim=-1)


def test_the_score_function_has_the_same_mean() -> None:
    """d E[J] / dk of u = k x + 0.3 eps, by the rollout's gradient and by J times the score, 10^6 samples each."""
    number, horizon, sigma = 1_000_000, 3, 0.3
    rng = PhiloxState.from_seed(3, "cpu")
    noise = normal(torch.Size((1, number, horizon, 1)), rng).double()
    k = torch.full((number, 1), 0.4, dtype=torch.float64, requires_grad=True)  # one for each sample
    start = torch.full((1, number, 1), 0.7, dtype=torch.float64)
    rollout = roll_out(Smooth(), lambda x, eps: k * x + sigma * eps, start, noise, feedback="full")
    j = objective_of(rollout, torch.zeros(1, number).double(), discount=0.9)[0]
    (pathwise,) = torch.autograd.grad(j.sum(), k)
    states = rollout.latent.detach()[0, :, :-1, 0]
    score = (j.detach() - j.detach().mean()) * (noise[0, :, :, 0] * states / sigma).sum(dim=1)
    apart = pathwise[:, 0] - score
    assert abs(apart.mean().item()) < 3 * apart.std().item() / number**0.5
    assert abs(pathwise.mean().item()) > 10 * apart.std().item() / number**0.5, "a gradient that can be told from 0"


def test_frozen_modules_are_trained_again_behind_it() -> None:
    module = torch.nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    with pytest.raises(ZeroDivisionError), frozen(module):
        1 / int(module.weight.requires_grad)
    assert module.weight.requires_grad
    assert not module.bias.requires_grad


def test_orders_are_permutations() -> None:
    rng = PhiloxState.from_seed(0, "cpu")
    one, other = permutation(rng, 1000), permutation(rng, 1000)
    assert one.sort().values.equal(torch.arange(1000))
    assert not one.equal(other)


def test_start_and_noise_decide_the_rollout() -> None:
    learner = learner_of((NARROW,), observation_size=5)
    start, noise = torch.rand(1, 4, 16), torch.randn(1, 4, 3, 1)
    one, other = (roll_out(learner.world_model, lambda z, eps: learner.actors(z, eps), start, noise) for _ in "12")
    assert one.latent.equal(other.latent)
    assert one.action.shape == (1, 4, 3, 1)
    assert one.latent.shape == (1, 4, 4, 16)
