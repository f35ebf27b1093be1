"""Moves and renames change no number: hashes of weights, optimisers, returns and logged losses of whole small runs.

The hashes hold on one kind of CPU with one version of torch; elsewhere the tests are skipped.
`python -m tests.test_same_numbers` records them anew.
"""

import contextlib
import hashlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mow.train import main

RECORD = Path(__file__).with_name("same_numbers.json")
RUNS = {
    "quickstart": [],
    "storm_multitask": [],
    "ablation_one_cluster": [],
    "storm": ["--tasks", "atari:Pong"],
    "mixed": ["--tasks", "atari:Pong", "atari:Breakout", "tiny:catch", "tiny:slide"],
}
SMALL = [
    "--total-steps", "70", "--log-every", "20", "--checkpoint-every", "40", "--model.width", "16",
    "--model.num-heads", "2", "--model.feedforward", "16", "--model.max-positions", "16", "--model.num-bins", "21",
    "--batch.length", "6", "--batch.num-sequences", "2", "--imagination.num-sequences", "4",
    "--imagination.horizon", "3", "--imagination.context", "2", "--schedule.acting-context", "4",
    "--schedule.prefill-steps", "16", "--schedule.warmup-updates", "10",
    "--schedule.world-model-every", "1", "--schedule.agent-every", "2",
    "--clustering.num-batches", "2", "--clustering.restarts", "2", "--actor-critic.hidden", "16",
    "--evaluation-episodes", "2", "--device", "cpu", "--env.num-workers", "0", "--no-report", "--plain",
]  # fmt: skip
ATARI_NET = ["--model.perception.channels", "2", "2", "2", "2", "--model.perception.groups", "4",
             "--model.perception.classes", "4"]  # fmt: skip


def machine() -> str:
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    return f"{platform.machine()} {flags.partition(':')[2].strip()} torch {torch.__version__}"


def tensors(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a nested state, by its path, in sorted order."""
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from tensors(value[key], f"{name}/{key}")
    elif isinstance(value, list | tuple):
        for i, each in enumerate(value):
            yield from tensors(each, f"{name}/{i}")
    else:
        yield name, value


def hash_of_weights(folder: Path) -> str:
    """Of all tensors of the last checkpoint whose path is not the run's own description."""
    state = torch.load(max((folder / "checkpoints").glob("step_*.pt")), weights_only=False, map_location="cpu")
    digest = hashlib.sha256()
    count = 0
    for _, value in tensors({key: state[key] for key in state if key in ("learner", "scorer", "counters")}):
        if isinstance(value, torch.Tensor):
            digest.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
            count += 1
    assert count > 50, f"only {count} tensors were found in {sorted(state)}"
    return digest.hexdigest()[:16]


def hash_of_metrics(folder: Path) -> str:
    """Of the losses and returns that were logged, and of the final scores."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in record.items() if "loss" in k or "return" in k} for record in records]
    scored = [each["returns"] for each in json.loads((folder / "scores.json").read_text())["tasks"].values()]
    return hashlib.sha256(json.dumps([kept, scored], sort_keys=True).encode()).hexdigest()[:16]


def run(name: str, folder: Path) -> dict[str, str]:
    small = [*SMALL, *(ATARI_NET if name in ("storm", "mixed") else ())]
    with contextlib.redirect_stdout(sys.stderr):
        assert main([name, *RUNS[name], *small, "--folder", str(folder)]) == 0
    return {"weights": hash_of_weights(folder), "metrics": hash_of_metrics(folder)}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_the_numbers_are_as_before(name: str, tmp_path: Path) -> None:
    known = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if machine() not in known:
        pytest.skip(f"no hashes were recorded on {machine()}")
    assert run(name, tmp_path / "run") == known[machine()][name]


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as made:
        found = {name: run(name, Path(made) / name) for name in RUNS}
    known = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    RECORD.write_text(json.dumps({**known, machine(): found}, indent=1) + "\n")
    print(json.dumps(found, indent=1))
