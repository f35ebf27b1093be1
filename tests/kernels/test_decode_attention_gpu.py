"""Decode attention on a GPU: against float64, in a captured rollout, compiled, and through the Transformer."""

import pytest
import torch

from mow.kernels import RoutePlan, decode_attention, dispatch
from mow.nn.transformer import Transformer, episode_window
from tests.decode_attention_cases import TOLERANCE, in_float64, random_step, relative_error
from tests.small import MODEL

pytestmark = pytest.mark.gpu

SHAPES = [(2, 2, 39, 8, 64), (3, 1, 13, 4, 32), (1, 2, 5, 3, 24), (1, 1, 2, 1, 128)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("position", [0, 1, 2, 3, 4, 5, 23])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_against_float64(shape: tuple[int, int, int, int, int], position: int, dtype: torch.dtype) -> None:
    step = random_step(shape, position, 24, dtype, "cuda")
    arguments = step.arguments()
    got = decode_attention(*arguments, backend="triton")
    want, keys, values = in_float64(step)
    assert got.dtype == dtype
    assert relative_error(got, want) < TOLERANCE[dtype]
    assert got[0, :, 0].abs().sum() == 0  # sees nothing
    assert torch.equal(arguments[3].double().nan_to_num(7.0), keys.nan_to_num(7.0))
    assert torch.equal(arguments[4].double().nan_to_num(7.0), values.nan_to_num(7.0))


def test_more_than_two_to_the_31_numbers() -> None:
    """The last row of a cache of 8.6 GB: its address does not fit into 32 bits."""
    shape, capacity = (26, 2, 1280, 8, 64), 64
    free, _ = torch.cuda.mem_get_info()
    if free < 20e9:
        pytest.skip("needs 20 GB of free GPU memory")
    keys = torch.ones(*shape[:4], capacity, shape[4], dtype=torch.bfloat16, device="cuda")
    assert keys.numel() > 2**31
    values = torch.ones_like(keys)
    values[-1, -1, -1, -1, :4] = 3.0
    query, key, value = (torch.ones(shape, dtype=torch.bfloat16, device="cuda") for _ in range(3))
    mask = torch.ones(26, 1280, 5, dtype=torch.bool, device="cuda")
    got = decode_attention(query, key, value, keys, values, mask, 4, backend="triton")
    # Equal scores: the mean of 3, 3, 3, 3, 1 = 2.6 in bf16 for the last row, 1 for the one before.
    assert got[-1, -1, -1, -1].float().sub(2.6).abs().max() < 0.01
    assert got[-1, -1, -1, -2].float().sub(1.0).abs().max() == 0


def test_strided_tokens() -> None:
    step = random_step((2, 2, 13, 4, 32), 5, 9, torch.bfloat16, "cuda")
    wide = torch.cat([step.query, step.key, step.value], dim=-1)
    query, key, value = wide.split(32, dim=-1)
    got = decode_attention(query, key, value, *step.arguments()[3:], backend="triton")
    assert torch.equal(got, decode_attention(*step.arguments(), backend="triton"))


def test_a_captured_rollout_replays_on_new_numbers() -> None:
    """Twelve steps in one graph; each launch carries its own position, tokens and masks are read anew."""
    shape, capacity = (2, 2, 13, 4, 32), 12
    steps = [random_step(shape, position, capacity, torch.bfloat16, "cuda") for position in range(capacity)]
    keys, values = steps[0].keys, steps[0].values

    def rollout() -> list[torch.Tensor]:
        return [
            decode_attention(s.query, s.key, s.value, keys, values, s.mask, s.position, backend="triton") for s in steps
        ]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles whatever is to be compiled
        rollout()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = rollout()
    for step in steps:
        for tensor in (step.query, step.key, step.value):
            tensor.copy_(torch.randn_like(tensor))
    for tensor in (keys, values, *captured):
        tensor.fill_(torch.nan)
    graph.replay()
    torch.cuda.synchronize()
    replayed = [output.clone() for output in captured]
    keys.fill_(torch.nan)
    values.fill_(torch.nan)
    for got, want in zip(replayed, rollout(), strict=True):
        assert torch.equal(got, want)
        assert not got.isnan().any()


def test_one_graph_under_compile() -> None:
    step = random_step((2, 2, 13, 4, 32), 5, 9, torch.bfloat16, "cuda")
    torch.compiler.reset()
    arguments, again = step.arguments(), step.arguments()
    got = torch.compile(decode_attention, fullgraph=True)(*arguments, backend="triton")
    want = decode_attention(*again, backend="triton")
    assert torch.equal(got, want)
    assert torch.equal(arguments[3][..., :6, :], again[3][..., :6, :])


def test_the_transformer_s_rollout_takes_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_CHOSEN", {})
    torch.backends.cuda.matmul.allow_tf32 = False
    transformer = Transformer(3, 2, MODEL).eval().cuda()
    plan = RoutePlan(torch.tensor([[1, 2], [0, 1]], device="cuda"), 3)
    x = torch.randn(2, 2, 3, 7, 16, device="cuda")
    window = episode_window(torch.rand(2, 3, 7, device="cuda") < 0.2)
    with torch.no_grad():
        want = transformer(x, plan, window)
        cache = transformer.new_cache((2, 2, 3), 7)
        parts = [transformer(x[..., t : t + 1, :], plan, window.rows(t, t + 1), cache) for t in range(7)]
    chosen = {key[0]: name for key, name in dispatch._CHOSEN.items()}
    assert chosen["decode_attention"] == "triton"
    # Float32: the same sums over shorter rows.
    torch.testing.assert_close(torch.cat(parts, dim=3), want, rtol=1e-4, atol=1e-4)


def test_the_other_device() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    step = random_step((2, 2, 5, 4, 32), 5, 9, torch.float32, "cuda:1")
    with torch.cuda.device(0):
        got = decode_attention(*step.arguments(), backend="triton")
    assert relative_error(got, in_float64(step)[0]) < TOLERANCE[torch.float32]
