"""Config of the world model: its networks, their sizes and inputs."""

from dataclasses import dataclass, field
from typing import Literal

from mow.config.checks import at_most, fraction, not_negative, positive, require, usable

Condition = Literal["encoder", "decoder", "heads", "mixer", "shared", "actor", "critic"]


@dataclass(frozen=True)
class PerceptionConfig:
    channels: tuple[int, ...] = (32, 64, 128, 256)
    """Channels of the convolutions, mirrored by the decoder: four of stride 2, from 64x64 to 4x4; or three or two, the
    first of stride 4, the others of stride 2, to 4x4 or 8x8."""
    groups: int = 32
    """S: categoricals in a latent."""
    classes: int = 32
    """C: classes of each categorical."""
    unimix: float = 0.01
    """Share of the uniform distribution mixed into every categorical."""
    norm: Literal["bn_per_task", "bn_shared", "group", "channel"] = "bn_per_task"
    """Batch norm per task, batch norm shared by a cluster (the paper's letter), group norm over the whole picture, or
    layer norm over the channels of each place."""
    latent: Literal["dense", "spatial"] = "dense"
    """Every group of the latent reads the whole picture, or only one cell of the last feature map."""
    posterior_gain: float = 1.0
    """Scale of the posterior's weights at the start; above 1 the first latents already differ between pictures."""
    background: Literal["none", "median"] = "none"
    """median: the median frame of a task's prefill is taken off before the encoder and put back after the decoder."""

    def __post_init__(self) -> None:
        usable(self)
        require(len(self.channels) in (2, 3, 4), f"channels must be two to four numbers, got {self.channels}")
        require(all(c > 0 for c in self.channels), f"channels must all be above 0, got {self.channels}")
        positive(self, "groups", "classes", "posterior_gain")
        cells, message = self.side**2, "groups must be a multiple of {}, the cells of a spatial latent, got {}"
        require(self.latent == "dense" or self.groups % cells == 0, message.format(cells, self.groups))
        at_most(self, 256, "classes")
        fraction(self, "unimix")

    @property
    def latent_size(self) -> int:
        return self.groups * self.classes

    @property
    def patches(self) -> bool:
        """True if the first convolution has stride 4, its kernels side by side."""
        return len(self.channels) < 4

    @property
    def side(self) -> int:
        """Cells along each side of the last feature map."""
        return 8 if len(self.channels) == 2 else 4


@dataclass(frozen=True)
class RoutingConfig:
    method: Literal["learned", "hash", "cluster"] = "learned"
    """Learned from the task embedding, a fixed balanced assignment, or one set of experts per cluster."""
    hidden: int = 512
    temperature_start: float = 5.0
    temperature_end: float = 1.0
    anneal_updates: int = 20_000
    """World-model updates over which the temperature falls; then the choice of experts is frozen."""
    noise: float = 0.25
    """Gumbel noise on the router's logits is scaled by noise * (temperature - temperature_end)."""
    scale: Literal["straight_through", "none", "plain"] = "straight_through"
    """Effect of routing weights on the expert outputs: gradient only, not at all, or as factors."""

    def __post_init__(self) -> None:
        usable(self)
        positive(self, "hidden", "temperature_start", "temperature_end")
        for name, value in (("temperature_start", self.temperature_start), ("temperature_end", self.temperature_end)):
            require(1e-3 <= value <= 1e3, f"{name} must lie in [0.001, 1000], got {value}")
        not_negative(self, "noise", "anneal_updates")


@dataclass(frozen=True)
class ExpertsConfig:
    num_experts: int = 12
    experts_per_task: int = 2
    num_layers: int = 2

    def __post_init__(self) -> None:
        usable(self)
        positive(self, "num_experts", "experts_per_task", "num_layers")
        at_most(self, 10_000, "num_experts")
        at_most(self, 100, "num_layers")
        require(self.experts_per_task <= self.num_experts,
                f"experts_per_task must be at most num_experts, got {self.experts_per_task} of {self.num_experts}")


@dataclass(frozen=True)
class SharedConfig:
    kind: Literal["transformer", "mlp", "none"] = "transformer"
    """After the experts: stem and Transformer, the stem alone, or nothing (then experts_per_task must be 1)."""
    num_layers: int = 1

    def __post_init__(self) -> None:
        usable(self)
        positive(self, "num_layers")
        at_most(self, 100, "num_layers")


@dataclass(frozen=True)
class WorldModelConfig:
    width: int = 512
    num_heads: int = 8
    feedforward: int = 1024
    dropout: float = 0.1
    max_positions: int = 64
    embedding_size: int = 256
    """d: entries of the unit-length task embedding; 0 builds a model without one."""
    condition: tuple[Condition, ...] = ("encoder", "decoder", "heads", "mixer", "shared")
    """Networks that read the task embedding."""
    prior: Literal["dense", "local"] = "dense"
    """The prior of the next latent: a Linear on h_t, or one small network for every cell of a spatial latent, which
    reads h_t, the action, the cell and its neighbours."""
    prior_width: int = 128
    """Width of the local prior's hidden layer; it has half as many events."""
    prior_frames: int = 1
    """Latents that the local prior reads around each cell: z_t, or z_t and z_{t-1}, whose difference is motion."""
    stale_share: float = 0.0
    """While learning, share of the groups of z_t that the model is given as they were in z_{t-1}: groups of imagined
    latents, drawn one by one, come apart in the same way."""
    outcome: Literal["arrival", "transition"] = "transition"
    """Read reward and termination off h_t and z_{t+1}, the latent of the frame that the action led to, or off h_t alone
    (the papers). Under arrival the final frame of each episode is collected too, as one more environment step."""
    heads: Literal["cluster", "shared"] = "cluster"
    """Next-latent, reward and termination heads per cluster, or one set for all tasks."""
    task_head: bool = True
    """Predict the task from h_t (the task loss)."""
    num_bins: int = 255
    """V: bins of the two-hot reward and value codes on symlog [-20, 20]."""
    two_hot_form: Literal["mean_of_symexp", "symexp_of_mean"] = "symexp_of_mean"
    """Value of a distribution over the bins: the mean of the bins' numbers, or symexp of the mean bin (STORM), which
    makes 0.59 of a tenth of 100."""
    perception: PerceptionConfig = field(default_factory=PerceptionConfig)
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    experts: ExpertsConfig = field(default_factory=ExpertsConfig)
    shared: SharedConfig = field(default_factory=SharedConfig)

    def __post_init__(self) -> None:
        usable(self)
        positive(self, "width", "prior_width", "num_heads", "feedforward", "max_positions")
        fraction(self, "stale_share")
        require(self.dropout >= 0 and self.dropout < 1, f"dropout must lie in [0, 1), got {self.dropout}")
        not_negative(self, "embedding_size")
        require(self.num_bins >= 3 and self.num_bins % 2 == 1, f"num_bins must be odd and >= 3, got {self.num_bins}")
        require(self.width % self.num_heads == 0,
                f"width must be a multiple of num_heads, got {self.width} and {self.num_heads}")
        require(self.shared.kind != "none" or self.experts.experts_per_task == 1,
                "shared.kind none needs experts.experts_per_task 1: nothing would join the outputs of several experts")
        require(self.routing.method != "learned" or self.embedding_size > 0 or self.experts.num_experts == 1,
                "routing.method learned needs embedding_size above 0: the router reads the task embedding")
        require(self.prior == "dense" or self.perception.latent == "spatial",
                "prior local needs perception.latent spatial: a dense latent has no cells")
        require(self.prior_frames in (1, 2), f"prior_frames must be 1 or 2, got {self.prior_frames}")
