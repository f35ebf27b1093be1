"""What comes next: the prior p(z_t+1 | h_t, e_k), read off the hidden state alone or cell by cell of the picture.

`DensePrior` is one Linear on h_t. `LocalPrior` holds that what happens in a part of the picture follows from what is
in and around it. A spatial latent is a 4x4 grid of cells; one small network, the same for every cell, reads the cell
and its eight neighbours, the action and the hidden state, so a rule of motion learnt in one place holds in all:

    u_t[c] = relu(norm(W_z z_t[neighbours of c] + W_a a_t + W_h [h_t, e_k] + p[c]))
    l_t[c] = W_o [u_t[c], e_k]                                          logits of what cell c holds of z_t+1
    x_t    = max over c of relu(W_x [u_t[c], softmax l_t[c], e_k])      events: reward and termination read them too

An event is often one code of one cell, such as a ball on a paddle, which softmax l names; that may spare examples.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mow.batch import Moment
from mow.config import WorldModelConfig
from mow.kernels import RoutePlan, rows_of
from mow.models.modular import ModularLayerNorm, ModularLinear
from mow.models.perception import CELLS

SIDE = 4  # cells along each side of the picture


class DensePrior(nn.Module):
    """One Linear on h_t; it knows of no events. Source: STORM."""

    num_events = 0

    def __init__(self, config: WorldModelConfig, num_modules: int, embedding_size: int) -> None:
        super().__init__()
        self.next_latent = ModularLinear(
            num_modules, config.width, config.perception.latent_size, embedding_size=embedding_size
        )

    def forward(self, moment: Moment, plan: RoutePlan, embedding: Tensor | None) -> tuple[Tensor, Tensor]:
        """Prior logits [K, 1, B * L, Z] and events [K, 1, B * L, 0]."""
        return self.foretell(moment, plan, embedding), self.events(moment, plan, embedding)

    def foretell(self, moment: Moment, plan: RoutePlan, embedding: Tensor | None) -> Tensor:
        """The prior logits alone."""
        return self.next_latent(rows_in(moment.hidden), plan, embedding)

    def events(self, moment: Moment, plan: RoutePlan, embedding: Tensor | None) -> Tensor:
        """The events alone."""
        return rows_in(moment.hidden)[..., :0]


class LocalPrior(nn.Module):
    """One small network for every cell. u_t is as wide as h_t, and has four times as many entries as x_t.

    Source: none, an addition of this package; bench/results/LOG.md has what it changes.
    """

    around: Tensor

    def __init__(self, config: WorldModelConfig, num_modules: int, action_size: int, embedding_size: int) -> None:
        super().__init__()
        width, d = config.width, embedding_size
        self.num_events, self.classes = width // 4, config.perception.classes
        self.cell_size = config.perception.latent_size // CELLS
        self.register_buffer("around", _cells_around(), persistent=False)
        self.neighbours = ModularLinear(num_modules, 9 * self.cell_size, width, bias=False)
        # A matrix of its own, so that the few entries of the action start as loud as the many of the rest.
        self.action = ModularLinear(num_modules, action_size, width, bias=False)
        self.hidden = ModularLinear(num_modules, width, width, embedding_size=d)
        self.place = nn.Parameter(torch.zeros(num_modules, CELLS, width))
        self.norm = ModularLayerNorm(num_modules, width)
        self.next_cell = ModularLinear(num_modules, width, self.cell_size, embedding_size=d)
        self.event = ModularLinear(num_modules, width + self.cell_size, self.num_events, embedding_size=d)

    def forward(self, moment: Moment, plan: RoutePlan, embedding: Tensor | None) -> tuple[Tensor, Tensor]:
        """Prior logits [K, 1, B * L, Z] and events x_t [K, 1, B * L, X]."""
        features = self._features(moment, plan, embedding)
        logits = self.next_cell(features, plan, embedding)  # [K, 1, B * L * cells, Z / cells]
        ahead = logits.unflatten(-1, (-1, self.classes)).softmax(dim=-1).flatten(-2)
        event = self.event(torch.cat([features, ahead], dim=-1), plan, embedding).relu()
        return _joined(logits), event.unflatten(2, (-1, CELLS)).amax(dim=3)

    def foretell(self, moment: Moment, plan: RoutePlan, embedding: Tensor | None) -> Tensor:
        """The prior logits alone."""
        return _joined(self.next_cell(self._features(moment, plan, embedding), plan, embedding))

    def events(self, moment: Moment, plan: RoutePlan, embedding: Tensor | None) -> Tensor:
        """The events alone."""
        return self(moment, plan, embedding)[1]

    def _features(self, moment: Moment, plan: RoutePlan, embedding: Tensor | None) -> Tensor:
        """u_t [K, 1, B * L * cells, W]."""
        cells = F.pad(rows_in(moment.latent).unflatten(-1, (CELLS, -1)), (0, 0, 0, 1))  # one of zeros, past the border
        # Not F.unfold, which takes some ten times as long on a CPU.
        around = cells.index_select(3, self.around).unflatten(3, (CELLS, 9)).flatten(4)  # [K, 1, B * L, cells, 9 z]
        near = self.neighbours(around.flatten(2, 3), plan)  # [K, 1, B * L * cells, W]
        far = self.action(rows_in(moment.action), plan) + self.hidden(rows_in(moment.hidden), plan, embedding)
        total = near.unflatten(2, (-1, CELLS)) + far.unsqueeze(3)  # [K, 1, B * L, cells, W]
        total = total + rows_of(self.place, plan).unsqueeze(2)
        return self.norm(total.flatten(2, 3), plan).relu()


def _cells_around() -> Tensor:
    """For every cell the 3x3 cells around it, row by row: [cells * 9]; those past the border are cell number 16."""
    index = torch.full((SIDE + 2, SIDE + 2), CELLS)
    index[1:-1, 1:-1] = torch.arange(CELLS).view(SIDE, SIDE)
    return index.unfold(0, 3, 1).unfold(1, 3, 1).flatten()


def rows_in(x: Tensor) -> Tensor:
    """[K, B, L, ...] as the rows of one slot: [K, 1, B * L, ...]."""
    return x.flatten(1, 2).unsqueeze(1)


def _joined(logits: Tensor) -> Tensor:
    """[K, 1, N * cells, Z / cells] -> [K, 1, N, Z]: the groups of a latent lie cell by cell."""
    return logits.unflatten(2, (-1, CELLS)).flatten(3)
