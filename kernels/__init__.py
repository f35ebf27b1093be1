"""The ops that cost time, one file each: equation, checks and a plain PyTorch reference behind one door."""

if __name__ != "mow.kernels":
    raise ImportError(f"imported as {__name__!r}: write 'from mow.kernels import ...' (this folder is that package)")

from mow.kernels.categorical_kl import categorical_kl
from mow.kernels.decode_attention import decode_attention
from mow.kernels.dispatch import Backend, choose
from mow.kernels.expert_linear import Activation, expert_linear
from mow.kernels.gather_frames import gather_frames
from mow.kernels.lambda_return import lambda_return
from mow.kernels.philox import PhiloxState, philox4x32, uniform
from mow.kernels.route_plan import RoutePlan, pairs_by_expert, route_plan, rows_of
from mow.kernels.sample_onehot import sample_onehot, unimix_prob
from mow.kernels.softmax import softmax
from mow.kernels.two_hot import symexp, symlog, two_hot_decode, two_hot_loss

__all__ = [
    "Activation",
    "Backend",
    "PhiloxState",
    "RoutePlan",
    "categorical_kl",
    "choose",
    "decode_attention",
    "expert_linear",
    "gather_frames",
    "lambda_return",
    "pairs_by_expert",
    "philox4x32",
    "route_plan",
    "rows_of",
    "sample_onehot",
    "softmax",
    "symexp",
    "symlog",
    "two_hot_decode",
    "two_hot_loss",
    "uniform",
    "unimix_prob",
]
