"""versions.json: what ran, in every process of a run."""

import json
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

from mow.runs import provenance as origin
from mow.runs.provenance import library_versions, resumed_versions, write_origin
from mow.system.whole_file import write_json
from tests.small import run_config

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = run_config()
    write_origin(tmp_path, config, CPU, ["counting"] * len(config.tasks))
    return tmp_path


def kept(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / "versions.json").read_text()))


def resume(folder: Path, step: int) -> tuple[str, ...]:
    content, lines = resumed_versions(folder, CPU, step)
    write_json(folder / "versions.json", content)
    return lines


def test_every_library_that_can_change_a_result_is_recorded(folder: Path) -> None:
    found = kept(folder)
    assert found["numpy"] == np.__version__
    assert found["torch"] == torch.__version__.partition("+")[0] or found["torch"] == torch.__version__
    assert found["gymnasium"] == metadata.version("gymnasium")
    assert found["ale-py"] == metadata.version("ale-py")
    assert {"mow", "python", "opencv-python-headless", "mujoco", "dm-control", "triton", "scipy"} <= found.keys()
    assert found["cpu"]
    assert found["cpu_threads"] == torch.get_num_threads()


def test_what_differs_is_said_and_all_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resume(folder, 4) == ()
    before = kept(folder)
    now = {**library_versions(), "torch": "99.0", "ale-py": None}
    monkeypatch.setattr(origin, "library_versions", lambda: now)
    monkeypatch.setattr(origin, "_cpu_model", lambda: "Another CPU")
    lines = resume(folder, 8)
    assert lines == (
        f"torch: {before['torch']} -> 99.0", f"ale-py: {before['ale-py']} -> None",
        f"cpu: {before['cpu']} -> Another CPU",
    )  # fmt: skip
    assert resume(folder, 12) == ()  # as in the process before
    found = kept(folder)
    assert found["torch"] == before["torch"]
    assert isinstance(found["resumed"], list)
    assert [(entry["step"], entry["torch"]) for entry in found["resumed"]] == [
        (4, before["torch"]), (8, "99.0"), (12, "99.0"),
    ]  # fmt: skip


def test_what_was_not_recorded_is_no_difference(folder: Path) -> None:
    """By a version that did not know these fields."""
    content = kept(folder)
    del content["gymnasium"], content["cpu"]
    write_json(folder / "versions.json", content)
    assert resume(folder, 4) == ()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"resumed": 5}', '{"resumed": [5]}', None])
def test_a_torn_file_begins_anew(folder: Path, text: str | None) -> None:
    (folder / "versions.json").unlink()
    if text is not None:
        (folder / "versions.json").write_text(text)
    (line,) = resume(folder, 4)
    assert line.startswith("the versions before are not known (")
    found = kept(folder)
    assert found["numpy"] == np.__version__
    assert isinstance(found["resumed"], list)
    assert [entry["step"] for entry in found["resumed"]] == [4]
