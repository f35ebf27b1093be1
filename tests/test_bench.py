"""Benchmarks tell the truth: floors by hand, the clock on a fake device, checks that catch a broken op, the table."""

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import floors, render
from bench.clock import CLOCK, Call, Clock, CudaDevice, Device, device_timer
from bench.floors import Ceilings, DecodeShape, ExpertShape, LatentShape, Work
from bench.machine import file_stem
from bench.race import Eager, Race, close_to

ROOT = Path(__file__).resolve().parents[1]


# Floors


def test_expert_linear_by_hand() -> None:
    """26 tasks, 2 of 8 experts each, 1,024 rows, 512 -> 1,024, bf16."""
    work = floors.expert_linear(ExpertShape(26, 2, 8, 1024, 512, 1024), 2)
    assert work.flops == 55_834_574_848
    # 13,631,488 inputs, 4,194,304 weights, 54,525,952 outputs.
    assert work.bytes == 2 * 72_351_744
    # With fewer pairs than experts the others' weights are not read: 6 + 2 * 12 + 2 * 8 numbers.
    assert floors.expert_linear(ExpertShape(1, 2, 8, 2, 3, 4), 4).bytes == 4 * (6 + 24 + 16)


@pytest.mark.parametrize(
    ("work", "num_bytes"),
    [
        # 2 states of 3 x 4: bf16 logits in, float32 one-hot and 6 bytes of indices out.
        (floors.sample_onehot(LatentShape(2, 3, 4), 2), 24 * 2 + 24 * 4 + 6),
        # Backward: logits and float32 gradient in, bf16 gradient out.
        (floors.sample_onehot_training(LatentShape(2, 3, 4), 2), 150 + 24 * (2 + 4 + 2)),
        # Two grids read twice, two written; two float32 per state out, two in.
        (floors.categorical_kl_training(LatentShape(2, 3, 4), 2), 6 * 24 * 2 + 2 * 2 * 2 * 4),
        # 5 rows of 7 bins: read, read again, written; target and loss, target and gradient.
        (floors.two_hot_loss_training(5, 7, 2), 3 * 35 * 2 + 4 * 5 * 4),
        (floors.two_hot_decode(5, 7, 2), 70 + 20),
        # 5 rows of 3 steps: 3 rewards, 3 continuations, 4 values in, 3 returns out.
        (floors.lambda_return(5, 3, 4), 5 * (10 * 4 + 12)),
    ],
)
def test_bytes_by_hand(work: Work, num_bytes: int) -> None:
    assert work == Work(0.0, num_bytes)


def test_decode_attention_by_hand() -> None:
    """24 rows of 5 numbers after 2 tokens: 4 cached rows in; q, k, v in; 2 new rows and the output out; 6 masks."""
    work = floors.decode_attention(DecodeShape(1, 3, 2, 4, 5, 2), 2)
    assert work.bytes == 24 * 5 * (4 + 3 + 2 + 1) * 2 + 6
    assert work.flops == 24 * 5 * 3 * 4  # a multiplication and an addition per number of a key and of a value


def test_the_floor_is_the_slower_of_both() -> None:
    ceilings = Ceilings(flops_per_second=100.0, bytes_per_second=10.0)
    assert Work(300.0, 10.0).floor_seconds(ceilings) == 3.0
    assert Work(300.0, 50.0).floor_seconds(ceilings) == 5.0


# Clock and race


