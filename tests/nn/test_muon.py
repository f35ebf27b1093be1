import dataclasses

import pytest
import torch

from mow.methods.mow.config import OptimConfig
from mow.methods.mow.learner import Learner
from mow.methods.mow.optim import muon_matrices
from mow.nn.muon import Muon, orthogonalised
from tests.small import LOCAL, MODEL, action_mask, run_config, transitions, world_model


def test_one_step_by_hand():
    """diag(3, 4) has norm 5; p(x) = 3.4445 x - 4.775 x^3 + 2.0315 x^5 at 0.6 and 0.8."""
    got = orthogonalised(torch.diag(torch.tensor([3.0, 4.0])), num_steps=1)
    torch.testing.assert_close(got, torch.diag(torch.tensor([1.193269, 0.976482])))


def test_the_singular_vectors_stay_and_the_values_come_near_one():
    matrices = torch.randn(3, 6, 20, dtype=torch.float64)
    for given in (matrices, matrices.mT, 1e-4 * matrices):
        u, values, v = torch.linalg.svd(given, full_matrices=False)
        got = u.mT @ orthogonalised(given, num_steps=5) @ v.mT  # diagonal: the new singular values
        diagonal = got.diagonal(dim1=-2, dim2=-1)
        torch.testing.assert_close(got, torch.diag_embed(diagonal))
        # The quintic has no fixed point at 1: it keeps values in about 0.68 to 1.13.
        assert diagonal.min() > 0.65
        assert diagonal.max() < 1.2
        assert values.max() / values.min() > 1.5, "nothing to do"


def test_zero_stays_zero():
    assert not orthogonalised(torch.zeros(2, 3, 4)).any()


@pytest.mark.parametrize("shape", [(2, 8, 24), (2, 24, 8), (3, 8, 5, 2, 2)])
def test_a_first_step_has_the_size_asked_for(shape):
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.zeros(shape))
    parameter.grad = 1e3 * torch.randn(shape)
    Muon([parameter], lr=0.01).step()
    # One over the root of the longer side is the entries' root mean square when all singular values are 1;
    # three steps leave them between 0.3 and 1.2.
    size = parameter.detach().flatten(1).square().mean(dim=1).sqrt()
    assert ((size > 0.003) & (size < 0.012)).all()
    assert (parameter.detach() * parameter.grad).sum() < 0, "downhill"


def test_bfloat16_comes_as_near_to_one():
    torch.manual_seed(0)
    start, gradient = torch.zeros(3, 24, 40), torch.randn(3, 24, 40)
    moved = []
    for dtype in (torch.float32, torch.bfloat16):
        parameter = torch.nn.Parameter(start.clone())
        parameter.grad = gradient
        optimiser = Muon([parameter], lr=1.0, dtype=dtype)
        optimiser.step()
        assert parameter.dtype == optimiser.state[parameter]["momentum"].dtype == torch.float32
        moved.append(parameter.detach())
    # 8 bits of mantissa, three steps that each lift what is small: a few per cent, where a wrong step is off by 100.
    assert (moved[1] - moved[0]).norm() < 0.05 * moved[0].norm()
    assert not torch.equal(*moved), "bfloat16 was not used"


