"""A run says how its updates will be computed, and never computes them in another way."""

import dataclasses
import functools

import pytest
import torch

from mow.errors import UsageError
from mow.methods.mow import compile as compiler
from mow.methods.mow.compile import updates_as_configured
from mow.methods.mow.config import OptimConfig
from mow.train import main
from tests.small import run_config

CPU = torch.device("cpu")


def switched(**optim: bool | str):
    return dataclasses.replace(run_config(), optim=OptimConfig(**optim))


def test_plain_updates_are_said_and_need_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", None)
    with updates_as_configured(switched(), CPU) as how:
        assert how == "updates: plain PyTorch; rollouts: op by op"
    with updates_as_configured(switched(cuda_graph=True), torch.device("cuda")) as how:
        assert how.endswith("rollouts: replayed from one CUDA graph")
    with updates_as_configured(switched(matrices="muon", muon_precision="bf16"), CPU) as how:
        assert how.endswith("; Muon in bf16")


def test_a_compiler_is_tried_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    with updates_as_configured(switched(compile=True), CPU) as how:
        assert how == "updates: through torch.compile, the first ones take minutes; rollouts: op by op"


def broken(graph: object, inputs: object) -> None:
    raise OSError("no g++ here\nand more lines")


def test_a_broken_compiler_ends_the_run_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=broken))
    said = r"torch.compile failed \(OSError: no g\+\+ here\): use --optim.no-compile"
    with pytest.raises(UsageError, match=said) as found, updates_as_configured(switched(compile=True), CPU):
        pytest.fail("the run must not begin")
    assert "\n" not in str(found.value)


def test_what_cannot_be_compiled_later_ends_in_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_try_compiler", lambda device: None)
    reads = torch.compile(lambda x: x if x.sum() > 0 else -x, backend="eager", fullgraph=True)
    said = r"torch.compile failed \(Unsupported: .*\): use --optim.no-compile"
    with pytest.raises(UsageError, match=said), updates_as_configured(switched(compile=True), CPU):
        reads(torch.ones(3))


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt(), FloatingPointError("nan")])
def test_other_errors_pass(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_try_compiler", lambda device: None)
    with pytest.raises(type(error)) as found, updates_as_configured(switched(compile=True), CPU):
        raise error
    assert found.value is error


def test_a_graph_without_a_gpu_is_refused(capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    tasks = ["--tasks", "dummy:count-0", "--device", "cpu", "--folder", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stopped:
        main(["quickstart", "--optim.cuda-graph", *tasks])
    assert stopped.value.code == 2
    assert "optim.cuda_graph needs a GPU, this run is on cpu: use --optim.no-cuda-graph" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
