"""A GPU day goes through its steps, stops in time, goes on where it stopped and tells the truth about it.

The steps here are planted and take fractions of a second; tests/test_gpu_list.py has the real ones.
"""

import json
import os
import re
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import gpu_carry, gpu_day
from bench.gpu_runner import Day, read_record, run_step, write_record
from bench.gpu_steps import STEPS, Step

MACHINE = {"kind": "cpu", "device": "Planted 1", "threads": 1, "torch": "2", "triton": None, "cuda": None,
           "driver": None, "python": "3", "commit": "abc1234-dirty"}  # fmt: skip
SAVE = "import json, pathlib; pathlib.Path('{out}/n.json').write_text(json.dumps(dict(n=7)))"
# Counts its attempts; the second one ends.
SLOW = """
import pathlib, signal, sys, time
folder = pathlib.Path('{out}/run'); folder.mkdir(exist_ok=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print('attempt')
if len(sys.argv) < 2:
    (folder / 'step_1.pt').touch()
    time.sleep(60)
"""
DEAF = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('child', subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid, flush=True)
time.sleep(60)
"""


def step(name: str, program: str, limit_s: float = 20.0, **more: Any) -> Step:
    command = ("python", "-c", program)
    return Step(name, command, command, limit_s, 0.0, "nothing", needs=more.pop("needs", ()), **more)


def slow(name: str = "slow", limit_s: float = 20.0) -> Step:
    more = ("python", "-c", SLOW, "again")
    return step(name, SLOW, limit_s, again=more, again_if="run/step_*.pt", scratch="run")


@pytest.fixture
def day(tmp_path: Path) -> Day:
    return Day(tmp_path / "day", MACHINE, rehearsal=False, grace_s=0.3)


def statuses(day: Day, steps: Sequence[Step]) -> dict[str, str]:
    found = {one.name: read_record(day, one.name) for one in steps}
    return {name: record["status"] for name, record in found.items() if record is not None}


# The runner ----------------------------------------------------------------------------------------------------------


def test_one_that_is_well_one_that_fails_one_that_hangs(day: Day) -> None:
    steps = [
        step("hang", "import time; time.sleep(60)", limit_s=0.4),
        step("well", SAVE, result="n.json"),
        step("bad", "print('it broke'); raise SystemExit(3)"),
        step("absent", "", needs=("cuda", "program:no-such-program", "module:no_such_module", "file:x.pt", "wheels")),
    ]
    records = gpu_day.run_day(steps, day, 60.0)
    assert statuses(day, steps) == {"hang": "over", "well": "done", "bad": "failed", "absent": "missing"}
    hang, well, bad, absent = records
    assert 0.4 <= hang["seconds"] < 20.0
    assert (well["result"], well["exit_code"], well["machine"]["device"]) == ({"n": 7}, 0, "Planted 1")
    assert bad["exit_code"] == 3
    assert "FAILED" in gpu_day.say(bad)
    assert "it broke" in gpu_day.say(bad)
    for lack in ("no GPU", "no program no-such-program", "no module no_such_module", "no x.pt in", "no --wheels"):
        assert lack in absent["reason"]
    # What is finished is not run again; what hung comes after what has not run.
    again = gpu_day.run_day([*steps, step("new", "")], day, 60.0)
    assert [record["name"] for record in again] == ["absent", "new", "hang"]
    assert again[2]["attempts"] == 2
    assert again[2]["total_s"] > again[2]["seconds"]
    assert [r["name"] for r in gpu_day.run_day(steps[1:3], day, 60.0, again=True)] == ["well", "bad"]


def test_a_run_that_is_stopped_goes_on_from_its_checkpoint(day: Day) -> None:
    (day.out / "run").mkdir(parents=True)
    (day.out / "run" / "old").touch()
    begun = replace(day, stopped=(day.out / "run" / "step_1.pt").exists, grace_s=20.0)
    record = run_step(slow(), begun, 60.0)
    assert (record["status"], record["exit_code"], record["goes_on"]) == ("cut", 0, False)
    assert not (day.out / "run" / "old").exists()  # a fresh start removes what lay there
    (record,) = gpu_day.run_day([slow()], day, 60.0)
    assert (record["status"], record["goes_on"], record["command"][-1]) == ("done", True, "again")
    assert record["tail"].count("\nattempt\n") == 2
    assert gpu_day.run_day([slow()], day, 60.0) == []


def test_a_call_that_was_killed_leaves_its_step_for_the_next(day: Day) -> None:
    steps = [step("well", SAVE, result="n.json"), step("later", "")]
    write_record(day, {"name": "well", "status": "running", "rehearsal": False, "started": 1.0})
    (day.out / "n.json").write_text("{half", encoding="utf-8")
    assert statuses(day, steps) == {"well": "cut"}
    assert [record["status"] for record in gpu_day.run_day(steps, day, 60.0)] == ["done", "done"]
    assert gpu_day.run_day(steps, day, 60.0) == []


def test_sigterm_ends_the_step_and_the_call(day: Day) -> None:
    before = signal.getsignal(signal.SIGTERM)
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
    records = gpu_day.run_day([step("sleep", "import time; time.sleep(60)"), step("later", "")], day, 60.0)
    assert [(record["name"], record["status"]) for record in records] == [("sleep", "cut")]
    assert signal.getsignal(signal.SIGTERM) is before


def test_who_does_not_listen_is_killed_with_its_children(day: Day) -> None:
    log = day.log_path("deaf")
    begun = replace(day, stopped=lambda: re.search(r"^child \d+\n", log.read_text(), re.M) is not None)
    record = run_step(step("deaf", DEAF), begun, 60.0)
    assert (record["status"], record["exit_code"]) == ("cut", -signal.SIGKILL)
    child = Path("/proc") / re.search(r"^child (\d+)", record["tail"], re.M)[1]  # type: ignore[index]
    deadline = time.monotonic() + 5.0
    while child.exists() and "\nState:\tZ" not in (child / "status").read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.exists() or "\nState:\tZ" in (child / "status").read_text()


def test_no_step_begins_that_cannot_end(day: Day, capsys: pytest.CaptureFixture[str]) -> None:
    long, short = replace(step("long", ""), least_s=50.0), step("short", "")
    assert [record["name"] for record in gpu_day.run_day([long, short], day, 20.0)] == ["short"]
    assert "long: not begun" in capsys.readouterr().out
    leaves = replace(step("leaves", ""), leaves_s=30.0)
    assert gpu_day.run_day([leaves], day, 20.0) == []


def test_numbers_that_have_grown_old_are_measured_again(day: Day) -> None:
    steps = [step("first", ""), replace(step("second", ""), after="first")]
    assert len(gpu_day.run_day(steps[1:], day, 60.0)) == 1  # alone it does not wait for another list's step
    assert [record["name"] for record in gpu_day.run_day(steps, day, 60.0)] == ["first", "second"]
    gpu_day.run_day(steps[:1], day, 60.0, again=True)
    assert [record["name"] for record in gpu_day.run_day(steps, day, 60.0)] == ["second"]


def test_a_rehearsal_is_not_taken_for_the_day(day: Day) -> None:
    run_step(step("well", ""), replace(day, rehearsal=True), 60.0)
    with pytest.raises(ValueError, match="it is the record of well of a rehearsal"):
        gpu_day.run_day([step("well", "")], day, 60.0)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_day.main(["--list"]) == 0
    shown = capsys.readouterr().out
    assert all(f". {one.name}: " in shown for one in STEPS)
    assert gpu_day.main(["--out", str(tmp_path), "--only", "tune-foward"]) == 2
    assert "did you mean tune-forward" in capsys.readouterr().err
    monkeypatch.setattr(gpu_day, "describe_machine", lambda: MACHINE)
    monkeypatch.setattr(gpu_day, "STEPS", (step("well", SAVE, result="n.json"), step("bad", "raise SystemExit(3)")))
    arguments = ["--out", str(tmp_path / "a"), "--back", str(tmp_path / "back")]
    assert gpu_day.main(arguments) == 1
    assert "failed" in (tmp_path / "a" / "day.md").read_text().lower()
    assert gpu_day.main(arguments) == 0  # what failed stays as it is, and nothing failed now
    elsewhere = ["--out", str(tmp_path / "b"), "--from", str(tmp_path / "back")]
    assert gpu_day.main(elsewhere) == 0
    assert json.loads((tmp_path / "b" / "steps" / "well.json").read_text())["result"] == {"n": 7}
    assert gpu_day.main(elsewhere) == 2
    assert "holds a day already" in capsys.readouterr().err


# What is carried home ------------------------------------------------------------------------------------------------


def test_at_most_eight_files_come_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, tables = tmp_path / "out", tmp_path / "tables"
    for folder in ("steps", "logs", "runs/atari4", "runs/quickstart"):
        (out / folder).mkdir(parents=True)
    tables.mkdir()
    table = {"gpu": "Planted 1", "evidence": "", "timed": ["dx"], "rows": [{"op": "dx"}]}
    (tables / "sm_90.json").write_text(json.dumps(table))
    (tables / "sm_80.json").write_text(json.dumps({"evidence": "by arithmetic", "rows": []}))
    lines = [{"nodeid": "x", "extra_info": {}}]
    record = {"name": "ops-expert", "status": "cut", "rehearsal": False, "started": 1.0, "result": lines}
    (out / "steps" / "ops-expert.json").write_text(json.dumps(record))
    for name in ("day.md", "bench.json", "runs/atari4/metrics.jsonl", "runs/atari4/report.html", "logs/a.log",
                 "runs/quickstart/report.html"):  # fmt: skip
        (out / name).write_text("what it says")
    said = gpu_carry.pack(out, tmp_path / "back", tables)
    assert len(list((tmp_path / "back").iterdir())) == len(said) == 8
    (tables / "sm_90.json").write_text(json.dumps({"rows": []}))
    gpu_carry.unpack(tmp_path / "back", tmp_path / "new", STEPS, tables)
    assert json.loads((tables / "sm_90.json").read_text()) == table
    assert json.loads((tmp_path / "new" / "steps" / "ops-expert.json").read_text()) == record
    assert [json.loads(text) for text in (tmp_path / "new" / "ops-expert.jsonl").read_text().splitlines()] == lines
    monkeypatch.setattr(gpu_carry, "MAX_BYTES", 9)
    (out / "day.md").write_text("far more than that")
    assert any(line.startswith("left out: day.md has 18 bytes") for line in gpu_carry.pack(out, tmp_path / "back"))
    assert not (tmp_path / "back" / "day.md").exists()
