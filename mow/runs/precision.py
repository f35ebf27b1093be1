"""Weights in fewer bytes: float16, or int8 with scales for every output channel of a matrix.

    s = max |w| / 127 over 32 inputs of a channel,   q = floor(w / s) in -127 .. 126,   w_hat = (q + 1/2) s

So |w - w_hat| <= s / 2, which is at most max |w_c| / 254 of the whole channel c: columns of actions are larger than the
others, and with one scale a channel would lose what the others hold. The levels lie at half steps: rounding to whole
ones turns the smallest weights, about 1 in 100, into 0. A weight of exactly 0 is q = -128 and stays 0. Norms, biases
and tables are float16 beside int8 too.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

Precision = Literal["fp32", "fp16", "int8"]
_SCALE = ":scale"  # behind the name of an int8 tensor
_ZERO = -128
_BLOCK = 32  # inputs of a channel that share a scale


def compact(tensors: Mapping[str, Tensor], precision: Precision) -> dict[str, Tensor]:
    """Tensors as they are stored. Raises: ValueError for a number that float16 cannot hold."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if precision == "fp32" or not tensor.is_floating_point():
            found[name] = tensor
        elif precision == "int8" and is_matrix(name, tensor):
            found[name], found[name + _SCALE] = quantise(tensor)
        else:
            found[name] = tensor.half()
        if not found[name].isfinite().all():
            raise ValueError(f"{name} holds numbers beyond the range of float16: take --precision fp32")
    return found


def expand(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """float32 of what `compact` returned."""
    found = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    for name in [name for name in found if name.endswith(_SCALE)]:
        whole = name.removesuffix(_SCALE)
        found[whole] = dequantise(found[whole], found.pop(name))
    return found


def is_matrix(name: str, tensor: Tensor) -> bool:
    """True for the weight [O, I] of a layer, or several [N, O, I]; a stack of norms [N, 1, W] is none."""
    return name.endswith("weight") and (tensor.dim() == 2 or (tensor.dim() == 3 and tensor.shape[1] > 1))


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[..., O, I] -> q int8 [..., O, I], s float32 [..., O, ceil(I / 32)]."""
    size = pad(weight.float().abs(), (0, -weight.shape[-1] % _BLOCK))
    scale = size.unflatten(-1, (-1, _BLOCK)).amax(dim=-1) / 127
    level = (weight / _per_weight(scale, weight)).floor().clamp(-127, 126)
    return torch.where(weight == 0, _ZERO, level).to(torch.int8), scale


def dequantise(level: Tensor, scale: Tensor) -> Tensor:
    """w_hat float32, of what `quantise` returned."""
    return torch.where(level == _ZERO, 0.0, (level.float() + 0.5) * _per_weight(scale, level))


def _per_weight(scale: Tensor, weight: Tensor) -> Tensor:
    """[..., O, ceil(I / 32)] -> [..., O, I]."""
    return scale.repeat_interleave(_BLOCK, dim=-1)[..., : weight.shape[-1]]
