"""Losses of the heads: reward, termination and task."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mow.kernels import two_hot_loss


def reward_loss(reward_logits: Tensor, reward: Tensor, counted: Tensor | None = None) -> Tensor:
    """Cross-entropy against the two-hot code of symlog(r) on V bins: [K, B, L, V], [K, B, L] -> [K].

    Args: counted: [K, B, L] bool, the steps that the mean is taken over; None: all.
    Source: MoW section 3, DreamerV3 (two-hot symlog).
    """
    return _mean(two_hot_loss(reward_logits, reward), counted)


def termination_loss(termination_logits: Tensor, terminated: Tensor, counted: Tensor | None = None) -> Tensor:
    """Binary cross-entropy: [K, B, L], [K, B, L] bool -> [K]. `counted` as for reward_loss. Source: MoW section 3."""
    loss = F.binary_cross_entropy_with_logits(termination_logits.float(), terminated.float(), reduction="none")
    return _mean(loss, counted)


def task_loss(task_logits: Tensor, counted: Tensor | None = None, *, first_task: int = 0) -> Tensor:
    """Cross-entropy of the task index: [K, B, L, K] -> [K]. Source: MoW section 3 (task loss).

    Keeps h_t telling tasks apart; its head must not be given e_k.

    Args: counted: as for reward_loss; first_task: index of the first row, where only some tasks are given:
        [k, B, L, K] -> [k].
    """
    num_tasks = task_logits.shape[0]
    task = torch.arange(first_task, first_task + num_tasks, device=task_logits.device)
    target = task.view(-1, 1, 1).expand(task_logits.shape[:3])
    loss = F.cross_entropy(task_logits.float().flatten(0, 2), target.flatten(), reduction="none")
    return _mean(loss.view(task_logits.shape[:3]), counted)


def _mean(loss: Tensor, counted: Tensor | None) -> Tensor:
    """[K, B, L] -> [K], over the steps that count; 0 where none does."""
    if counted is None:
        return loss.mean(dim=(1, 2))
    weight = counted.float()
    return (loss * weight).sum(dim=(1, 2)) / weight.sum(dim=(1, 2)).clamp_min(1.0)
