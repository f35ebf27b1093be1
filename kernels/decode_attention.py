"""One step of attention in a rollout: the newest token joins the cache of keys and values and looks back at it."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mow.kernels.dispatch import Backend, backends, choose


def decode_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    position: int,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Write one key and value per head into the cache, then attend from the query to all that it may see.

        keys[p] = k,   values[p] = v,   o = sum_t a_t values[t],   a = softmax(q . keys[t] / sqrt(d)) over seen t <= p

    The position is a number of the host. A CUDA graph is therefore captured over a whole rollout, where every step is a
    launch of its own and carries its own position; a captured single step would write to the same row at every replay.

    Args:
        query: [K, J, B, heads, d] of the new token, d = D / heads.
        key: [K, J, B, heads, d].
        value: [K, J, B, heads, d].
        keys: [K, J, B, heads, capacity, d], contiguous; rows before `position` are read, row `position` is written.
        values: as keys.
        mask: [K, B, position + 1] bool, True where the token sees; the same for all slots and heads. A token that sees
            nothing, not even itself, gets zeros.
        position: number of tokens already in the cache.
        backend: "auto", or the name of an implementation. While gradients are recorded there is the reference alone:
            the kernel has no backward, because no rollout asks for one.
    Returns: [K, J, B, heads, d] in the dtype of the query, contiguous.
    Raises: ValueError if shapes, dtypes or devices do not fit the cache, the cache is full, or it is not contiguous.
    Source: MoW (key-value cache in imagination); scaled dot-product attention as Vaswani et al., 2017.
    """
    _check(query, key, value, keys, values, mask, position)
    recorded = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value, keys, values))
    available = ("reference",) if recorded else backends(query)
    if choose("decode_attention", backend, available) == "triton":
        from mow.kernels.decode_attention_triton import decode_attention_triton

        return decode_attention_triton(query, key, value, keys, values, mask, position)
    return _reference(query, key, value, keys, values, mask, position)


def _check(
    query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, mask: Tensor, position: int
) -> None:
    # Plain comparisons in a row: a rollout passes here at every step and layer.
    shape = keys.shape
    if len(shape) != 6 or values.shape != shape or not (keys.is_contiguous() and values.is_contiguous()):
        raise ValueError(
            "keys and values must be contiguous [K, J, B, heads, capacity, d], got "
            f"{list(shape)} with strides {keys.stride()} and {list(values.shape)} with {values.stride()}: "
            "preallocate both alike"
        )
    num_tasks, num_slots, num_sequences, num_heads, capacity, size = shape
    if not 0 <= position < capacity:
        raise ValueError(f"position must be in [0, {capacity}), got {position}: make the cache as long as the rollout")
    token = (num_tasks, num_slots, num_sequences, num_heads, size)
    if not (token == query.shape == key.shape == value.shape):
        raise ValueError(
            f"query, key and value must be {list(token)} to fit the cache, got "
            f"{list(query.shape)}, {list(key.shape)} and {list(value.shape)}: give one token per sequence"
        )
    if mask.shape != (num_tasks, num_sequences, position + 1) or mask.dtype != torch.bool:
        raise ValueError(
            f"mask must be bool [{num_tasks}, {num_sequences}, {position + 1}] (tasks, sequences, tokens so far), "
            f"got {mask.dtype} {list(mask.shape)}: cut the row of the new token up to itself"
        )
    dtype = keys.dtype
    if not (dtype == query.dtype == key.dtype == value.dtype == values.dtype and dtype.is_floating_point):
        found = ", ".join(str(tensor.dtype) for tensor in (query, key, value, keys, values))
        raise ValueError(f"query, key, value, keys and values must share one floating dtype, got {found}: convert them")
    if not (keys.device == query.device == key.device == value.device == values.device == mask.device):
        found = ", ".join(str(tensor.device) for tensor in (query, key, value, keys, values, mask))
        raise ValueError(f"all tensors must be on one device, got {found}: move them")


def _reference(
    query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, mask: Tensor, position: int
) -> Tensor:
    keys.select(-2, position).copy_(key)
    values.select(-2, position).copy_(value)
    stop = position + 1
    pairs_mask = mask[:, None, :, None, None].expand(-1, keys.shape[1], -1, -1, -1, -1)  # [K, J, B, 1, 1, stop]
    # Cut after the axes are joined: the other way round, a compiler sees a full cache as a case of its own.
    attended = F.scaled_dot_product_attention(
        query.flatten(0, 2).unsqueeze(-2),
        keys.flatten(0, 2).narrow(-2, 0, stop),
        values.flatten(0, 2).narrow(-2, 0, stop),
        attn_mask=pairs_mask.flatten(0, 2),
    )  # [K * J * B, heads, 1, d]
    return attended.view(query.shape)
