"""choose answers once and says so; precision follows the inputs."""

import logging

import pytest
import torch

from mow.kernels import dispatch
from mow.kernels.dispatch import choose, compute_dtype


@pytest.fixture(autouse=True)
def _nothing_chosen_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_CHOSEN", {})


def test_auto_takes_the_best() -> None:
    assert choose("op", "auto", ("triton", "reference")) == "triton"
    assert choose("op", "auto", ("reference",)) == "reference"  # the earlier answer was for other machines' choices


def test_named_backend_is_taken() -> None:
    assert choose("op", "reference", ("triton", "reference")) == "reference"


def test_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="mow"):
        for _ in range(3):
            choose("lambda_return", "auto", ("reference",))
    assert [(r.name, r.levelname, r.getMessage()) for r in caplog.records] == [
        ("mow", "INFO", "lambda_return: reference")
    ]


def test_no_silent_fallback(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="mow"):
        for _ in range(2):  # the refusal is not remembered as an answer
            with pytest.raises(ValueError, match="op has no backend 'triton' here: choose 'auto' or 'reference'"):
                choose("op", "triton", ("reference",))
    assert not caplog.records


def test_compute_dtype() -> None:
    half, single, double = (torch.zeros(1, dtype=d) for d in (torch.bfloat16, torch.float32, torch.float64))
    assert compute_dtype(half) == compute_dtype(half, single) == torch.float32
    assert compute_dtype(half, double) == torch.float64
    with pytest.raises(ValueError, match=r"got torch.int64: convert with .float\(\)"):
        compute_dtype(single, torch.zeros(1, dtype=torch.int64))
