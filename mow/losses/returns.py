"""Returns of imagined trajectories and the running range that makes tasks comparable."""

import copy

import torch
from torch import Tensor

from mow.kernels import lambda_return


def imagined_return(
    reward: Tensor, terminated: Tensor, value: Tensor, *, discount: float, lam: float, storm_index: bool = False
) -> Tensor:
    """lambda-returns of an imagined rollout.

        R_t = r_t + discount (1 - c_t) [(1 - lam) v(s_{t+1}) + lam R_{t+1}],   R_T = v(s_T)

    Args:
        reward: [K, B, T], after action t.
        terminated: [K, B, T], probability that the episode ended after action t (0 or 1 where it is known).
        value: [K, B, T + 1], of s_0 .. s_T.
        storm_index: put v(s_t) in the place of v(s_{t+1}), as STORM's released code does.
    Returns: [K, B, T].
    Source: MoW section 3. Differs: its line prints `lambda c_t` as the factor; read as discount times continuation.
    """
    continuation = discount * (1.0 - terminated.float())
    if storm_index:
        # The recursion reads v at t + 1: hand it v(s_t) there, and at the end the blend of v(s_{T-1}) and v(s_T).
        last = (1.0 - lam) * value[..., -2:-1] + lam * value[..., -1:]
        value = torch.cat([value[..., :1], value[..., :-2], last], dim=-1)
    return lambda_return(reward, continuation, value, lam=lam)


class ReturnScale:
    """S_k: running distance between the 5th and 95th percentile of task k's returns.

    Kept per task, because returns of Atari games differ by a factor of 10^3; exponential averages with bias correction.
    Source: MoW section 3, DreamerV3 (percentiles). Differs: STORM keeps one for its one task, without the correction.
    """

    def __init__(self, num_tasks: int, decay: float, device: torch.device) -> None:
        self.decay = decay
        self.levels = torch.tensor([0.05, 0.95], device=device)  # here: to copy them at every update is to wait
        self.percentiles = torch.zeros(2, num_tasks, device=device)
        self.weight = torch.zeros(num_tasks, device=device)

    def rows(self, tasks: slice) -> "ReturnScale":
        """Those of some tasks; their updates change this one."""
        part = copy.copy(self)
        part.percentiles, part.weight = self.percentiles[:, tasks], self.weight[tasks]
        return part

    def update(self, returns: Tensor, weight: Tensor) -> Tensor:
        """Take in returns [K, B, T] of states with weight > 0; give max(1, S): [K]."""
        counted = torch.where(weight > 0, returns.float(), torch.nan).flatten(1)  # [K, B * T]
        now = torch.nanquantile(counted, self.levels, dim=1)  # [2, K]
        # A task with no counted state this time keeps what it had.
        step = (1.0 - self.decay) * (weight > 0).flatten(1).any(dim=1)  # [K]
        self.percentiles.lerp_(now.nan_to_num(), step)
        self.weight.lerp_(torch.ones_like(self.weight), step)
        low, high = self.percentiles / self.weight.clamp_min(1e-8)
        return (high - low).clamp_min(1.0)

    def state_dict(self) -> dict[str, Tensor]:
        return {"percentiles": self.percentiles, "weight": self.weight}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.percentiles.copy_(state["percentiles"])
        self.weight.copy_(state["weight"])
