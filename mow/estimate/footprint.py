"""How much memory an update takes besides weights: an estimate from the config alone, without torch.

Counted are the numbers that a backward pass needs kept (inputs of layers and norms, outputs of ReLUs, latents and their
probabilities), and what an imagined rollout holds. Left out are work space of libraries and what lives for a moment.
Feature maps are two bytes per number under bf16 autocast, all else four: norms, latents and losses stay float32.
tests/estimate/test_footprint.py compares with what autograd really keeps.
"""

from dataclasses import dataclass

from mow.estimate.flops import num_events
from mow.methods.mow.config import MowConfig
from mow.methods.mow.config_model import PerceptionConfig, WorldModelConfig

_FLOAT = 4
_PICTURE = 64 * 64 * 3
# Measured, in numbers per entry of a latent: its draw, both KL terms, and the latent where it is read.
_PER_LATENT = 8


@dataclass(frozen=True)
class Activations:
    """Bytes kept at the worst moment of three things that never live together, unless a CUDA graph holds a rollout."""

    world_model: float  # a world-model update
    rollout: float  # while it is imagined
    lesson: float  # a rollout, and one step of the agent on it
    held: bool = False  # what a rollout takes is never given back

    @property
    def peak(self) -> float:
        if self.held:
            return self.rollout + max(self.world_model, self.lesson)
        return max(self.world_model, self.rollout, self.lesson)


def activations(config: MowConfig, action_size: int, *, bf16: bool) -> Activations:
    """Of one world-model update and of one agent update."""
    num_tasks, batch = len(config.tasks), config.batch
    map_bytes = 2 if bf16 else _FLOAT
    parts = min(num_tasks, config.optim.task_groups)
    tokens = num_tasks * batch.num_sequences * batch.length / parts
    dreams = num_tasks * config.imagination.num_sequences
    return Activations(
        world_model=tokens * _per_token(config, action_size, map_bytes),
        rollout=dreams * _rollout(config, map_bytes),
        lesson=dreams * _lesson(config, map_bytes),
        held=config.optim.cuda_graph,
    )


def _per_token(config: MowConfig, action_size: int, map_bytes: int) -> float:
    """Bytes that a world-model update keeps for each step of a batch."""
    model = config.model
    perception = model.perception
    decoded = 1 / config.loss.reconstruct_every
    again = config.optim.checkpoint_activations
    maps = (_PICTURE + (1 + decoded) * 2 * _feature_maps(perception)) * map_bytes
    if again == "all":  # of one group of tasks at a time, which batch norm or module keep together
        maps /= len(config.tasks) if perception.norm == "bn_per_task" else config.num_modules
    maps += (1 + decoded) * _features(perception) * map_bytes + decoded * _PICTURE * _FLOAT  # and the decoder's error
    numbers = _PER_LATENT * perception.latent_size + _sequence(model, action_size, again != "none")
    return maps + _FLOAT * (numbers + _heads(model, len(config.tasks)))


def _feature_maps(config: PerceptionConfig) -> int:
    """Numbers in all feature maps of one frame; each is kept before and after its norm."""
    side, numbers = 64, 0
    for layer, channels in enumerate(config.channels):
        side //= 4 if layer == 0 and config.patches else 2
        numbers += channels * side**2
    return numbers


def _features(config: PerceptionConfig) -> int:
    return config.channels[-1] * config.side**2


def _block(model: WorldModelConfig) -> int:
    """One token in a Transformer layer: its input, query, key, value, what was attended to, two norms with two numbers
    each, dropout, and the feed-forward part."""
    return 11 * model.width + model.feedforward + (2 * model.width if model.dropout else 0)


def _sequence(model: WorldModelConfig, action_size: int, again: bool) -> int:
    """Numbers that experts and shared part keep for one token; `again`: layers keep their input, and one is at work."""
    width, slots = model.width, model.experts.experts_per_task
    layer = width if again else _block(model)
    mixer, positions = 5 * width, 2 * width
    numbers = model.perception.latent_size + action_size
    numbers += slots * (mixer + positions + model.experts.num_layers * layer)
    numbers += slots * _block(model) if again else 0
    if model.shared.kind != "none":
        numbers += slots * width + mixer
    if model.shared.kind == "transformer":
        numbers += positions + model.shared.num_layers * layer
    return numbers


def _heads(model: WorldModelConfig, num_tasks: int) -> int:
    """Numbers that the heads keep for one token: two layers of three vectors each, logits and their logarithms."""
    width, events = model.width, num_events(model)
    arrived = model.perception.latent_size if model.outcome == "arrival" else 0
    numbers = 2 * (6 * width) + (width + events + arrived) + 2 * model.num_bins
    if model.task_head:
        numbers += 4 * width + 2 * num_tasks
    if model.prior == "local":
        cells = model.perception.side**2
        numbers += cells * (5 * model.prior_width + events) + 4 * model.perception.latent_size
        if model.prior_frames == 2:  # z_t and z_{t-1} side by side
            numbers += 2 * model.perception.latent_size
    return numbers


def _dream(config: MowConfig) -> int:
    """Bytes of the latents and hidden states of one imagined trajectory."""
    return _FLOAT * (config.imagination.horizon + 1) * (config.model.perception.latent_size + config.model.width)


def _rollout(config: MowConfig, map_bytes: int) -> float:
    """Bytes of one trajectory while it grows: the frames and latents that open it, keys, values, what came so far."""
    model, imagination = config.model, config.imagination
    latents = 3 * _FLOAT * model.perception.latent_size
    context = imagination.context * (_PICTURE + map_bytes * _features(model.perception) + latents)
    layers = model.experts.experts_per_task * model.experts.num_layers
    layers += model.shared.num_layers if model.shared.kind == "transformer" else 0
    cache = 2 * layers * model.width * (imagination.context + imagination.horizon) * map_bytes
    return context + cache + _dream(config)


def _lesson(config: MowConfig, map_bytes: int) -> float:
    """Bytes of one trajectory, of the states joined from it, and of what policy and critic keep for a step on it."""
    agent, horizon = config.actor_critic, config.imagination.horizon
    network = 3 * agent.hidden * agent.num_layers
    logits = 2 * config.model.num_bins
    seen = agent.frames * config.model.perception.latent_size + config.model.width
    of_step = _FLOAT * (2 * network + logits) + (map_bytes * seen if map_bytes < _FLOAT else 0)
    return _dream(config) + _FLOAT * (horizon + 1) * seen + horizon / agent.rollout_parts * of_step
