"""What a run can be told: frozen dataclasses, one per component, each checked where it is made.

Nothing here imports torch, so that a typing mistake on the command line is answered at once. A component receives its
own config and never the whole tree; what an environment tells us (action counts, names) travels separately.
"""

from dataclasses import dataclass, field
from typing import Literal

from mow.config.agent import ActorCriticConfig, ImaginationConfig
from mow.config.checks import at_most, fraction, not_negative, positive, require, usable
from mow.config.model import (
    Condition,
    ExpertsConfig,
    PerceptionConfig,
    RoutingConfig,
    SharedConfig,
    WorldModelConfig,
)

__all__ = [
    "ActorCriticConfig",
    "BatchConfig",
    "ClusteringConfig",
    "Condition",
    "Config",
    "EnvConfig",
    "ExpertsConfig",
    "ImaginationConfig",
    "LossConfig",
    "OptimConfig",
    "PerceptionConfig",
    "RoutingConfig",
    "ScheduleConfig",
    "SharedConfig",
    "WorldModelConfig",
]


@dataclass(frozen=True)
class EnvConfig:
    protocol: Literal["100k", "storm"] = "100k"
    """Atari: `100k` = no sticky actions, 1 to 30 no-ops; `storm` = sticky 0.25, no no-ops, one fixed seed."""
    action_set: Literal["minimal", "full"] = "minimal"
    """Atari: mask each game's useless actions, or allow all 18."""
    render: Literal["light", "full"] = "light"
    """Robots: without shadows, reflections and antialiasing, ten times faster on a CPU, or with them. A model must be
    scored with what it was trained with."""
    metaworld_repeat: int = 1
    """Meta-World: steps of the simulator per action."""
    dmc_repeat: int = 2
    """DeepMind Control: steps of the simulator per action."""
    num_workers: int = -1
    """Processes that step the environments; 0 steps them here, -1 takes one per spare core."""
    max_restarts: int = 3
    """Times in a row, no episode finished between, that a simulator which fails is made anew; then the run stops."""
    timeout_s: float = 60.0
    """Seconds that one simulator in a worker may take for one call, a step or a reset, before it counts as hung.
    Without workers (`num_workers` 0) a simulator that hangs cannot be ended."""

    def __post_init__(self) -> None:
        usable(self)
        not_negative(self, "max_restarts")
        at_most(self, 1000, "metaworld_repeat", "dmc_repeat", "num_workers")
        at_most(self, 1e6, "timeout_s")
        positive(self, "timeout_s")
        require(self.num_workers >= -1, f"num_workers must be -1 (auto), 0 or more, got {self.num_workers}")
        positive(self, "metaworld_repeat", "dmc_repeat")

    @property
    def options(self) -> dict[str, object]:
        """What the environments are made with."""
        names = ("protocol", "action_set", "render", "metaworld_repeat", "dmc_repeat")
        return {name: getattr(self, name) for name in names}


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
class ReplayConfig:
    draw: Literal["uniform", "recent"] = "uniform"
    """Windows: all alike, or the newer of two drawn each time, so that what the policy does now is seen more often."""
    store: Literal["auto", "raw", "packed", "gpu"] = "auto"
    """Raw frames, frames packed with LZ4, or raw frames on the learner's GPU. auto: on the GPU where they fit into a
    third of its free memory, else raw, or packed where raw ones would take over half of the free main memory."""
    disk: str = ""
    """Folder for the packed frames that outgrow half of the free memory; empty: none."""
    prefetch: int = 2
    """Batches gathered in the background while others train; changes no result. 0: none."""

    def __post_init__(self) -> None:
        usable(self)
        not_negative(self, "prefetch")
        at_most(self, 100, "prefetch")
        require(not self.disk or self.store in ("auto", "packed"),
                "replay.disk takes packed frames: use replay.store packed")


@dataclass(frozen=True)
class OptimConfig:
    world_model_lr: float = 1e-4
    world_model_eps: float = 1e-8
    world_model_clip: float = 1000.0
    matrices: Literal["adam", "muon"] = "adam"
    """What moves the world model's matrices: Adam as all else, or Muon (orthogonalised momentum)."""
    matrix_layers: Literal["hidden", "all"] = "hidden"
    """Which matrices Muon moves: those between the first and last layers of encoder, decoder and prior, or all."""
    matrix_lr: float = 2e-3
    """Step size of Muon, and of Adam for first and last layers beside it: root mean square of a step's entries."""
    matrix_decay: float = 0.1
    """Weight decay of Muon: each update takes matrix_lr times this share off its matrices."""
    muon_precision: Literal["fp32", "bf16"] = "fp32"
    """Of Muon's products; parameters and momentum stay in fp32. bf16 is faster on GPUs and CPUs with matrix units."""
    agent_lr: float = 3e-5
    agent_eps: float = 1e-5
    """Of the agent's Adam. A task of many has a small gradient, since the loss is their mean: 1e-5 slows it down."""
    agent_clip: float = 100.0
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
    """Losses, steps of imagination and lessons through torch.compile: same numbers but for rounding (and, with dropout,
    for its masks), minutes at the start."""
    cuda_graph: bool = False
    """Imagine in one CUDA graph: same numbers, one launch instead of thousands, and the memory of a rollout is held
    throughout. Needs a GPU; off until one has been measured."""

    def __post_init__(self) -> None:
        usable(self)
        positive(self, "world_model_lr", "world_model_eps", "world_model_clip", "agent_lr", "agent_eps", "agent_clip")
        positive(self, "matrix_lr", "weighting_lr", "task_groups")
        not_negative(self, "matrix_decay")
        fraction(self, "final_lr")
        require(
            not self.compile or (self.task_groups == 1 and self.checkpoint_activations == "none"),
            "optim.compile keeps all activations, of all tasks at once: leave it out, or optim.task_groups and "
            "optim.checkpoint_activations",
        )


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
    """Steps that the agent remembers while acting; at most the positions that learning has shown h_t at."""

    def __post_init__(self) -> None:
        usable(self)
        fraction(self, "random_action")
        not_negative(self, "prefill_steps", "warmup_updates")
        positive(self, "world_model_every", "agent_every", "acting_context")


