"""Memory of an update besides weights: an estimate from the config alone, without torch.

Counted are the numbers that a backward pass needs kept (inputs of layers and norms, outputs of ReLUs, latents and their
probabilities), and those of an imagined rollout. Left out are work space of libraries and short-lived tensors.
Feature maps, and latents and states of a rollout, are two bytes per number under bf16 autocast, all else four: norms,
latents of an update and losses stay float32.
tests/estimate/test_footprint.py compares with the bytes that autograd keeps.
"""

from dataclasses import dataclass

from mow.estimate.flops import num_events, sides
from mow.methods.mow.config import MowConfig
from mow.methods.mow.config_model import PerceptionConfig, WorldModelConfig

_FLOAT = 4
_PICTURE = 64 * 64 * 3
# Measured, in numbers per entry of a latent: its draw, both KL terms, and the latent where it is read.
_PER_LATENT = 8


@dataclass(frozen=True)
class Activations:
    """Bytes at the worst moment of three things that are not kept together, unless a CUDA graph holds a rollout."""

    world_model: float  # a world-model update
    rollout: float  # while it is imagined
    agent: float  # a rollout, and one step of the agent on it
    held: bool = False  # the memory of a rollout is never given back

    @property
    def peak(self) -> float:
        if self.held:
            return self.rollout + max(self.world_model, self.agent)
        return max(self.world_model, self.rollout, self.agent)


def activations(config: MowConfig, action_size: int, *, bf16: bool) -> Activations:
    """Bytes of one world-model update and of one agent update."""
    num_tasks, batch = len(config.tasks), config.batch
    map_bytes = 2 if bf16 else _FLOAT
    parts = min(num_tasks, config.optim.task_groups)
    tokens = num_tasks * batch.num_sequences * batch.length / parts
    rollouts = num_tasks * config.imagination.num_sequences
    return Activations(
        world_model=tokens * _per_token(config, action_size, map_bytes),
        rollout=rollouts * _rollout(config, map_bytes),
        agent=rollouts * _agent(config, map_bytes),
        held=config.optim.cuda_graph,
    )


def _per_token(config: MowConfig, action_size: int, map_bytes: int) -> float:
    """Bytes that a world-model update keeps for each step of a batch."""
    model, perception = config.model, config.model.perception
    decoded = 1 / config.loss.reconstruct_every
    recomputed = config.optim.checkpoint_activations
    # Feature maps are kept before and after their norm.
    channels = zip(perception.channels, sides(perception), strict=True)
    maps = (_PICTURE + (1 + decoded) * 2 * sum(number * side**2 for number, side in channels)) * map_bytes
    if recomputed == "all":  # of one group of tasks at a time, which batch norm or module keep together
        maps /= len(config.tasks) if perception.norm == "bn_per_task" else config.num_modules
    maps += (1 + decoded) * _features(perception) * map_bytes + decoded * _PICTURE * _FLOAT  # and the decoder's error
    numbers = _PER_LATENT * perception.latent_size + _sequence(model, action_size, recomputed != "none")
    return maps + _FLOAT * (numbers + _heads(model, len(config.tasks)))


def _features(config: PerceptionConfig) -> int:
    return config.channels[-1] * config.side**2


def _sequence(model: WorldModelConfig, action_size: int, recomputed: bool) -> int:
    """Numbers that experts and shared part keep for one token; recomputed layers keep their input, one is at work."""
    width, slots = model.width, model.experts.experts_per_task
    # Input, query, key, value, attended values, two norms with two numbers each, dropout, feed-forward part.
    block = 11 * width + model.feedforward + (2 * width if model.dropout else 0)
    layer = width if recomputed else block
    mixer, positions = 5 * width, 2 * width
    numbers = model.perception.latent_size + action_size + (slots * block if recomputed else 0)
    numbers += slots * (mixer + positions + model.experts.num_layers * layer)
    if model.shared.kind != "none":
        numbers += slots * width + mixer
    if model.shared.kind == "transformer":
        numbers += positions + model.shared.num_layers * layer
    return numbers


def _heads(model: WorldModelConfig, num_tasks: int) -> int:
    """Numbers that the heads keep for one token: two layers of three vectors each, logits and their logarithms."""
    width, events, latent = model.width, num_events(model), model.perception.latent_size
    numbers = 2 * (6 * width) + width + events + 2 * model.num_bins + (latent if model.outcome == "arrival" else 0)
    if model.task_head:
        numbers += 4 * width + 2 * num_tasks
    if model.prior == "local":
        numbers += model.perception.side**2 * (5 * model.prior_width + events) + 4 * latent
        numbers += 2 * latent if model.prior_frames == 2 else 0  # z_t and z_{t-1} side by side
    return numbers


def _trajectory(config: MowConfig, map_bytes: int) -> int:
    """Bytes of the latents and hidden states of one imagined trajectory."""
    step = map_bytes * config.model.perception.latent_size + _FLOAT * config.model.width
    return (config.imagination.horizon + 1) * step


def _rollout(config: MowConfig, map_bytes: int) -> float:
    """Bytes of one trajectory while it grows: frames and latents of its context, keys, values, earlier steps."""
    model, imagination = config.model, config.imagination
    latents = 3 * _FLOAT * model.perception.latent_size
    context = imagination.context * (_PICTURE + map_bytes * _features(model.perception) + latents)
    layers = model.experts.experts_per_task * model.experts.num_layers
    layers += model.shared.num_layers if model.shared.kind == "transformer" else 0
    cache = 2 * layers * model.width * (imagination.context + imagination.horizon) * map_bytes
    return context + cache + _trajectory(config, map_bytes)


def _agent(config: MowConfig, map_bytes: int) -> float:
    """Bytes of one trajectory, of the states joined from it, and of policy and critic for a step on it."""
    agent, horizon = config.actor_critic, config.imagination.horizon
    network = 3 * agent.hidden * agent.num_layers
    state = agent.frames * config.model.perception.latent_size + config.model.width
    step = _FLOAT * (2 * network + 2 * config.model.num_bins)
    return _trajectory(config, map_bytes) + map_bytes * (horizon + 1) * state + horizon / agent.rollout_parts * step
