"""Which of a world model's parameters Muon moves, and which are left to Adam."""

from typing import Literal

from torch import nn

from mow.methods.mow.vae import Conv
from mow.methods.mow.world_model import WorldModel
from mow.nn.modular import ModularLinear

# Left to Adam: the router, the heads that read off one number or a class, and by choice the first and last layers.
_READ_OFF = ("router.", "heads.reward.", "heads.termination.", "heads.task.")
_FIRST_AND_LAST = (
    "encoder.convs.0.", "encoder.posterior.", "decoder.output.", "heads.prior.next_cell.", "heads.prior.next_latent.",
)  # fmt: skip


def muon_matrices(model: WorldModel, layers: Literal["hidden", "all"]) -> list[nn.Parameter]:
    """What Muon moves: the matrices and kernels between the first and the last layers, or those layers' too.

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
