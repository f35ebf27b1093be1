"""Settings of the method mow: batches, losses, clustering, optimisers, schedule, and the whole of a run."""

from dataclasses import dataclass, field
from operator import attrgetter
from typing import Literal

from mow.config import RunConfig
from mow.config.checks import at_most, fraction, not_negative, positive, require, usable
from mow.errors import UsageError
from mow.methods.mow.config_agent import ActorCriticConfig, ImaginationConfig
from mow.methods.mow.config_model import WorldModelConfig
from mow.methods.registry import methods_that_take


@dataclass(frozen=True)
class BatchConfig:
    num_sequences: int = 16
    """B: replay windows per task and world-model update."""
    length: int = 64
    """L: steps per window."""

    def __post_init__(self) -> None:
        usable(self)
        positive(self, "num_sequences")
        require(self.length >= 2, f"length must be at least 2, got {self.length}")


@dataclass(frozen=True)
class LossConfig:
    reconstruction: float = 1.0
    reward: float = 1.0
    termination: float = 1.0
    task: float = 1.0
    dynamics: float = 0.5
    representation: float = 0.1
    balance: float = 0.1
    reconstruct_every: int = 1
    """Decode every n-th step of a window, others in the next update; 1 decodes all. Saves most of a decoder's time."""
    free_bits: float = 1.0
    """Nats below which a task's KL terms stop pulling."""
    weighting: Literal["harmony", "shared_terms", "per_term", "uniform", "running_mean"] = "harmony"
    """Task weights: one learned scale per task, the same but learned from the terms that reach shared parameters alone,
    one per task and term, none, or 1 / running mean of the loss."""

    def __post_init__(self) -> None:
        usable(self)
        not_negative(self, "reconstruction", "reward", "termination", "task", "dynamics", "representation", "balance")
        not_negative(self, "free_bits")
        positive(self, "reconstruct_every")


@dataclass(frozen=True)
class ClusteringConfig:
    method: Literal["gradient", "latent", "random", "identity", "single"] = "gradient"
    """Group tasks by gradient, by mean encoder feature, at random; one module per task; one module for all."""
    num_modules: int = 12
    """N_m: modules after warm-up (never more than tasks)."""
    features: Literal["layer_mean", "tensor_mean"] = "layer_mean"
    """Average each gradient per output channel, or to one number per tensor."""
    scaling: Literal["per_tensor", "none"] = "per_tensor"
    """Scale every tensor's averaged gradient to length 1 before they are joined; none: the largest tensor decides."""
    num_batches: int = 32
    restarts: int = 50

    def __post_init__(self) -> None:
        usable(self)
        positive(self, "num_modules", "restarts")
        at_most(self, 10_000, "num_batches", "restarts")
        require(self.num_batches >= 2, f"num_batches must be 2 or more (halves are compared), got {self.num_batches}")


@dataclass(frozen=True)
class OptimConfig:
    world_model_lr: float = 1e-4
    world_model_eps: float = 1e-8
    world_model_clip: float = 1000.0
    matrices: Literal["adam", "muon"] = "adam"
    """Optimiser of the world model's matrices: Adam as all else, or Muon (orthogonalised momentum)."""
    matrix_layers: Literal["hidden", "all"] = "hidden"
    """Matrices that Muon moves: those between the first and last layers of encoder, decoder and prior, or all."""
    matrix_lr: float = 2e-3
    """Step size of Muon, and of Adam for first and last layers beside it: root mean square of a step's entries."""
    matrix_decay: float = 0.1
    """Weight decay of Muon: each update takes matrix_lr times this share off its matrices."""
    muon_precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of Muon's products; parameters and momentum stay fp32. bf16 is faster where there are matrix units."""
    agent_lr: float = 3e-5
    agent_eps: float = 1e-5
    """Epsilon of the agent's Adam. The loss is a mean over tasks: 1e-5 slows down tasks with small gradients."""
    agent_clip: float = 100.0
    agent_matrices: Literal["adam", "muon"] = "adam"
    """Optimiser of the hidden layers of actor and critics."""
    agent_matrix_lr: float = 3e-3
    """Step size of Muon there: root mean square of a step's entries."""
    weighting_lr: float = 1e-3
    """Step size of the harmony scales, a parameter group of their own."""
    final_lr: float = 1.0
    """Share of every step size that is left at the end; they fall linearly with the world-model updates."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast on a GPU that has it, fp32 elsewhere."""
    checkpoint_activations: Literal["none", "transformers", "all"] = "none"
    """Compute the world model's activations again in its backward pass instead of keeping them: those of the
    Transformers, or of encoder and decoder too. Same numbers, less memory, more time."""
    task_groups: int = 1
    """Parts of the tasks that a world-model update takes one after the other, adding up gradients: only one part's
    activations live at a time. Same update but for rounding, and for other draws of dropout."""
    compile: bool = False
    """Compile losses, rollout steps and actor-critic targets with torch.compile: same numbers but for rounding (and,
    with dropout, for its masks), minutes at the start."""
    cuda_graph: bool = False
    """Imagine in one CUDA graph: same numbers, one launch instead of thousands, and the memory of a rollout is held
    throughout. Needs a GPU; off until one has been measured."""
    update_graph: bool = False
    """Make each whole update, imagination included, in one CUDA graph: no update waits for the device, and one whose
    numbers are not finite is left out there and reported one update later. Needs a GPU; off until one has been
    measured."""

    def __post_init__(self) -> None:
        usable(self)
        positive(self, "world_model_lr", "world_model_eps", "world_model_clip", "agent_lr", "agent_eps", "agent_clip")
        positive(self, "matrix_lr", "agent_matrix_lr", "weighting_lr", "task_groups")
        not_negative(self, "matrix_decay")
        fraction(self, "final_lr")
        require(not self.compile or (self.task_groups == 1 and self.checkpoint_activations == "none"),
                "optim.compile keeps all activations, of all tasks at once: leave it out, or optim.task_groups and "
                "optim.checkpoint_activations")
        require(not self.update_graph or (not self.cuda_graph and self.checkpoint_activations == "none"),
                "optim.update_graph records imagination too and keeps all activations: leave out optim.cuda_graph and "
                "optim.checkpoint_activations")


