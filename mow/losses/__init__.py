"""Losses: tensors in, one unweighted number per task out, [K]; the joint balance loss gives a scalar.

README.md beside this file has how to add one.
"""

from mow.losses.actor_critic import entropy_bonus, entropy_unit, policy_loss, value_loss
from mow.losses.balance import balance_loss, expert_use, harmony_loss
from mow.losses.dynamics import latent_losses
from mow.losses.prediction import reward_loss, task_loss, termination_loss
from mow.losses.reconstruction import reconstruction_loss

__all__ = [
    "balance_loss", "entropy_bonus", "entropy_unit", "expert_use", "harmony_loss", "latent_losses",
    "policy_loss", "reconstruction_loss", "reward_loss", "task_loss", "termination_loss", "value_loss",
]  # fmt: skip
