"""choose answers once and says so; precision follows the inputs."""

import logging
import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses import FakeTensorMode

from mow.kernels import dispatch
from mow.kernels.dispatch import backends, choose, compute_dtype


@pytest.fixture(autouse=True)
def _nothing_chosen_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_CHOSEN", {})


def test_auto_takes_the_best() -> None:
    assert choose("op", "auto", ("triton", "reference")) == "triton"
    assert choose("op", "auto", ("reference",)) == "reference"  # the earlier answer was for other machines' choices


def test_named_backend_is_taken() -> None:
    assert choose("op", "reference", ("triton", "reference")) == "reference"


def test_the_environment_says_what_auto_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_DEFAULT", "reference")
    assert choose("op", "auto", ("triton", "reference")) == "reference"
    assert choose("op", "triton", ("triton", "reference")) == "triton"
    monkeypatch.setattr(dispatch, "_DEFAULT", "cuda")
    with pytest.raises(ValueError, match=r"'cuda' here \(from MOW_BACKEND\): choose 'auto' or 'reference'"):
        choose("other", "auto", ("reference",))


def test_the_environment_is_read_at_the_start() -> None:
    code = "from mow.kernels import dispatch; print(dispatch.choose('op', 'auto', ('triton', 'reference')))"
    for wanted, chosen in ((None, "triton"), ("reference", "reference")):
        env = {name: value for name, value in os.environ.items() if name != "MOW_BACKEND"}
        env |= {} if wanted is None else {"MOW_BACKEND": wanted}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == chosen


def test_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="mow"):
        for _ in range(3):
            choose("lambda_return", "auto", ("triton", "reference"))
            choose("sample_onehot", "auto", ("reference",))  # there was no choice
    assert [(r.name, r.levelname, r.getMessage()) for r in caplog.records] == [("mow", "INFO", "lambda_return: triton")]


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


@pytest.mark.parametrize(
    ("triton", "interpreted", "on_gpu", "on_cpu"),
    [
        (True, False, ("triton", "reference"), ("reference",)),
        (False, False, ("reference",), ("reference",)),
        (True, True, ("reference", "triton"), ("reference", "triton")),
    ],
)
def test_offers(triton: bool, interpreted: bool, on_gpu: tuple[str, ...], on_cpu: tuple[str, ...]) -> None:
    assert dispatch._offers(True, triton, interpreted) == on_gpu
    assert dispatch._offers(False, triton, interpreted) == on_cpu


def test_backends_follow_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_TRITON", True)
    monkeypatch.setattr(dispatch, "_ON_GPU", ("triton", "reference"))
    monkeypatch.setattr(dispatch, "_ON_CPU", ("reference",))
    with FakeTensorMode():  # a CUDA tensor without a GPU
        assert backends(torch.empty(1, device="cuda")) == ("triton", "reference")
    assert backends(torch.empty(1)) == ("reference",)


def test_missing_triton_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(dispatch, "_TRITON", False)
    monkeypatch.setattr(dispatch, "_ON_GPU", ("reference",))
    dispatch._warn_once.cache_clear()
    with FakeTensorMode():
        on_gpu = torch.empty(1, device="cuda")
    assert [backends(on_gpu), backends(on_gpu)] == [("reference",)] * 2
    assert [record.getMessage() for record in caplog.records] == [
        "triton is not installed: every op runs as plain PyTorch; pip install triton"
    ]


def test_backends_leave_one_graph_under_compile() -> None:
    torch.compiler.reset()
    compiled = torch.compile(lambda x: x + len(backends(x)), backend="eager", fullgraph=True)
    assert compiled(torch.zeros(1)).item() == len(backends(torch.zeros(1)))