@dataclass(frozen=True)
class ScheduleConfig:
    prefill_steps: int = 5_000
    """Steps of each task taken by the random policy before any learning (counted in total_steps)."""
    warmup_updates: int = 5_000
    """Updates of the world model with one module, before the tasks are grouped."""
    world_model_every: int = 1
    """Environment steps (of each task) per world-model update."""
    agent_every: int = 1
    """Environment steps (of each task) per imagination and actor-critic update."""
    random_action: float = 0.01
    """Probability of a uniformly random action while collecting."""
    acting_context: int = 16
    """Steps in the memory of acting; at most the positions that h_t is trained on."""

    def __post_init__(self) -> None:
        usable(self)
        fraction(self, "random_action")
        not_negative(self, "prefill_steps", "warmup_updates")
        positive(self, "world_model_every", "agent_every", "acting_context")


@dataclass(frozen=True)
class MowConfig(RunConfig):
    """One run of Mixture-of-World Models. Source: MoW (arXiv 2602.01270)."""

    method: Literal["mow"] = "mow"
    """The algorithm: a folder of mow/methods."""
    storm_compat: bool = False
    """STORM's released behaviour: windows blind to episode ends, lambda-return from V(s_t)."""
    model: WorldModelConfig = field(default_factory=WorldModelConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    clustering: ClusteringConfig = field(default_factory=ClusteringConfig)
    imagination: ImaginationConfig = field(default_factory=ImaginationConfig)
    actor_critic: ActorCriticConfig = field(default_factory=ActorCriticConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.env.obs != "frame":
            raise ValueError(f"mow learns from frames, got env.obs {self.env.obs}: leave it out, or take a method that "
                             f"learns from states ({methods_that_take(self.env.obs)})")
        for names in (
            ("actor_critic.rollout_parts", "imagination.num_sequences"), ("loss.reconstruct_every", "batch.length"),
        ):  # fmt: skip
            number, most = attrgetter(*names)(self)
            require(number <= most, f"{names[0]} must be at most {names[1]}, got {number} and {most}")
        require(
            self.total_steps > self.prefill_steps,
            f"total_steps must exceed the prefill of {self.prefill_steps} steps (one window and a step at least), got "
            f"{self.total_steps}: lower schedule.prefill_steps, or raise total_steps",
        )
        rollout = self.imagination.context + self.imagination.horizon
        most, bound = min((self.batch.length - 1, "batch.length - 1"),
                          (rollout - 1, "imagination.context + imagination.horizon - 1"))  # fmt: skip
        require(
            self.schedule.acting_context <= most,
            f"schedule.acting_context must be at most {bound} = {most}, got {self.schedule.acting_context}: learning "
            "never shows h_t of a longer past; lower it or raise the others",
        )
        longest = max(self.batch.length, rollout)
        require(self.model.max_positions >= longest,
                f"model.max_positions must cover the longest window of {longest} steps, got {self.model.max_positions}")

    @property
    def final_frames(self) -> bool:
        """True if the final frame of an episode is collected: the arrival form reads it."""
        return self.model.outcome == "arrival"

    @property
    def prefill_steps(self) -> int:
        """Random steps per task before learning; at least one window and a step, so that a window can be drawn."""
        shortest = max(self.batch.length, self.imagination.context) + 1
        return max(shortest, self.schedule.prefill_steps)

    @property
    def warmup_updates(self) -> int:
        """World-model updates before the tasks are grouped."""
        return self.schedule.warmup_updates

    @property
    def world_model_updates(self) -> int:
        """All world-model updates of the run, warm-up included."""
        return self.warmup_updates + (self.total_steps - self.prefill_steps) // self.schedule.world_model_every

    @property
    def agent_updates(self) -> int:
        """All imagination and actor-critic updates of the run."""
        return (self.total_steps - self.prefill_steps) // self.schedule.agent_every

    @property
    def num_modules(self) -> int:
        """M after the tasks are grouped."""
        most = {"single": 1, "identity": len(self.tasks)}.get(self.clustering.method, self.clustering.num_modules)
        return min(most, len(self.tasks))


def of_mow(config: RunConfig) -> MowConfig:
    """The config of a run of this method. Raises: UsageError for another one."""
    if not isinstance(config, MowConfig):
        raise UsageError(f"this run is of the method {config.method}, and this needs one of mow: name another run")
    return config
