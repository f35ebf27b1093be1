"""The presets of the robots and the mixed one, started for real on a CPU with a tiny network: every phase."""

import json
import math
from importlib.util import find_spec
from pathlib import Path

import pytest

from mow.methods.mow.presets import PRESETS
from mow.train import main

TINY = [
    "--total-steps", "14", "--log-every", "5", "--model.width", "16", "--model.num-heads", "2",
    "--model.feedforward", "16", "--model.embedding-size", "4", "--model.routing.hidden", "8",
    "--model.perception.channels", "2", "2", "2", "2", "--model.perception.groups", "4",
    "--model.perception.classes", "4", "--model.max-positions", "16", "--model.num-bins", "21",
    "--batch.length", "4", "--batch.num-sequences", "1", "--imagination.num-sequences", "2",
    "--imagination.horizon", "2", "--imagination.context", "2", "--schedule.acting-context", "3",
    "--schedule.prefill-steps", "1", "--schedule.warmup-updates", "3", "--clustering.num-batches", "2",
    "--clustering.restarts", "2", "--actor-critic.hidden", "8", "--evaluation-episodes", "0", "--device", "cpu",
    "--env.num-workers", "0", "--no-report",
]  # fmt: skip


def needs(*modules: str) -> pytest.MarkDecorator:
    missing = [name for name in modules if not find_spec(name)]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@pytest.mark.parametrize(
    "preset",
    [
        pytest.param("mixed", marks=needs("ale_py", "metaworld", "dm_control")),
        pytest.param("mt10", marks=[needs("metaworld"), pytest.mark.slow]),
        pytest.param("dmc18", marks=[needs("dm_control"), pytest.mark.slow]),
        pytest.param("mt50", marks=[needs("metaworld"), pytest.mark.slow]),
    ],
)
def test_a_preset_trains(preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert main([preset, *TINY, "--folder", str(folder)]) == 0
    said = capsys.readouterr().out
    tasks = PRESETS[preset]().tasks
    for task in tasks:
        assert task in said
    versions = json.loads((folder / "versions.json").read_text())
    assert set(versions["protocol"]) == set(tasks)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    values = [value for record in records for name, value in record.items() if "loss" in name]
    assert any(isinstance(value, float) for value in values)
    assert all(math.isfinite(value) for value in values if isinstance(value, float))
