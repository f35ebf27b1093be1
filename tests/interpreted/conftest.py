"""Kernels under Triton's interpreter, without a GPU: run by tests/kernels/test_interpreted.py in a process of its own,
or by hand with TRITON_INTERPRET=1 python -m pytest tests/interpreted."""

import importlib.util
import os

import numpy as np
import pytest

NOT_RUN = 77  # exit status that says: not here, for the reason given


def _reason_to_skip() -> str | None:
    if os.environ.get("TRITON_INTERPRET") != "1":
        return "needs TRITON_INTERPRET=1 before the start"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    import triton

    versions = [tuple(map(int, module.__version__.split(".")[:2])) for module in (triton, np)]
    # The interpreter of triton 3.6 counts loops with one-element arrays, which numpy 2.4 no longer takes as an index.
    if versions[0] < (3, 7) and versions[1] >= (2, 4):
        return f"the interpreter of triton {triton.__version__} does not work with numpy {np.__version__}"
    return None


def pytest_configure() -> None:
    reason = _reason_to_skip()
    if reason is not None:
        pytest.exit(f"kernels are not interpreted: {reason}", returncode=NOT_RUN)
