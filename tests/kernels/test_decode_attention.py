"""One step of attention with its append: numbers worked by hand, attention in float64, the general path, the checks."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from mow.kernels import RoutePlan, decode_attention, dispatch
from mow.nn.transformer import Block, Transformer, episode_window
from tests.decode_attention_cases import TOLERANCE, in_float64, random_step, relative_error
from tests.small import MODEL

SHAPE = (2, 3, 4, 2, 5)  # [K, J, B, heads, d]


def test_by_hand() -> None:
    """Scores 0 and ln 3 give weights 1/4 and 3/4 on the values 2 and 6."""

    def number(x: float) -> torch.Tensor:
        return torch.full((1, 1, 1, 1, 1), x)

    keys, values = torch.full((1, 1, 1, 1, 3, 1), torch.nan), torch.full((1, 1, 1, 1, 3, 1), torch.nan)
    keys[..., 0, :], values[..., 0, :] = 0.0, 2.0
    mask = torch.ones(1, 1, 2, dtype=torch.bool)
    got = decode_attention(number(1.0), number(math.log(3.0)), number(6.0), keys, values, mask, 1)
    assert got.item() == pytest.approx(5.0, rel=1e-6)  # float32
    assert values.flatten()[:2].tolist() == [2.0, 6.0]
    assert keys.flatten()[1].item() == pytest.approx(math.log(3.0), rel=1e-6)
    assert keys.flatten()[2].isnan()
    assert values.flatten()[2].isnan()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("position", [0, 1, 6])
def test_against_float64(dtype: torch.dtype, position: int) -> None:
    step = random_step(SHAPE, position, 7, dtype)
    arguments = step.arguments()
    got = decode_attention(*arguments)
    want, keys, values = in_float64(step)
    assert got.dtype == dtype
    assert got.is_contiguous()
    assert relative_error(got, want) < TOLERANCE[dtype]
    assert got[0, :, 0].abs().sum() == 0  # sees nothing
    # The new row is a copy, the others stay as they were.
    assert torch.equal(arguments[3].double().nan_to_num(7.0), keys.nan_to_num(7.0))
    assert torch.equal(arguments[4].double().nan_to_num(7.0), values.nan_to_num(7.0))


def test_strided_tokens() -> None:
    """Slices of one wide projection, as a fused query-key-value layer would give them."""
    step = random_step(SHAPE, 3, 7)
    wide = torch.cat([step.query, step.key, step.value], dim=-1)
    query, key, value = wide.split(SHAPE[-1], dim=-1)
    assert not query.is_contiguous()
    got = decode_attention(query, key, value, *step.arguments()[3:])
    assert torch.equal(got, decode_attention(*step.arguments()))


def test_is_the_general_path_to_the_last_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rollout by single steps is what it was before single steps had an op of their own."""
    transformer = Transformer(3, 2, MODEL).eval()
    plan = RoutePlan(torch.tensor([[1, 2], [0, 1]]), 3)
    x = torch.randn(2, 2, 3, 7, 16)
    is_first = torch.rand(2, 3, 7) < 0.2
    window = episode_window(is_first)
    general = Block._attend

    def rollout() -> torch.Tensor:
        cache, parts, start = transformer.new_cache((2, 2, 3), 7), [], 0
        for stop in (3, 4, 5, 6, 7):
            parts.append(transformer(x[..., start:stop, :], plan, window.rows(start, stop), cache))
            start = stop
        return torch.cat(parts, dim=3)

    def attend(self: Block, rows: Any, plan: Any, mask: Any, cache: Any, layer: int) -> torch.Tensor:
        self.train()  # whose dropout of 0 changes nothing, but training takes the general path
        return general(self, rows, plan, mask, cache, layer)

    calls = []
    with torch.no_grad():
        got = rollout()
        monkeypatch.setattr("mow.nn.transformer.decode_attention", lambda *args: calls.append(args))
        for block in transformer.blocks:
            assert isinstance(block, Block)
            block.dropout = 0.0
        monkeypatch.setattr(Block, "_attend", attend)
        want = rollout()
    assert calls == []
    assert torch.equal(got, want)


def test_gradients_are_the_reference_s_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_ON_CPU", ("triton", "reference"))
    step = random_step(SHAPE, 3, 7, torch.float64)
    query = step.query.clone().requires_grad_()
    with pytest.raises(ValueError, match="has no backend 'triton' here: choose 'auto' or 'reference'"):
        decode_attention(query, *step.arguments()[1:], backend="triton")

    def output(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return decode_attention(query, key, value, *step.arguments()[3:])

    inputs = tuple(x.clone().requires_grad_() for x in (step.query, step.key, step.value))
    assert torch.autograd.gradcheck(output, inputs)


def test_one_graph_under_compile() -> None:
    step = random_step(SHAPE, 3, 7)
    torch.compiler.reset()
    compiled = torch.compile(decode_attention, backend="eager", fullgraph=True)
    arguments = step.arguments()
    assert torch.equal(compiled(*arguments), decode_attention(*step.arguments()))
    assert torch.equal(arguments[3][..., 3, :], step.key)


def test_missing_backend_is_an_error() -> None:
    with pytest.raises(ValueError, match="decode_attention has no backend 'nonesuch' here: choose 'auto' or 'refer"):
        decode_attention(*random_step(SHAPE, 3, 7).arguments(), backend="nonesuch")  # type: ignore[arg-type]


GOOD = random_step(SHAPE, 3, 7)
BAD: dict[str, dict[str, Any]] = {
    "position must be in \\[0, 7\\), got 7": {"position": 7},
    "position must be in \\[0, 7\\), got -1": {"position": -1},
    "keys and values must be contiguous .*preallocate both alike": {"keys": GOOD.keys[0]},
    "and \\[2, 3, 4, 2, 7, 5\\] with \\(840, 280, 70, 35, 1, 7\\)": {"values": GOOD.values.mT.contiguous().mT},
    "query, key and value must be \\[2, 3, 4, 2, 5\\] .*\\[2, 3, 4, 2, 1, 5\\]": {"query": GOOD.query.unsqueeze(4)},
    "to fit the cache, got \\[2, 3, 4, 2, 5\\], \\[2, 3, 4, 2, 4\\]": {"key": GOOD.key[..., :4]},
    "and \\[2, 3, 4, 1, 5\\]: give one token per sequence": {"value": GOOD.value[:, :, :, :1]},
    "mask must be bool \\[2, 4, 4\\] .*got torch.bool \\[2, 4, 3\\]": {"mask": GOOD.mask[..., :3]},
    "got torch.float32 \\[2, 4, 4\\]: cut the row": {"mask": GOOD.mask.float()},
    "share one floating dtype, got torch.float64, torch.float32": {"query": GOOD.query.double()},
    "share one floating dtype, .*float32, torch.float16: convert": {"values": GOOD.values.half()},
    "all tensors must be on one device, got cpu, cpu, cpu, cpu, cpu, meta": {"mask": GOOD.mask.to("meta")},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_an_error_before_anything_is_written(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_attention(*replace(GOOD, **BAD[message]).in_place())
    assert GOOD.keys[..., 3, :].isnan().all()
    assert GOOD.values[..., 3, :].isnan().all()


def test_no_other_dtypes() -> None:
    names = ("query", "key", "value", "keys", "values")
    whole = replace(GOOD, **{name: getattr(GOOD, name).nan_to_num().long() for name in names})
    with pytest.raises(ValueError, match=r"share one floating dtype, got torch\.int64"):
        decode_attention(*whole.in_place())
