"""FLOP of an update: multiplications and additions of its matmuls, convolutions and attention, from a config alone.

One multiplication and one addition are two FLOP; a backward pass costs a layer twice its forward pass, once for its
weight and once for its input, except where no input needs a gradient. What does not grow with the number of rows
(router, task embeddings), elementwise work, optimisers and recomputed activations are left out. No torch.

Rows are what a weight is applied to: K B L replay steps, or K B imagined ones. Source: none, arithmetic;
tests/estimate/test_flops.py compares with PyTorch's own counter, test_count.py with count.py, which takes a core 20 s
for `atari26`: too long for a dry run.
"""

from itertools import pairwise

from mow.methods.mow.config import MowConfig
from mow.methods.mow.config_model import PerceptionConfig, WorldModelConfig

_BOTH = 3  # forward, gradient of the weight, gradient of the input
_WEIGHT_ONLY = 2  # the input is data


def _linear(inputs: int, outputs: int) -> int:
    return 2 * inputs * outputs


def _mlp(inputs: int, hidden: int, layers: int, outputs: int) -> int:
    return sum(_linear(i, o) for i, o in pairwise([inputs, *[hidden] * layers, outputs]))


def sides(config: PerceptionConfig) -> list[int]:
    """Pixels along each side of the encoder's feature maps, layer by layer."""
    first = 4 if config.patches else 2
    return [64 // (first * 2**layer) for layer in range(len(config.channels))]


def _convolutions(config: PerceptionConfig) -> list[int]:
    """Forward FLOP of each convolution of the encoder for one frame; the decoder's are the same, in reverse order."""
    channels = pairwise((3, *config.channels))
    return [_linear(i, o) * 16 * side**2 for (i, o), side in zip(channels, sides(config), strict=True)]


def _code(config: PerceptionConfig) -> int:
    """The Linear between features and latent, one frame; a spatial latent has a small one for every cell."""
    cells = config.side**2 if config.latent == "spatial" else 1
    features = config.channels[-1] * config.side**2
    return cells * _linear(features // cells, config.latent_size // cells)


def encoder(config: PerceptionConfig) -> tuple[int, int]:
    """FLOP of one frame: forward, and forward and backward."""
    first, *others = _convolutions(config)
    rest = sum(others) + _code(config)
    return first + rest, _WEIGHT_ONLY * first + _BOTH * rest


def decoder(config: PerceptionConfig) -> tuple[int, int]:
    """FLOP of one frame: forward, and forward and backward."""
    forward = sum(_convolutions(config)) + _code(config)
    return forward, _BOTH * forward


def _block(config: WorldModelConfig, seen: float) -> float:
    """One token through one Transformer layer, attending to `seen` tokens: scores and their mean of values."""
    projections = 4 * _linear(config.width, config.width) + 2 * _linear(config.width, config.feedforward)
    return projections + 4 * seen * config.width


def sequence_model(config: WorldModelConfig, action_size: int, seen: float) -> tuple[float, float]:
    """Forward FLOP of one token that attends to `seen` tokens: all its experts, and the shared part."""
    width, slots = config.width, config.experts.experts_per_task
    mixer = _linear(config.perception.latent_size + action_size, width) + _linear(width, width)
    experts = slots * (mixer + config.experts.num_layers * _block(config, seen))
    if config.shared.kind == "none":
        return experts, 0.0
    shared: float = _linear(slots * width, width) + _linear(width, width)
    if config.shared.kind == "transformer":
        shared += config.shared.num_layers * _block(config, seen)
    return experts, shared


def prior(config: WorldModelConfig, action_size: int) -> tuple[int, int]:
    """Forward FLOP of one next latent: those whose input needs a gradient, and those whose input is data.

    The latter are the action's, where no learned task embedding multiplies it.
    """
    perception = config.perception
    if config.prior == "dense":
        return _linear(config.width, perception.latent_size), 0
    width, cells = config.prior_width, perception.side**2
    size = perception.latent_size // cells
    per_cell = _linear(9 * config.prior_frames * size, width) + _linear(width, width) + _linear(width, size)
    per_cell += _linear(width + size, num_events(config))
    learned = cells * per_cell + _linear(config.width, width)
    if config.embedding_size and "heads" in config.condition:  # the action times e_k, which learns
        return learned + _linear(action_size * config.embedding_size, width), 0
    return learned, _linear(action_size, width)


def num_events(config: WorldModelConfig) -> int:
    """Numbers that the prior hands to the heads of reward and termination."""
    return config.prior_width // 2 if config.prior == "local" else 0


def reward_and_end(config: WorldModelConfig) -> int:
    """Forward FLOP of reward and termination of one step."""
    inputs = config.width + num_events(config) + (config.perception.latent_size if config.outcome == "arrival" else 0)
    return _mlp(inputs, config.width, 2, config.num_bins) + _mlp(inputs, config.width, 2, 1)


def world_model_update(config: MowConfig, action_size: int) -> dict[str, float]:
    """FLOP of one world-model update by part: encoder, decoder, experts, shared, heads; forward and backward.

    Attention counts all L x L pairs of a window, as it is computed. A decoder that leaves out steps
    (`loss.reconstruct_every`) counts with its mean over updates.
    """
    model, batch, num_tasks = config.model, config.batch, len(config.tasks)
    rows = num_tasks * batch.num_sequences * batch.length
    experts, shared = sequence_model(model, action_size, batch.length)
    learned, of_data = prior(model, action_size)
    task = _mlp(model.width, model.width, 2, num_tasks) if model.task_head else 0
    return {
        "encoder": rows * encoder(model.perception)[1],
        "decoder": rows / config.loss.reconstruct_every * decoder(model.perception)[1],
        "experts": _BOTH * rows * experts,
        "shared": _BOTH * rows * shared,
        "heads": rows * (_BOTH * (learned + reward_and_end(model) + task) + _WEIGHT_ONLY * of_data),
    }


def agent_update(config: MowConfig, action_size: int, num_outputs: int) -> dict[str, float]:
    """FLOP of one agent update by part: context (frames that open a rollout), imagination, actor_critic.

    Args: action_size: A; num_outputs: of the policy network.
    """
    model, imagination, agent = config.model, config.imagination, config.actor_critic
    horizon, from_prior = imagination.horizon, imagination.start == "prior"
    cached = imagination.context if from_prior else imagination.context - 1
    next_latent = sum(prior(model, action_size))
    context: float = imagination.context * encoder(model.perception)[0] + (next_latent if from_prior else 0)
    context += cached * sum(sequence_model(model, action_size, cached))
    state = agent.frames * model.perception.latent_size + model.width
    policy = _mlp(state, agent.hidden, agent.num_layers, num_outputs)
    critic = _mlp(state, agent.hidden, agent.num_layers, model.num_bins)
    # Step t attends to the context, to the steps before it and to itself: on average to this many tokens.
    seen = cached + (horizon + 1) / 2
    step = sum(sequence_model(model, action_size, seen)) + next_latent + reward_and_end(model) + policy
    targets = 2 * (horizon + 1) * critic + horizon * policy  # critic, target critic, and the policy that acted
    # States are data: the first layer of either network passes no gradient on.
    learning = horizon * (_BOTH * (policy + critic) - 2 * _linear(state, agent.hidden))
    sequences = len(config.tasks) * imagination.num_sequences
    return {
        "context": sequences * context,
        "imagination": sequences * horizon * step,
        "actor_critic": sequences * (targets + agent.rollout_epochs * learning),
    }
