"""Muon: momentum whose singular values are all brought near 1, so that a matrix learns its rare directions too.

    M <- mu M + (1 - mu) G,    O ~ U V^T  where  U S V^T = mu M + (1 - mu) G,    W <- W - lr sqrt(max(n, m)) O

Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks" (Nesterov momentum, the quintic);
Liu et al. 2025 (arXiv 2502.16982) for the factor, which gives entries of root mean square lr whatever the shape.
As there, the iteration runs in bfloat16 where the device multiplies it natively: it only has to come near U V^T.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mow.models.modular import ModularLinear
from mow.models.perception import Conv
from mow.models.world_model import WorldModel

QUINTIC = (3.4445, -4.7750, 2.0315)
STEPS = 3  # five are usual; three lift a singular value by up to 41 and were measured to learn as fast
_READ_OFF = ("router.", "heads.reward.", "heads.termination.", "heads.task.")


def orthogonalised(matrices: Tensor, num_steps: int = STEPS) -> Tensor:
    """Newton-Schulz steps towards U V^T of each matrix [..., n, m]; zero stays zero.

        X <- a X + (b A + c A^2) X,   A = X X^T,   begun at X / |X|
    """
    a, b, c = QUINTIC
    wide = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices  # the smaller A
    x = wide / torch.linalg.matrix_norm(wide, keepdim=True).clamp_min(1e-12)
    for _ in range(num_steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if matrices.shape[-2] > matrices.shape[-1] else x


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
    """bfloat16 where `device` multiplies matrices of it in hardware, else float32."""
    native = device.type == "cuda" or (device.type == "cpu" and torch.cpu._is_avx512_bf16_supported())
    return torch.bfloat16 if native else torch.float32


def hidden_matrices(model: WorldModel) -> list[nn.Parameter]:
    """What Muon moves: the matrices and kernels that see, remember and foretell.

    The rest stays with Adam: vectors and tables, the router, and the heads that read off one number or a class.
    """
    return [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, (ModularLinear, Conv)) and not name.startswith(_READ_OFF)
    ]
