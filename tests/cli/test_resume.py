"""Which checkpoints a run goes on from; whole runs that do so are in the tests of resumption."""

import dataclasses
import json
from pathlib import Path

import pytest

from mow.cli.resume import Resumption, read_state
from mow.errors import UsageError
from mow.methods.registry import config_of
from tests.small import run_config


def content(**env: object) -> dict[str, object]:
    """A config as its checkpoint has it, with other fields of its environments."""
    plain: dict[str, dict[str, object]] = json.loads(json.dumps(dataclasses.asdict(run_config())))
    return {**plain, "env": {**plain["env"], **env}}


def test_a_field_that_is_younger_than_the_checkpoint_has_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    older = content()
    assert isinstance(older["env"], dict)
    del older["env"]["render"]
    monkeypatch.setattr("mow.runs.checkpoint.load_checkpoint", lambda *_: {"config": json.dumps(older)})
    there = Path("run/checkpoints/step_1.pt")
    assert read_state(Resumption(there.parent, there, run_config(), ())) == {"config": json.dumps(older)}
    edited = config_of(content(render="full"))
    with pytest.raises(UsageError, match=r"env\.render: light -> full"):
        read_state(Resumption(there.parent, there, edited, ()))
