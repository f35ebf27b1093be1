"""The learner on several ranks, each with some of the tasks: one update of all ranks is one update of one process.

    g = sum over ranks r of the gradient of l_r,    l_r = sum over own tasks of (L_k / sigma_k + ln(1 + sigma_k))
                                                          + [r = 0] 0.1 L_bal

Gradients of what all tasks share are summed over all ranks; those of a module over the ranks with a task of it, so not
at all where it lies on one; those of a task's own norms nowhere. Every rank holds the weights of all modules; the rows
that its tasks do not use have gradient zero and are refreshed by `complete`. Random numbers are drawn by a task's place
among all. Clipping follows the sum.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mow.batch import TransitionBatch
from mow.errors import UsageError
from mow.kernels import PhiloxState
from mow.losses import balance_loss
from mow.methods.base import Parallel, TaskSet
from mow.methods.mow.accumulate import TaskSlice
from mow.methods.mow.actor_critic import Agent
from mow.methods.mow.actor_critic_loss import ActorCriticLosses, ActorCriticTargets
from mow.methods.mow.clustering import Grouping, grouping_of
from mow.methods.mow.config import MowConfig
from mow.methods.mow.learner import Learner
from mow.methods.mow.router import Routing
from mow.methods.mow.split_modules import PER_MODULE
from mow.methods.mow.vae import BatchNorm
from mow.methods.mow.world_model_loss import WorldModelLosses
from mow.nn.finite import NotFinite, check_finite
from mow.nn.policy import ActionMask, Policy
from mow.nn.routes import FixedRoutes
from mow.nn.weight_cache import cached


class ShardedLearner(Learner):
    """A rank's part of the run. Losses, batches and actors have the rows of its tasks `own`."""

    def __init__(self, config: MowConfig, mask: ActionMask, device: torch.device, parallel: Parallel) -> None:
        self.parallel = parallel
        super().__init__(config, mask, device)

    @classmethod
    def on_ranks(
        cls, config: MowConfig, tasks: TaskSet, device: torch.device, parallel: Parallel
    ) -> "ShardedLearner":
        """Raises: UsageError for a setting that does not run on several ranks."""
        optim = config.optim
        for name, on in (("optim.task_groups above 1", optim.task_groups > 1),
                         ("insight_every", config.insight_every > 0), ("optim.compile", optim.compile),
                         ("optim.cuda_graph", optim.cuda_graph),
                         ("optim.update_graph", optim.update_graph)):  # fmt: skip
            if on:
                raise UsageError(f"{name} works on one process only, this run has {parallel.size} ranks: leave it out")
        masks = tasks.layout.discrete_mask, tasks.layout.continuous_mask
        return cls(config, ActionMask(*map(torch.from_numpy, masks)), device, parallel)

    def _take_parts(self) -> None:
        parallel, model, agent = self.parallel, self.world_model, self.agent
        parallel.divide(model.module_of_task)
        self.own = parallel.own
        self.own_model, self.own_agent = TaskSlice(model, self.own), AgentSlice(agent, self.own)
        self.own_scale = self.return_scale.rows(self.own)
        with torch.no_grad():  # equal but where dropout has drawn from the generator that new weights come from
            parallel.copy_from(0, [tensor for part in (model, agent) for tensor in part.state_dict().values()])
        self.weight_cache.invalidate()
        modules = sorted({*model.module_of_task[self.own]})
        self.cut = [module for module in modules if len(parallel.ranks_of(module)) > 1]
        self.sum_after = False  # the backward pass: with statistics of batch norm in it, one order of sums on all ranks
        if model.config.perception.norm == "bn_shared":
            self.sum_after = any(len(parallel.ranks_of(module)) > 1 for module in range(model.num_modules))
            for norm in (each for each in model.modules() if isinstance(each, BatchNorm)):
                norm.sums = {module: partial(parallel.added, module=module) for module in self.cut}
        self.sums = {id(part): self._summing(part) for part in (model, agent)}

    def _summing(self, model: nn.Module) -> nn.Module:
        """For the parameters that every rank has a gradient of."""
        rows = {id(tensor) for tensor, _ in self._rows(model)}
        unread = self.world_model.router is None and not self.world_model.config.condition
        trained = [p for name, p in model.named_parameters() if p.requires_grad and id(p) not in rows
                   and not (unread and name == "task_embedding")]  # fmt: skip
        weights = list(self.task_weights.parameters()) if model is self.world_model else []
        return self.parallel.summing([*trained, *weights])

    # Rows of modules and of tasks ------------------------------------------------------------------------------------

    def _rows(self, model: nn.Module) -> Iterator[tuple[Tensor, Sequence[int]]]:
        """Every weight and statistic with a row per module or per task, and the first rank that holds each row."""
        num_tasks, num_modules = len(self.tasks), self.world_model.num_modules
        by_module = [self.parallel.ranks_of(module)[0] for module in range(num_modules)]
        by_task = [rank for rank, part in enumerate(self.parallel.parts) for _ in range(part.start, part.stop)]
        per_task_norms = self.config.model.perception.norm == "bn_per_task"
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if isinstance(model, Agent):
                if name.startswith(("critic.", "slow_critic.")) and len(tensor) > 1:
                    yield tensor, by_task if self.config.actor_critic.critic == "per_task" else by_module
            elif name == "background" or (
                per_task_norms and ".norms." in name and name.startswith(("encoder.", "decoder."))
            ):
                yield tensor, by_task
            elif name.startswith(PER_MODULE) and num_modules > 1 and len(tensor) == num_modules:
                yield tensor, by_module
        assert num_tasks == len(by_task), "every task is on a rank"

    @torch.no_grad()
    def complete(self) -> None:
        """Give every rank the rows of all ranks: weights, optimisers, statistics."""
        by_task = [rank for rank, part in enumerate(self.parallel.parts) for _ in range(part.start, part.stop)]
        held = [*self._rows(self.world_model), *self._rows(self.agent)]
        for optimiser in self._optimisers:
            for tensor, ranks in (*self._rows(self.world_model), *self._rows(self.agent)):
                held += [(moment, ranks) for moment in optimiser.state.get(tensor, {}).values()
                         if isinstance(moment, Tensor) and moment.dim() and len(moment) == len(ranks)]  # fmt: skip
        held += [(mean, by_task) for name, mean in self.task_weights.named_buffers() if name == "mean"]
        held += [(self.return_scale.percentiles.mT, by_task), (self.return_scale.weight, by_task)]
        for rank in range(self.parallel.size):
            rows = [tensor[i] for tensor, ranks in held for i, first in enumerate(ranks) if first == rank]
            self.parallel.copy_from(rank, rows)
        self.weight_cache.invalidate()

    @torch.no_grad()
    def _clip(self, model: nn.Module, total: Tensor, clip: float) -> tuple[Tensor, Tensor]:
        gradients = {id(p): p.grad for p in model.parameters() if p.grad is not None}
        held = [(gradients.pop(id(p)), ranks) for p, ranks in self._rows(model) if id(p) in gradients]
        shared = [*gradients.values()]
        if self.sum_after:
            weights = self.task_weights.parameters() if model is self.world_model else ()
            self.parallel.add([*shared, *(p.grad for p in weights if p.grad is not None)])
        by_module = [gradient for gradient, ranks in held if len(ranks) == self.world_model.num_modules]
        for module in self.cut if self.world_model.num_modules > 1 else ():
            if by_module:
                self.parallel.add([gradient[module] for gradient in by_module], module)
        squares = total.new_zeros(2, dtype=torch.float64)
        squares[1] = total.detach()
        counted = [gradient[i] for gradient, ranks in held for i, first in enumerate(ranks)
                   if first == self.parallel.rank]  # fmt: skip
        counted += shared if self.parallel.rank == 0 else []
        if counted:
            squares[0] = torch.stack(torch._foreach_norm(counted)).double().square().sum()
        self.parallel.add([squares])
        norm = squares[0].sqrt().float()
        torch._foreach_mul_([*shared, *(gradient for gradient, _ in held)], (clip / (norm + 1e-6)).clamp(max=1.0))
        return squares[1].float(), norm

    def _check_finite(
        self, what: str, total: Tensor, norm: Tensor, losses: Mapping[str, Tensor], model: nn.Module
    ) -> None:
        if bool(torch.stack([total, norm]).isfinite().all()):
            return
        said = ""
        try:
            check_finite(what, total, norm, losses, self.tasks[self.own], model.named_parameters())
        except NotFinite as error:
            said = str(error)
        found = self.parallel.texts(said)
        raise NotFinite(next((text for text in found if "gradient" not in text), found[0]))

    # Updates ---------------------------------------------------------------------------------------------------------

    def cached_routing(self) -> Routing:
        return cached(self, self.own_model, lambda: self.routing().rows(self.own))

    def _freeze_routes(self) -> None:
        before = self.frozen_routes
        super()._freeze_routes()
        if before is None and self.frozen_routes is not None:
            self.parallel.copy_from(0, [self.frozen_routes])

    def _world_model_backward(self, batch: TransitionBatch) -> tuple[WorldModelLosses, Tensor]:
        config = self.config.loss

        def losses_of() -> tuple[WorldModelLosses, Tensor]:
            with self.autocast():
                routing = self.routing(explore=True)
                turn = self.updates % config.reconstruct_every
                losses = self.steps.world_model_losses(
                    self.own_model, batch, routing.rows(self.own), self.rng, config, turn=turn
                )
            total, load = self.task_weights(losses.weighted(config), self.own), routing.load()
            if load is not None:
                losses = losses._replace(balance=balance_loss(load))
                total = total + (config.balance if self.parallel.rank == 0 else 0.0) * losses.balance
            return losses, total

        losses, total = self._summed(self.world_model, losses_of, lambda pair: pair[1])
        return losses, total

    def _agent_backward(self, targets: ActorCriticTargets, embedding: Tensor | None) -> ActorCriticLosses:
        share = self.own_model.num_tasks / len(self.tasks)  # the loss is a mean over tasks

        def losses_of() -> ActorCriticLosses:
            losses = self._agent_losses(targets, embedding)
            return losses._replace(total=losses.total * share)

        losses: ActorCriticLosses = self._summed(self.agent, losses_of, lambda losses: losses.total)
        return losses

    def _summed(self, model: nn.Module, forward: Any, total_of: Any) -> Any:
        """Return what `forward` does, after the backward pass of its total."""
        summing: Any = self.sums[id(model)]
        with summing.no_sync() if self.sum_after else nullcontext():
            result = summing(forward)
            total_of(result).backward()
        return result

    # Clustering and checkpoints --------------------------------------------------------------------------------------

    def group(self, batches: Iterable[TransitionBatch]) -> Grouping:
        """Clusters from the evidence of all ranks, as rank 0 finds them."""
        found = grouping_of(
            self.world_model, batches, self.config, self.weighted_losses,
            part=lambda model: TaskSlice(model, self.own), gather=self.parallel.rows,
        )  # fmt: skip
        state = found.state_dict()
        text = self.parallel.texts(json.dumps({**state, "similarity": state["similarity"].tolist()}))[0]
        state = json.loads(text)
        return Grouping.of_state({**state, "similarity": torch.tensor(state["similarity"], dtype=torch.float64)})

    def weighted_terms(self, batch: TransitionBatch) -> Tensor:
        """[K, terms] of all tasks."""
        return self.parallel.rows(super().weighted_terms(batch))

    def regroup(self, grouping: Grouping, terms: Tensor | None = None) -> None:
        """As one process does, on every rank; the tasks are divided anew."""
        self.complete()
        super().regroup(grouping, terms)

    def state_dict(self) -> dict[str, object]:
        """State of the whole run, the same on all ranks, which must all call it."""
        self.complete()
        return super().state_dict()


