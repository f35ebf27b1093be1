"""An update of several ranks is the update of one process."""

from pathlib import Path

import pytest

from tests.distributed.ranks import config_of, run

CASES = [
    ("bn_shared", "harmony", [0, 0, 0, 0, 1]),  # a module on both ranks, its statistics too
    ("bn_per_task", "running_mean", [0, 0, 0, 1, 1]),
    ("group", "per_term", [0, 1, 2, 1, 2]),
]


def check(found: list[dict], *, cut: bool | None = None) -> None:
    for each in found:
        assert max(each["world_model"], each["agent"]) < 3e-6, each
        assert each["rest"] < 2e-5, each
        one, ranks = each["clusters"]
        assert (one.order, one.module_of_task) == (ranks.order, ranks.module_of_task)
        assert len(set(each["bits"])) == 1, "all ranks hold the same weights, to the bit"
    assert cut is None or any(each["cut"] for each in found) == cut


def test_five_tasks_on_two_ranks(tmp_path: Path) -> None:
    norm, weighting, labels = CASES[0]
    check(run(2, tmp_path, config_of(norm, weighting), labels, 4), cut=True)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(("norm", "weighting", "labels"), CASES)
def test_fifty_updates(size: int, norm: str, weighting: str, labels: list[int], tmp_path: Path) -> None:
    check(run(size, tmp_path, config_of(norm, weighting), labels, 50))
