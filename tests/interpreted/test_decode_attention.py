"""The decode attention kernel under the interpreter against float64; what it must not read is NaN."""

import inspect
from dataclasses import replace

import pytest
import torch

from mow.kernels import decode_attention
from mow.kernels.decode_attention_triton import decode_attention_triton, tile_of
from tests.decode_attention_cases import TOLERANCE, in_float64, random_step, relative_error

# Heads of 5 and 24 are padded to 8 and 32; 36 rows of 24 float32 numbers are three programs, the last one not full.
SHAPES = [(2, 1, 3, 2, 8), (3, 2, 3, 2, 24), (1, 2, 3, 3, 5), (1, 1, 2, 1, 64)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("position", [0, 1, 2, 23])
def test_against_float64(shape: tuple[int, int, int, int, int], position: int) -> None:
    check(shape, position, torch.float32)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_dtypes(dtype: torch.dtype) -> None:
    check((2, 2, 3, 2, 24), 11, dtype)


def check(shape: tuple[int, int, int, int, int], position: int, dtype: torch.dtype) -> None:
    step = random_step(shape, position, 24, dtype)
    arguments = step.arguments()
    got = decode_attention(*arguments, backend="triton")
    want, keys, values = in_float64(step)
    assert got.dtype == dtype
    assert relative_error(got, want) < TOLERANCE[dtype]
    assert got[0, :, 0].abs().sum() == 0  # sees nothing
    # Only the new row was written. NaN is not equal to itself.
    assert torch.equal(arguments[3].double().nan_to_num(7.0), keys.nan_to_num(7.0))
    assert torch.equal(arguments[4].double().nan_to_num(7.0), values.nan_to_num(7.0))


def test_several_programs_are_tested() -> None:
    block_rows, block_size = tile_of(24, 4)
    assert (block_rows, block_size) == (16, 32)
    assert 3 * 2 * 3 * 2 % block_rows != 0 < block_rows < 3 * 2 * 3 * 2


def test_strided_tokens_and_expanded_masks() -> None:
    step = random_step((2, 2, 3, 2, 8), 5, 9)
    wide = torch.cat([step.query, step.key, step.value], dim=-1)
    query, key, value = wide.split(8, dim=-1)
    causal = torch.ones(1, 1, 6, dtype=torch.bool)
    causal[..., 2] = False
    cache = step.arguments()[3:5]
    got = decode_attention(query, key, value, *cache, causal.expand(2, 3, 6), 5, backend="triton")
    want = decode_attention(*step.arguments()[:5], causal.expand(2, 3, 6), 5, backend="reference")
    # Two float32 softmax in another order.
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_masks_whose_tokens_lie_apart() -> None:
    step = random_step((2, 2, 3, 2, 8), 9, 12)
    step = replace(step, mask=step.mask.mT.contiguous().mT)
    assert step.mask.stride(-1) == 3
    got = decode_attention(*step.arguments(), backend="triton")
    assert relative_error(got, in_float64(step)[0]) < TOLERANCE[torch.float32]


def test_what_is_not_seen_does_not_drown_what_is() -> None:
    """Hidden scores of thousands, above which the weights of what is seen would vanish in float32."""
    step = random_step((2, 2, 3, 2, 8), 9, 12)
    step.mask[..., [3, 9]] = False
    step = replace(step, key=1000 * step.query)
    step.keys[..., 3, :] = 1000 * step.query
    got = decode_attention(*step.arguments(), backend="triton")
    seen = replace(step, key=torch.zeros_like(step.key))
    seen.keys[..., 3, :] = 0.0
    assert relative_error(got, in_float64(seen)[0]) < TOLERANCE[torch.float32]


def test_no_sequences_is_no_launch() -> None:
    step = random_step((2, 2, 1, 2, 8), 1, 3)
    tensors = {name: getattr(step, name)[:, :, :0] for name in ("query", "key", "value", "keys", "values")}
    empty = replace(step, mask=step.mask[:, :0], **tensors)
    assert decode_attention(*empty.in_place(), backend="triton").shape == (2, 2, 0, 2, 8)


def test_signatures_agree() -> None:
    door, kernel = (inspect.signature(f) for f in (decode_attention, decode_attention_triton))
    assert [p for name, p in door.parameters.items() if name != "backend"] == list(kernel.parameters.values())
    assert door.return_annotation == kernel.return_annotation


@pytest.mark.parametrize("position", [0, 4])
def test_the_library_agrees(position: int) -> None:
    """Schema (which arguments are written), fake tensors and dispatch, as torch checks them."""
    step = random_step((2, 1, 3, 2, 8), position, 6)
    # The cache without NaN: opcheck compares what was not to be written, and NaN differs from itself.
    keys, values = (x.nan_to_num() for x in step.arguments()[3:5])
    arguments = (step.query, step.key, step.value, keys, values, step.mask, position)
    torch.library.opcheck(torch.ops.mow.decode_attention.default, arguments)


def test_one_graph_under_compile() -> None:
    step = random_step((2, 1, 3, 2, 8), 4, 6)
    torch.compiler.reset()

    arguments = step.arguments()
    got = torch.compile(decode_attention, backend="aot_eager", fullgraph=True)(*arguments, backend="triton")
    again = step.arguments()
    assert torch.equal(got, decode_attention(*again, backend="triton"))
    assert torch.equal(arguments[3][..., :5, :], again[3][..., :5, :])  # the append reaches the caller's cache


def test_one_graph_for_all_positions() -> None:
    """As a compiled rollout calls it: the mask alone says where the token stands, also in the last row of the cache."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()

    def step_at(*tensors: torch.Tensor) -> torch.Tensor:
        return decode_attention(*tensors, tensors[5].shape[-1] - 1, backend="triton")

    compiled = torch.compile(step_at, backend="aot_eager", fullgraph=True, dynamic=False)
    for position in (2, 4, 5):
        step = random_step((2, 1, 3, 2, 8), position, 6)
        tensors = step.arguments()[:6]
        torch._dynamo.maybe_mark_dynamic(tensors[5], 2)
        got = compiled(*tensors)
        assert torch.equal(got, decode_attention(*step.arguments(), backend="triton"))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
