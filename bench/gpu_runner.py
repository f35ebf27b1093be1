"""Runs one step of a GPU day in a process of its own, within its time, and says what came of it as a record.

A record is one JSON object per step, written when the step begins and again when it ends, so that a call that is killed
leaves behind which step it was in. Its status:

- done: it ended by itself with exit code 0; it is not run again.
- failed: it ended by itself with another code; it is run again only with --again.
- cut: the call ended before it did, in order or not; the next call runs it again, or goes on with it.
- over: its own limit ran out; the next call runs it again after all others, or goes on with it in its place.
- missing: the machine lacks what it needs; the next call looks again.
"""

import contextlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.gpu_steps import Command, Step

ROOT = Path(__file__).resolve().parents[1]
_TAIL = 6_000  # characters of output that a record keeps
_GRACE_S = 30.0  # to save what it has, after SIGTERM and before SIGKILL
_TICK_S = 0.1
_PATIENCE = 5.0

Record = dict[str, Any]


@dataclass(frozen=True)
class Day:
    """What holds for all steps of a call.

    Args:
        out: folder of results.
        machine: what bench.machine says of this one.
        rehearsal: run the small commands on a CPU.
        stopped: whether the call has been told to end.
    """

    out: Path
    machine: Mapping[str, Any]
    rehearsal: bool
    wheels: Path | None = None
    stopped: Callable[[], bool] = lambda: False
    grace_s: float = _GRACE_S

    def limit_s(self, step: Step) -> float:
        """A rehearsal may take its time: a slow CPU is no mistake in the list."""
        return step.limit_s * (_PATIENCE if self.rehearsal else 1.0)

    def record_path(self, name: str) -> Path:
        return self.out / "steps" / f"{name}.json"

    def log_path(self, name: str) -> Path:
        return self.out / "logs" / f"{name}.log"


def read_record(day: Day, name: str) -> Record | None:
    """None where the step was never begun. Raises: ValueError if the file is none."""
    path = day.record_path(name)
    if not path.exists():
        return None
    try:
        record: Record = json.loads(path.read_text(encoding="utf-8"))
        if record["name"] != name or record["rehearsal"] != day.rehearsal:
            kind = "a rehearsal" if record["rehearsal"] else "a real day"
            raise ValueError(f"it is the record of {record['name']} of {kind}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no record of step {name} here ({error}): take another --out") from error
    if record["status"] == "running":  # the call was killed with the step
        record["status"] = "cut"
    return record


def write_record(day: Day, record: Record) -> None:
    """Whole or not at all."""
    path = day.record_path(record["name"])
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    new.replace(path)


def missing(step: Step, day: Day) -> list[str]:
    """What the step needs and this machine has not, in words."""
    importlib.invalidate_caches()  # the step before may have installed it
    found = []
    for need in step.needs:
        what, _, name = need.partition(":")
        if what == "module" and find_spec(name) is None:
            found.append(f"no module {name}")
        elif what == "file" and not any(day.out.glob(name)):
            found.append(f"no {name} in {day.out}")
        elif day.rehearsal:
            continue
        elif what == "cuda" and day.machine.get("kind") != "cuda":
            found.append("no GPU")
        elif what == "wheels" and day.wheels is None:
            found.append("no --wheels")
        elif what == "program" and shutil.which(name) is None:
            found.append(f"no program {name}")
    return found


def command_of(step: Step, day: Day, *, goes_on: bool) -> list[str]:
    """The words to run, from the start or on from what is there; the interpreter is the one that runs this."""
    words: Command = step.rehearsal if day.rehearsal else step.command
    if goes_on:
        words = step.again
    places = {"{out}": str(day.out), "{wheels}": str(day.wheels)}
    filled = []
    for word in words:
        for place, value in places.items():
            word = word.replace(place, value)
        filled.append(sys.executable if word == "python" else word)
    return filled


def run_step(step: Step, day: Day, seconds: float) -> Record:
    """Run it for at most its limit and at most `seconds`, and write its record.

    Returns: the record. Its `seconds` are of this attempt, `total_s` of all attempts.
    """
    earlier = read_record(day, step.name) or {}
    record: Record = {
        "name": step.name,
        "status": "running",
        "rehearsal": day.rehearsal,
        "command": [],
        "look": step.look,
        "started": time.time(),
        "attempts": earlier.get("attempts", 0),
        "total_s": earlier.get("total_s", 0.0),
        "machine": dict(day.machine),
    }
    lacking = missing(step, day)
    if lacking:
        record.update(status="missing", reason=", ".join(lacking))
        write_record(day, record)
        return record
    finished = earlier.get("status") == "done"
    goes_on = bool(step.again) and not finished and any(day.out.glob(step.again_if))
    if not goes_on:
        _clear(step, day, finished)
    command = command_of(step, day, goes_on=goes_on)
    record.update(command=command, goes_on=goes_on, attempts=record["attempts"] + 1)
    write_record(day, record)
    begun = time.monotonic()
    # What it takes to stop in order comes out of its own time, so that the call ends when it should.
    code, ended = _watch(command, step, day, begun + max(0.0, min(day.limit_s(step), seconds - day.grace_s)))
    took = time.monotonic() - begun
    over = "over" if day.limit_s(step) <= seconds - day.grace_s else "cut"
    status = {"by itself": "done" if code == 0 else "failed", "limit": over, "stopped": "cut"}[ended]
    record.update(
        status=status,
        exit_code=code,
        seconds=round(took, 1),
        total_s=round(record["total_s"] + took, 1),
        tail=_tail(day.log_path(step.name)),
        result=read_result(step, day),
    )
    write_record(day, record)
    return record


def _clear(step: Step, day: Day, finished: bool) -> None:
    """What an earlier attempt left must not be taken for what this one does; lines that are kept are the attempt's."""
    if step.scratch:
        shutil.rmtree(day.out / step.scratch, ignore_errors=True)
    if step.result and (finished or step.kind != "lines"):
        (day.out / step.result).unlink(missing_ok=True)


def _watch(command: list[str], step: Step, day: Day, deadline: float) -> tuple[int, str]:
    """Exit code, and what ended it: "by itself", "limit" or "stopped"."""
    log = day.log_path(step.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **step.env}
    with log.open("ab") as output:
        output.write(f"$ {' '.join(command)}\n".encode())
        output.flush()
        # A group of its own: whatever the step starts ends with it. No session of its own: who ends the whole call
        # ends the step as well.
        try:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=environment, process_group=0
            )
        except OSError as error:
            output.write(f"cannot be started: {error}\n".encode())
            return 127, "by itself"
        ended = "by itself"
        while process.poll() is None:
            if time.monotonic() >= deadline or day.stopped():
                ended = "stopped" if day.stopped() else "limit"
                process.terminate()
                try:
                    process.wait(day.grace_s)
                except subprocess.TimeoutExpired:
                    output.write(b"did not end in order\n")
                break
            time.sleep(_TICK_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait(), ended


def _tail(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4 * _TAIL))
        return file.read().decode("utf-8", errors="replace")[-_TAIL:]


def read_result(step: Step, day: Day) -> Any:
    """What the step wrote; None where it wrote nothing, a line with the reason where it cannot be read."""
    path = day.out / step.result
    if not step.result or not path.is_file():
        return None
    try:
        text = path.read_text(encoding="utf-8")
        if step.kind == "lines":
            return [json.loads(line) for line in text.splitlines()]
        return json.loads(text)
    except ValueError as error:
        return {"unreadable": f"{path}: {error}"}
