"""Windows of replay, the letters of all shapes, and the time axis.

Letters, the same in every file:

    K tasks      B sequences per task      L replay steps    T imagined steps    N = K * B * L
    D width      S latent groups           C classes/group   Z = S * C           A action size
    M modules    E experts                 J experts/task    V value bins        d task-embedding size

Time axis. Token t holds what the agent saw and did. The next latent is predicted from it, and what it leads to is read
off with the latent that it leads to (arrival form), or without (transition form; WorldModelConfig.outcome):

    token t = (z_t, a_t)  ->  h_t  ->  next latent z_{t+1};   (h_t, z_{t+1})  ->  reward r_t, termination c_t
    agent state s_t = (z_t, h_{t-1}), by a switch z_{t-1} too;  action a_t ~ policy(s_t)

In the arrival form the final frame of an episode is a token too (`is_last`), so that its last step has a z_{t+1}. The
action of that token is zero and its reward 0; it is reconstructed and predicted, and nothing is predicted from it.

An action is always one float vector [A]: a one-hot block for the discrete tasks of the run, then a block of
continuous entries; a task leaves the block that it does not use at zero.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class TransitionBatch:
    """Windows of replay, B per task. Source: MoW section 3 (sampling), STORM (window length)."""

    frame: Tensor  # the observation o_t: frames [K, B, L, 64, 64, 3] uint8, or states [K, B, L, D] float32
    action: Tensor  # [K, B, L, A] float32, taken at o_t
    reward: Tensor  # [K, B, L] float32, received after a_t
    terminated: Tensor  # [K, B, L] bool, the task ended after a_t (for Atari also: a life was lost)
    truncated: Tensor  # [K, B, L] bool, a time limit cut the episode after a_t
    is_first: Tensor  # [K, B, L] bool, o_t opens an episode; true at index 0 of every window
    is_last: Tensor  # [K, B, L] bool, o_t is the final frame of an episode: a_t is zero and leads nowhere
    extra: dict[str, Tensor] = field(default_factory=dict)  # columns of the method: float32 [K, B, L, n]

    def to(self, device: torch.device) -> "TransitionBatch":
        """The same windows on `device`; copies of pinned memory overlap with the device's work."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def map(self, change: Callable[[Tensor], Tensor]) -> "TransitionBatch":
        """`change` of every tensor."""
        own = {name: change(tensor) for name, tensor in self.tensors().items() if name not in self.extra}
        return TransitionBatch(**own, extra={name: change(tensor) for name, tensor in self.extra.items()})

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, those of the method last."""
        own = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "extra"}
        return {**own, **self.extra}

    @property
    def leads_on(self) -> Tensor:
        """[K, B, L - 1] bool: the window holds what token t leads to, o_{t+1} of the same episode."""
        return ~(self.is_first[:, :, 1:] | self.is_last[:, :, :-1])
