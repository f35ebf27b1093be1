"""Each rule that makes one number of many tasks, by hand; what it does at warm-up's end and when tasks are sorted."""

import math
from typing import Literal

import pytest
import torch
from torch import Tensor

from mow.kernels import PhiloxState
from mow.methods.mow.config import LossConfig
from mow.methods.mow.task_weights import OWN_TERMS, Harmony, RunningMean, TaskWeights, make_task_weights
from mow.methods.mow.world_model_loss import world_model_losses
from tests.small import transitions, world_model

Form = Literal["harmony", "shared_terms", "per_term"]
FORMS: tuple[Form, ...] = ("harmony", "shared_terms", "per_term")
TERMS = torch.tensor([[1.0, 2.0], [0.5, 0.5], [60.0, 40.0]])  # [K, terms]: sums 3, 1, 100
ORDER = torch.tensor([2, 0, 1])


def at_rest(loss: Tensor) -> Tensor:
    """The sigma at which L / sigma + ln(1 + sigma) is least."""
    return (loss + (loss.square() + 4 * loss).sqrt()) / 2


def test_uniform_by_hand() -> None:
    rule = TaskWeights()
    rule.adapt(TERMS)
    rule.reorder(ORDER)
    assert rule(TERMS).item() == 104.0
    assert list(rule.parameters()) == []


def test_harmony_by_hand() -> None:
    rule = Harmony(3, 2)
    assert rule.log_sigma.shape == (3,)
    assert rule(TERMS).item() == pytest.approx(104 + 3 * math.log(2), rel=1e-6)  # sigma = 1; float32
    with torch.no_grad():
        rule.log_sigma.copy_(torch.tensor([3.0, 1.0, 24.0]).log())
    # 3/3 + 1/1 + 100/24 + ln 4 + ln 2 + ln 25
    assert rule(TERMS).item() == pytest.approx(2 + 100 / 24 + math.log(200), rel=1e-6)


def test_harmony_per_term_by_hand() -> None:
    rule = Harmony(3, 2, "per_term")
    assert rule.log_sigma.shape == (3, 2)
    assert rule(TERMS).item() == pytest.approx(104 + 6 * math.log(2), rel=1e-6)
    with torch.no_grad():
        rule.log_sigma[2, 0] = math.log(60.0)
    assert rule(TERMS).item() == pytest.approx(44 + 60 / 60 + 5 * math.log(2) + math.log(61), rel=1e-6)


def scaled(form: Form) -> Tensor:
    """What the sigmas of TERMS are made of; of the two terms the first is reconstruction."""
    return {"harmony": TERMS.sum(dim=1), "per_term": TERMS, "shared_terms": TERMS[:, 1]}[form]


def test_harmony_of_shared_terms_by_hand() -> None:
    rule = Harmony(3, 2, "shared_terms")
    with torch.no_grad():
        rule.log_sigma.copy_(torch.tensor([2.0, 1.0, 40.0]).log())
    # (2 + 1)/2 + 1/1 + (60 + 40)/40 + ln 3 + ln 2 + ln 41; sigma feels 2, 0.5 and 40, not 3, 1 and 100.
    assert rule(TERMS).item() == pytest.approx(5.0 + math.log(6 * 41), rel=1e-6)  # float32
    (slope,) = torch.autograd.grad(rule(TERMS), rule.log_sigma)
    want = [-2 / 2 + 2 / 3, -0.5 + 1 / 2, -40 / 40 + 40 / 41]
    torch.testing.assert_close(slope, torch.tensor(want), rtol=1e-5, atol=1e-6)


def test_terms_that_end_in_encoder_and_decoder_are_named_by_their_place() -> None:
    model = world_model()
    rng = PhiloxState.from_seed(0, "cpu")
    losses = world_model_losses(model, transitions(), model.route(), rng, LossConfig(free_bits=0.0))
    assert [list(losses.terms)[term] for term in OWN_TERMS] == ["reconstruction", "representation"]
    shared = [p for name, p in model.named_parameters() if name.startswith(("experts.", "shared."))]
    reached = set()
    for name, loss in losses.terms.items():
        gradients = torch.autograd.grad(loss.sum(), shared, retain_graph=True, allow_unused=True)
        if any(g is not None and bool(g.any()) for g in gradients):
            reached.add(name)
    # The heads of reward start at zero, and then pass nothing on.
    assert reached | {"reward"} == set(losses.terms) - {"reconstruction", "representation"}


@pytest.mark.parametrize("form", FORMS)
def test_harmony_rests_where_sigma_squared_is_loss_times_one_plus_sigma(form: Form) -> None:
    rule = Harmony(3, 2, form)
    with torch.no_grad():
        rule.log_sigma.copy_(at_rest(scaled(form)).log())
    (slope,) = torch.autograd.grad(rule(TERMS), rule.log_sigma)
    assert slope.abs().max() < 1e-5  # float32


