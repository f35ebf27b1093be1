"""Settings that every method has: tasks and budget, environments, replay, and how a run runs.

A method's own settings are a subclass of RunConfig (mow/methods). Nothing here imports torch, so that a mistake on the
command line ends at once. A component receives its own config and never the whole tree.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from mow.config.checks import at_most, not_negative, positive, require, usable


@dataclass(frozen=True)
class EnvConfig:
    obs: Literal["frame", "state"] = "frame"
    """Observations: frames of 64 x 64 pixels, or states, the numbers of the simulator; nothing is drawn then."""
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
        """Options for the construction of the environments."""
        names = ("obs", "protocol", "action_set", "render", "metaworld_repeat", "dmc_repeat")
        return {name: getattr(self, name) for name in names}


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
class DistConfig:
    timeout_s: float = 600.0
    """Seconds that a rank waits for the others, at the start and in every exchange, before the run ends."""

    def __post_init__(self) -> None:
        usable(self)
        positive(self, "timeout_s")
        at_most(self, 1e6, "timeout_s")


# Fields, as dotted paths, that do not affect the result: where and how a run runs, what it keeps and prints.
RUNTIME_FIELDS = frozenset((
    "device", "log_every", "checkpoint_every", "keep_checkpoints", "keep_best", "report", "wandb", "profile", "plain",
    "dist.timeout_s", "env.num_workers", "env.max_restarts", "env.timeout_s", "replay.store", "replay.disk",
    "replay.prefetch",
    "optim.checkpoint_activations", "optim.compile", "optim.cuda_graph",
))  # fmt: skip

# Fields that may differ between seeds of one method.
SEED_FIELDS = RUNTIME_FIELDS | {"seed", "folder", "evaluation_episodes", "evaluation_copies", "insight_every"}


class Recorded(NamedTuple):
    """Recorded episodes that a run learns from without acting."""

    folder: str  # of mow collect; empty: `data` in the run's own folder, collected first
    episodes: int  # per task, if they are collected first
    policy: str  # that collects them
    updates: int  # of the whole run
    best: float = 1.0  # share of each task's episodes that is drawn from: those with the highest returns

    def path(self, run_folder: Path) -> Path:
        """Folder of the episodes."""
        return Path(self.folder) if self.folder else run_folder / "data"


@dataclass(frozen=True)
class RunConfig:
    """One run, without what its method adds."""

    tasks: tuple[str, ...]
    """Names like atari:Pong."""
    total_steps: int
    """Environment steps (agent decisions) per task, the random prefill included; 0 in a run that never acts."""
    preset: str
    """The recipe that this config started from."""
    method: str = "mow"
    """The algorithm: a folder of mow/methods."""
    seed: int = 0
    folder: str = ""
    """Run folder; empty: runs/PRESET-DATE-TIME."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    log_every: int = 100
    """Environment steps per task, or updates in a run that never acts, between two progress lines."""
    checkpoint_every: int = 5000
    """Steps (updates in a run that never acts) between two checkpoints; the last step always writes one."""
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
    """Updates between two diagnostics of the model (gradients, conflict, rank, idle units); 0: never."""
    profile: bool = False
    """Write trace.json, a timeline of a few steps early in joint training, to the run folder."""
    env: EnvConfig = field(default_factory=EnvConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    dist: DistConfig = field(default_factory=DistConfig)

    def __post_init__(self) -> None:
        usable(self)
        require(len(self.tasks) > 0, "tasks must name at least one task, like atari:Pong")
        double = sorted({t for t in self.tasks if self.tasks.count(t) > 1})
        require(not double, f"tasks must differ, got {', '.join(double)} more than once")
        least = 0 if self.recorded else 1
        require(self.total_steps >= least, f"total_steps must be above {least - 1}, got {self.total_steps}")
        positive(self, "log_every", "checkpoint_every", "keep_checkpoints", "evaluation_copies")
        not_negative(self, "evaluation_episodes", "insight_every", "seed")
        at_most(self, 1000, "evaluation_copies")
        at_most(self, 1_000_000, "evaluation_episodes")

    @property
    def final_frames(self) -> bool:
        """True if replay keeps the final frame of an episode, for a method that learns from it."""
        return False

    @property
    def recorded(self) -> Recorded | None:
        """The episodes that the run learns from, if it never acts."""
        return None
