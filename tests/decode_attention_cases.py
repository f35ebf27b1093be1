"""Rollouts for the tests of decode_attention, and attention written out in float64."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

Arguments = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int]


@dataclass(frozen=True)
class Step:
    """Everything that one call takes."""

    query: Tensor
    key: Tensor
    value: Tensor
    keys: Tensor
    values: Tensor
    mask: Tensor
    position: int

    def in_place(self) -> Arguments:
        """In the order of the op."""
        return self.query, self.key, self.value, self.keys, self.values, self.mask, self.position

    def arguments(self) -> Arguments:
        """The same with a copy of the cache, so that a step can be taken twice."""
        return replace(self, keys=self.keys.clone(), values=self.values.clone()).in_place()


def random_step(
    shape: tuple[int, int, int, int, int],
    position: int,
    capacity: int,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Step:
    """`shape` is [K, J, B, heads, d]. Rows from `position` on are NaN: reading one before it is written shows.

    Every mask row is a strided view. Some tokens do not see themselves, the first sequence of all sees nothing.
    """
    *outer, size = shape
    query, key, value = (torch.randn(shape).to(device, dtype) for _ in range(3))
    keys, values = (torch.randn(*outer, capacity, size).to(device, dtype) for _ in range(2))
    keys[..., position:, :] = torch.nan
    values[..., position:, :] = torch.nan
    seen = torch.rand(shape[0], shape[2], capacity, capacity, device=device) < 0.7
    seen[0, 0] = False
    seen[:, -1, position, position] = True
    return Step(query, key, value, keys, values, seen[:, :, position, : position + 1], position)


def in_float64(step: Step) -> tuple[Tensor, Tensor, Tensor]:
    """Output and both caches of a step, from the equation."""
    query, key, value, keys, values = (x.double() for x in step.arguments()[:5])
    keys[..., step.position, :] = key
    values[..., step.position, :] = value
    seen_keys, seen_values = (x[..., : step.position + 1, :] for x in (keys, values))
    score = (query.unsqueeze(-2) * seen_keys).sum(dim=-1) / query.shape[-1] ** 0.5  # [K, J, B, heads, t]
    sees = step.mask[:, None, :, None]
    weight = torch.where(sees, score.exp(), 0.0)
    total = weight.sum(dim=-1, keepdim=True)
    weight = torch.where(total > 0, weight / total, 0.0)
    return (weight.unsqueeze(-1) * seen_values).sum(dim=-2), keys, values


def relative_error(got: Tensor, want: Tensor) -> float:
    """Frobenius norm of the difference over that of `want`; not a number if a number is missing."""
    return float((got.double() - want).norm() / want.norm())


# Relative error against float64 of the same rounded inputs: a few units in the last place of the output's dtype.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
