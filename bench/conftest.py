"""Fixtures of the benchmarks: the device and its clock, ceilings measured once per run, and the race."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.ceilings import measure_ceilings
from bench.clock import Device, device_timer, this_device
from bench.floors import Ceilings
from bench.machine import describe
from bench.race import Race
from mow.kernels.dispatch import Backend, backends

_ROUNDS = {"cuda": 30, "cpu": 21}


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    # Files here are named bench_*.py; those given on the command line are collected by pytest itself.
    if file_path.match("bench_*.py") and not parent.session.isinitpath(file_path):
        module: pytest.Module = pytest.Module.from_parent(parent, path=file_path)
        return module
    return None


def pytest_addoption(parser: pytest.Parser) -> None:
    help = "write each benchmark to FILE as soon as it is timed, and leave out those that are there already"
    parser.addoption("--keep", metavar="FILE", type=Path, help=help)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    _leave_out(items, config.getoption("keep"))
    for item in items:
        if item.path.parent == Path(__file__).parent:
            group = item.path.stem.removeprefix("bench_")
            item.add_marker(pytest.mark.benchmark(group=group, timer=device_timer))
            # A warning of a compiler about an old driver must not stop a measurement.
            item.add_marker(pytest.mark.filterwarnings("default"))


def _leave_out(items: list[pytest.Item], path: Path | None) -> None:
    """Skip the benchmarks that the file has already."""
    lines = path.read_text(encoding="utf-8").splitlines() if path and path.exists() else []
    kept = {json.loads(line)["nodeid"] for line in lines}
    for item in items:
        if item.nodeid in kept:
            item.add_marker(pytest.mark.skip(reason=f"is in {path}"))


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["mow"] = describe(this_device())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if this_device().kind == "cpu":
        terminalreporter.write_line("CPU numbers: no conclusion for a GPU.")


@pytest.fixture(scope="session")
def device() -> Device:
    return this_device()


@pytest.fixture(scope="session")
def ceilings(device: Device) -> Ceilings:
    return measure_ceilings(device)


@pytest.fixture
def race(request: pytest.FixtureRequest, benchmark: Any, device: Device, ceilings: Ceilings) -> Iterator[Race]:
    torch.manual_seed(0)
    torch.compiler.reset()  # a compiled peer belongs to one benchmark, and their number is limited
    backend: Backend = "triton" if backends(torch.empty(0, device=device.kind))[0] == "triton" else "reference"
    benchmark.extra_info["machine"] = describe(device)
    benchmark.extra_info["ceilings"] = {
        "tflop_per_s": ceilings.flops_per_second / 1e12,
        "gb_per_s": ceilings.bytes_per_second / 1e9,
    }
    yield Race(benchmark, device, ceilings, backend, _ROUNDS[device.kind])
    _keep(request.config.getoption("keep"), request.node.nodeid, benchmark)


def _keep(path: Path | None, nodeid: str, benchmark: Any) -> None:
    """Append the benchmark to the file, unless it failed or was not timed."""
    if path is not None and "median_us" in benchmark.extra_info:
        line = {"nodeid": nodeid, "group": benchmark.group, "name": benchmark.name}
        line |= {"param": benchmark.param, "extra_info": benchmark.extra_info}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
