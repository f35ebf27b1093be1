"""Finds whatever makes a host wait for its device: values read, shapes that depend on values, tensors made of lists."""

import contextlib
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Read in C++ without a trace in the dispatcher, or copied to the host.
_METHODS = {
    Tensor.tolist, Tensor.item, Tensor.cpu, Tensor.numpy, Tensor.__bool__, Tensor.__int__, Tensor.__float__,
    Tensor.__index__, Tensor.__contains__, torch.tensor, torch.as_tensor, torch.from_numpy, torch.equal,
}  # fmt: skip
_OPS = {
    "aten._local_scalar_dense", "aten.nonzero", "aten.nonzero_static", "aten.masked_select", "aten._unique2",
    "aten.unique_consecutive", "aten.unique_dim", "aten.repeat_interleave", "aten.equal", "aten.is_nonzero",
}  # fmt: skip


class _Functions(TorchFunctionMode):
    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self.note = note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _METHODS:
            self.note(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))


class _Ops(TorchDispatchMode):
    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self.note = note

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.overloadpacket)
        by_mask = name in ("aten.index", "aten.index_put", "aten.index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if name in _OPS or by_mask:
            self.note(name)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def host_reads() -> Iterator[list[str]]:
    """Inside, every such call is noted: what it was, and the line of the package that made it."""
    found: list[str] = []

    def note(what: str) -> None:
        stack = [f for f in traceback.extract_stack() if "/mow/" in f.filename or "/kernels/" in f.filename]
        where = f"{stack[-1].filename.rpartition('/')[2]}:{stack[-1].name}" if stack else "outside of the package"
        found.append(f"{what} in {where}")

    with _Functions(note), _Ops(note):
        yield found
