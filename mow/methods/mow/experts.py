"""Experts: whole Transformers with mixers of their own, chosen per task; and the shared Transformer that joins them.

    m_j = mixer_j(z_t, a_t, e_k),   l_t = [f_j(m_j) for j in J_k] (plain concatenation),   h_t = F(l_t, e_k)

Source: MoW section 3.
"""

import torch
from torch import Tensor, nn

from mow.kernels import RoutePlan
from mow.methods.mow.config_model import WorldModelConfig
from mow.methods.mow.router import Routing
from mow.nn.modular import Stem, matmul_dtype
from mow.nn.transformer import AttentionCache, Transformer, Window


class Experts(nn.Module):
    """All experts, stacked; each task runs through the J that its routing names."""

    def __init__(self, config: WorldModelConfig, action_size: int, embedding_size: int) -> None:
        super().__init__()
        num_experts, in_features = config.experts.num_experts, config.perception.latent_size + action_size
        self.mixer = Stem(num_experts, in_features, config.width, embedding_size=embedding_size)
        self.transformer = Transformer(num_experts, config.experts.num_layers, config)

    def forward(
        self, token: Tensor, embedding: Tensor | None, routing: Routing, window: Window, cache: AttentionCache | None
    ) -> Tensor:
        """Tokens [K, B, L, Z + A] -> outputs of each token's experts [K, B, L, J, D]."""
        plan = routing.plan
        mixed = self.mixer(token.flatten(1, 2).unsqueeze(1), plan, embedding)  # [K, J, B * L, D]
        output = self.transformer(mixed.unflatten(2, token.shape[1:3]), plan, window, cache)  # [K, J, B, L, D]
        if routing.scale_KJ is not None:
            output = output * routing.scale_KJ[:, :, None, None, None].to(output.dtype)
        return output.permute(0, 2, 3, 1, 4)


class Shared(nn.Module):
    """Joins the expert outputs to width D, then (kind `transformer`) attends once more; one set of weights."""

    def __init__(self, config: WorldModelConfig, embedding_size: int) -> None:
        super().__init__()
        in_features = config.experts.experts_per_task * config.width
        self.stem = Stem(1, in_features, config.width, embedding_size=embedding_size)
        attends = config.shared.kind == "transformer"
        self.transformer = Transformer(1, config.shared.num_layers, config) if attends else None

    def forward(
        self, outputs: Tensor, embedding: Tensor | None, plan: RoutePlan, window: Window, cache: AttentionCache | None
    ) -> Tensor:
        """[K, B, L, J, D] -> hidden states [K, B, L, D]; `plan` sends every task to the one set of weights."""
        joined = outputs.to(matmul_dtype(outputs), memory_format=torch.contiguous_format)  # one pass
        x = self.stem(joined.flatten(3).flatten(1, 2).unsqueeze(1), plan, embedding)  # [K, 1, B * L, D]
        x = x.unflatten(2, outputs.shape[1:3])  # [K, 1, B, L, D]
        if self.transformer is not None:
            x = self.transformer(x, plan, window, cache)
        return x.squeeze(1)


def unit_length(vectors: Tensor) -> Tensor:
    """e_k = v_k / ||v_k||: [K, d]. Source: MoW (unit task embeddings); kept as raw vectors and normalised when read."""
    return vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp_min(1e-8)
