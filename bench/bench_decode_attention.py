"""One step of attention with its append beside plain PyTorch.  python -m bench -k decode_attention

Peers, all with the masks that episodes need:
- torch.cat: the cache grows by concatenation, then scaled_dot_product_attention.
- slices: a preallocated cache, the new row written in place, scaled_dot_product_attention on the part in use.
The context of a rollout is 8 tokens and its horizon 16: the first, the middle and the last step.
"""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench import floors
from bench.floors import DecodeShape
from bench.race import TOLERANCE, Race, close_to, dtype_of
from mow.kernels import decode_attention

SHAPES = [DecodeShape(4, 2, 16, 4, 32, position) for position in (2, 9)]
if torch.cuda.is_available():
    SHAPES = [DecodeShape(26, 2, 1024, 8, 64, position) for position in (8, 16, 23)]
    SHAPES += [DecodeShape(26, 2, 39, 8, 64, position) for position in (8, 23)]
_CAPACITY = 24


@dataclass(frozen=True)
class Step:
    position: int
    query: Tensor  # [K, J, B, heads, d]
    key: Tensor
    value: Tensor
    keys: Tensor  # [K, J, B, heads, capacity, d]
    values: Tensor
    grown_keys: Tensor  # [K, J, B, heads, position, d], what a cache that grows would hold
    grown_values: Tensor
    mask: Tensor  # [K, B, position + 1]
    pairs_mask: Tensor  # [K * J * B, 1, 1, position + 1]


def make_step(shape: DecodeShape, device: str) -> tuple[Step]:
    dtype = dtype_of(device)
    token = (shape.K, shape.J, shape.B, shape.heads, shape.d)
    query, key, value = (torch.randn(token, device=device, dtype=dtype) for _ in range(3))
    cache = (*token[:4], _CAPACITY, shape.d)
    keys, values = (torch.randn(cache, device=device, dtype=dtype) for _ in range(2))
    # One window in eight holds the start of an episode.
    first = torch.randint(0, 8 * _CAPACITY, (shape.K, shape.B, 1), device=device)
    first = torch.where(first <= shape.position, first, 0)
    mask = torch.arange(shape.position + 1, device=device) >= first
    step = Step(
        position=shape.position,
        query=query,
        key=key,
        value=value,
        keys=keys,
        values=values,
        grown_keys=keys[..., : shape.position, :].contiguous(),
        grown_values=values[..., : shape.position, :].contiguous(),
        mask=mask,
        pairs_mask=mask[:, None, :, None, None].expand(-1, shape.J, -1, -1, -1, -1).flatten(0, 2),
    )
    return (step,)


def _attend(step: Step, keys: Tensor, values: Tensor) -> Tensor:
    query = step.query.flatten(0, 2).unsqueeze(-2)
    attended = F.scaled_dot_product_attention(
        query, keys.flatten(0, 2), values.flatten(0, 2), attn_mask=step.pairs_mask
    )
    return attended.view(step.query.shape)


def growing(step: Step) -> Tensor:
    keys = torch.cat([step.grown_keys, step.key.unsqueeze(-2)], dim=-2)
    values = torch.cat([step.grown_values, step.value.unsqueeze(-2)], dim=-2)
    return _attend(step, keys, values)


def slices(step: Step) -> Tensor:
    step.keys[..., step.position, :] = step.key
    step.values[..., step.position, :] = step.value
    stop = step.position + 1
    return _attend(step, step.keys[..., :stop, :], step.values[..., :stop, :])


def check(output: Tensor, inputs: tuple[Step]) -> None:
    """In parts of one task each: float64 copies of a whole cache would not fit a small GPU."""
    (step,) = inputs
    for task in range(step.query.shape[0]):
        query, key, value = (x[task].double() for x in (step.query, step.key, step.value))
        keys = torch.cat([step.grown_keys[task].double(), key.unsqueeze(-2)], dim=-2)
        values = torch.cat([step.grown_values[task].double(), value.unsqueeze(-2)], dim=-2)
        score = (keys @ query.unsqueeze(-1)).squeeze(-1) * query.shape[-1] ** -0.5  # [J, B, heads, position + 1]
        weight = score.masked_fill(~step.mask[task][None, :, None], -torch.inf).softmax(dim=-1)
        close_to((weight.unsqueeze(-2) @ values).squeeze(-2), output[task], TOLERANCE[output.dtype])
    for cache, new in ((step.keys, step.key), (step.values, step.value)):
        assert torch.equal(cache[..., step.position, :], new), "the new row is not in the cache"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_step(race: Race, shape: DecodeShape) -> None:
    @torch.no_grad()
    def subject(step: Step) -> Tensor:
        cached = step.keys, step.values, step.mask, step.position
        return decode_attention(step.query, step.key, step.value, *cached, backend=race.backend)

    race.run(
        subject,
        {"torch.cat": growing, "slices": slices},
        make=partial(make_step, shape, race.device.kind),
        check=check,
        work=floors.decode_attention(shape, race.itemsize),
    )
