"""The causal Transformer, stacked on an expert axis, and its cache for imagination.

Every (task, slot) pair runs through its own expert's weights; attention itself has none, so all sequences of
all pairs share one attention call. Layers are post-norm. Source: STORM (layer form), MoW section 3 (stacking).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mow.kernels import RoutePlan, decode_attention, expert_linear
from mow.nn.activation_checkpoint import Call, plain_call
from mow.nn.modular import ModularLayerNorm, ModularLinear, for_matmul
from mow.nn.weight_cache import cached, gathers, is_active

Sizes = Any  # a config with width (D), num_heads, feedforward, dropout and max_positions


class Window(NamedTuple):
    """Attention mask of a window of tokens, and the position of each token in its episode."""

    position: Tensor  # [K, B, L] int64, steps since the window or the episode began
    mask: Tensor  # [K, B, L, L] bool, query x key

    def rows(self, start: int, stop: int) -> "Window":
        """The view of tokens start..stop-1 on all tokens up to stop-1."""
        return Window(self.position[:, :, start:stop], self.mask[:, :, start:stop, :stop])


def episode_window(is_first: Tensor, *, across_episodes: bool = False) -> Window:
    """Causal attention inside an episode: token i sees token j when j <= i and no episode starts in (j, i].

    Positions restart with the episode, so a token stands where it will stand when the agent acts with a fresh context.
    Differs: STORM's windows attend across episode ends and count on; `across_episodes` restores that.

    Args: is_first: [K, B, L] bool.
    """
    length = is_first.shape[-1]
    index = torch.arange(length, device=is_first.device)
    causal = index[None, :] <= index[:, None]  # [L, L]
    if across_episodes:
        return Window(index.expand(is_first.shape), causal.expand(*is_first.shape, length))
    episode = is_first.cumsum(dim=-1)  # [K, B, L]
    mask = causal & (episode[..., :, None] == episode[..., None, :])
    start = torch.where(is_first, index, 0).cummax(dim=-1).values
    return Window(index - start, mask)


class AttentionCache:
    """Projected keys and values of all layers, preallocated for a whole rollout; rows are written in place.

    The number of tokens in it is that of the mask's columns, less the new ones: it counts nothing itself, so that one
    compiled step serves every position. Source: MoW (key-value cache in imagination). Differs: STORM caches layer
    inputs and projects them anew each step.
    """

    def __init__(self, num_layers: int, shape: tuple[int, int, int, int, int], width: int, like: Tensor) -> None:
        """Args: shape: [K, J, B, heads, capacity]. width: D. like: gives device and dtype."""
        size = (*shape, width // shape[3])  # [K, J, B, heads, capacity, D / heads]
        self.keys = [like.new_empty(size) for _ in range(num_layers)]
        self.values = [like.new_empty(size) for _ in range(num_layers)]

    def append(self, layer: int, key: Tensor, value: Tensor, stop: int) -> tuple[Tensor, Tensor]:
        """Write [K, J, B, heads, n, D / heads] as the tokens up to `stop`; return all keys and values so far."""
        start = stop - key.shape[-2]
        self.keys[layer][..., start:stop, :] = key
        self.values[layer][..., start:stop, :] = value
        return self.keys[layer][..., :stop, :], self.values[layer][..., :stop, :]

    def step(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """Append one token and attend from it: three [K, J, B, heads, D / heads], mask [K, B, cached + 1]."""
        return decode_attention(query, key, value, self.keys[layer], self.values[layer], mask, mask.shape[-1] - 1)


class Block(nn.Module):
    """x -> norm(x + attention(x)) -> norm(x + feed_forward(x)), for the expert of each (task, slot) pair."""

    def __init__(self, num_experts: int, config: Sizes) -> None:
        super().__init__()
        width = config.width
        self.num_heads, self.dropout = config.num_heads, config.dropout
        self.query, self.key, self.value, self.output = (
            ModularLinear(num_experts, width, width, bias=False) for _ in range(4)
        )
        self.attention_norm = ModularLayerNorm(num_experts, width, eps=1e-6)
        self.expand = ModularLinear(num_experts, width, config.feedforward)
        self.contract = ModularLinear(num_experts, config.feedforward, width)
        self.feedforward_norm = ModularLayerNorm(num_experts, width, eps=1e-6)

    def forward(self, x: Tensor, plan: RoutePlan, mask: Tensor, cache: AttentionCache | None, layer: int) -> Tensor:
        """x [K, J, B, L, D], mask [K, B, L, L + cached] -> [K, J, B, L, D]."""
        rows = x.flatten(2, 3)  # [K, J, B * L, D]
        attended = self._drop(self.output(self._attend(rows, plan, mask, cache, layer), plan))
        rows = self.attention_norm(attended, plan, residual=rows)
        forward = self._drop(self.contract(self.expand(rows, plan, activation="relu"), plan))
        return self.feedforward_norm(forward, plan, residual=rows).view(x.shape)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)

    def _attend(self, rows: Tensor, plan: RoutePlan, mask: Tensor, cache: AttentionCache | None, layer: int) -> Tensor:
        rows = for_matmul(rows)
        num_tasks, num_slots = rows.shape[:2]
        num_sequences, length = mask.shape[1:3]
        projected = self._projected(rows, plan)  # [K, J, B * L, D] each
        # A step of a rollout. Dropout, which no rollout has, is left to the general path.
        if cache is not None and length == 1 and not self.training:
            token = (*rows.shape[:3], self.num_heads, rows.shape[3] // self.num_heads)  # [K, J, B, heads, D / heads]
            query, key, value = (y.view(token) for y in projected)
            return cache.step(layer, query, key, value, mask[:, :, 0]).view(rows.shape)

        shape = (num_tasks, num_slots, num_sequences, length, self.num_heads, -1)
        query, key, value = (y.view(shape).transpose(3, 4) for y in projected)  # [K, J, B, heads, L, D / heads]
        if cache is not None:
            key, value = cache.append(layer, key, value, mask.shape[-1])
        mask = mask[:, None, :, None].expand(-1, num_slots, -1, -1, -1, -1)  # [K, J, B, 1, L, L + cached]
        query, key, value, mask = (x.flatten(0, 2) for x in (query, key, value, mask))
        attended = F.scaled_dot_product_attention(query, key, value, mask, self.dropout if self.training else 0.0)
        return attended.transpose(1, 2).reshape(rows.shape)  # from [K * J * B, heads, L, D / heads]


    def _projected(self, rows: Tensor, plan: RoutePlan) -> Sequence[Tensor]:
        """Query, key and value; in one layer of three times the width where their weights can be kept side by side."""
        layers = (self.query, self.key, self.value)
        if not is_active() or gathers():
            return [layer(rows, plan) for layer in layers]
        weight = cached(self, plan, lambda: for_matmul(torch.cat([layer.weight for layer in layers], dim=1)))
        return expert_linear(rows, weight, plan).chunk(3, dim=-1)


class Transformer(nn.Module):
    """Learned positions, layer norm, then the blocks; one set of weights per expert."""

    def __init__(self, num_experts: int, num_layers: int, config: Sizes) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.invoke: Call = plain_call
        # Small beside the tokens (whose layer norm gives them length sqrt(D)), so that what is learnt at one position
        # holds at the others from the start. Differs: STORM starts them as long as the tokens.
        self.positions = nn.Parameter(0.02 * torch.randn(num_experts, config.max_positions, config.width))
        self.norm = ModularLayerNorm(num_experts, config.width, eps=1e-6)
        self.blocks = nn.ModuleList(Block(num_experts, config) for _ in range(num_layers))

    def forward(self, x: Tensor, plan: RoutePlan, window: Window, cache: AttentionCache | None = None) -> Tensor:
        """[K, J, B, L, D] -> [K, J, B, L, D]; with a cache, they are the last L tokens of the window's mask."""
        num_positions = self.positions.shape[1]
        row = window.position[:, None]  # [K, 1, B, L]
        if plan.num_experts > 1:
            row = row + cached(self, plan, lambda: plan.routes[:, :, None, None] * num_positions)  # [K, J, B, L]
        x = self.norm(x, plan, residual=F.embedding(row, self.positions.flatten(0, 1)))
        for layer, block in enumerate(self.blocks):
            x = self.invoke(block, x, plan, window.mask, cache, layer)
        return x

    def new_cache(self, shape: tuple[int, int, int], capacity: int) -> AttentionCache:
        """An empty cache for `capacity` tokens of rollouts [K, J, B], in autocast's dtype where that is on."""
        device = self.positions.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.positions.dtype
        like = self.positions.new_empty(0, dtype=dtype)
        return AttentionCache(len(self.blocks), (*shape, self.num_heads, capacity), self.positions.shape[-1], like)
