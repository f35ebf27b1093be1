"""One look at a batch: every world-model loss, per task. Tensors in, tensors out."""

from typing import NamedTuple

import torch
from torch import Tensor

from mow.batch import TransitionBatch
from mow.kernels import PhiloxState
from mow.losses import (
    balance_loss,
    latent_losses,
    reconstruction_loss,
    reward_loss,
    task_loss,
    termination_loss,
)
from mow.methods.mow.config import LossConfig
from mow.methods.mow.records import HeadInput
from mow.methods.mow.router import Routing
from mow.methods.mow.world_model import WorldModel


def num_terms(task_head: bool) -> int:
    """Entries of WorldModelLosses.terms."""
    return 6 if task_head else 5


class WorldModelLosses(NamedTuple):
    """Unweighted losses by name, [K] each, and what joins them."""

    terms: dict[str, Tensor]  # name -> [K]; the names are fields of LossConfig
    balance: Tensor | None  # scalar; None where routing is not learned
    kl: Tensor  # [K] nats, before the floor; a metric

    def weighted(self, config: LossConfig) -> Tensor:
        """Each term times its coefficient: [K, terms], in the order of `terms`."""
        return torch.stack([getattr(config, name) * loss for name, loss in self.terms.items()], dim=1)

    def metrics(self, config: LossConfig) -> dict[str, Tensor]:
        """Every term, their weighted sum, and KL, [K]; the balance loss."""
        metrics = {f"loss/{name}": loss.detach() for name, loss in self.terms.items()}
        metrics["loss/world_model"] = self.weighted(config).sum(dim=1).detach()
        metrics["latent/kl"] = self.kl
        if self.balance is not None:
            metrics["loss/balance"] = self.balance.detach()
        return metrics


def world_model_losses(
    model: WorldModel, batch: TransitionBatch, routing: Routing, rng: PhiloxState, config: LossConfig, *, turn: int = 0
) -> WorldModelLosses:
    """L_k = L_rec + L_rew + L_con + L_task + 0.5 L_dyn + 0.1 L_rep, term by term, and L_bal.

    Args: turn: which steps are decoded where `config.reconstruct_every` leaves some out; count it up.
    Source: MoW section 3. Differs: it decodes every step; windows start anywhere, so a part has the same mean. In the
    arrival form reward and termination are learnt at the steps whose z_{t+1} the window holds, so not at its last one.
    """
    posterior = model.observe(batch, routing, rng)
    leads_on = batch.leads_on  # [K, B, L - 1]
    arrived, outcomes, acts = None, None, None  # the transition form's batches have no final frames
    if model.config.outcome == "arrival":
        arrived = posterior.latent.roll(-1, dims=2)  # z_{t+1}; where there is none, z of another step that is not read
        outcomes = torch.cat([leads_on, torch.zeros_like(batch.is_last[:, :, :1])], dim=2)  # [K, B, L]
        acts = ~batch.is_last
    prediction = model.predict(HeadInput(posterior.token, batch.action, posterior.hidden, posterior.before), arrived)
    latent = latent_losses(
        posterior.logits,
        prediction.next_latent_logits,
        ~batch.is_last[:, :, :-1] if model.across_episodes else leads_on,
        unimix=model.config.perception.unimix,
        free_bits=config.free_bits,
    )
    decoded = (slice(None), slice(None), slice(turn % config.reconstruct_every, None, config.reconstruct_every))
    terms = {
        "reconstruction": reconstruction_loss(model.decode(posterior.latent[decoded]), batch.frame[decoded]),
        "reward": reward_loss(prediction.reward_logits, batch.reward, outcomes),
        "termination": termination_loss(prediction.termination_logits, batch.terminated, outcomes),
        "dynamics": latent.dynamics,
        "representation": latent.representation,
    }
    if prediction.task_logits is not None:
        terms["task"] = task_loss(prediction.task_logits, acts, first_task=model.first_task)
    load_KE = routing.load()
    return WorldModelLosses(terms, None if load_KE is None else balance_loss(load_KE), latent.kl)
