"""Two finished runs of the smallest size, made once; who harms one copies it first."""

from pathlib import Path

import pytest

from mow.engine.trainer import Trainer
from tests.faults.runs import to_the_end
from tests.small import run_config


@pytest.fixture(scope="session")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    return to_the_end(run_config(), tmp_path_factory.mktemp("straight"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    to_the_end(run_config(), folder)
    return folder
