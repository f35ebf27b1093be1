"""Start of a run on several ranks: who is here, whether all run the same, where the run lies and goes on from.

Each rank writes mow/here/RANK to the launcher's store. Rank 0 collects them, decides, and writes mow/go with the ids of
the processes that it is meant for, which acknowledge it. torchrun keeps its store when it restarts the ranks, so what a
dead attempt has written is still there: an id that is not its own tells a rank to wait on, and a new id makes rank 0
begin again. Everything that follows lies under a name of the attempt.
"""

import contextlib
import dataclasses
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from mow.config import RUNTIME_FIELDS, RunConfig
from mow.engine.assemble import free_folder
from mow.engine.device import pick_device
from mow.engine.parallel import Ranks
from mow.errors import UsageError
from mow.methods.registry import get_method
from mow.runs.folder import is_unused
from mow.runs.paths import checkpoints
from mow.runs.provenance import code_versions
from mow.system import ranks

FOLDER = "mow/folder"  # key of the run folder, which a restart goes on in
_PAUSE_S = 0.05


def check_launch(config: RunConfig) -> None:
    """Check all that a rank can see by itself. Raises: UsageError."""
    size, num_tasks = ranks.size(), len(config.tasks)
    if size > num_tasks:
        raise UsageError(f"{size} ranks for {num_tasks} tasks, and a task is never cut: start {num_tasks} at most")
    if (nodes := ranks.elastic_nodes()) is not None:
        raise UsageError(f"--nnodes {nodes} lets ranks come and go, which is not supported: give one number")
    if get_method(config.method).build_on_ranks is None:
        raise UsageError(f"the method {config.method} runs on one process only, this is one of {size}: start it "
                         "without torchrun")
    if config.device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {config.device} with {size} ranks: use auto, which gives each rank a GPU of its "
                         "own, or cpu")
    if config.profile:
        raise UsageError("--profile works on one process only: leave it out")


def open_store(seconds: float) -> Any:
    """The launcher's store. Raises: UsageError if there is none."""
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    except KeyError as error:
        raise _here_only(f"WORLD_SIZE is {ranks.size()} and {error.args[0]} is not set: start with torchrun") from error
    hosts = ranks.rank() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        return dist.TCPStore(  # type: ignore[attr-defined]
            address, port, ranks.size(), hosts, timedelta(seconds=seconds), wait_for_workers=False
        )
    except (RuntimeError, dist.DistError) as error:
        raise _here_only(f"no answer from rank 0 at {address}:{port} within {seconds:g} s: check MASTER_ADDR and "
                         "MASTER_PORT, and that rank 0 runs") from error


class Joined(NamedTuple):
    """A rank that has been admitted."""

    ranks: Ranks
    folder: str
    goes_on_from: Path | None  # a checkpoint


@contextlib.contextmanager
def join(config: RunConfig, folder: Path | None, checkpoint: Path | None) -> Iterator[Joined]:
    """This process as a rank of the run; inside, what ends another rank is a RankFailure that names it.

    Args: folder, checkpoint: to go on from, by the command line.
    Raises: UsageError, on all ranks, before anything is made.
    """
    check_launch(config)
    device, seconds = pick_device(config.device), config.dist.timeout_s
    store = open_store(seconds)

    def decide() -> dict[str, str | None]:
        """Name the run folder, and the checkpoint that a restart goes on from."""
        before = store.get(FOLDER).decode() if store.check([FOLDER]) else None
        goes_on = checkpoint
        if folder is not None:
            where = folder
        elif before is not None and (found := checkpoints(Path(before))):
            where, goes_on = Path(before), found[-1]
        elif before is not None and is_unused(Path(before)):
            where = Path(before)
        else:
            where = free_folder(config)
        store.set(FOLDER, str(where))
        return {"folder": str(where), "checkpoint": None if goes_on is None else str(goes_on)}

    rank, size = ranks.rank(), ranks.size()
    answer = roll_call(store, rank, size, record(config, checkpoint), decide, seconds)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    prefix = dist.PrefixStore(f"mow/{answer['attempt']}", store)  # type: ignore[attr-defined]
    joined = Ranks(prefix, rank, size, len(config.tasks), device, seconds)
    joined.names = config.tasks
    with joined.failures_named():
        found = answer["checkpoint"]
        yield Joined(joined, answer["folder"], None if found is None else Path(found))
    joined.close()


