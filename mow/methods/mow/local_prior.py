"""The local prior p(z_t+1 | h_t, e_k), cell by cell of the picture. Addition of this package.

A spatial latent is a grid of cells; one small network, the same for every cell, reads the cell and its eight
neighbours, the action and the hidden state, so a rule of motion learnt in one place holds in all:

    v_t[c] = relu(norm(W_z [z_t, z_t-1][neighbours of c] + W_a (a_t x e_k) + W_h [h_t, e_k] + p[c]))
    u_t[c] = relu(norm(W_u v_t[c]))
    l_t[c] = W_o [u_t[c], e_k]                                          logits of what cell c holds of z_t+1
    x_t    = max over c of relu(W_x [u_t[c], softmax l_t[c], e_k])      events: reward and termination read them too

z_t-1 is read where `prior_frames` is 2, zeros at the first step of an episode: it shows what has moved, and where to.
The action is multiplied with e_k (and stands alone where the heads are not given the task): tasks that share a module
mean different things by the same entry of a_t, and a sum does not separate them. An event is often one code of one
cell, such as a ball on a paddle, which softmax l names; that may spare examples.

Source: none; bench/results/LOG.md has the effects.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mow.kernels import RoutePlan, rows_of, softmax
from mow.methods.mow.config_model import WorldModelConfig
from mow.methods.mow.records import HeadInput
from mow.nn.modular import ModularLayerNorm, ModularLinear, rows_in
from mow.nn.weight_cache import cached


class LocalPrior(nn.Module):
    """One small network for every cell. v_t and u_t have twice as many entries as x_t."""

    def __init__(self, config: WorldModelConfig, num_modules: int, action_size: int, embedding_size: int) -> None:
        super().__init__()
        width, d = config.prior_width, embedding_size
        self.num_events, self.classes = width // 2, config.perception.classes
        self.side, self.cells = config.perception.side, config.perception.side**2
        self.cell_size, self.frames = config.perception.latent_size // self.cells, config.prior_frames
        self.neighbours = ModularLinear(num_modules, 9 * self.frames * self.cell_size, width, bias=False)
        # A matrix of its own, so that the few entries of the action start as loud as the many of the rest.
        self.action = ModularLinear(num_modules, action_size * max(d, 1), width, bias=False)
        with torch.no_grad():
            self.action.weight.mul_(math.sqrt(max(d, 1)))  # e_k has length 1, whatever d
        self.hidden = ModularLinear(num_modules, config.width, width, embedding_size=d)
        self.place = nn.Parameter(torch.zeros(num_modules, self.cells, width))
        self.norm = ModularLayerNorm(num_modules, width)
        self.second = ModularLinear(num_modules, width, width)
        self.second_norm = ModularLayerNorm(num_modules, width)
        self.next_cell = ModularLinear(num_modules, width, self.cell_size, embedding_size=d)
        self.event = ModularLinear(num_modules, width + self.cell_size, self.num_events, embedding_size=d)

    def forward(self, head_input: HeadInput, plan: RoutePlan, embedding: Tensor | None) -> tuple[Tensor, Tensor]:
        """Prior logits [K, 1, B * L, Z] and events x_t [K, 1, B * L, X]."""
        if head_input.latent.is_cuda:
            return self._ahead(head_input, plan, embedding)
        # What one task writes between two steps fits a core's cache, what all tasks write does not: one by one took
        # half the time in a rollout and 70 % in training.
        whole = (head_input.latent, head_input.action, head_input.hidden, head_input.before, embedding)
        parts = [[None] * len(plan.routes) if x is None else x.split(1) for x in whole]
        tasks = [
            self._ahead(HeadInput(*inputs), plan.of_task(k), vector)
            for k, (*inputs, vector) in enumerate(zip(*parts, strict=True))
        ]
        logits, events = zip(*tasks, strict=True)
        return torch.cat(logits), torch.cat(events)

    def _ahead(self, head_input: HeadInput, plan: RoutePlan, embedding: Tensor | None) -> tuple[Tensor, Tensor]:
        features = self._features(head_input, plan, embedding)
        logits = self.next_cell(features, plan, embedding)  # [K, 1, B * L * cells, Z / cells]
        ahead = softmax(logits.unflatten(-1, (-1, self.classes))).flatten(-2)
        event = self.event(torch.cat([features, ahead], dim=-1), plan, embedding, activation="relu")
        latent = logits.unflatten(2, (-1, self.cells)).flatten(3)  # the groups of a latent lie cell by cell
        return latent, event.unflatten(2, (-1, self.cells)).amax(dim=3)

    def _features(self, head_input: HeadInput, plan: RoutePlan, embedding: Tensor | None) -> Tensor:
        """u_t [K, 1, B * L * cells, W]."""
        action = rows_in(head_input.action)  # [K, 1, B * L, A]
        if embedding is not None:
            action = (action.unsqueeze(-1) * embedding[:, None, None, None]).flatten(3)  # [K, 1, B * L, A * d]
        far = self.action(action, plan) + self.hidden(rows_in(head_input.hidden), plan, embedding)
        place = cached(self.place, plan, lambda: rows_of(self.place, plan).unsqueeze(2))  # [K, 1, 1, cells, W]
        near = self._near(self._cells(head_input), plan)  # [K, 1, B * L, cells, W]
        first = self.norm((near + far.unsqueeze(3)).add_(place).flatten(2, 3), plan, relu=True)
        return self.second_norm(self.second(first, plan), plan, relu=True)

    def _cells(self, head_input: HeadInput) -> Tensor:
        """z_t, and z_{t-1} behind it: [K, N, cells, Z / cells * frames]."""
        latents = [head_input.latent]
        if self.frames == 2:
            assert head_input.before is not None, "prior_frames 2 reads z_{t-1}: give HeadInput.before"
            latents.append(head_input.before)
        return torch.cat([latent.flatten(1, 2).unflatten(-1, (self.cells, -1)) for latent in latents], dim=-1)

    def _near(self, cells: Tensor, plan: RoutePlan) -> Tensor:
        """[K, N, cells, z] -> W_z z[neighbours of c] [K, 1, N, cells, W]: a convolution over the grid, task by task.

        Gathering the nine cells around every cell for one matmul was measured to take longer on a CPU.
        """
        weight = self.neighbours.weight
        rows = cached(weight, plan, lambda: rows_of(weight, plan))
        kernels = rows.squeeze(1).unflatten(-1, (3, 3, -1)).permute(0, 1, 4, 2, 3)
        grids = cells.unflatten(2, (self.side, self.side)).permute(0, 1, 4, 2, 3)  # [K, N, z, side, side]
        near = [F.conv2d(grid, kernel, padding=1) for grid, kernel in zip(grids, kernels, strict=True)]
        together = torch.stack(near) if len(near) > 1 else near[0].unsqueeze(0)
        return together.permute(0, 1, 3, 4, 2).flatten(2, 3).unsqueeze(1)
