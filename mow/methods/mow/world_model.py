"""The Mixture-of-World-Models: encode, observe, sequence model, predict, decode. Wires the files beside it.

                 e_k ------------------------------------------------.------------------.
                                                                      |                  |
    o_t -> encoder_i -> z_t --+-> mixer_j -> Transformer_j  (j in J_k) -> join -> shared Transformer -> h_t
                        a_t --'                                                                          |
                        next latent_i, reward_i, termination_i, task  <----------------------------------'
                                      (reward_i and termination_i read z_{t+1} too in the arrival form)

Module i is the task's cluster, experts J_k its routing. Source: MoW section 3 (arXiv 2602.01270).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mow.batch import TransitionBatch
from mow.kernels import PhiloxState, RoutePlan, sample_onehot, uniform
from mow.methods.mow.config_model import Condition, WorldModelConfig
from mow.methods.mow.experts import Experts, Shared, unit_length
from mow.methods.mow.heads import Heads
from mow.methods.mow.records import HeadInput, Posterior, Prediction
from mow.methods.mow.router import Router, Routing, fixed_experts
from mow.methods.mow.vae import Decoder, Encoder
from mow.nn.activation_checkpoint import Recompute, checkpointed_call
from mow.nn.modular import concatenated
from mow.nn.routes import one_each, same_for_all
from mow.nn.transformer import AttentionCache, Transformer, Window, episode_window
from mow.nn.weight_cache import cached


class Memory(NamedTuple):
    """Key-value caches of a rollout."""

    experts: AttentionCache
    shared: AttentionCache | None


class WorldModel(nn.Module):
    """One world model for K tasks.

    Args:
        action_size: A, entries of the encoded action vector.
        module_of_task: module of each task, sorted ascending; all zeros before the tasks are grouped.
        num_modules: M.
        across_episodes: attend across episode ends, as STORM does.
        recompute: activations computed again in a backward pass instead of stored; "all" counts encoder and decoder in.
    """

    background: Tensor | None  # [K, 64, 64, 3] uint8

    def __init__(
        self, config: WorldModelConfig, *, action_size: int, module_of_task: Sequence[int], num_modules: int,
        across_episodes: bool = False, recompute: Recompute = "none",
    ) -> None:  # fmt: skip
        super().__init__()
        self.config, self.action_size, self.across_episodes = config, action_size, across_episodes
        self.module_of_task, self.num_modules = tuple(module_of_task), num_modules
        num_tasks, d = len(self.module_of_task), config.embedding_size
        sizes: dict[Condition, int] = dict.fromkeys(config.condition, d)
        self.task_embedding = nn.Parameter(torch.randn(num_tasks, d)) if d else None
        self.encoder = Encoder(config.perception, num_modules, self.module_of_task, sizes.get("encoder", 0))
        self.decoder = Decoder(config.perception, num_modules, self.module_of_task, sizes.get("decoder", 0))
        self.experts = Experts(config, action_size, sizes.get("mixer", 0))
        self.shared = Shared(config, sizes.get("shared", 0)) if config.shared.kind != "none" else None
        self.num_head_sets = num_modules if config.heads == "cluster" else 1
        self.heads = Heads(config, self.num_head_sets, num_tasks, action_size, sizes.get("heads", 0))
        learned = config.routing.method == "learned" and config.experts.num_experts > 1
        self.router = Router(d, config.experts, config.routing) if learned else None
        self.expert_routes = None if learned else fixed_experts(config, self.module_of_task)
        shape = (num_tasks, 64, 64, 3)
        has_background = config.perception.background != "none"
        self.register_buffer("background", torch.zeros(shape, dtype=torch.uint8) if has_background else None)
        self.module_routes = one_each(self.module_of_task, num_modules)
        self.shared_routes = same_for_all(num_tasks)
        self.recompute, self.first_task = recompute, 0
        kinds = {"none": (), "transformers": (Transformer,), "all": (Transformer, Encoder, Decoder)}[recompute]
        for module in self.modules():
            if isinstance(module, kinds):
                module.invoke = checkpointed_call

    @property
    def num_tasks(self) -> int:
        return len(self.module_of_task)

    @property
    def plan(self) -> RoutePlan:
        """Task -> module of its cluster."""
        return self.module_routes.plan

    @property
    def shared_plan(self) -> RoutePlan:
        """Task -> the one set of weights that all tasks share."""
        return self.shared_routes.plan

    def embedding(self, place: Condition) -> Tensor | None:
        """e_k [K, d] where the network at `place` reads it, else None."""
        vectors = self.task_embedding
        if vectors is None or place not in self.config.condition:
            return None
        return cached(self, vectors, lambda: unit_length(vectors))

    def route(
        self, *, temperature: float | Tensor = 1.0, noise: float | Tensor = 0.0, rng: PhiloxState | None = None,
        frozen: Tensor | None = None,
    ) -> Routing:  # fmt: skip
        """The experts of every task; see Router."""
        if self.router is None:
            assert self.expert_routes is not None
            return Routing(self.expert_routes.plan, None, None)
        assert self.task_embedding is not None
        return self.router(unit_length(self.task_embedding), temperature, noise, rng, frozen)

    def encode(self, frame: Tensor) -> Tensor:
        """uint8 frames [K, B, L, 64, 64, 3] -> posterior logits [K, B, L, S, C]."""
        logits = self.encoder(frame.flatten(1, 2), self.plan, self.embedding("encoder"), self.background)
        return logits.unflatten(1, frame.shape[1:3])

    def sample(self, logits: Tensor, rng: PhiloxState) -> Tensor:
        """Draw latents: [..., S, C] -> one-hot [..., Z], straight-through gradient."""
        onehot, _ = sample_onehot(logits, rng, unimix=self.config.perception.unimix)
        return onehot.flatten(-2)

    def sequence_model(
        self, latent: Tensor, action: Tensor, window: Window, routing: Routing, memory: Memory | None = None
    ) -> Tensor:
        """Tokens (z_t [K, B, L, Z], a_t [K, B, L, A]) -> h_t [K, B, L, D]; with a memory, they follow its tokens."""
        token = concatenated(latent, action.to(latent.dtype))
        expert_cache = None if memory is None else memory.experts
        outputs = self.experts(token, self.embedding("mixer"), routing, window, expert_cache)  # [K, B, L, J, D]
        if self.shared is None:
            return outputs.flatten(3)
        shared_cache = None if memory is None else memory.shared
        return self.shared(outputs, self.embedding("shared"), self.shared_plan, window, shared_cache)

    def new_memory(self, num_sequences: int, capacity: int) -> Memory:
        """Room for `capacity` tokens of `num_sequences` rollouts per task."""
        shape = (self.num_tasks, self.config.experts.experts_per_task, num_sequences)
        experts = self.experts.transformer.new_cache(shape, capacity)
        if self.shared is None or self.shared.transformer is None:
            return Memory(experts, None)
        return Memory(experts, self.shared.transformer.new_cache((self.num_tasks, 1, num_sequences), capacity))

    def window(self, is_first: Tensor) -> Window:
        """Attention mask of tokens [K, B, L]."""
        return episode_window(is_first, across_episodes=self.across_episodes)

    def observe(self, batch: TransitionBatch, routing: Routing, rng: PhiloxState) -> Posterior:
        """Encode a batch, draw its latents, and run the sequence model over them."""
        logits = self.encode(batch.frame)  # [K, B, L, S, C]
        latent = self.sample(logits, rng)  # [K, B, L, Z]
        token = self._stale_in_part(latent, batch.is_first, rng)
        hidden = self.sequence_model(token, batch.action, self.window(batch.is_first), routing)
        reads_before = self.config.prior == "local" and self.config.prior_frames == 2
        before = self.before(token, batch.is_first) if reads_before else None
        return Posterior(logits, latent, token, hidden, before)

    def before(self, latent: Tensor, is_first: Tensor) -> Tensor:
        """z_{t-1} of every z_t [K, B, L, Z]: zeros where the window or an episode (is_first [K, B, L]) opens."""
        shifted = torch.cat([torch.zeros_like(latent[:, :, :1]), latent[:, :, :-1]], dim=2)
        return shifted if self.across_episodes else shifted.masked_fill(is_first.unsqueeze(-1), 0.0)

    def predict(self, head_input: HeadInput, arrived: Tensor | None = None) -> Prediction:
        """All heads. Args: arrived: z_{t+1} [K, B, L, Z], needed in the arrival form."""
        return self.heads(head_input, arrived, self._head_plan, self.shared_plan, self.embedding("heads"))

    def predict_next_latent(self, head_input: HeadInput) -> tuple[Tensor, Tensor]:
        """As Heads.predict_next_latent."""
        return self.heads.predict_next_latent(head_input, self._head_plan, self.embedding("heads"))

    def predict_reward_and_end(self, hidden: Tensor, events: Tensor, arrived: Tensor) -> tuple[Tensor, Tensor]:
        """As Heads.predict_reward_and_end; all steps of a rollout at once."""
        return self.heads.predict_reward_and_end(hidden, events, arrived, self._head_plan, self.embedding("heads"))

    @property
    def _head_plan(self) -> RoutePlan:
        return self.plan if self.config.heads == "cluster" else self.shared_plan

    def decode(self, latent: Tensor) -> Tensor:
        """Latents [K, B, L, Z] -> frames float [K, B, L, 64, 64, 3], 0 black to 1 white."""
        frame = self.decoder(latent.flatten(1, 2), self.plan, self.embedding("decoder"), self.background)
        return frame.unflatten(1, latent.shape[1:3])

    # Additions of this package: the median background, latents stale in part -----------------------------------------

    @torch.no_grad()
    def set_background(self, frame: Tensor) -> None:
        """Take the median of uint8 frames [K, N, 64, 64, 3] of each task off its frames before the encoder, and put it
        back after the decoder, from now on. The model must have `perception.background` median.
        """
        assert self.background is not None, "this model has no background: perception.background is none"
        self.background.copy_(frame.median(dim=1).values)

    def _stale_in_part(self, latent: Tensor, is_first: Tensor, rng: PhiloxState) -> Tensor:
        """While training, z_t [K, B, L, Z] with a share of its groups as they were in z_{t-1} of the same episode.

        Latents of a rollout look alike: their groups are drawn one by one, and some lag behind the others. The model
        learns to go on from such latents by its hidden state. Source: none; effects: bench/results/LOG.md.
        """
        share = self.config.stale_share
        if share == 0.0 or not self.training:
            return latent
        groups = latent.unflatten(-1, (self.config.perception.groups, -1))  # [K, B, L, S, C]
        stale = (self._uniform(rng, groups.shape[:-1]) < share) & ~is_first.unsqueeze(-1)
        before = torch.cat([groups[:, :, :1], groups[:, :, :-1]], dim=2)
        return torch.where(stale.unsqueeze(-1), before, groups).flatten(-2)

    def _uniform(self, rng: PhiloxState, shape: tuple[int, ...]) -> Tensor:
        """One number per entry of [K, ...]."""
        numbers = uniform(rng, math.prod(shape)).view(shape)
        rng.advance()
        return numbers
