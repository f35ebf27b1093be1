"""How much arithmetic an update is: the multiplications and additions of its matmuls, convolutions and attention.

Counted from a config alone, without torch. One multiplication and one addition are two FLOP; a backward pass costs a
layer twice its forward pass, once for its weight and once for its input, except where no input needs a gradient. What
does not grow with the number of rows (router, task embeddings), elementwise work and optimisers are left out; nothing
is added for activations that are computed twice to save memory.

Rows are what a weight is applied to: K B L replay steps, or K B imagined ones. Source: none, arithmetic.
"""

from itertools import pairwise

from mow.methods.mow.config import MowConfig
from mow.methods.mow.config_model import PerceptionConfig, WorldModelConfig

_BOTH = 3  # forward, gradient of the weight, gradient of the input
_WEIGHT_ONLY = 2  # the input is data
_PICTURE = 64  # pixels along each side of a frame


def _linear(inputs: int, outputs: int) -> int:
    return 2 * inputs * outputs


def _convolutions(config: PerceptionConfig) -> list[int]:
    """Forward FLOP of each convolution of the encoder for one frame; the decoder's are the same, in the other order."""
    flops, side = [], _PICTURE
    for layer, (inputs, outputs) in enumerate(pairwise((3, *config.channels))):
        side //= 4 if layer == 0 and config.patches else 2
        flops.append(_linear(inputs, outputs) * 16 * side**2)
    return flops


def _code(config: PerceptionConfig) -> int:
    """The Linear between features and latent, one frame; a spatial latent has a small one for every cell."""
    cells = config.side**2 if config.latent == "spatial" else 1
    features = config.channels[-1] * config.side**2
    return cells * _linear(features // cells, config.latent_size // cells)


def encoder(config: PerceptionConfig) -> tuple[int, int]:
    """One frame: FLOP of the forward pass, and of forward and backward pass."""
    first, *others = _convolutions(config)
    rest = sum(others) + _code(config)
    return first + rest, _WEIGHT_ONLY * first + _BOTH * rest


def decoder(config: PerceptionConfig) -> tuple[int, int]:
    """One frame, as `encoder`."""
    forward = sum(_convolutions(config)) + _code(config)
    return forward, _BOTH * forward


def _block(config: WorldModelConfig, seen: float) -> float:
    """One token through one Transformer layer, attending to `seen` tokens: scores and their mean of values."""
    projections = 4 * _linear(config.width, config.width) + 2 * _linear(config.width, config.feedforward)
    return projections + 4 * seen * config.width


def memory(config: WorldModelConfig, action_size: int, seen: float) -> tuple[float, float]:
    """One token through all its experts, and through the shared part, while it attends to `seen` tokens: forward."""
    width, slots = config.width, config.experts.experts_per_task
    mixer = _linear(config.perception.latent_size + action_size, width) + _linear(width, width)
    experts = slots * (mixer + config.experts.num_layers * _block(config, seen))
    if config.shared.kind == "none":
        return experts, 0.0
    shared: float = _linear(slots * width, width) + _linear(width, width)
    if config.shared.kind == "transformer":
        shared += config.shared.num_layers * _block(config, seen)
    return experts, shared


def _mlp(inputs: int, hidden: int, layers: int, outputs: int) -> int:
    sizes = [inputs, *[hidden] * layers, outputs]
    return sum(_linear(i, o) for i, o in pairwise(sizes))


def prior(config: WorldModelConfig, action_size: int) -> tuple[int, int]:
    """The next latent of one moment: FLOP that need a gradient of their input, and those that do not.

    The latter are the action's, where no task embedding that learns multiplies it.
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


def outcome(config: WorldModelConfig) -> int:
    """Reward and termination of one moment, forward."""
    inputs = config.width + num_events(config) + (config.perception.latent_size if config.outcome == "arrival" else 0)
    return _mlp(inputs, config.width, 2, config.num_bins) + _mlp(inputs, config.width, 2, 1)


def world_model_update(config: MowConfig, action_size: int) -> dict[str, float]:
    """FLOP of one world-model update by part: encoder, decoder, experts, shared, heads; forward and backward.

    Attention counts all L x L pairs of a window, as it is computed. Of a decoder that leaves out steps
    (`loss.reconstruct_every`) the mean over updates is counted.
    """
    model, batch, num_tasks = config.model, config.batch, len(config.tasks)
    rows = num_tasks * batch.num_sequences * batch.length
    experts, shared = memory(model, action_size, batch.length)
    learned, of_data = prior(model, action_size)
    task = _mlp(model.width, model.width, 2, num_tasks) if model.task_head else 0
    return {
        "encoder": rows * encoder(model.perception)[1],
        "decoder": rows / config.loss.reconstruct_every * decoder(model.perception)[1],
        "experts": _BOTH * rows * experts,
        "shared": _BOTH * rows * shared,
        "heads": rows * (_BOTH * (learned + outcome(model) + task) + _WEIGHT_ONLY * of_data),
    }


def agent_update(config: MowConfig, action_size: int, num_outputs: int) -> dict[str, float]:
    """FLOP of one agent update by part: context (what opens a rollout), imagination, actor_critic.

    Args:
        action_size: A.
        num_outputs: numbers that the policy network gives.
    """
    model, imagination = config.model, config.imagination
    sequences = len(config.tasks) * imagination.num_sequences
    horizon = imagination.horizon
    from_prior = imagination.start == "prior"
    remembered = imagination.context if from_prior else imagination.context - 1
    next_latent = sum(prior(model, action_size))
    context: float = imagination.context * encoder(model.perception)[0]
    context += remembered * sum(memory(model, action_size, remembered)) + (next_latent if from_prior else 0)
    # Step t attends to what opened the rollout, to the steps before it and to itself.
    seen = remembered + (horizon + 1) / 2
    policy, critic, inputs = _agent_networks(config, num_outputs)
    step = sum(memory(model, action_size, seen)) + next_latent + outcome(model) + policy
    lesson = 2 * (horizon + 1) * critic + horizon * policy  # critic, slow critic, and what the policy thought
    # States are data: the first layer of either network passes no gradient on.
    learning = horizon * (_BOTH * (policy + critic) - inputs)
    return {
        "context": sequences * context,
        "imagination": sequences * horizon * step,
        "actor_critic": sequences * (lesson + config.actor_critic.rollout_epochs * learning),
    }


def _agent_networks(config: MowConfig, num_outputs: int) -> tuple[int, int, int]:
    """One state through the policy, through a critic, and through their first layers alone; forward."""
    agent = config.actor_critic
    state = agent.frames * config.model.perception.latent_size + config.model.width
    policy = _mlp(state, agent.hidden, agent.num_layers, num_outputs)
    critic = _mlp(state, agent.hidden, agent.num_layers, config.model.num_bins)
    return policy, critic, 2 * _linear(state, agent.hidden)
