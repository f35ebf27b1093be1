"""Lambda-return in one kernel beside a loop over steps.  python -m bench -k lambda_return

Peers: the recursion as a Python loop over stacked steps, and the same under torch.compile.
"""

from functools import partial

import pytest
import torch
from torch import Tensor

from bench import floors
from bench.race import Race, close_to, peers_of
from mow.kernels import lambda_return

_LAM = 0.95
SHAPES = [(26, 1024, 16), (1, 1024, 16)] if torch.cuda.is_available() else [(4, 64, 16)]  # [K, B, T]

Rollout = tuple[Tensor, Tensor, Tensor]


def make_rollout(shape: tuple[int, int, int], device: str) -> Rollout:
    *leading, num_steps = shape
    reward = torch.randn(shape, device=device)
    continuation = 0.997 * (torch.rand(shape, device=device) < 0.99)
    return reward, continuation, torch.randn(*leading, num_steps + 1, device=device)


def loop(reward: Tensor, continuation: Tensor, value: Tensor) -> Tensor:
    following, returns = value[..., -1], []
    for t in reversed(range(reward.shape[-1])):
        blend = (1 - _LAM) * value[..., t + 1] + _LAM * following
        following = reward[..., t] + continuation[..., t] * blend
        returns.append(following)
    return torch.stack(returns[::-1], dim=-1)


def check(output: Tensor, inputs: Rollout) -> None:
    # Sixteen float32 steps.
    close_to(loop(*(x.double() for x in inputs)), output, 1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_returns(race: Race, shape: tuple[int, int, int]) -> None:
    race.run(
        lambda *rollout: lambda_return(*rollout, lam=_LAM, backend=race.backend),
        peers_of("loop", loop, lambda function: function, race.device.kind),
        make=partial(make_rollout, shape, race.device.kind),
        check=check,
        work=floors.lambda_return(shape[0] * shape[1], shape[2], 4),
    )