# Fields of Config, as dotted paths, of which nothing is learnt: where and how a run runs, what it keeps, what it says.
ASIDE = frozenset((
    "device", "log_every", "checkpoint_every", "keep_checkpoints", "keep_best", "report", "wandb", "profile", "plain",
    "env.num_workers", "env.max_restarts", "env.timeout_s", "replay.store", "replay.disk", "replay.prefetch",
    "optim.checkpoint_activations", "optim.compile", "optim.cuda_graph",
))  # fmt: skip


@dataclass(frozen=True)
class Config:
    """One run."""

    tasks: tuple[str, ...]
    """Names like atari:Pong."""
    total_steps: int
    """Environment steps (agent decisions) per task, the random prefill included."""
    preset: str
    """The recipe that this config started from."""
    seed: int = 0
    folder: str = ""
    """Run folder; empty: runs/PRESET-DATE-TIME."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    log_every: int = 100
    """Environment steps per task between two progress lines."""
    checkpoint_every: int = 5000
    """Environment steps per task between two checkpoints; the last step always writes one."""
    keep_checkpoints: int = 2
    """Older ones are deleted. A run can go on from each that is kept."""
    keep_best: bool = True
    """Keep the checkpoint with the best recent returns (mean over tasks, normalised) as checkpoints/best.pt."""
    evaluation_episodes: int = 0
    """Episodes per task, in fresh environments, that the trained agent is scored on at the end."""
    evaluation_copies: int = 1
    """Environments per task that play those episodes side by side."""
    report: bool = True
    """Write report.html, one page to look at, when the run is done."""
    wandb: bool = False
    """Log to Weights & Biases too: offline, in the run folder, unless the variable WANDB_MODE is online."""
    plain: bool = False
    """Progress in lines in a terminal too, as a pipe gets them, and no panel."""
    insight_every: int = 0
    """World-model updates between two looks inside the model (gradients, conflict, rank, idle units); 0: never."""
    profile: bool = False
    """Write trace.json, a timeline of a few steps early in joint training, to the run folder."""
    storm_compat: bool = False
    """STORM's released behaviour: windows blind to episode ends, lambda-return from V(s_t)."""
    env: EnvConfig = field(default_factory=EnvConfig)
    model: WorldModelConfig = field(default_factory=WorldModelConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    clustering: ClusteringConfig = field(default_factory=ClusteringConfig)
    imagination: ImaginationConfig = field(default_factory=ImaginationConfig)
    actor_critic: ActorCriticConfig = field(default_factory=ActorCriticConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        usable(self)
        require(len(self.tasks) > 0, "tasks must name at least one task, like atari:Pong")
        require(
            self.actor_critic.rollout_parts <= self.imagination.num_sequences,
            f"actor_critic.rollout_parts must be at most imagination.num_sequences, "
            f"got {self.actor_critic.rollout_parts} and {self.imagination.num_sequences}",
        )
        double = sorted({t for t in self.tasks if self.tasks.count(t) > 1})
        require(not double, f"tasks must differ, got {', '.join(double)} more than once")
        positive(self, "total_steps", "log_every", "checkpoint_every", "keep_checkpoints", "evaluation_copies")
        require(
            self.loss.reconstruct_every <= self.batch.length,
            f"loss.reconstruct_every must be at most batch.length, got {self.loss.reconstruct_every} "
            f"and {self.batch.length}",
        )
        not_negative(self, "evaluation_episodes", "insight_every", "seed")
        at_most(self, 1000, "evaluation_copies")
        at_most(self, 1_000_000, "evaluation_episodes")
        require(
            self.total_steps > self.prefill_steps,
            f"total_steps must exceed the prefill of {self.prefill_steps} steps (one window and a step at least), "
            f"got {self.total_steps}: lower schedule.prefill_steps, or raise total_steps",
        )
        trained = {
            "batch.length - 1": self.batch.length - 1,
            "imagination.context + imagination.horizon - 1": self.imagination.context + self.imagination.horizon - 1,
        }
        shortest = min(trained, key=trained.__getitem__)
        require(
            self.schedule.acting_context <= trained[shortest],
            f"schedule.acting_context must be at most {shortest} = {trained[shortest]}, got "
            f"{self.schedule.acting_context}: learning never shows h_t of a longer past; lower it or raise the others",
        )
        longest = max(self.batch.length, self.imagination.context + self.imagination.horizon)
        require(
            self.model.max_positions >= longest,
            f"model.max_positions must cover the longest window of {longest} steps, got {self.model.max_positions}",
        )

    @property
    def final_frames(self) -> bool:
        """Whether the final frame of an episode is collected: the arrival form reads it."""
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
        num_tasks = len(self.tasks)
        by_method = {"single": 1, "identity": num_tasks}
        return by_method.get(self.clustering.method, min(self.clustering.num_modules, num_tasks))