@pytest.mark.parametrize("shape", [(3, 24, 200), (200, 24), (2, 24, 36), (24, 24)])
def test_wide_matrices_take_a_shorter_way_to_the_same(shape):
    """Against the steps written out in float64; with a singular value far below the others, and one that is 0."""
    torch.manual_seed(0)
    u, values, v = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    values[..., -2] *= 1e-4
    values[..., -1] = 0.0
    given = u @ torch.diag_embed(values) @ v
    x = given / torch.linalg.matrix_norm(given, keepdim=True)
    for _ in range(3):
        x = 3.4445 * x + (-4.7750 * x @ x.mT + 2.0315 * x @ x.mT @ x @ x.mT) @ x
    torch.testing.assert_close(orthogonalised(given), x, rtol=0, atol=1e-12)
    # Three steps lift what float32 rounds off, 6e-8 of the norm, by up to 41.
    torch.testing.assert_close(orthogonalised(given.float()).double(), x, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_is_what_the_config_says_on_every_machine(precision, dtype):
    optim = OptimConfig(matrices="muon", muon_precision=precision)
    learner = Learner(run_config(optim=optim), action_mask(), torch.device("cpu"))
    assert learner.world_model_optimisers[1].dtype is dtype
    assert OptimConfig().muon_precision == "fp32"


def steps_of(parameter, optimiser, gradients):
    """Root mean square of each step's entries, matrix by matrix: [steps, M]."""
    sizes = []
    for gradient in gradients:
        before = parameter.detach().clone()
        parameter.grad = gradient
        optimiser.step()
        sizes.append((parameter.detach() - before).flatten(1).square().mean(dim=1).sqrt())
    return torch.stack(sizes)


def noise(shape, number, scale=1.0):
    """A gradient that is half signal, half noise, `number` times."""
    torch.manual_seed(0)
    signal = torch.randn(shape)
    return [scale * (signal + torch.randn(shape)) for _ in range(number)]


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_matrix_without_gradient_stands_still_apart_from_its_decay(decay):
    """An expert that no task chooses from update 20 on; it used to move 0.018 (rms) in 10 updates, 1.1 in 600."""
    parameter = torch.nn.Parameter(0.056 * torch.randn(2, 128, 128))
    optimiser = Muon([parameter], lr=2e-3, decay=decay)
    gradients = noise((2, 128, 128), 120)
    for gradient in gradients[20:]:
        gradient[1] = 0.0
    steps_of(parameter, optimiser, gradients[:20])
    before, momentum = parameter.detach().clone(), optimiser.state[parameter]["momentum"].clone()
    moved = steps_of(parameter, optimiser, gradients[20:])
    torch.testing.assert_close(parameter.detach()[1], before[1] * (1 - 2e-3 * decay) ** 100, rtol=1e-5, atol=1e-9)
    assert torch.equal(optimiser.state[parameter]["momentum"][1], momentum[1])
    assert (moved[:, 0] > 1e-3).all(), "the other one goes on"
    moved = steps_of(parameter, optimiser, noise((2, 128, 128), 1))
    assert moved[0, 1] > 1e-3, "it takes up where it was left"


@pytest.mark.parametrize("shape", [(2, 6, 9), (2, 9, 6), (1, 4, 3, 4, 4)])
def test_a_row_without_gradient_stands_still(shape):
    parameter = torch.nn.Parameter(torch.randn(shape))
    optimiser = Muon([parameter], lr=0.01)
    gradients = noise(shape, 12)
    for gradient in gradients[6:]:
        gradient[0, 2] = 0.0
    steps_of(parameter, optimiser, gradients[:6])
    before = parameter.detach().clone()
    steps_of(parameter, optimiser, gradients[6:])
    assert torch.equal(parameter.detach()[0, 2], before[0, 2])
    assert (parameter.detach() != before).flatten(2).any(dim=2).sum() == shape[0] * shape[1] - 1


def test_a_gradient_of_next_to_nothing_steps_next_to_nowhere():
    """From the start, and after gradients of 1: matrix 0 has them all along, the others do not."""
    parameter = torch.nn.Parameter(torch.zeros(3, 16, 24))
    gradients = noise((3, 16, 24), 270)
    for index, gradient in enumerate(gradients):
        gradient[1] *= 1e-9
        gradient[2] *= 1.0 if index < 100 else 1e-9
    moved = steps_of(parameter, Muon([parameter], lr=1.0), gradients)
    assert (moved[:, 0] > 0.3).all()
    assert (moved[:, 1] < 0.2 * moved[:, 0]).all()
    assert (moved[:100, 2] > 0.3).all()
    assert (moved[160:, 2] < 0.9 * moved[160:, 0]).all(), "as the momentum runs out"
    assert (moved[260:, 2] < 0.02 * moved[260:, 0]).all()


def test_decay_is_no_part_of_the_momentum():
    parameter = torch.nn.Parameter(torch.full((1, 2, 2), 5.0))
    optimiser = Muon([parameter], lr=0.5, decay=0.1)
    parameter.grad = torch.zeros(1, 2, 2)
    optimiser.step()
    torch.testing.assert_close(parameter.detach(), torch.full((1, 2, 2), 4.75))
    assert not optimiser.state[parameter]["momentum"].any()
    made = Learner(
        run_config(optim=OptimConfig(matrices="muon", matrix_decay=0.03)), action_mask(), torch.device("cpu")
    )
    assert made.world_model_optimisers[1].param_groups[0]["decay"] == 0.03
    assert OptimConfig().matrix_decay == 0.1


def test_momentum_remembers():
    parameter = torch.nn.Parameter(torch.zeros(1, 1, 1))
    optimiser = Muon([parameter], lr=1.0, momentum=0.75)
    parameter.grad = torch.full((1, 1, 1), 4.0)
    optimiser.step()
    assert optimiser.state[parameter]["momentum"].item() == 1.0
    parameter.grad = torch.full((1, 1, 1), -2.0)
    before = parameter.item()
    optimiser.step()
    assert optimiser.state[parameter]["momentum"].item() == 0.25
    assert parameter.item() > before, "0.75 * 0.25 - 0.25 * 2 < 0: the newest gradient counts again"
    parameter.grad = None
    before = parameter.item()
    optimiser.step()
    assert parameter.item() == before


def test_modules_of_a_stack_do_not_touch_each_other():
    torch.manual_seed(0)
    gradient = torch.randn(2, 4, 6)
    together, alone = torch.nn.Parameter(torch.zeros(2, 4, 6)), torch.nn.Parameter(torch.zeros(1, 4, 6))
    together.grad, alone.grad = gradient * torch.tensor([1.0, 100.0]).view(2, 1, 1), gradient[:1].clone()
    for parameter in (together, alone):
        Muon([parameter], lr=0.1).step()
    torch.testing.assert_close(together.detach()[:1], alone.detach())


@pytest.mark.parametrize("layers", ["hidden", "all"])
@pytest.mark.parametrize("config", [MODEL, LOCAL], ids=["dense", "local"])
def test_what_muon_moves(config, layers):
    model = world_model(config)
    chosen = {id(p) for p in muon_matrices(model, layers)}
    names = [n for n, p in model.named_parameters() if id(p) in chosen]
    assert len(names) == len(chosen) == len(muon_matrices(model, layers))
    hidden = ("encoder.convs.1.weight", "decoder.input.weight", "experts.transformer.blocks.0.query.weight",
              "shared.stem.input.weight", "shared.stem.output.weight")  # fmt: skip
    edges = ("encoder.convs.0.weight", "encoder.posterior.weight", "decoder.output.weight")
    left = ("task_embedding", "router.", "positions", "norm", "bias", "place", "heads.reward", "heads.task")
    for part in hidden if layers == "hidden" else (*hidden, *edges):
        assert part in names
    for part in left if layers == "all" else (*left, *edges, "next_cell", "next_latent"):
        assert not any(part in name for name in names), part


def test_first_and_last_layers_take_steps_of_the_matrices_size():
    made = learner("muon")
    group = made.world_model_optimisers[0].param_groups[1]
    names = {id(p): name for name, p in made.world_model.named_parameters()}
    assert {names[id(p)] for p in group["params"]} == {
        "encoder.convs.0.weight", "encoder.posterior.weight", "decoder.output.weight", "heads.prior.next_cell.weight"
    }  # fmt: skip
    assert group["lr"] == OptimConfig().matrix_lr


def learner(matrices, layers="hidden"):
    torch.manual_seed(0)
    optim = OptimConfig(matrices=matrices, matrix_layers=layers, world_model_lr=1e-3)
    return Learner(run_config(model=LOCAL, optim=optim), action_mask(), torch.device("cpu"))


@pytest.mark.parametrize("layers", ["hidden", "all"])
def test_every_parameter_has_one_optimiser(layers):
    made = learner("muon", layers)
    groups = [group for optimiser in made.world_model_optimisers for group in optimiser.param_groups]
    held = [id(p) for group in groups for p in group["params"]]
    own = [*made.world_model.parameters(), *made.task_weights.parameters()]
    assert sorted(held) == sorted(id(p) for p in own)
    assert len(learner("adam").world_model_optimisers) == 1


def test_a_kept_state_goes_on_bit_for_bit():
    straight, halted = learner("muon"), learner("muon")
    for i in range(2):
        straight.update_world_model(transitions(seed=i))
        halted.update_world_model(transitions(seed=i))
    resumed = learner("muon")
    resumed.load_state_dict(halted.state_dict())
    straight.update_world_model(transitions(seed=5))
    resumed.update_world_model(transitions(seed=5))
    for (name, old), new in zip(straight.world_model.named_parameters(), resumed.world_model.parameters(), strict=True):
        assert torch.equal(old, new), name


def test_bad_step_size():
    with pytest.raises(ValueError, match="matrix_lr"):
        dataclasses.replace(OptimConfig(), matrix_lr=0.0)
    with pytest.raises(ValueError, match="matrix_decay must be 0 or more"):
        OptimConfig(matrix_decay=-0.1)
