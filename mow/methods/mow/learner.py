"""World model and agent, their optimisers, and their two updates: the world model on replay, the agent in imagination.

A learner begins with one module for all tasks (warm-up), measures how the tasks pull at it, and is then regrouped: one
module per cluster, tasks sorted by cluster, an agent of its own. Source: MoW sections 3 and 4.
"""

from collections.abc import Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from mow.batch import TransitionBatch
from mow.kernels import PhiloxState
from mow.losses.returns import ReturnScale
from mow.methods.base import Event, Metrics, Note, Picture, Reorder, Sampler, TaskSet, Watch, untimed
from mow.methods.mow.accumulate import backward_in_parts, task_parts
from mow.methods.mow.acting import MowActor
from mow.methods.mow.actor_critic import Agent
from mow.methods.mow.actor_critic_loss import ActorCriticLosses, ActorCriticTargets
from mow.methods.mow.annealing import Annealed
from mow.methods.mow.clustering import Grouping, grouping_of
from mow.methods.mow.compile import update_steps
from mow.methods.mow.config import MowConfig
from mow.methods.mow.cuda_graph import RolloutGraph
from mow.methods.mow.imagination import imagine
from mow.methods.mow.optim import agent_optimisers, world_model_optimisers
from mow.methods.mow.phases import BACKGROUND_STREAM, CLUSTERING_STREAM, phases
from mow.methods.mow.records import Imagination
from mow.methods.mow.router import Routing
from mow.methods.mow.split_modules import grow
from mow.methods.mow.task_weights import make_task_weights
from mow.methods.mow.update_graph import UpdateGraphs
from mow.methods.mow.world_model import WorldModel
from mow.methods.mow.world_model_loss import WorldModelLosses, num_terms, world_model_losses
from mow.nn.finite import NotFinite, check_finite
from mow.nn.policy import ActionMask
from mow.nn.weight_cache import WeightCache, cached