class AgentSlice(Agent):
    """View of `whole` on some tasks: the same weights, fewer rows."""

    def __init__(self, whole: Agent, tasks: slice) -> None:
        nn.Module.__init__(self)
        self.__dict__.update({**whole.__dict__, "_modules": dict(whole._modules)})
        self.tasks, self.every, self.mask = tasks, whole.mask, whole.mask.reorder(tasks)
        self.actor_routes = FixedRoutes(whole.actor_routes.plan.routes[tasks], 1)
        self.critic_routes = FixedRoutes(whole.critic_routes.plan.routes[tasks], whole.num_critics)

    def policy(self, state: Tensor, embedding: Tensor | None = None) -> Policy:
        """[k, B, T, X] -> pi(a | s)."""
        return PolicySlice(super().policy(state, embedding).outputs, self.mask, self.tasks, self.every)


@dataclass(frozen=True)
class PolicySlice(Policy):
    """Policy of some tasks, drawn as with all the others."""

    tasks: slice
    every: ActionMask  # of all tasks

    def sample(self, rng: PhiloxState) -> tuple[Tensor, Tensor]:
        """[k, ..., A] each; the others' rows are drawn too, from zeros, and dropped."""
        above = len(self.every.discrete) - self.tasks.stop
        padding = [0, 0] * (self.outputs.dim() - 1) + [self.tasks.start, above]
        action, raw = Policy(F.pad(self.outputs, padding), self.every).sample(rng)
        return action[self.tasks], raw[self.tasks]
