"""Launches, bytes and FLOP of an update as a GPU runs it, counted on tensors without values: no GPU is needed.

The learner's own code runs under FakeTensorMode on the CPU, with what differs on a GPU set as it is there: kernels in
place of references, tiled for sm_90; autocast to bfloat16, with CUDA's list of ops in float32; no cache of weights;
gradients clipped by foreach ops. An op of PyTorch is one launch that reads its inputs and writes its outputs once. A
kernel of mow.kernels is one launch with the bytes of its arguments; copies made around it are counted as ops.

Milliseconds are a lower bound: per op the largest of bytes over bandwidth, FLOP over the matmul rate, and launches.
"""

import importlib
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count
from triton.runtime.jit import JITFunction

from mow.estimate.plan import grouped_learner, random_batch
from mow.kernels import dispatch, tuned
from mow.kernels.custom_op import launches
from mow.methods.mow import learner as learners
from mow.methods.mow.config import MowConfig
from mow.methods.mow.local_prior import LocalPrior
from mow.nn.policy import ActionMask
from mow.nn.weight_cache import WeightCache

Part = Literal["world_model", "imagination", "agent"]
PARTS: tuple[Part, ...] = ("world_model", "imagination", "agent")

# H200: what a copy and a large bf16 matmul reach of its memory and tensor cores, and the time between two launches.
BANDWIDTH, MATMUL_RATE, LAUNCH_SECONDS = 4.3e12, 600e12, 1.5e-6

# Neither a launch nor bytes, beside the views.
_FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "_unsafe_view",
         "_reshape_alias", "lift_fresh", "device", "layout", "dim", "is_contiguous"}  # fmt: skip
_OVERWRITES = {"copy_", "fill_", "zero_"}  # their first argument is written, not read
_CLASSES = {  # of ops; all others are "elementwise, sums"
    "convolution": ("convolution", "convolution_backward"),
    "matmul": ("mm", "bmm", "addmm", "baddbmm", "packed_kernel", "tma_kernel", "dx_shared_kernel", "dw_kernel",
               "dw_sum_kernel", "pre_grad_kernel", "sum_members_kernel"),
    "attention": ("_scaled_dot_product_flash_attention_for_cpu",
                  "_scaled_dot_product_flash_attention_for_cpu_backward", "decode_attention_kernel"),
    "norm": ("native_layer_norm", "native_layer_norm_backward", "native_batch_norm", "native_batch_norm_backward",
             "native_group_norm", "native_group_norm_backward", "addcmul", "add_layer_norm_kernel",
             "add_layer_norm_backward_kernel", "batch_norm_relu_kernel"),
    "cast": ("_to_copy",),
    "copy": ("cat", "clone", "copy_", "index_select", "slice_backward", "select_backward", "new_zeros", "zeros"),
    "optimiser": ("_fused_adam_", "_foreach_norm", "_foreach_mul_", "_foreach_lerp_"),
}  # fmt: skip
_CLASS_OF = {op: name for name, ops in _CLASSES.items() for op in ops}
_FLOP: dict[str, Callable[..., int]] = {  # of the ops of mow.kernels, from their arguments
    "expert_linear": lambda x, weight, routes, *_: 2 * routes.numel() * x.shape[2] * weight[0].numel(),
    "expert_linear_dx": lambda dy, weight, *_: 2 * dy.numel() * weight.shape[2],
    "expert_linear_dw": lambda dy, x, *_: 2 * dy.numel() * x.shape[3],
    "decode_attention": lambda q, k, v, keys, values, mask, *_: 4 * q.numel() * mask.shape[-1],
}
_ATTENTION: dict[str, Callable[..., int]] = {
    "_scaled_dot_product_flash_attention_for_cpu": lambda q, k, v, *_: sdpa_flop_count(q.shape, k.shape, v.shape),
    "_scaled_dot_product_flash_attention_for_cpu_backward": lambda grad, q, k, v, *_: sdpa_backward_flop_count(
        grad.shape, q.shape, k.shape, v.shape
    ),
}


@dataclass
class Work:
    launches: int = 0
    bytes: int = 0
    flop: int = 0
    seconds: float = 0.0  # at the ceilings

    def add(self, other: "Work") -> None:
        self.launches += other.launches
        self.bytes += other.bytes
        self.flop += other.flop
        self.seconds += other.seconds