class Learner(Annealed):
    """World model, agent, their optimisers and random streams, on one device."""

    def __init__(self, config: MowConfig, mask: ActionMask, device: torch.device) -> None:
        self.config, self.device, self.mask = config, device, mask.to(device)
        self.phases = phases(config)
        self.steps = update_steps(compiled=config.optim.compile)
        self.rollout_graph = RolloutGraph() if config.optim.cuda_graph else None
        self.graphs = UpdateGraphs(device) if config.optim.update_graph else None
        num_tasks = len(config.tasks)
        self.grouping: Grouping | None = None
        self.world_model = WorldModel(
            config.model, action_size=mask.action_size, module_of_task=[0] * num_tasks, num_modules=1,
            across_episodes=config.storm_compat, recompute=config.optim.checkpoint_activations,
        ).to(device)  # fmt: skip
        terms = num_terms(config.model.task_head)
        self.task_weights = make_task_weights(config.loss, num_tasks, terms).to(device)
        self.agent = self._new_agent()
        self.return_scale = ReturnScale(num_tasks, config.actor_critic.return_decay, device)
        self.rng = PhiloxState.from_seed(config.seed, device)
        self.frozen_routes: Tensor | None = None
        self.updates = 0  # of the world model, warm-up included
        self.weight_cache = WeightCache(device)
        self._new_optimisers()
        self._take_parts()

    @classmethod
    def of_tasks(cls, config: MowConfig, tasks: TaskSet, device: torch.device) -> "Learner":
        """A learner for the tasks as their environments describe them."""
        masks = tasks.layout.discrete_mask, tasks.layout.continuous_mask
        return cls(config, ActionMask(*map(torch.from_numpy, masks)), device)

    def _new_agent(self) -> Agent:
        config, model = self.config, self.world_model
        return Agent(
            config.actor_critic, latent_size=config.model.perception.latent_size, hidden_size=config.model.width,
            num_bins=config.model.num_bins, two_hot_form=config.model.two_hot_form, mask=self.mask,
            module_of_task=model.module_of_task, num_modules=model.num_modules,
            embedding_size=config.model.embedding_size,
            condition=config.model.condition if config.model.embedding_size else (),
        ).to(self.device)  # fmt: skip

    def _new_optimisers(self) -> None:
        optim = self.config.optim
        self.world_model_optimisers = self._watched(world_model_optimisers(self.world_model, self.task_weights, optim))
        self.agent_optimisers = self._watched(agent_optimisers(self.agent, optim))
        self._start_graphs()

    def _start_graphs(self) -> None:
        """Record anew: models, optimisers or random stream are others."""
        if self.graphs is not None:
            self.graphs.clear()
            self.graphs.use_tensors(self._optimisers)
            self._set_numbers()

    def _take_parts(self) -> None:
        """Name the tasks that this process trains, and model, agent and return ranges as far as they concern these."""
        self.own = slice(0, len(self.tasks))
        self.own_model, self.own_agent, self.own_scale = self.world_model, self.agent, self.return_scale

    def _watched(self, optimisers: list[torch.optim.Optimizer]) -> list[torch.optim.Optimizer]:
        """Optimisers whose steps empty the weight cache."""
        for optimiser in optimisers:
            optimiser.register_step_post_hook(lambda *_: self.weight_cache.invalidate())
        return optimisers

    @property
    def tasks(self) -> list[str]:
        """Names in the order of the moment."""
        order = range(len(self.config.tasks)) if self.grouping is None else self.grouping.order
        return [self.config.tasks[k] for k in order]

    @property
    def groups(self) -> list[int] | None:
        """The module of every task; None before the tasks are grouped."""
        return None if self.grouping is None else [*self.world_model.module_of_task]

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"world model": self.world_model, "agent": self.agent}

    def actor(self, *, explore: bool = True) -> MowActor:
        """A new actor, with an empty memory; its actions are drawn from the policy in any case."""
        return MowActor(self, self.config.schedule.acting_context)

    def reseed(self, seed: int) -> None:
        """Make all later draws depend on `seed` alone."""
        self.rng = PhiloxState.from_seed(seed, self.device)
        self._start_graphs()

    # Routing ---------------------------------------------------------------------------------------------------------

    def routing(self, *, explore: bool = False) -> Routing:
        """The experts of every task now; `explore` adds the annealed noise while the choice is still open."""
        temperature = self._number("temperature")
        if self.frozen_routes is not None or not explore or self.noise <= 0:
            return self.world_model.route(temperature=temperature, frozen=self.frozen_routes)
        return self.world_model.route(temperature=temperature, noise=self._number("noise"), rng=self.rng)

    @torch.no_grad()
    def _freeze_routes(self) -> None:
        """Fix the choice of experts after the update in which the temperature has reached its end."""
        if self.frozen_routes is None and self.updates >= self.config.model.routing.anneal_updates:
            with self.autocast():
                self.frozen_routes = self.world_model.route(temperature=self.temperature).plan.routes
            if self.graphs is not None:
                self.graphs.clear()

    def cached_routing(self) -> Routing:
        """`routing()`, computed once while the weight cache is in use."""
        return cached(self, self.own_model, self.routing)

    # Updates ---------------------------------------------------------------------------------------------------------

    def update(self, kind: str, batch: TransitionBatch, watch: Watch = untimed) -> Metrics:
        """One update, of the "world_model" or of the "agent". Raises: NotFinite as they do."""
        if kind == "agent":
            return self.update_agent(batch, watch)
        with watch("world_model"):
            return self.update_world_model(batch)

    def end_phase(self, name: str, sample: Sampler) -> tuple[Event, ...]:
        """After the prefill the background is set, after the warm-up the tasks are grouped."""
        if name == "prefill" and self.config.model.perception.background != "none":
            length = self.config.batch.length
            batch = sample(max(1, 256 // length), length, counter=0, stream=BACKGROUND_STREAM)
            self.own_model.set_background(batch.frame.flatten(1, 2).to(self.device))  # [K, N, 64, 64, 3]
        if name == "warm-up":
            size, number, names = self.config.batch, self.config.clustering.num_batches, self.tasks
            draw = partial(sample, size.num_sequences, size.length, stream=CLUSTERING_STREAM)
            grouping = self.group(draw(counter=counter) for counter in range(number))
            fresh = draw(counter=number)
            self.regroup(grouping, self.weighted_terms(fresh) if self.config.warmup_updates else None)
            picture = Picture("clustering/similarity", grouping.shades)
            return Reorder(grouping.order), Note(grouping.describe(names)), picture
        return ()

    def update_world_model(self, batch: TransitionBatch) -> Metrics:
        """One step on L_H + 0.1 L_bal. Raises: NotFinite instead of making a step that would break the weights.

        Source: MoW section 3.
        """
        batch = batch.to(self.device)
        turn = self.updates % self.config.loss.reconstruct_every
        try:
            if self.graphs is None:
                metrics = self._world_model_step(batch)
            else:
                key = turn, self.frozen_routes is None and self.noise > 0
                metrics = self.graphs.run("world_model", key, self._world_model_step, batch)
        except NotFinite:
            self.updates += 1  # a batch that is skipped is not drawn again
            raise
        self.updates += 1
        self._anneal()
        self._freeze_routes()
        return metrics

    def _guard(
        self, what: str, total: Tensor, norm: Tensor, losses: Mapping[str, Tensor], model: nn.Module,
        optimisers: list[torch.optim.Optimizer],
    ) -> Tensor | None:  # fmt: skip
        """Raise NotFinite before a step that would break weights; or have the device leave it out: a scalar, 1 or 0."""
        if self.graphs is not None:
            return self.graphs.guard(what, total, norm, losses, self.tasks, model.named_parameters(), optimisers)
        self._check_finite(what, total, norm, losses, model)
        return None

    def _world_model_step(self, batch: TransitionBatch) -> Metrics:
        config = self.config
        self.own_model.train()
        for optimiser in self.world_model_optimisers:
            optimiser.zero_grad(set_to_none=True)
        losses, total = self._world_model_backward(batch)
        total, norm = self._clip(self.world_model, total, config.optim.world_model_clip)
        self._guard("world model", total, norm, losses.terms, self.world_model, self.world_model_optimisers)
        for optimiser in self.world_model_optimisers:
            optimiser.step()
        weights = {name: weight[self.own] for name, weight in self.task_weights.metrics().items()}
        metrics = {**losses.metrics(config.loss), **weights}
        return {**metrics, "optim/world_model_total": total.detach(), "optim/world_model_grad_norm": norm}

    def _clip(self, model: nn.Module, total: Tensor, clip: float) -> tuple[Tensor, Tensor]:
        """Bring the gradient of a model to norm `clip` at most. Returns: the loss of all tasks, and the norm before."""
        return total, nn.utils.clip_grad_norm_(model.parameters(), clip)

    def _check_finite(
        self, what: str, total: Tensor, norm: Tensor, losses: Mapping[str, Tensor], model: nn.Module
    ) -> None:
        check_finite(what, total, norm, losses, self.tasks[self.own], model.named_parameters())

    def _world_model_backward(self, batch: TransitionBatch) -> tuple[WorldModelLosses, Tensor]:
        """Losses, and their weighted sum, whose gradient is left in the parameters."""
        model, loss = self.world_model, self.config.loss
        with self.autocast():
            routing = self.routing(explore=True)
        parts, turn = task_parts(model, self.config.optim.task_groups), self.updates
        if len(parts) > 1:
            return backward_in_parts(
                model, batch, routing, self.rng, loss, self.task_weights, parts, turn=turn, autocast=self.autocast
            )
        with self.autocast():
            turn %= loss.reconstruct_every  # to a compiled function a number is a constant
            losses = self.steps.world_model_losses(model, batch, routing, self.rng, loss, turn=turn)
        total = self.task_weights(losses.weighted(loss))
        if losses.balance is not None:
            total = total + loss.balance * losses.balance
        total.backward()
        return losses, total

    def update_agent(self, context: TransitionBatch, watch: Watch = untimed) -> Metrics:
        """Imagine from replay contexts, then update actor and critics on the rollout. Raises: NotFinite as above.

        Args: watch: timer of the parts "imagination" and "actor_critic".
        Source: MoW section 3.
        """
        context = context.to(self.device)
        if self.graphs is None:
            return self._imagine_and_learn(context, watch)
        with watch("actor_critic"):
            return self.graphs.run("agent", self.frozen_routes is None, self._imagine_and_learn, context)

    def _imagine_and_learn(self, context: TransitionBatch, watch: Watch = untimed) -> Metrics:
        self.own_model.eval()
        with watch("imagination"):
            rollout = self.imagine_rollout(context)
        with watch("actor_critic"):
            return self._update_actor_critic(rollout)

    def _update_actor_critic(self, rollout: Imagination) -> Metrics:
        config = self.config
        with self.autocast():
            embedding = self.own_model.embedding("actor") if "actor" in config.model.condition else None
            targets, metrics = self.steps.compute_targets(
                self.own_agent, rollout, self.own_scale, config.actor_critic, embedding=embedding,
                storm_index=config.storm_compat,
            )  # fmt: skip
        for _ in range(config.actor_critic.rollout_epochs):
            for part in targets.parts(config.actor_critic.rollout_parts):
                losses, norm = self._agent_step(part, embedding)
        # Only the last mini-batch's losses are logged.
        metrics = {f"agent/{name}": metric for name, metric in {**metrics, **losses.metrics}.items()}
        return {**metrics, "optim/agent_grad_norm": norm}

    def imagine_rollout(self, context: TransitionBatch) -> Imagination:
        """A rollout from contexts on the device; where a CUDA graph replays it, the next one takes its place."""
        with torch.no_grad(), self.autocast(), self.weight_cache.use():
            routing = self.cached_routing()
        if self.rollout_graph is None:
            return self._imagine(context, routing)
        return self.rollout_graph(self._imagine, context, routing, self.rng, (self.world_model, self.agent))

    def _imagine(self, context: TransitionBatch, routing: Routing) -> Imagination:
        how = self.config.imagination
        with self.autocast(), self.weight_cache.use():
            return imagine(
                self.own_model, self.own_agent, context, routing, self.rng, horizon=how.horizon, start=how.start,
                ends=how.ends, temperature=how.temperature, steps=self.steps.rollout,
            )  # fmt: skip

    def _agent_step(self, targets: ActorCriticTargets, embedding: Tensor | None) -> tuple[ActorCriticLosses, Tensor]:
        """One step of Adam on actor and critics; returns the losses and the norm of the gradient."""
        config = self.config
        for optimiser in self.agent_optimisers:
            optimiser.zero_grad(set_to_none=True)
        losses = self._agent_backward(targets, embedding)
        total, norm = self._clip(self.agent, losses.total, config.optim.agent_clip)
        left_out = self._guard("agent", total, norm, losses.metrics, self.agent, self.agent_optimisers)
        for optimiser in self.agent_optimisers:
            optimiser.step()
        self.agent.update_target_critic(config.actor_critic.slow_decay, left_out)
        return losses, norm

    def _agent_backward(self, targets: ActorCriticTargets, embedding: Tensor | None) -> ActorCriticLosses:
        """Losses whose gradient is left in the parameters."""
        losses = self._agent_losses(targets, embedding)
        losses.total.backward()
        return losses

    def _agent_losses(self, targets: ActorCriticTargets, embedding: Tensor | None) -> ActorCriticLosses:
        with self.autocast():
            losses: ActorCriticLosses = self.steps.actor_critic_losses(
                self.own_agent, targets, entropy=self.entropy_of_tasks[self.own], clip=self.config.actor_critic.clip,
                embedding=embedding,
            )  # fmt: skip
        return losses

    # Clustering ------------------------------------------------------------------------------------------------------

    def group(self, batches: Iterable[TransitionBatch]) -> Grouping:
        """Clusters from `batches` of replay; changes nothing yet. Raises: FloatingPointError if weights are broken."""
        return grouping_of(self.world_model, batches, self.config, self.weighted_losses)

    def weighted_losses(self, model: WorldModel, batch: TransitionBatch) -> Tensor:
        """Losses of a model on a batch with their coefficients: [K, terms]."""
        with self.autocast():
            routing = model.route(temperature=self.temperature, frozen=self.frozen_routes)
            losses = world_model_losses(model, batch.to(self.device), routing, self.rng, self.config.loss)
        return losses.weighted(self.config.loss)

    def regroup(self, grouping: Grouping, terms: Tensor | None = None) -> None:
        """Copy the module to every cluster, sort the tasks, start agent and optimisers afresh.

        Args: terms: [K, terms] weighted losses as they stand, in the old order; harmony scales start from them.
        The caller sorts environments and replay by `grouping.order` too.
        """
        order = torch.tensor(grouping.order, device=self.device)
        self.grouping = grouping
        if terms is not None:
            self.task_weights.adapt(terms)
        self.task_weights.reorder(order)
        self.mask = self.mask.reorder(order)
        if self.frozen_routes is not None:
            self.frozen_routes = self.frozen_routes[order]
        self.world_model = grow(self.world_model, grouping.order, grouping.module_of_task, grouping.num_modules)
        self.agent = self._new_agent()
        self._new_optimisers()
        self._take_parts()

    @torch.no_grad()
    def weighted_terms(self, batch: TransitionBatch) -> Tensor:
        """Losses with their coefficients on a batch, without learning from it: [K, terms]."""
        return self.weighted_losses(self.own_model.eval(), batch)

    # Checkpoints -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, object]:
        """Tensors, numbers and lists only, so that it loads without pickle."""
        return {
            "world_model": self.world_model.state_dict(),
            "task_weights": self.task_weights.state_dict(),
            "agent": self.agent.state_dict(),
            "world_model_optimisers": [optimiser.state_dict() for optimiser in self.world_model_optimisers],
            "agent_optimisers": [optimiser.state_dict() for optimiser in self.agent_optimisers],
            "return_scale": self.return_scale.state_dict(),
            "rng": self.rng.state(),
            "frozen_routes": self.frozen_routes,
            "updates": self.updates,
            "grouping": None if self.grouping is None else self.grouping.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from a state_dict(); this learner must be fresh (not regrouped)."""
        if state["grouping"] is not None:
            self.regroup(Grouping.of_state(state["grouping"]))
        self.world_model.load_state_dict(state["world_model"])
        self.task_weights.load_state_dict(state["task_weights"])
        self.agent.load_state_dict(state["agent"])
        kept = [*state["world_model_optimisers"], *state["agent_optimisers"]]
        for optimiser, its_state in zip(self._optimisers, kept, strict=True):
            optimiser.load_state_dict(its_state)
        self.return_scale.load_state_dict(state["return_scale"])
        self.rng.load(state["rng"])
        routes = state["frozen_routes"]
        self.frozen_routes = None if routes is None else routes.to(self.device)
        self.updates = state["updates"]
        self._start_graphs()
        self.weight_cache.invalidate()
