"""Muon: momentum whose singular values are all brought near 1, so that a matrix learns its rare directions too.

Addition of this package: the papers of the methods train with Adam.

    M <- mu M + (1 - mu) G,    A = mu M + (1 - mu) G = U S V^T,    O ~ U V^T
    a <- beta a + (1 - beta) |A|,    c = min(1, |A| / (a / 10 + eps sqrt(n m)))
    W <- (1 - lr decay) W - lr c sqrt(max(n, m)) O

Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks" (Nesterov momentum, the quintic);
Liu et al. 2025 (arXiv 2502.16982) for the decay and the factor, which gives entries of root mean square lr whatever
the shape. Differs: O has the same size whatever that of G, so a matrix whose loss has run out would go on moving at
full size. Here the rows of G that are zero neither step nor change their momentum, as of an expert that no task of the
batch has chosen; and c shortens the steps of a matrix whose A is below a tenth of its running mean a. Without the tenth
c was 0.2 to 0.8 all through the first 300 updates of `quickstart`, where gradients fall because something is learnt.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

QUINTIC = (3.4445, -4.7750, 2.0315)
STEPS = 3  # five are usual; three lift a singular value by up to 41 and were measured to learn as fast
_WIDE = 1.5  # from here on the product of the steps is less work than the steps
_SIZE_DECAY = 0.99  # beta
_SMALL = 0.1  # share of the running mean below which steps are shortened


def orthogonalised(matrices: Tensor, size: Tensor | None = None, num_steps: int = STEPS) -> Tensor:
    """Newton-Schulz steps towards U V^T of each matrix [..., n, m]; zero stays zero.

        X <- a X + (b A + c A^2) X,   A = X X^T,   begun at X / |X|

    Args: size: |X| [...], where it is there already.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    wide = matrices.mT if tall else matrices  # the smaller A
    x = wide.reshape(-1, *wide.shape[-2:])
    scale = 1.0 / (torch.linalg.matrix_norm(x) if size is None else size.flatten()).clamp_min(1e-12).view(-1, 1, 1)
    scale = scale.to(x.dtype)
    if x.shape[-1] > _WIDE * x.shape[-2] and x.dtype != torch.bfloat16:
        x = (_product_of_steps((x @ x.mT).mul_(scale).mul_(scale), num_steps).mul_(scale)) @ x
    else:
        x = x * scale
        for _ in range(num_steps):
            x = torch.baddbmm(x, _factor(x @ x.mT), x, beta=QUINTIC[0])
    x = x.view(wide.shape)
    return x.mT if tall else x


def _factor(gram: Tensor) -> Tensor:
    """b A + c A^2."""
    _, b, c = QUINTIC
    return torch.baddbmm(gram, gram, gram, beta=b, alpha=c)


def _product_of_steps(gram: Tensor, num_steps: int) -> Tensor:
    """Q with Q X the result of all steps, from A = X X^T alone: each step is X <- P X, so A <- P A P and Q <- P Q.

    P = a I + b A + c A^2 commutes with A. Of a wide X all but two products are then n x n instead of n x m. Not for
    bfloat16: what it rounds off A may be as large as the small eigenvalues, and grows with every step.
    """
    product = None
    for step in range(num_steps):
        factor = _factor(gram)
        factor.diagonal(dim1=-2, dim2=-1).add_(QUINTIC[0])
        product = factor if product is None else factor @ product
        if step + 1 < num_steps:
            gram = factor @ gram @ factor
    assert product is not None, "num_steps must be 1 or more"
    return product


class Muon(torch.optim.Optimizer):
    """For stacked matrices [M, n, m] and kernels [M, n, m, h, w], which count as [M, n, m h w].

    Args:
        lr: root mean square of a step's entries, at most.
        decay: share of a parameter that a step of size 1 takes off it; decoupled from the gradient.
        eps: root mean square of a matrix's gradient below which its steps shrink with it, however long it lasts.
        dtype: of the Newton-Schulz steps; momentum and parameters keep their own.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        momentum: float = 0.95,
        decay: float = 0.0,
        eps: float = 1e-8,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "decay": decay, "eps": eps})
        self.dtype = dtype

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One step on every parameter that has a gradient; matrices of one shape go together, as one stack.

        As in torch's fused optimisers `found_inf`, where it is set, is a scalar that leaves the step out where it is 1;
        and lr may be a tensor.
        """
        left_out: Tensor | None = getattr(self, "found_inf", None)
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(parameter.flatten(2).shape[1:], []).append(parameter)
            for (n, m), parameters in alike.items():
                counts = [len(parameter) for parameter in parameters]
                ahead = torch.cat([self._ahead(parameter, group["momentum"], left_out) for parameter in parameters])
                size = torch.linalg.matrix_norm(ahead)  # [M]
                least = group["eps"] * (n * m) ** 0.5
                shares = [self._share(*each, least) for each in zip(parameters, size.split(counts), strict=True)]
                steps = orthogonalised(ahead.to(self.dtype), size).mul_(torch.cat(shares).view(-1, 1, 1))
                for parameter, step in zip(parameters, steps.split(counts), strict=True):
                    if group["decay"]:
                        decay = group["decay"] if left_out is None else group["decay"] * (1.0 - left_out)
                        parameter.mul_(1.0 - group["lr"] * decay)
                    change, factor = step.to(parameter.dtype).view_as(parameter), max(n, m) ** 0.5
                    if isinstance(group["lr"], Tensor):
                        parameter.sub_(change * (group["lr"] * factor))
                    else:
                        parameter.add_(change, alpha=-group["lr"] * factor)

    def _ahead(self, parameter: Tensor, momentum: float, left_out: Tensor | None) -> Tensor:
        """A of one parameter, once M has moved: [M, n, m]; rows without a gradient are 0, and their M stays."""
        assert parameter.grad is not None, "it was chosen for its gradient"
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        gradient = parameter.grad.flatten(2)
        if left_out is not None:
            gradient = gradient.masked_fill(left_out > 0, 0.0)
        live = torch.linalg.vector_norm(gradient, ord=math.inf, dim=2, keepdim=True) > 0  # [M, n, 1]
        mean = state["momentum"].flatten(2).lerp_(gradient, (1.0 - momentum) * live)
        return gradient.lerp(mean, momentum).mul_(live)

    def _share(self, parameter: Tensor, size: Tensor, least: float) -> Tensor:
        """c of each matrix of a parameter from |A| [M]: [M]; the running mean of a matrix without a gradient stays."""
        usual = self.state[parameter].setdefault("usual_size", size.clone())
        usual.copy_(torch.where(usual == 0, size, usual.lerp(size, (1.0 - _SIZE_DECAY) * (size > 0))))
        return (size / (_SMALL * usual + least)).clamp(max=1.0)
