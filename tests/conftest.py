"""Every test starts alike: one seed, one thread, fresh memory full of NaN. Tests for a GPU are skipped without one."""

import os
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

SEED = 0


def pytest_configure() -> None:
    # The tensors here are small: more threads cost time and change the order of sums. So in processes that tests start.
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.pop("PYTEST_XDIST_WORKER", None)  # those that run pytest are nobody's workers
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu"):
            # Not every CUDA op has a deterministic form; such an op warns here and computes as usual.
            item.add_marker(pytest.mark.filterwarnings("ignore:.*[Dd]eterministic.*:UserWarning"))
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _same_start(request: pytest.FixtureRequest) -> Iterator[None]:
    """Seeds, and NaN in whatever torch.empty gives, so that a forgotten write shows (integers: their largest value)."""
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    # The fill comes with deterministic algorithms (torch.utils.deterministic.fill_uninitialized_memory, on unless told
    # otherwise). On the CPU an op without a deterministic form is an error.
    on_gpu = request.node.get_closest_marker("gpu") is not None
    torch.use_deterministic_algorithms(True, warn_only=on_gpu)
    yield
    torch.use_deterministic_algorithms(False)
