"""Wrong launches are refused in one line, before anything is made; a restart ignores what a dead attempt has left."""

import dataclasses
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch.distributed as dist

from mow.engine.launch import check_launch, record, roll_call
from mow.errors import UsageError
from mow.methods.registry import presets
from tests.small import run_config


def together(*ranks: Callable[[], dict[str, Any]]) -> list[Any]:
    """What each rank gets, or the text of its UsageError."""
    found: list[Any] = [None] * len(ranks)

    def call(rank: int) -> None:
        try:
            found[rank] = ranks[rank]()
        except UsageError as error:
            found[rank] = str(error)

    threads = [threading.Thread(target=call, args=(rank,)) for rank in range(len(ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def called(store: dist.Store, rank: int, size: int, own: dict[str, str], seconds: float = 2.0) -> Callable[[], Any]:
    return lambda: roll_call(store, rank, size, own, lambda: {"folder": "here"}, seconds)


def test_all_are_here() -> None:
    store = dist.HashStore()
    found = together(*(called(store, rank, 3, {"a": "1"}) for rank in range(3)))
    assert [each["folder"] for each in found] == ["here"] * 3
    assert len({each["attempt"] for each in found}) == 1


def test_a_restart_ignores_the_attempt_before() -> None:
    store = dist.HashStore()
    (first, _) = together(*(called(store, rank, 2, {"a": "1"}) for rank in range(2)))
    delayed = called(store, 1, 2, {"a": "1"})
    found = together(called(store, 0, 2, {"a": "1"}), lambda: (threading.Event().wait(0.3), delayed())[1])
    assert found[0]["attempt"] == found[1]["attempt"] != first["attempt"]


def test_a_missing_rank() -> None:
    (found,) = together(called(dist.HashStore(), 0, 2, {}, 0.2))
    assert found.startswith("missing after 0.2 s: rank 1 of 2: ")


def test_ranks_that_differ() -> None:
    store = dist.HashStore()
    found = together(*(called(store, rank, 2, {"torch": version}) for rank, version in enumerate(("2.13", "2.12"))))
    assert found[0] == found[1]
    assert "differ in torch: 2.12 and 2.13: " in found[0]


def test_configs_that_differ() -> None:
    config = run_config()
    one, other = (record(dataclasses.replace(config, total_steps=steps), None) for steps in (32, 33))
    assert {name for name in one if one[name] != other[name]} == {"config total_steps"}
    assert one == record(dataclasses.replace(config, device="cpu", log_every=7), None)
    json.dumps(one)


@pytest.mark.parametrize(
    ("size", "change", "said"),
    [
        (4, {}, "4 ranks for 3 tasks"),
        (2, {"device": "cuda:1"}, "--device cuda:1 with 2 ranks"),
        (2, {"profile": True}, "--profile works on one process only"),
    ],
)
def test_what_a_rank_sees_by_itself(size: int, change: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(size))
    with pytest.raises(UsageError, match=said):
        check_launch(run_config(**change))


def test_a_method_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="the method pwm runs on one process only"):
        check_launch(presets()["pwm_vec"]())


def test_numbers_of_machines_that_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("PET_NNODES", "1:4")
    with pytest.raises(UsageError, match="--nnodes 1:4"):
        check_launch(run_config())