class FakeBenchmark:
    """The part of pytest-benchmark's fixture that a race uses."""

    def __init__(self, disabled: bool = False) -> None:
        self.extra_info: dict[str, Any] = {}
        self.disabled = disabled
        self.stats: Any = None
        self.rounds: list[float] = []

    def pedantic(self, target: Callable[[], None], setup: Callable[[], None], rounds: int, iterations: int) -> None:
        for _ in range(1 if self.disabled else rounds):
            setup()
            before = device_timer()
            target()
            self.rounds.append(device_timer() - before)
        if not self.disabled:
            self.stats = SimpleNamespace(stats=SimpleNamespace(median=sorted(self.rounds)[rounds // 2]))


class FakeDevice(Device):
    """Its time passes when a contestant says so, and a captured call takes half as long."""

    def __init__(self, kind: str) -> None:
        super().__init__("Fake 1")
        self.kind, self.now, self.pace = kind, 0.0, 1.0
        self.log: list[str] = []

    def seconds(self, call: Call) -> float:
        before = self.now
        call()
        return self.now - before

    def together(self, calls: Sequence[Call]) -> Call:
        def graph() -> None:
            self.pace = 0.5
            for call in calls:
                call()
            self.pace = 1.0

        return graph

    def sets_needed(self, num_bytes: float) -> int:
        return 3

    def contestant(self, name: str, seconds: float) -> Callable[[int], str]:
        def call(number: int) -> str:
            self.log.append(f"{name} {number}")
            self.now += self.pace * seconds
            return name

        return call


def run_race(device: FakeDevice, work: Work, disabled: bool = False) -> FakeBenchmark:
    """The subject takes 2 seconds, its peers 6 and 3."""
    benchmark, numbers = FakeBenchmark(disabled), iter(range(9))
    Race(benchmark, device, Ceilings(100.0, 10.0), "reference", rounds=3).run(
        device.contestant("subject", 2.0),
        {"slow": device.contestant("slow", 6.0), "eager": Eager(device.contestant("eager", 3.0))},
        make=lambda: (next(numbers),),
        check=lambda output, inputs: None,
        work=work,
    )
    return benchmark


def test_the_clock_moves_only_when_told() -> None:
    clock, before = Clock(), device_timer()
    clock.advance(1.5)
    clock.advance(0.25)
    time.sleep(0.01)
    assert clock.now == 1.75
    assert device_timer() == before == CLOCK.now


def test_a_race_by_hand() -> None:
    device = FakeDevice("cpu")
    benchmark = run_race(device, Work(flops=50.0, bytes=10.0))
    assert benchmark.rounds == [2.0, 2.0, 2.0]  # what pytest-benchmark reads off the timer
    info = benchmark.extra_info
    assert info["peers"] == {
        "slow": {"median_us": 6e6, "speedup": 3.0},
        "eager": {"median_us": 3e6, "speedup": 1.5},
    }
    assert info["noise"] == 1.0
    assert info["median_us"] == 2e6
    assert info["floor_us"] == 1e6  # 10 bytes at 10 per second; 50 flops take half as long
    assert info["floor_share"] == 0.5
    assert info["gb_per_s"] == pytest.approx(5e-9)
    assert info["copy_share"] == 0.5
    assert info["matmul_share"] == 0.25
    assert info["numbers"] == "CPU numbers: no conclusion for a GPU"
    assert "timed_without_graph" not in info
    # All on the one set of inputs; checked, warmed up, then three rounds in turn.
    turn = ["subject 0", "subject 0", "slow 0", "eager 0"]
    assert device.log == [*turn, *turn, *(3 * [*turn[1:], "subject 0"])]


def test_small_shapes_run_in_graphs_over_several_inputs() -> None:
    device = FakeDevice("cuda")
    info = run_race(device, Work(flops=0.0, bytes=1e-4)).extra_info
    assert info["numbers"] == "GPU numbers"
    # A graph of 16 calls, each twice as fast; the eager peer alone is not captured.
    assert info["median_us"] == 1e6
    assert info["peers"]["slow"]["speedup"] == 3.0
    assert info["peers"]["eager"]["median_us"] == 3e6
    assert info["timed_without_graph"] == ["eager"]
    assert {entry for entry in device.log if entry.startswith("slow")} == {"slow 0", "slow 1", "slow 2"}


def test_large_shapes_on_a_gpu_are_flushed_not_captured() -> None:
    info = run_race(FakeDevice("cuda"), Work(flops=0.0, bytes=10.0)).extra_info
    assert info["median_us"] == 2e6
    assert "timed_without_graph" not in info


def test_a_disabled_benchmark_still_checks() -> None:
    benchmark = run_race(FakeDevice("cpu"), Work(0.0, 1.0), disabled=True)
    assert benchmark.extra_info == {}


def test_who_is_wrong_is_not_timed() -> None:
    device, benchmark = FakeDevice("cpu"), FakeBenchmark()

    def check(output: str, inputs: tuple[int]) -> None:
        assert output != "liar", "it lies"

    with pytest.raises(AssertionError, match=r"^peer is wrong, so nothing is timed: it lies"):
        Race(benchmark, device, Ceilings(1.0, 1.0), "reference", rounds=3).run(
            device.contestant("honest", 1.0),
            {"peer": device.contestant("liar", 1.0)},
            make=lambda: (0,),
            check=check,
            work=Work(0.0, 1.0),
        )
    assert benchmark.rounds == []


def test_close_to() -> None:
    want = torch.tensor([3.0, 4.0], dtype=torch.float64)
    close_to(want, torch.tensor([3.0, 4.04]), 0.009)
    with pytest.raises(AssertionError, match=r"relative error 8.0e-03 against float64, at most 7e-03"):
        close_to(want, torch.tensor([3.0, 4.04]), 0.007)
    with pytest.raises(AssertionError, match=r"got shape \[1\], expected \[2\]"):
        close_to(want, torch.tensor([3.0]), 1.0)
    with pytest.raises(AssertionError, match="relative error nan"):
        close_to(want, torch.tensor([3.0, torch.nan]), 1.0)


@pytest.mark.gpu
def test_the_cuda_device_measures_the_gpu() -> None:
    device = CudaDevice()
    one, target = torch.randn(2**28, device="cuda"), torch.empty(2**28, device="cuda")
    once = min(device.seconds(lambda: target.copy_(one)) for _ in range(5))
    both = device.together([partial(target.copy_, one)] * 2)
    # The idling before a call is not counted, and two copies take twice as long as one.
    assert once < device.wall_seconds(lambda: target.copy_(one)) * 1.1
    assert 1.8 * once < min(device.seconds(both) for _ in range(5)) < 2.2 * once
    assert device.sets_needed(1e12) == 1 < device.sets_needed(1e6) <= 32


# Every benchmark catches a broken op

LATENTS, LAYER = LatentShape(512, 2, 4), ExpertShape(3, 2, 3, 5, 8, 6)
BENCHMARKS: dict[str, tuple[str, str, object]] = {  # file -> op, test, shape
    "bench_expert_linear forward": ("expert_linear", "test_forward", LAYER),
    "bench_expert_linear alone": ("expert_linear", "test_matmul_alone", LAYER),
    "bench_expert_linear input": ("expert_linear", "test_gradient_of_input", LAYER),
    "bench_expert_linear weight": ("expert_linear", "test_gradient_of_weight", LAYER),
    "bench_sample_onehot alone": ("sample_onehot", "test_imagination", LATENTS),
    "bench_sample_onehot training": ("sample_onehot", "test_training", LATENTS),
    "bench_categorical_kl": ("categorical_kl", "test_training", LATENTS),
    "bench_two_hot loss": ("two_hot_loss", "test_loss", 16),
    "bench_two_hot decode": ("two_hot_decode", "test_decode", (16, "symexp_of_mean")),
    "bench_two_hot mean": ("two_hot_decode", "test_decode", (16, "mean_of_symexp")),
    "bench_lambda_return": ("lambda_return", "test_returns", (2, 3, 4)),
    "bench_add_layer_norm": ("add_layer_norm", "test_norm", (2, 2, 3, 8)),
    "bench_batch_norm_relu": ("batch_norm_relu", "test_norm", (2, 4, 3, 3)),
    "bench_decode_attention": ("decode_attention", "test_step", DecodeShape(2, 2, 3, 2, 8, 3)),
}


def run_benchmark(name: str) -> None:
    _, test, shape = BENCHMARKS[name]
    module = importlib.import_module(f"bench.{name.split()[0]}")
    race = Race(FakeBenchmark(), Device(), Ceilings(1e9, 1e9), "reference", rounds=1)
    getattr(module, test)(race, *(shape if test == "test_decode" else (shape,)))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_contestant_passes_its_check(name: str) -> None:
    run_benchmark(name)


def one_percent_off(op: Callable[..., Any]) -> Callable[..., Any]:
    """The op with all its outputs, and with them all gradients, a little too large."""

    def broken(*args: Any, **kwargs: Any) -> Any:
        output = op(*args, **kwargs)
        return tuple(1.01 * x for x in output) if isinstance(output, tuple) else 1.01 * output

    return broken


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_broken_op_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, op = importlib.import_module(f"bench.{name.split()[0]}"), BENCHMARKS[name][0]
    monkeypatch.setattr(module, op, one_percent_off(getattr(module, op)))
    with pytest.raises(AssertionError, match=r"^subject is wrong, so nothing is timed"):
        run_benchmark(name)


def test_a_draw_that_is_one_hot_but_not_random_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("bench.bench_sample_onehot")

    def likeliest(logits: torch.Tensor, rng: object, *, backend: str) -> tuple[torch.Tensor, None]:
        return torch.nn.functional.one_hot(logits.argmax(dim=-1), logits.shape[-1]).float(), None

    monkeypatch.setattr(module, "sample_onehot", likeliest)
    with pytest.raises(AssertionError, match=r"the probability of what is drawn is .* standard"):
        run_benchmark("bench_sample_onehot alone")


def test_a_gradient_alone_that_is_wrong_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("bench.bench_categorical_kl")
    op = module.categorical_kl

    def stuck(posterior: torch.Tensor, prior: torch.Tensor, *, backend: str) -> tuple[torch.Tensor, ...]:
        dynamics, representation = op(posterior, prior)
        return dynamics.detach() + 0 * prior.sum(), representation

    monkeypatch.setattr(module, "categorical_kl", stuck)
    with pytest.raises(AssertionError, match=r"subject is wrong.*relative error 1.0e"):
        run_benchmark("bench_categorical_kl")


def test_an_attention_that_forgets_to_append_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("bench.bench_decode_attention")
    op = module.decode_attention

    def forgetful(*args: Any, backend: str) -> torch.Tensor:
        query, key, value, keys, values, mask, position = args
        output: torch.Tensor = op(query, key, value, keys.clone(), values.clone(), mask, position)
        return output

    monkeypatch.setattr(module, "decode_attention", forgetful)
    with pytest.raises(AssertionError, match="the new row is not in the cache"):
        run_benchmark("bench_decode_attention")


# These time more than an op, and have test files of their own.
WHOLE = {"replay", "envs", "train_step"}


def test_every_op_with_a_kernel_has_a_benchmark() -> None:
    timed = {path.stem.removeprefix("bench_") for path in (ROOT / "bench").glob("bench_*.py")}
    assert timed - WHOLE == {name.split()[0].removeprefix("bench_") for name in BENCHMARKS}
    doors = {path.stem for path in (ROOT / "kernels").glob("*.py") if "choose(" in path.read_text(encoding="utf-8")}
    assert timed - WHOLE == doors - {"dispatch", "__init__"}


# Results


def planted(kind: str = "cuda") -> dict[str, Any]:
    """A run of one op, as python -m bench would leave it."""
    info = {
        "backend": "triton",
        "median_us": 95.04,
        "floor_us": 71.0,
        "floor_share": 0.747,
        "gb_per_s": 1522.0,
        "tflop_per_s": 587.5,
        "copy_share": 0.354,
        "matmul_share": 0.747,
        "noise": 1.004,
        "peers": {
            "loop": {"median_us": 300.0, "speedup": 3.1},
            "bmm": {"median_us": 120.0, "speedup": 1.26},
        },
        "ceilings": {"tflop_per_s": 787.6, "gb_per_s": 4301.0},
    }
    machine = {
        "kind": kind, "device": "NVIDIA Test", "torch": "2.11.0", "triton": "3.6.0", "cuda": "13.0",
        "driver": "580.1", "threads": 2,
    }  # fmt: skip
    bench = {"group": "expert_linear", "name": "test_forward[K26 R1024]", "param": "K26 R1024", "extra_info": info}
    untimed: dict[str, Any] = {"group": "expert_linear", "name": "test_other", "param": None, "extra_info": {}}
    return {
        "machine_info": {"mow": machine},
        "commit_info": {"id": "0123456789", "dirty": False},
        "datetime": "2027-01-31T12:00:00",
        "benchmarks": [untimed, bench],
    }


def write_run(folder: Path, data: object) -> Path:
    path = folder / "bench" / "results" / "nvidia-test-2027-01-31.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


TABLE = """\
**GPU numbers**: NVIDIA Test, torch 2.11.0, triton 3.6.0, CUDA 13.0, driver 580.1, commit 0123456, 2027-01-31.
`python -m bench`, then `python -m bench.render bench/results/nvidia-test-2027-01-31.json`. Medians of device time; \
floor and shares against a matmul of 788 TFLOP/s and a copy of 4301 GB/s measured in the same run. Noise is what an op \
gained on itself.

| op | shape | µs | floor µs | of floor | rate | against | noise |
| --- | --- | --- | --- | --- | --- | --- | --- |
| `expert_linear` forward (triton) | K26 R1024 | 95.0 | 71.0 | 75% | 588 TFLOP/s | bmm 1.26x, loop 3.10x | 1.00x |
"""


def test_the_table_lands_between_the_markers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, readme = write_run(tmp_path, planted()), tmp_path / "README.md"
    readme.write_text(f"before\n{render.BEGIN}\nold table\n{render.END}\nafter\n", encoding="utf-8")
    for _ in range(2):  # the second time over itself
        assert render.main([str(path), "--write"], readme) == 0
    assert readme.read_text(encoding="utf-8") == f"before\n{render.BEGIN}\n{TABLE}{render.END}\nafter\n"
    assert render.main([str(path)], readme) == 0
    assert capsys.readouterr().out == TABLE


def test_cpu_numbers_are_printed_as_such_and_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, readme = write_run(tmp_path, planted("cpu")), tmp_path / "README.md"
    text = f"{render.BEGIN}\n{render.END}\n"
    readme.write_text(text, encoding="utf-8")
    assert render.main([str(path)], readme) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("**CPU numbers** (2 threads, small shapes, plain PyTorch; nothing follows for a GPU)")
    assert "GPU numbers" not in printed
    assert render.main([str(path), "--write"], readme) == 2
    assert "holds CPU numbers and the page shows GPU numbers: run python -m bench on a GPU" in capsys.readouterr().err
    assert readme.read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    "text", ["no markers", render.BEGIN, f"{render.END}\n{render.BEGIN}", f"{render.BEGIN}{render.END}{render.END}"]
)
def test_missing_markers_are_an_error(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    path, readme = write_run(tmp_path, planted()), tmp_path / "README.md"
    readme.write_text(text, encoding="utf-8")
    assert render.main([str(path), "--write"], readme) == 2
    assert "needs one line <!-- bench: begin --> and, after it, one line" in capsys.readouterr().err
    assert readme.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("data", [{}, [], {"benchmarks": []}, planted() | {"machine_info": {}}, "text"])
def test_what_is_no_run_is_one_line(tmp_path: Path, data: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert render.main([str(write_run(tmp_path, data))]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is no run of python -m bench" in line
    assert line.endswith("make one and give its file")


def test_a_missing_file_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert render.main(["nowhere.json"]) == 2
    assert "nowhere.json is no run of python -m bench (FileNotFoundError" in capsys.readouterr().err


def test_files_are_named_after_device_and_date() -> None:
    assert file_stem("NVIDIA GeForce RTX 4090", "2027-01-31") == "nvidia-geforce-rtx-4090-2027-01-31"


def test_a_whole_run_is_kept_under_its_name_unless_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = importlib.import_module("bench.__main__")
    commands: list[list[str]] = []

    def run(arguments: list[str]) -> int:
        commands.append(arguments)
        for argument in arguments:
            if argument.startswith("--benchmark-json="):
                Path(argument.split("=")[1]).write_text(f"run {len(commands)}", encoding="utf-8")
        return statuses.pop()

    monkeypatch.setattr(pytest, "main", run)
    monkeypatch.setattr(command, "this_device", lambda: Device("Test 7"))
    statuses = [0, 1, 0]
    assert command.main(["-k", "two_hot"], tmp_path) == 0
    assert commands[0][1:] == ["--benchmark-only", "-k", "two_hot"]
    assert command.main([], tmp_path) == 1
    assert list(tmp_path.iterdir()) == []
    assert command.main([], tmp_path) == 0
    (kept,) = tmp_path.iterdir()
    assert kept.name.startswith("test-7-20")
    assert kept.read_text(encoding="utf-8") == "run 3"


def test_pytest_benchmark_holds_device_time(tmp_path: Path) -> None:
    """One real benchmark in a process of its own: what pytest-benchmark keeps is what the race reports."""
    path = tmp_path / "run.json"
    command = [sys.executable, "-m", "pytest", "bench", "--benchmark-only", f"--benchmark-json={path}"]
    run = subprocess.run([*command, "-k", "lambda_return"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert ("CPU numbers" in run.stdout) == (not torch.cuda.is_available())
    data = render.load(path)
    for bench in data["benchmarks"]:
        info = bench["extra_info"]
        assert bench["group"] == "lambda_return"
        assert bench["stats"]["median"] * 1e6 == pytest.approx(info["median_us"])
        assert info["machine"]["torch"] == torch.__version__
        assert info["floor_share"] > 0
        assert info["peers"]["loop"]["median_us"] > 0
    assert data["machine_info"]["mow"]["kind"] == ("cuda" if torch.cuda.is_available() else "cpu")
    assert f"| {render._row(data['benchmarks'][0])[2:]}" in render.render(data, "run.json")
