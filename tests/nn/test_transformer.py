import dataclasses

import torch
from torch.nn import functional as F

from mow.kernels import RoutePlan
from mow.nn.transformer import Block, Transformer, episode_window
from tests.small import MODEL

PLAN = RoutePlan(torch.tensor([[1, 2], [0, 1]]), 3)


def firsts(*rows):
    return torch.tensor(rows, dtype=torch.bool).unsqueeze(1)  # [K, 1, L]


def test_window_by_hand():
    window = episode_window(firsts([1, 0, 0, 1, 0]))
    assert window.position.tolist() == [[[0, 1, 2, 0, 1]]]
    want = [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]
    assert window.mask[0, 0].int().tolist() == want


def test_window_across_episodes_is_plainly_causal():
    window = episode_window(firsts([1, 0, 1, 0]), across_episodes=True)
    assert window.position.tolist() == [[[0, 1, 2, 3]]]
    assert torch.equal(window.mask[0, 0], torch.ones(4, 4).tril().bool())


def test_rows_are_the_view_of_later_tokens():
    window = episode_window(firsts([1, 0, 1, 0])).rows(2, 3)
    assert window.position.tolist() == [[[0]]]
    assert window.mask[0, 0].int().tolist() == [[0, 0, 1]]


def test_stacked_experts_equal_a_loop_over_tasks_and_slots():
    torch.manual_seed(0)
    transformer = Transformer(3, 2, MODEL).eval()
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 2, 3, 5, 16)  # [K, J, B, L, D]
    is_first = torch.zeros(2, 3, 5, dtype=torch.bool)
    is_first[:, :, 0] = True
    is_first[1, 2, 3] = True
    window = episode_window(is_first)
    got = transformer(x, PLAN, window)
    for k in range(2):
        for j in range(2):
            e = int(PLAN.routes[k, j])
            for b in range(3):
                want = loop_transformer(transformer, e, x[k, j, b], window.position[k, b], window.mask[k, b])
                # Float32 through two layers with weights of unit scale.
                torch.testing.assert_close(got[k, j, b], want, rtol=1e-4, atol=1e-4)


def loop_transformer(transformer, e, x, position, mask):
    """One sequence, one head at a time, from the equations."""
    norm = transformer.norm
    x = F.layer_norm(x + transformer.positions[e][position], (16,), norm.weight[e], norm.bias[e], 1e-6)
    for block in transformer.blocks:
        q, k, v = (x @ layer.weight[e].T for layer in (block.query, block.key, block.value))
        heads = []
        for h in range(2):
            part = slice(8 * h, 8 * h + 8)
            score = (q[:, part] @ k[:, part].T / 8**0.5).masked_fill(~mask, -torch.inf)
            heads.append(score.softmax(dim=-1) @ v[:, part])
        attended = torch.cat(heads, dim=-1) @ block.output.weight[e].T
        norm = block.attention_norm
        x = F.layer_norm(x + attended, (16,), norm.weight[e], norm.bias[e], 1e-6)
        hidden = (x @ block.expand.weight[e].T + block.expand.bias[e]).relu()
        forward = hidden @ block.contract.weight[e].T + block.contract.bias[e]
        norm = block.feedforward_norm
        x = F.layer_norm(x + forward, (16,), norm.weight[e], norm.bias[e], 1e-6)
    return x


def test_the_future_and_other_episodes_are_not_seen():
    transformer = Transformer(3, 2, MODEL).eval()
    x = torch.randn(2, 2, 1, 6, 16)
    window = episode_window(firsts([1, 0, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0]))
    before = transformer(x, PLAN, window)
    changed = x.clone()
    changed[:, :, :, 2] += 1.0
    after = transformer(changed, PLAN, window)
    same = (after - before).abs().amax(dim=(1, 2, 4)) == 0  # [K, L]
    assert same[0].tolist() == [True, True, False, True, True, True]  # the new episode at 3 does not see 2
    assert same[1].tolist() == [True, True, False, False, False, False]


def test_cache_equals_the_full_forward_whatever_the_chunks():
    transformer = Transformer(3, 2, MODEL).eval()
    x = torch.randn(2, 2, 3, 7, 16)
    is_first = torch.rand(2, 3, 7) < 0.2
    is_first[:, :, 0] = True
    window = episode_window(is_first)
    want = transformer(x, PLAN, window)
    for cuts in ([4, 5, 6, 7], [1, 7], list(range(1, 8))):
        cache = transformer.new_cache((2, 2, 3), 7)
        parts, start = [], 0
        for stop in cuts:
            parts.append(transformer(x[..., start:stop, :], PLAN, window.rows(start, stop), cache))
            start = stop
        # Float32: the same sums over shorter rows.
        torch.testing.assert_close(torch.cat(parts, dim=3), want, rtol=1e-5, atol=1e-5)


def test_dropout_acts_only_in_training():
    transformer = Transformer(3, 1, dataclasses.replace(MODEL, dropout=0.5))
    x, window = torch.randn(2, 2, 1, 4, 16), episode_window(firsts([1, 0, 0, 0], [1, 0, 0, 0]))
    assert not torch.equal(transformer(x, PLAN, window), transformer(x, PLAN, window))
    transformer.eval()
    assert torch.equal(transformer(x, PLAN, window), transformer(x, PLAN, window))


def test_a_single_step_in_training_drops_attention_too(monkeypatch):
    monkeypatch.setattr(Block, "_drop", lambda self, x: x)
    transformer = Transformer(3, 1, dataclasses.replace(MODEL, dropout=0.5))
    x, window = torch.randn(2, 2, 3, 1, 16), episode_window(torch.ones(2, 3, 1, dtype=torch.bool))

    def step():
        return transformer(x, PLAN, window, transformer.new_cache((2, 2, 3), 1))

    assert not torch.equal(step(), step())
    transformer.eval()
    assert torch.equal(step(), step())