@pytest.mark.parametrize("form", FORMS)
def test_how_far_noise_in_one_picture_changes_who_moves_the_shared_parameters(form: Form) -> None:
    """Two tasks alike but for noise pixels in the second, which only its reconstruction feels; sigmas at rest."""
    quiet = torch.tensor([[20.0, 0.5, 0.1, 4.0, 0.4, 0.2]]).repeat(2, 1)  # [K, terms]
    noisy = quiet.clone()
    noisy[1, 0] = 500.0
    ratios = []
    for terms in (quiet, noisy):
        rule = Harmony(2, 6, form)
        with torch.no_grad():
            rule.log_sigma.copy_(at_rest(rule._scaled(terms)).log())
        leaf = terms.clone().requires_grad_()
        (pull,) = torch.autograd.grad(rule(leaf), leaf)
        ratios.append(float(pull[1, 3] / pull[0, 3]))
    assert ratios[0] == pytest.approx(1.0)
    if form == "harmony":
        assert ratios[1] < 0.1  # 1 / 501 against 1 / 26
    else:
        assert ratios[1] == pytest.approx(1.0)


@pytest.mark.parametrize("form", FORMS)
def test_harmony_adapts_to_near_its_point_of_rest(form: Form) -> None:
    rule = Harmony(3, 2, form)
    rule.adapt(TERMS)
    loss = scaled(form)
    torch.testing.assert_close(rule.log_sigma.exp().detach(), 1 + loss, rtol=1e-6, atol=0)  # float32
    # 1 + L against the exact rest: 2 % off at L = 3, 24 % at L = 1, 50 % at L = 1/2.
    assert (rule.log_sigma.detach() - at_rest(loss).log()).abs().max() < math.log(1.51)
    assert rule.log_sigma.requires_grad, "the scales still learn"
    assert rule.log_sigma.grad_fn is None


def test_harmony_learns_scales_and_passes_the_losses_gradient() -> None:
    rule = Harmony(3, 2)
    terms = TERMS.clone().requires_grad_()
    with torch.no_grad():
        rule.log_sigma.copy_(at_rest(TERMS.sum(dim=1)).log())
    to_terms, to_scale = torch.autograd.grad(rule(terms), (terms, rule.log_sigma))
    assert to_scale.abs().max() < 1e-5  # float32: at rest
    expected = 1 / at_rest(TERMS.sum(dim=1))
    torch.testing.assert_close(to_terms, expected.unsqueeze(1).expand(3, 2), rtol=1e-5, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_reorder_carries_the_scales_along(form: Form) -> None:
    rule = Harmony(3, 2, form)
    rule.adapt(TERMS)
    before = rule(TERMS).item()
    old = rule.log_sigma.detach().clone()
    parameter = rule.log_sigma
    rule.reorder(ORDER)
    assert torch.equal(rule.log_sigma, old[ORDER])
    assert rule.log_sigma is parameter, "the optimiser holds this very tensor"
    assert rule(TERMS[ORDER]).item() == pytest.approx(before, rel=1e-6)  # float32 sums in another order


def test_running_mean_by_hand() -> None:
    rule = RunningMean(2, decay=0.5)
    # First update: the mean is the loss itself, each task weighs 1.
    assert rule(torch.tensor([[4.0], [100.0]])).item() == pytest.approx(2.0)
    # Second: means (1/4 * 4 + 1/2 * 2) / (3/4) = 8/3 and (25 + 50) / (3/4) = 100. 2 / (8/3) + 100 / 100 = 1.75.
    assert rule(torch.tensor([[2.0], [100.0]])).item() == pytest.approx(1.75)


def test_running_mean_weights_are_constants_to_the_gradient() -> None:
    rule = RunningMean(3)
    rule.adapt(TERMS)
    terms = TERMS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(rule(terms), terms)
    expected = torch.tensor([[1 / 3], [1.0], [1 / 100]]).expand(3, 2)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=0)  # float32


def test_running_mean_reorders_and_is_saved() -> None:
    rule = RunningMean(3)
    rule(TERMS)
    rule.reorder(ORDER)
    other = RunningMean(3)
    other.load_state_dict(rule.state_dict())
    # Each task meets its own mean again, so that each weighs 1 once more.
    assert other(TERMS[ORDER]).item() == pytest.approx(3.0, rel=1e-5)  # float32


@pytest.mark.parametrize(
    ("weighting", "kind", "shape"),
    [
        ("uniform", TaskWeights, None),
        ("harmony", Harmony, (3,)),
        ("shared_terms", Harmony, (3,)),
        ("per_term", Harmony, (3, 2)),
        ("running_mean", RunningMean, None),
    ],
)
def test_config_chooses_the_rule(weighting: str, kind: type, shape: tuple[int, ...] | None) -> None:
    rule = make_task_weights(LossConfig(weighting=weighting), 3, 2)  # type: ignore[arg-type]
    assert type(rule) is kind
    assert [tuple(p.shape) for p in rule.parameters()] == ([] if shape is None else [shape])
    assert rule(TERMS).dim() == 0


def test_what_is_logged_of_the_weights() -> None:
    """1 / sigma by hand: ln sigma of 0 and ln 4, and a task whose two terms weigh 1 and 1/4."""
    harmony = Harmony(2, 2)
    with torch.no_grad():
        harmony.log_sigma.copy_(torch.tensor([1.0, 4.0]).log())
    torch.testing.assert_close(harmony.metrics()["harmony/weight"], torch.tensor([1.0, 0.25]))
    several = Harmony(1, 2, "per_term")
    with torch.no_grad():
        several.log_sigma.copy_(torch.tensor([[1.0, 4.0]]).log())
    torch.testing.assert_close(several.metrics()["harmony/weight"], torch.tensor([0.625]))
    assert TaskWeights().metrics() == RunningMean(2).metrics() == {}
