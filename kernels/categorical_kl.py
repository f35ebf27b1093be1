"""Kullback-Leibler divergence between two grids of categoricals, split by whose gradient it carries."""

from torch import Tensor

from mow.kernels.dispatch import Backend, backends, choose, compute_dtype
from mow.kernels.sample_onehot import check_unimix, unimix_prob


def categorical_kl(
    posterior_logits: Tensor, prior_logits: Tensor, *, unimix: float = 0.01, backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """KL(posterior || prior), nats: one value, two gradients.

        KL = sum_s sum_c p_sc (ln p_sc - ln q_sc),   p, q = (1 - unimix) softmax(logits) + unimix / C

    Args:
        posterior_logits: [..., S, C], p.
        prior_logits: [..., S, C], q. Logits may be -inf if unimix > 0 and finite ones remain in the group.
        unimix: share of the uniform distribution in both, in [0, 1].
        backend: "auto", or the name of an implementation.
    Returns:
        dynamics: [...] nats, float64 if a tensor has it, else float32; its gradient reaches the prior alone.
        representation: [...] the same numbers; their gradient reaches the posterior alone. Rounding can put either a
        little below zero.
    Raises: ValueError if the shapes or devices differ, [S, C] is lacking, a dtype is not floating, or unimix is outside
        [0, 1].
    Source: MoW section 3 (dynamics and representation loss), before free bits and means.
    """
    if posterior_logits.shape != prior_logits.shape or posterior_logits.dim() < 2:
        raise ValueError(
            "posterior and prior logits must share one shape [..., S, C], "
            f"got {list(posterior_logits.shape)} and {list(prior_logits.shape)}: align their time steps first"
        )
    if posterior_logits.device != prior_logits.device:
        raise ValueError(
            f"posterior and prior must share a device, got {posterior_logits.device} and {prior_logits.device}: "
            "move one with .to()"
        )
    check_unimix(unimix)
    compute_dtype(posterior_logits, prior_logits)
    if choose("categorical_kl", backend, backends(posterior_logits)) == "triton":
        # Loaded when first chosen: triton takes longer to import than all of this package.
        from mow.kernels.categorical_kl_triton import categorical_kl_triton

        return categorical_kl_triton(posterior_logits, prior_logits, unimix)
    return _reference(posterior_logits, prior_logits, unimix)


def _reference(posterior_logits: Tensor, prior_logits: Tensor, unimix: float) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(posterior_logits, prior_logits)
    prob, log_prob = _mixed(posterior_logits.to(dtype), unimix)
    _, prior_log_prob = _mixed(prior_logits.to(dtype), unimix)
    dynamics = (prob.detach() * (log_prob.detach() - prior_log_prob)).sum(dim=(-1, -2))  # the prior learns
    representation = (prob * (log_prob - prior_log_prob.detach())).sum(dim=(-1, -2))  # the posterior learns
    return dynamics, representation


def _mixed(logits: Tensor, unimix: float) -> tuple[Tensor, Tensor]:
    """Probabilities and their logarithms. The floor keeps p off zero; without it only log_softmax is safe."""
    if unimix == 0.0:
        log_prob = logits.log_softmax(dim=-1)
        return log_prob.exp(), log_prob
    prob = unimix_prob(logits, unimix)
    return prob, prob.log()
