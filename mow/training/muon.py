"""Muon: momentum whose singular values are all brought near 1, so that a matrix learns its rare directions too.

    M <- mu M + (1 - mu) G,    O ~ U V^T  where  U S V^T = mu M + (1 - mu) G,    W <- W - lr sqrt(max(n, m)) O

Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks" (Nesterov momentum, the quintic);
Liu et al. 2025 (arXiv 2502.16982) for the factor, which gives entries of root mean square lr whatever the shape.
As there, the iteration runs in bfloat16 where the device multiplies that faster: it only has to come near U V^T.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from mow.models.modular import ModularLinear
from mow.models.perception import Conv
from mow.models.world_model import WorldModel

QUINTIC = (3.4445, -4.7750, 2.0315)
STEPS = 3  # five are usual; three lift a singular value by up to 41 and were measured to learn as fast
_WIDE = 1.5  # from here on the product of the steps is less work than the steps
_READ_OFF = ("router.", "heads.reward.", "heads.termination.", "heads.task.")


def orthogonalised(matrices: Tensor, num_steps: int = STEPS) -> Tensor:
    """Newton-Schulz steps towards U V^T of each matrix [..., n, m]; zero stays zero.

        X <- a X + (b A + c A^2) X,   A = X X^T,   begun at X / |X|
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    wide = matrices.mT if tall else matrices  # the smaller A
    x = wide.reshape(-1, *wide.shape[-2:])
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-12)
    if x.shape[-1] > _WIDE * x.shape[-2] and x.dtype != torch.bfloat16:
        x = _product_of_steps(x @ x.mT, num_steps) @ x
    else:
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
    assert product is not None, "no step was asked for"
    return product


class Muon(torch.optim.Optimizer):
    """For stacked matrices [M, n, m] and kernels [M, n, m, h, w], which count as [M, n, m h w].

    Args:
        lr: root mean square of a step's entries.
        dtype: of the Newton-Schulz steps; momentum and parameters keep their own. See native_dtype.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One step on every parameter that has a gradient; matrices of one shape go together, as one stack."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(parameter.flatten(2).shape[1:], []).append(parameter)
            for (n, m), parameters in alike.items():
                ahead = torch.cat([self._ahead(parameter, group["momentum"]) for parameter in parameters])
                steps = orthogonalised(ahead).split([len(parameter) for parameter in parameters])
                for parameter, step in zip(parameters, steps, strict=True):
                    parameter.add_(step.to(parameter.dtype).view_as(parameter), alpha=-group["lr"] * max(n, m) ** 0.5)

    def _ahead(self, parameter: Tensor, momentum: float) -> Tensor:
        """mu M + (1 - mu) G of one parameter, once M has moved: [M, n, m]."""
        assert parameter.grad is not None, "it was chosen for its gradient"
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        mean = state["momentum"].lerp_(parameter.grad, 1.0 - momentum)
        return parameter.grad.lerp(mean, momentum).flatten(2).to(self.dtype)


def native_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where `device` multiplies matrices of it faster than of float32, which is what it has else."""
    faster = device.type == "cuda" or (device.type == "cpu" and _cpu_gains_by_bfloat16())
    return torch.bfloat16 if faster else torch.float32


def _cpu_gains_by_bfloat16() -> bool:
    """Tiles multiply it at many times the rate; of the CPUs with AVX512-BF16 alone, AMD's do at twice the rate.

    128 x 128, GFLOP/s of one core in float32 and bfloat16: 95 and 173 on an EPYC, 119 and 76 on a Xeon without tiles.
    """
    if torch.cpu._is_amx_tile_supported():
        return True
    return torch.cpu._is_avx512_bf16_supported() and "AuthenticAMD" in Path("/proc/cpuinfo").read_text()


def hidden_matrices(model: WorldModel) -> list[nn.Parameter]:
    """What Muon moves: the matrices and kernels that see, remember and foretell.

    The rest stays with Adam: vectors and tables, the router, and the heads that read off one number or a class.
    """
    return [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, (ModularLinear, Conv)) and not name.startswith(_READ_OFF)
    ]
