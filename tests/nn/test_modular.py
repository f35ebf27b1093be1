import torch
from torch.nn import functional as F

from mow.kernels import RoutePlan
from mow.nn.modular import ModularLayerNorm, ModularLinear, ModularMLP, Stem, for_matmul

PLAN = RoutePlan(torch.tensor([[1, 2], [0, 1], [2, 2]]), 3)


def test_linear_equals_concatenating_the_embedding_in_a_loop():
    layer = ModularLinear(3, 4, 5, embedding_size=2)
    x, embedding = torch.randn(3, 1, 7, 4), torch.randn(3, 2)
    got = layer(x, PLAN, embedding)
    for k in range(3):
        for j in range(2):
            expert = PLAN.routes[k, j]
            joined = torch.cat([x[k, 0], embedding[k].expand(7, 2)], dim=-1)
            want = F.linear(joined, layer.weight[expert], layer.bias[expert])
            # Float32 sums of six products in another order.
            torch.testing.assert_close(got[k, j], want, rtol=1e-5, atol=1e-6)


def test_the_folded_embedding_has_the_gradients_of_concatenation():
    layer = ModularLinear(3, 4, 5, embedding_size=2).double()
    x = torch.randn(3, 1, 7, 4, dtype=torch.float64)
    embedding = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    weight = layer.weight[PLAN.routes]
    joined = torch.cat([x.expand(-1, 2, -1, -1), embedding[:, None, None].expand(-1, 2, 7, -1)], dim=-1)
    want = torch.einsum("kjri,kjoi->kjro", joined, weight) + layer.bias[PLAN.routes][:, :, None]
    up = torch.randn_like(want)
    wanted = torch.autograd.grad(want, [layer.weight, layer.bias, embedding], up)
    got = torch.autograd.grad(layer(x, PLAN, embedding), [layer.weight, layer.bias, embedding], up)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_initial_weights_are_those_of_linear():
    layer = ModularLinear(2, 100, 50, embedding_size=21)
    bound = 1 / 11  # 1 / sqrt(100 + 21)
    assert layer.weight.abs().max() <= bound
    assert layer.weight.abs().max() > 0.99 * bound  # 12,100 uniform numbers reach the edge
    assert layer.bias.abs().max() <= bound


def test_layer_norm_uses_each_pairs_affine():
    norm = ModularLayerNorm(3, 4)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(3, 2, 7, 4)
    got = norm(x, PLAN)
    for k in range(3):
        for j in range(2):
            e = PLAN.routes[k, j]
            torch.testing.assert_close(got[k, j], F.layer_norm(x[k, j], (4,), norm.weight[e], norm.bias[e], norm.eps))


def test_layer_norm_of_a_lone_pair():
    norm = ModularLayerNorm(3, 4)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x, up = torch.randn(1, 1, 7, 4), torch.randn(7, 4)
    got = norm(x, RoutePlan(torch.tensor([[2]]), 3))[0, 0]
    want = F.layer_norm(x[0, 0], (4,)) * norm.weight[2] + norm.bias[2]
    torch.testing.assert_close(got, want)
    for ours, theirs in zip(*(torch.autograd.grad(y, [*norm.parameters()], up) for y in (got, want)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_layer_norm_with_one_module_equals_the_gathered_form():
    one = RoutePlan(torch.zeros(2, 1, dtype=torch.long), 1)
    norm = ModularLayerNorm(1, 4)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 1, 7, 4)
    torch.testing.assert_close(norm(x, one), F.layer_norm(x, (4,), norm.weight[0], norm.bias[0], norm.eps))


def test_mlp_starts_at_zero_when_asked():
    plan = RoutePlan(torch.tensor([[0], [1]]), 2)
    x = torch.randn(2, 1, 5, 6)
    assert ModularMLP(2, 6, 8, 3, zero_output=True)(x, plan).abs().max() == 0
    assert ModularMLP(2, 6, 8, 3)(x, plan).abs().max() > 0


def test_mlp_sends_each_task_through_its_module():
    mlp = ModularMLP(2, 6, 8, 3)
    x = torch.randn(1, 1, 5, 6).expand(2, -1, -1, -1)
    a = mlp(x, RoutePlan(torch.tensor([[0], [1]]), 2))
    b = mlp(x, RoutePlan(torch.tensor([[1], [0]]), 2))
    torch.testing.assert_close(a, b.flip(0))
    assert not torch.allclose(a[0], a[1])


def test_stem_gives_one_output_per_slot():
    stem = Stem(3, 4, 6, embedding_size=2)
    assert stem(torch.randn(3, 1, 7, 4), PLAN, torch.randn(3, 2)).shape == (3, 2, 7, 6)


def test_under_autocast_a_relu_after_the_conversion_gives_the_same_bits():
    mlp, x = ModularMLP(3, 4, 8, 5), torch.randn(3, 1, 7, 4)
    plan = RoutePlan(PLAN.routes[:, :1], 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, y = mlp(x, plan), x
        for linear, norm in zip(mlp.linears, mlp.norms, strict=True):
            y = norm(linear(y, plan), plan).float().relu()
        assert torch.equal(got, mlp.output(y, plan))
    assert for_matmul(x) is x  # outside