class Counter(TorchDispatchMode):
    """Adds up the ops that run inside: by class, and by name and shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: defaultdict[str, Work] = defaultdict(Work)  # "name [shape] dtype, ..." -> all calls
        self.classes: defaultdict[str, Work] = defaultdict(Work)
        self._flop = 0  # of an op of mow.kernels, until its kernel is launched

    @property
    def total(self) -> Work:
        total = Work()
        for work in self.classes.values():
            total.add(work)
        return total

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if func.namespace == "mow":
            self._flop = _FLOP.get(name, lambda *_: 0)(*args)
            with self, patch.object(JITFunction, "run", lambda kernel, *args, **_: self._launch(kernel, args)):
                return launches[name](*args, **kwargs)
        out = func(*args, **kwargs)
        if not (func.is_view or name in _FREE):
            formula = flop_registry.get(func.overloadpacket)
            flop = formula(*args, **kwargs, out_val=out) if formula else _ATTENTION.get(name, lambda *_: 0)(*args)
            read = args[1:] if name in _OVERWRITES else args
            self._add(name, tree_leaves((read, kwargs, out)), flop)
        return out

    def _launch(self, kernel: Any, arguments: Any) -> None:
        """Counted in place of being run. Sums over parts of an axis, which few calls need, are not counted."""
        named = dict(zip(kernel.arg_names, arguments, strict=False))
        named.pop("partial_ptr", None)
        for cache in {"keys_ptr", "values_ptr"} & named.keys():
            named[cache] = named[cache][..., : named["position"] + 1, :]
        tensors = [value if isinstance(value, Tensor) else getattr(value, "base", None) for value in named.values()]
        flop, self._flop = self._flop, 0
        self._add(kernel.__name__, tensors, flop)

    def _add(self, name: str, leaves: list[Any], flop: int) -> None:
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        num_bytes = sum(map(_bytes, tensors))
        seconds = max(num_bytes / BANDWIDTH, flop / MATMUL_RATE, LAUNCH_SECONDS)
        shapes = ", ".join(f"{[*tensor.shape]} {str(tensor.dtype)[6:]}" for tensor in (*tensors[:2], *tensors[-1:]))
        for work in (self.ops[f"{name}: {shapes}"], self.classes[_CLASS_OF.get(name, "elementwise, sums")]):
            work.add(Work(1, num_bytes, flop, seconds))


def _bytes(tensor: Tensor) -> int:
    """Size of what lies in memory: an expanded axis counts once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(size for size, stride in sizes if stride) * tensor.itemsize


class _AsOnCuda(TorchFunctionMode):
    """Norms and losses in float32 under autocast; dropout inside of attention."""

    _float32 = (F.layer_norm, F.group_norm, torch.softmax, Tensor.softmax, torch.log_softmax, Tensor.log_softmax)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            args, kwargs = args[:4], {name: value for name, value in kwargs.items() if name != "dropout_p"}
        if func in self._float32 and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                args = [value.float() if isinstance(value, Tensor) else value for value in args]
                kwargs = {name: v.float() if isinstance(v, Tensor) else v for name, v in kwargs.items()}
                return func(*args, **kwargs)
        return func(*args, **kwargs)


class _Fake(FakeTensorMode):
    def __deepcopy__(self, memo: object) -> "_Fake":
        return self  # a copied module has tensors of the same mode


def _tiling(op: tuned.Op, device: object, dtype: torch.dtype, rows: int, outputs: int, inputs: int) -> tuned.Tiling:
    table, key = tuned._TABLES["sm_90"], (op, tuned.precision_of(dtype), tuned.bucket_of(rows))
    return table.get((*key, outputs, inputs)) or table[(*key, 0, 0)]


@contextmanager
def _as_on_cuda() -> Iterator[None]:
    """FakeTensorMode, and all that depends on the device set as on a GPU."""
    layer, launch = (importlib.import_module(f"mow.kernels.expert_linear{end}") for end in ("", "_launch"))
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # is_aligned reads the address of a tensor without one
        for owner, name, value in (
            (dispatch, "_ON_CPU", ("triton", "reference")),
            (layer, "tiling", _tiling),
            (launch, "tiling", _tiling),
            (torch.cuda, "device_of", lambda _: nullcontext()),
            (LocalPrior, "forward", LocalPrior._ahead),
            (learners, "check_finite", lambda *_: None),
            (nn.utils, "clip_grad_norm_", partial(nn.utils.clip_grad_norm_, foreach=True)),
            (nn.Module, "to", lambda module, _: module),
        ):
            stack.enter_context(patch.object(owner, name, value))
        stack.enter_context(_Fake(allow_non_fake_inputs=True))
        stack.enter_context(_AsOnCuda())
        yield


def count(config: MowConfig, mask: ActionMask, parts: Collection[Part] = PARTS) -> dict[Part, Counter]:
    """Count one update of the world model, the imagination of one rollout, and the update of the agent on it.

    Args: mask: of the tasks, which are spread evenly over the modules.
    """
    config = replace(config, optim=replace(config.optim, precision="bf16"))
    counters = {part: Counter() for part in PARTS}
    with _as_on_cuda():
        learner = grouped_learner(config, mask, torch.device("cpu"))
        learner.weight_cache = WeightCache(torch.device("cuda"))
        batch = random_batch(config, mask, config.batch.num_sequences, config.batch.length)
        context = random_batch(config, mask, config.imagination.num_sequences, config.imagination.context)
        if "world_model" in parts:
            with counters["world_model"]:
                learner.update_world_model(batch)
        if {"imagination", "agent"} & {*parts}:
            learner.world_model.eval()
            with counters["imagination"]:
                rollout = learner.imagine_rollout(context)
        if "agent" in parts:
            with counters["agent"]:
                learner._update_actor_critic(rollout)
    return {part: counters[part] for part in parts}
