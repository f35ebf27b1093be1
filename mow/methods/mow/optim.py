"""Optimisers of the world model (which parameters Muon moves, which are left to Adam), and the precision of updates."""

import re
from typing import Literal

import torch
from torch import nn

from mow.methods.mow.config import MowConfig, OptimConfig
from mow.methods.mow.vae import Conv
from mow.methods.mow.world_model import WorldModel
from mow.nn.modular import ModularLinear
from mow.nn.muon import Muon

# Left to Adam: the router, the heads that read off one number or a class, and by choice the first and last layers.
_READ_OFF = ("router.", "heads.reward.", "heads.termination.", "heads.task.")
_HIDDEN = re.compile(r"linears\.\d+\.weight$")  # of the agent: all layers but those that read off
_FIRST_AND_LAST = (
    "encoder.convs.0.", "encoder.posterior.", "decoder.output.", "heads.prior.next_cell.", "heads.prior.next_latent.",
)  # fmt: skip


def muon_matrices(model: WorldModel, layers: Literal["hidden", "all"]) -> list[nn.Parameter]:
    """Parameters of Muon: the matrices and kernels between the first and the last layers, or those layers' too.

    The rest stays with Adam: vectors and tables, the router, and the heads that read off one number or a class.
    """
    left = _READ_OFF if layers == "all" else (*_READ_OFF, *_FIRST_AND_LAST)
    return [weight for name, weight in _matrices(model) if not name.startswith(left)]


def first_and_last(model: WorldModel) -> list[nn.Parameter]:
    """The matrices and kernels of the first and last layers of encoder, decoder and prior.

    With "hidden" layers Adam moves them, by steps of the same size as Muon's: at half that size (1e-3) `quickstart`
    reconstructed worse after 225 updates: 34.8, where 3e-3 gave 30.1.
    """
    return [weight for name, weight in _matrices(model) if name.startswith(_FIRST_AND_LAST)]


def _matrices(model: WorldModel) -> list[tuple[str, nn.Parameter]]:
    return [
        (f"{name}.weight", module.weight)
        for name, module in model.named_modules()
        if isinstance(module, (ModularLinear, Conv))
    ]


def world_model_optimisers(
    model: WorldModel, task_weights: nn.Module, optim: OptimConfig
) -> list[torch.optim.Optimizer]:
    """Adam, and Muon beside it where the config has it; each parameter is in one group of one of them."""
    by_muon = optim.matrices == "muon"
    matrices = muon_matrices(model, optim.matrix_layers) if by_muon else []
    edges = first_and_last(model) if by_muon and optim.matrix_layers == "hidden" else []
    moved = {id(p) for p in (*matrices, *edges)}
    groups: list[dict[str, object]] = [
        {"params": [p for p in model.parameters() if id(p) not in moved], "lr": optim.world_model_lr},
        {"params": edges, "lr": optim.matrix_lr},
        {"params": list(task_weights.parameters()), "lr": optim.weighting_lr},
    ]
    adam = torch.optim.Adam([group for group in groups if group["params"]], eps=optim.world_model_eps, fused=True)
    return [adam, _muon(matrices, optim.matrix_lr, optim.matrix_decay, optim)] if matrices else [adam]


def agent_optimisers(agent: nn.Module, optim: OptimConfig) -> list[torch.optim.Optimizer]:
    """Adam, and Muon for the hidden layers of actor and critics where the config has it."""
    trained = {name: p for name, p in agent.named_parameters() if p.requires_grad}
    matrices = [p for name, p in trained.items() if optim.agent_matrices == "muon" and _HIDDEN.search(name)]
    moved = {id(p) for p in matrices}
    rest = [p for p in trained.values() if id(p) not in moved]
    adam = torch.optim.Adam(rest, lr=optim.agent_lr, eps=optim.agent_eps, fused=True)
    return [adam, _muon(matrices, optim.agent_matrix_lr, 0.0, optim)] if matrices else [adam]


def _muon(matrices: list[nn.Parameter], lr: float, decay: float, optim: OptimConfig) -> Muon:
    dtype = torch.bfloat16 if optim.muon_precision == "bf16" else torch.float32
    return Muon(matrices, lr=lr, decay=decay, eps=optim.world_model_eps, dtype=dtype)


def uses_bf16(config: MowConfig, device: torch.device) -> bool:
    """True if updates run under autocast to bfloat16."""
    on_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return config.optim.precision == "bf16" or (config.optim.precision == "auto" and on_gpu)
