"""Weighted sum of the losses of many tasks: harmony scales, or one of the rules it is compared with."""

from typing import Literal

import torch
from torch import Tensor, nn

from mow.losses import harmony_loss
from mow.methods.mow.config import LossConfig

ALL = slice(None)
OWN_TERMS = (0, 4)  # of WorldModelLosses.terms: reconstruction and representation, which reach encoder and decoder only


class TaskWeights(nn.Module):
    """The plain sum over tasks; the other rules replace parts of it."""

    def forward(self, terms: Tensor, tasks: slice = ALL, *, counts: bool = True) -> Tensor:
        """terms [K, terms], already with their coefficients, or those of some `tasks` -> scalar.

        Args: counts: false in all calls of an update but one.
        """
        return terms.sum()

    def adapt(self, terms: Tensor) -> None:
        """Start from losses [K, terms] as they stand after warm-up."""

    def reorder(self, order: Tensor) -> None:
        """Task k becomes the old task order[k]."""

    def metrics(self) -> dict[str, Tensor]:
        """Weights [K] for the log."""
        return {}


class Harmony(TaskWeights):
    """sum_k [L_k / sigma_k + ln(1 + sigma_k)], or one of two variants of it, additions of this package.

    per_term: the same for every term of every task, each with a sigma of its own.
    shared_terms: L_k / sigma_k as before, but sigma_k is learned from the terms alone whose gradient reaches parameters
        that tasks of several clusters share (not reconstruction and representation, which end in encoder and decoder):
        a picture that is hard to draw then changes nothing about a task's weight in them.

            sum_k [A_k / sigma_k + ln(1 + sigma_k) + (L_k - A_k) / sg(sigma_k)],   A_k = L_k less OWN_TERMS

    Source: MoW section 3. Differs: s = ln sigma starts at ln(1 + L) after warm-up, near the stationary point, which
    Adam at the step size of the model, 1e-4, would reach only after tens of thousands of updates.
    """

    def __init__(
        self, num_tasks: int, num_terms: int, form: Literal["harmony", "per_term", "shared_terms"] = "harmony"
    ) -> None:
        super().__init__()
        self.form = form
        self.log_sigma = nn.Parameter(torch.zeros((num_tasks, num_terms) if form == "per_term" else num_tasks))
        self.shared = [term for term in range(num_terms) if form != "shared_terms" or term not in OWN_TERMS]

    def forward(self, terms: Tensor, tasks: slice = ALL, *, counts: bool = True) -> Tensor:
        log_sigma, loss = self.log_sigma[tasks], self._scaled(terms)
        total = harmony_loss(loss, log_sigma).sum()
        if self.form != "shared_terms":
            return total
        return total + ((terms.sum(dim=1) - loss) * (-log_sigma.detach()).exp()).sum()

    def _scaled(self, terms: Tensor) -> Tensor:
        """Losses that a sigma is learned from: [K], or [K, terms] with one for every term."""
        return terms if self.form == "per_term" else terms[:, self.shared].sum(dim=1)

    @torch.no_grad()
    def adapt(self, terms: Tensor) -> None:
        self.log_sigma.copy_(self._scaled(terms).log1p())

    @torch.no_grad()
    def reorder(self, order: Tensor) -> None:
        self.log_sigma.copy_(self.log_sigma[order])

    @torch.no_grad()
    def metrics(self) -> dict[str, Tensor]:
        """1 / sigma_k [K], of several terms their mean."""
        weight = (-self.log_sigma).exp()
        return {"harmony/weight": weight.mean(dim=1) if self.form == "per_term" else weight}


class RunningMean(TaskWeights):
    """sum_k L_k / mean of L_k over the last updates: every task weighs 1, without a parameter."""

    mean: Tensor
    weight: Tensor

    def __init__(self, num_tasks: int, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros(num_tasks))
        self.register_buffer("weight", torch.zeros(()))

    def forward(self, terms: Tensor, tasks: slice = ALL, *, counts: bool = True) -> Tensor:
        """Takes the losses into the running mean."""
        loss = terms.sum(dim=1)
        self.mean[tasks].lerp_(loss.detach(), 1.0 - self.decay)
        if counts:
            self.weight.lerp_(torch.ones_like(self.weight), 1.0 - self.decay)
        return (loss / (self.mean[tasks] / self.weight).clamp_min(1e-8)).sum()

    def reorder(self, order: Tensor) -> None:
        self.mean.copy_(self.mean[order])


def make_task_weights(config: LossConfig, num_tasks: int, num_terms: int) -> TaskWeights:
    """The rule that `config.weighting` names."""
    if config.weighting == "uniform":
        return TaskWeights()
    if config.weighting == "running_mean":
        return RunningMean(num_tasks)
    return Harmony(num_tasks, num_terms, config.weighting)
