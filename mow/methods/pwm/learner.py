"""World model, policies and critics, their optimisers, and the two updates.

    "world_model"   one step of Adam on the losses of losses.py, on windows of T + 1 observations
    "policy"        imagine from states of the data; one step of every task's actor up the gradient of first_order.py,
                    then some steps of its critics on the same rollout. The world model is frozen: not a bit changes.

Source: PWM (arXiv 2407.02466). Differs: minibatches of the critics are shuffled; clip and variance are per task.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mow.batch import TransitionBatch
from mow.errors import UsageError
from mow.kernels import PhiloxState
from mow.methods.base import Event, Metrics, Sampler, State, TaskSet, Watch, untimed
from mow.methods.pwm.acting import PwmActor
from mow.methods.pwm.config import PwmConfig
from mow.methods.pwm.first_order import (
    Rollout,
    RunningVariance,
    critic_targets,
    frozen,
    objective_of,
    permutation,
    roll_out,
)
from mow.methods.pwm.losses import counted_steps, discounted_mean, distillation_loss, unroll, world_model_losses
from mow.methods.pwm.model import WorldModel
from mow.methods.pwm.phases import MEASURE_STREAM, phases
from mow.methods.pwm.policies import Actors, Critics, clip_per_row, seed_of
from mow.methods.pwm.td_head import TdHead
from mow.nn.finite import check_finite
from mow.nn.policy import normal

_MEASURED = 4096  # observations of each task


def check_tasks(tasks: TaskSet) -> None:
    """Raises: UsageError for a task with discrete actions, or observations that are no state vectors."""
    for spec in tasks.specs:
        if spec.discrete:
            raise UsageError(f"{spec.name} has discrete actions, and pwm learns continuous ones: take tasks of the "
                             "suites vec, dmc or metaworld")
    if len(tasks.observation.shape) != 1:
        raise UsageError("pwm learns from state vectors, not from frames: add --env.obs state")


class Learner:
    """All that is trained, on one device."""

    def __init__(self, config: PwmConfig, tasks: TaskSet, device: torch.device) -> None:
        """Raises: UsageError as check_tasks."""
        check_tasks(tasks)
        self.config, self.device, self.phases = config, device, phases(config)
        self.tasks: list[str] = list(config.tasks)
        mask = torch.from_numpy(tasks.layout.continuous_mask)  # [K, A]
        self.action_sizes = mask.sum(dim=1).tolist()
        self.world_model = WorldModel(config.model, num_tasks=len(self.tasks), action_size=mask.shape[1],
                                      observation_size=tasks.observation.shape[0]).to(device)  # fmt: skip
        self.teacher = self._new_teacher() if config.distill.alpha else None
        policy, shared = config.policy, config.policy.form == "shared"
        rows = ["shared"] if shared else self.tasks
        inputs = self.world_model.latent_size
        if shared and self.world_model.embedding is not None:
            inputs += self.world_model.embedding.shape[1]
        self.shared, self.rows = shared, len(rows)
        self.actors = Actors(inputs, mask, rows, config.seed, width=policy.width).to(device)
        self.critics = Critics(inputs, policy.critics, rows, config.seed, width=policy.width).to(device)
        self.variance = RunningVariance(len(self.tasks), device)
        lr, encoder = config.optim.world_model_lr, list(self.world_model.encoder.parameters())
        moved = {id(parameter) for parameter in encoder}
        others = [parameter for parameter in self.world_model.parameters() if id(parameter) not in moved]
        groups: list[dict[str, Any]] = [{"params": encoder, "lr": config.optim.encoder_lr * lr}, {"params": others}]
        self.td_head = None
        if config.model.td_head:
            self.td_head = TdHead(config.model, self.world_model, mask, config.loss.episode_steps).to(device)
            groups.append({"params": list(self.td_head.q.parameters())})
            self.pi_optimiser = torch.optim.Adam(self.td_head.pi.parameters(), lr=lr, eps=1e-5, fused=True)
        self.world_model_optimiser = torch.optim.Adam(groups, lr=lr, fused=True)
        self.actor_optimiser, self.critic_optimiser = (
            torch.optim.Adam(part.parameters(), lr=policy.lr, betas=policy.betas, fused=True)
            for part in (self.actors, self.critics)
        )
        self.policy_updates = 0
        self.reseed(config.seed)

    def _new_teacher(self) -> WorldModel:
        """The larger model to learn from; all nan, which ends a run, until its weights are loaded."""
        model = self.world_model
        teacher = WorldModel(self.config.distill.teacher, num_tasks=model.num_tasks, action_size=model.action_size,
                             observation_size=model.observation_size)  # fmt: skip
        for parameter in teacher.requires_grad_(False).parameters():
            parameter.fill_(torch.nan)
        return teacher.to(self.device)

    @property
    def groups(self) -> None:
        return None

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        parts = {"world model": self.world_model, "actors": self.actors, "critics": self.critics}
        return parts if self.td_head is None else {**parts, "TD head": self.td_head}

    def actor(self, *, explore: bool = True) -> PwmActor:
        """A new actor; without `explore` its actions are tanh(mu)."""
        return PwmActor(self, explore=explore)

    def reseed(self, seed: int) -> None:
        """Make all later draws depend on `seed` alone; each task has a stream of its own, by its name."""
        self.rngs = {task: PhiloxState.from_seed(seed_of(seed, "draws", task), self.device) for task in self.tasks}
        self.td_rng = PhiloxState.from_seed(seed_of(seed, "TD head"), self.device)

    def noise(self, *shape: int) -> Tensor:
        """Standard normal [K, *shape, A]; a task's own entries do not depend on the other tasks, padding is 0."""
        drawn = [normal(torch.Size((*shape, size)), rng)
                 for rng, size in zip(self.rngs.values(), self.action_sizes, strict=True)]  # fmt: skip
        most = self.world_model.action_size
        return torch.stack([nn.functional.pad(one, (0, most - one.shape[-1])) for one in drawn])

    def seen(self, latent: Tensor) -> Tensor:
        """Input of actors and critics: z, or [z, e_k] where all tasks share them."""
        return self.world_model.join(latent) if self.shared else latent

    # Updates ---------------------------------------------------------------------------------------------------------

    def update(self, kind: str, batch: TransitionBatch, watch: Watch = untimed) -> Metrics:
        """One update, of the "world_model" or of the "policy". Raises: NotFinite before a step that breaks weights."""
        with watch(kind):
            batch = batch.to(self.device)
            return self.update_world_model(batch) if kind == "world_model" else self.update_policy(batch)

    def end_phase(self, name: str, sample: Sampler) -> tuple[Event, ...]:
        """Before the first update mean and deviation of the observations are measured, where the model uses them."""
        if name in ("measure", "prefill") and self.config.model.observations == "standard":
            seen = sample(_MEASURED, 1, counter=0, stream=MEASURE_STREAM).frame.flatten(1, 2)  # [K, N, O]
            self.world_model.measure(seen.to(self.device))
        return ()

    def update_world_model(self, batch: TransitionBatch) -> Metrics:
        """One step of Adam on the mean over tasks. Raises: NotFinite. Source: TD-MPC2 (arXiv 2310.16828)."""
        config, model, optimiser = self.config, self.world_model, self.world_model_optimiser
        td = None if self.td_head is None else (self.td_head, self.td_rng)
        losses = world_model_losses(model, batch, rho=config.loss.rho, td=td)
        total = losses.weighted(config.loss).mean()
        metrics = losses.metrics(config.loss)
        if self.teacher is not None:
            apart = distillation_loss(model, self.teacher, batch, config.distill.objective)
            metrics["loss/distillation"], total = apart.detach(), total + config.distill.alpha * apart.mean()
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        trained = [*model.parameters()] + ([] if self.td_head is None else [*self.td_head.q.parameters()])
        norm = nn.utils.clip_grad_norm_(trained, config.optim.world_model_clip)
        check_finite("world model", total, norm, metrics, self.tasks, model.named_parameters())
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        model.project()
        if self.td_head is not None:
            metrics["loss/td_policy"] = self._update_td_policy(self.td_head, batch)
        return {**metrics, "optim/world_model_grad_norm": norm}

    def _update_td_policy(self, td_head: TdHead, batch: TransitionBatch) -> Tensor:
        """One step of Adam on pi of the TD head, then of its slow Q toward Q; loss [K]. Raises: NotFinite."""
        model, parameters = self.world_model, list(td_head.pi.parameters())
        with torch.no_grad():
            latent = unroll(model, model.encode(batch.frame[:, :, 0]), batch.action[:, :, :-1])[:, :, :-1]
        with frozen(model, td_head.q):
            each = td_head.policy_loss(model, latent, self.td_rng)
            loss = discounted_mean(each, counted_steps(batch).taken, self.config.loss.rho)
        self.pi_optimiser.zero_grad(set_to_none=True)
        loss.mean().backward()
        norm = nn.utils.clip_grad_norm_(parameters, self.config.optim.world_model_clip)
        check_finite("TD head", loss.sum(), norm, {"loss/td_policy": loss}, self.tasks, td_head.pi.named_parameters())
        self.pi_optimiser.step()
        self.pi_optimiser.zero_grad(set_to_none=True)
        td_head.follow()
        return loss.detach()

    def update_policy(self, batch: TransitionBatch) -> Metrics:
        """One step of every actor, then those of its critics. Args: batch: windows whose first rows are the starts.

        Raises: NotFinite.
        Source: PWM (arXiv 2407.02466).
        """
        config, names = self.config.policy, [f"actors.{name}" for name, _ in self.actors.named_parameters()]
        for optimiser in (self.actor_optimiser, self.critic_optimiser):
            optimiser.param_groups[0]["lr"] = self.lr
        with frozen(self.world_model, self.critics):
            rollout = self.imagine(batch)
            objective = objective_of(rollout, self.critics.least(self.seen(rollout.latent[:, :, -1])),
                                     discount=config.discount)  # fmt: skip
            loss = -objective.mean(dim=1) / self.variance.update(objective)  # [K]
            if config.behaviour:
                loss = loss + config.behaviour * self.distance_to_data(rollout, batch)
            parameters = list(self.actors.parameters())
            total = loss.mean() if self.shared else loss.sum()  # a task's own actor is reached by its own loss alone
            gradients = torch.autograd.grad(total, parameters)
        norm = clip_per_row(parameters, gradients, self.rows, config.actor_clip)
        check_finite("policy", total, norm.norm(), {"loss/policy": loss}, self.tasks,
                     zip(names, parameters, strict=True))  # fmt: skip
        self.actor_optimiser.step()
        self.actors.bound_spread(config.min_log_std)
        self.policy_updates += 1
        metrics = {"loss/critic": self._update_critics(rollout), "policy/objective": objective.mean(dim=1).detach(),
                   "policy/reward": rollout.reward.mean(dim=(1, 2)).detach()}  # fmt: skip
        if self.shared:
            return {**metrics, "optim/actor_grad_norm": norm[0], "policy/spread": self.actors.log_std.exp().mean()}
        spread = (self.actors.log_std.exp() * self.actors.mask).sum(dim=(1, 2)) / self.actors.mask.sum(dim=(1, 2))
        return {**metrics, "optim/actor_grad_norm": norm, "policy/spread": spread.detach()}

    @property
    def lr(self) -> float:
        """Step size of actors and critics: falls linearly to `final_lr` at the last update."""
        config = self.config.policy
        done = self.policy_updates / max(1, self.config.policy_updates - 1)
        return config.lr + (config.final_lr - config.lr) * min(1.0, done)

    def imagine(self, batch: TransitionBatch) -> Rollout:
        """A rollout from the first observation of every window."""
        config = self.config.policy
        with torch.no_grad():
            start = self.world_model.encode(batch.frame[:, :, 0])  # [K, B, Z]
        noise = self.noise(start.shape[1], config.horizon)  # [K, B, T, A]
        return roll_out(self.world_model, lambda latent, eps: self.actors(self.seen(latent), eps), start, noise,
                        feedback=config.feedback, objective=config.objective)  # fmt: skip

    def distance_to_data(self, rollout: Rollout, batch: TransitionBatch) -> Tensor:
        """Mean over a task's own dimensions of (a_0 - a_data)^2 [K]; an episode's last row has no action."""
        valid = self.actors.mask * ~batch.is_last[:, :, :1]  # [K, B, A]
        apart = (rollout.action[:, :, 0] - batch.action[:, :, 0]).square()
        return (valid * apart).sum(dim=(1, 2)) / valid.sum(dim=(1, 2)).clamp_min(1.0)

    def _update_critics(self, rollout: Rollout) -> Tensor:
        """Some passes over the rollout's states, in shuffled minibatches; returns the mean loss of each task [K]."""
        config, states = self.config.policy, rollout.latent.detach()  # [K, B, T + 1, Z]
        with torch.no_grad():
            value = self.critics.least(self.seen(states).flatten(1, 2)).view(states.shape[:3])  # [K, B, T + 1]
            target = critic_targets(rollout, value, discount=config.discount, lam=config.lam).flatten(1)  # [K, N]
            inputs = self.seen(states[:, :, :-1]).flatten(1, 2)  # [K, N, I]
        norm = target.square().mean(dim=1)
        check_finite("critics", target.sum(), norm.sum(), {"critic target": norm}, self.tasks, ())
        parameters, losses = list(self.critics.parameters()), []
        for _ in range(config.passes):
            order = torch.stack([permutation(rng, target.shape[1]) for rng in self.rngs.values()])  # [K, N]
            for part in order.chunk(config.parts, dim=1):
                picked = inputs.gather(1, part.unsqueeze(-1).expand(-1, -1, inputs.shape[-1]))
                loss = (self.critics(picked) - target.gather(1, part).unsqueeze(1)).square().mean(dim=(1, 2))  # [K]
                gradients = torch.autograd.grad(loss.mean() if self.shared else loss.sum(), parameters)
                clip_per_row(parameters, gradients, self.rows, config.critic_clip)
                self.critic_optimiser.step()
                losses.append(loss.detach())
        return torch.stack(losses).mean(dim=0)

    # Checkpoints -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> State:
        """Tensors, numbers and dicts of them."""
        return {
            "world_model": self.world_model.state_dict(), "actors": self.actors.state_dict(),
            "critics": self.critics.state_dict(), "variance": self.variance.state_dict(),
            "optimisers": [one.state_dict() for one in self._optimisers], "policy_updates": self.policy_updates,
            "rngs": {task: rng.state() for task, rng in self.rngs.items()},
            "teacher": None if self.teacher is None else self.teacher.state_dict(),
            **({} if self.td_head is None else {"td_head": self.td_head.state_dict(), "td_rng": self.td_rng.state()}),
        }  # fmt: skip

    def load_state_dict(self, state: State) -> None:
        self.world_model.load_state_dict(state["world_model"])
        self.world_model.project()
        self.actors.load_state_dict(state["actors"])
        self.critics.load_state_dict(state["critics"])
        self.variance.load_state_dict(state["variance"])
        if self.teacher is not None:
            self.teacher.load_state_dict(state["teacher"])
        if self.td_head is not None:
            self.td_head.load_state_dict(state["td_head"])
            self.td_rng.load(state["td_rng"])
        for optimiser, kept in zip(self._optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        self.policy_updates = int(state["policy_updates"])
        for task, rng in self.rngs.items():
            rng.load(state["rngs"][task])

    @property
    def _optimisers(self) -> list[torch.optim.Optimizer]:
        own: list[torch.optim.Optimizer] = [self.world_model_optimiser, self.actor_optimiser, self.critic_optimiser]
        return own if self.td_head is None else [*own, self.pi_optimiser]