def _here_only(text: str) -> UsageError:
    """An error that rank 0 does not report."""
    error = UsageError(text)
    error.is_everywhere = False
    return error


def record(config: RunConfig, going_on_from: Path | None) -> dict[str, Any]:
    """All that must be the same on every rank, as name -> value."""
    fields = _flat(dataclasses.asdict(config))
    kept = {f"config {name}": str(value) for name, value in fields.items() if name not in {*RUNTIME_FIELDS, "folder"}}
    return {**kept, "folder": config.folder, "checkpoint": str(going_on_from), **code_versions()}


def roll_call(
    store: Any, rank: int, size: int, own: Mapping[str, Any], decide: Callable[[], Mapping[str, Any]],
    seconds: float,
) -> dict[str, Any]:  # fmt: skip
    """Wait for all ranks. Returns: what rank 0 decided, and "attempt", a name.

    Args: own: as `record` makes it. decide: called on rank 0 once all are here. seconds: to wait for the others.
    Raises: UsageError on all ranks if one is missing or differs, or if `decide` does.
    """
    me = uuid.uuid4().hex
    store.set(f"mow/here/{rank}", json.dumps({"id": me, "host": socket.gethostname(), "own": dict(own)}))
    end = time.monotonic() + seconds
    while rank > 0:
        if store.check(["mow/go"]):
            answer: dict[str, Any] = json.loads(store.get("mow/go"))
            if me in answer["ids"]:
                store.set(f"mow/ack/{answer['attempt']}/{rank}", me)
                return _checked(answer)
        if time.monotonic() > end + seconds:
            raise _here_only(f"no answer from rank 0 within {2 * seconds:g} s: look at its output")
        time.sleep(_PAUSE_S)
    while True:
        here = _here(store, size)
        missing = [r for r in range(size) if r not in here]
        if missing and time.monotonic() < end:
            time.sleep(_PAUSE_S)
            continue
        answer = {"attempt": uuid.uuid4().hex[:8], "ids": [one["id"] for one in here.values()], "error": None}
        try:
            if missing:
                raise UsageError(f"missing after {seconds:g} s: rank {', '.join(map(str, missing))} of {size}: start "
                                 "as many processes as WORLD_SIZE counts, or raise --dist.timeout-s")
            _compare(here)
            answer |= decide()
        except UsageError as error:
            answer["error"] = str(error)
        store.set("mow/go", json.dumps(answer))
        acknowledged = [f"mow/ack/{answer['attempt']}/{r}" for r in here if r > 0]
        while not store.check(acknowledged) and time.monotonic() < end + seconds:
            if [one["id"] for one in _here(store, size).values()] != answer["ids"]:
                break  # a rank of this attempt has taken the place of one of the attempt before
            time.sleep(_PAUSE_S)
        else:
            return _checked(answer)


def _here(store: Any, size: int) -> dict[int, dict[str, Any]]:
    keys = {rank: f"mow/here/{rank}" for rank in range(size)}
    return {rank: json.loads(store.get(key)) for rank, key in keys.items() if store.check([key])}


def _compare(here: Mapping[int, Mapping[str, Any]]) -> None:
    """Raises: UsageError naming the first rank that differs from rank 0, and in what."""
    first = here[0]["own"]
    for rank, one in here.items():
        for name in [*first, *one["own"]]:
            values = first.get(name), one["own"].get(name)
            if values[0] != values[1]:
                raise UsageError(f"rank {rank} ({one['host']}) and rank 0 ({here[0]['host']}) differ in {name}: "
                                 f"{values[1]} and {values[0]}: start all with one command from one checkout")


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    if answer["error"]:
        raise UsageError(answer["error"])
    return answer


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
