"""A GPU day: the runner on planted steps, the real list without a GPU, and the report."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import conftest, gpu_day, gpu_report, one_update
from bench.gpu_day import CALL_SECONDS, STEPS, Step, run_day
from bench.gpu_report import OPS, Finding, findings, read_records

ROOT = Path(__file__).resolve().parents[1]
MACHINE = {"kind": "cuda", "device": "Planted 1", "threads": 1, "torch": "2", "triton": "3", "cuda": "13",
           "driver": "580", "python": "3", "commit": "abc1234-dirty"}  # fmt: skip
STUBBORN = f"""{sys.executable} -c "
import signal, subprocess, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('child', subprocess.Popen(['sleep', '60']).pid, flush=True)
time.sleep(60)
" """


def statuses(out: Path) -> dict[str, str]:
    return {name: record["status"] for name, record in read_records(out).items()}


# The runner ----------------------------------------------------------------------------------------------------------


def test_statuses_of_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_day, "GRACE_SECONDS", 0.5)
    steps = [
        Step("good", 20, "echo '{{\"n\": 7}}' > {json}".replace("{{", "{").replace("}}", "}"), "n"),
        Step("bad", 20, "echo it broke; exit 3", "nothing"),
        Step("long", 0.5, "sleep 60", "nothing"),
        Step("part", 0.5, "sleep 60", "nothing", resumes=True),
        Step("absent", 20, "true", "nothing", ("module:no_such_module", "program:no-such-program")),
    ]
    assert run_day(steps, tmp_path, MACHINE, 60.0) == ["done", "failed", "over", "stopped", "missing"]
    records = read_records(tmp_path)
    assert (records["good"]["result"], records["good"]["exit_code"]) == ({"n": 7}, 0)
    assert records["good"]["machine"]["device"] == "Planted 1"
    assert records["bad"]["exit_code"] == 3
    assert "it broke" in records["bad"]["tail"]
    assert 0.4 <= records["long"]["seconds"] < 20.0
    assert records["absent"]["tail"] == "no module:no_such_module, no program:no-such-program\n"
    assert not (tmp_path / "result.json").exists()
    assert run_day(steps[:1], tmp_path, MACHINE | {"kind": "cpu"}, 60.0) == ["missing"]
    assert len(list(tmp_path.iterdir())) <= 8


def test_a_call_runs_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_day, "describe_here", lambda: MACHINE)
    monkeypatch.setattr(gpu_day, "STEPS", (Step("a", 20, "exit $(ls {out}/fail | wc -l)", "nothing"),
                                           Step("b", 20, "true", "nothing")))  # fmt: skip
    out = tmp_path / "day"
    (out / "fail").mkdir(parents=True)
    (out / "fail" / "one").touch()
    words = ["--out", str(out)]
    assert gpu_day.main(words) == 1
    assert statuses(out) == {"a": "failed", "b": "done"}
    (out / "fail" / "one").unlink()
    assert gpu_day.main(words) == 0  # neither a failed step nor a done one runs again
    assert statuses(out)["a"] == "failed"
    assert gpu_day.main([*words, "--only", "a"]) == 0
    assert statuses(out)["a"] == "done"
    records = read_records(out)
    records["b"]["status"] = "running"  # as a killed call leaves it
    (out / "day.json").write_text(json.dumps(records))
    assert gpu_day.main(words) == 0
    assert statuses(out)["b"] == "done"
    (out / "day.json").write_text("{half")
    assert gpu_day.main(words) == 2
    assert "day.json is damaged" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu_day.main(["--only", "c"])


def test_no_step_starts_without_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = [Step("long", 90, "true", "nothing"), Step("part", 90, "true", "nothing", resumes=True)]
    assert run_day(steps, tmp_path, MACHINE, 75.0) == ["done"]
    assert "long: not started, 75 s are left" in capsys.readouterr().out


def test_sigterm_ends_the_step_and_the_call(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    # The step may finish in order: it saves before it ends.
    saves = f"""{sys.executable} -c "
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (open('{tmp_path}/saved', 'w').close(), sys.exit(0)))
time.sleep(60)
" """
    threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    steps = [Step("run", 40, saves, "nothing", resumes=True), Step("later", 20, "true", "nothing")]
    assert run_day(steps, tmp_path, MACHINE, 60.0) == ["interrupted"]
    assert (tmp_path / "saved").exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_process_that_ignores_sigterm_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_day, "GRACE_SECONDS", 0.5)
    assert run_day([Step("stubborn", 2.5, STUBBORN, "nothing")], tmp_path, MACHINE, 60.0) == ["over"]
    child = Path("/proc") / re.search(r"^child (\d+)", read_records(tmp_path)["stubborn"]["tail"], re.M)[1]  # type: ignore[index]
    deadline = time.monotonic() + 5.0
    while child.exists() and "\nState:\tZ" not in (child / "status").read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.exists() or "\nState:\tZ" in (child / "status").read_text()


# The real list -------------------------------------------------------------------------------------------------------

# The modules find a GPU, so that they offer the cases for one; each -k picks among what is collected once. Modules that
# the GPU machine lacks are hidden.
COLLECT = """
import json, sys
hidden = ("gymnasium", "ale_py", "tyro")
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
import pytest, torch
from _pytest.mark import deselect_by_keyword
import bench.clock

class Picked:
    def __init__(self, wanted):
        self.wanted, self.found = wanted, {}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config, items):
        for name, (places, expression) in self.wanted.items():
            left = [item for item in items if item.nodeid.startswith(tuple(places))]
            config.option.keyword = expression
            deselect_by_keyword(left, config)
            self.found[name] = [[item.nodeid, item.path.stem] for item in left]

class Gpu:
    kind, name = "cuda", "Planted 1"

bench.clock.CudaDevice = Gpu
torch.cuda.is_available = lambda: True
codes, found = [], {}
for words, wanted in json.loads(sys.stdin.read()):
    picked = Picked(wanted)
    codes.append(int(pytest.main([*words, "--collect-only", "-p", "no:cacheprovider"], plugins=[picked])))
    found |= picked.found
open(sys.argv[1], "w").write(json.dumps({"codes": codes, "found": found}))
"""


def words_of(step: Step) -> list[str]:
    return shlex.split(step.command.replace("{out}", "/tmp/out").replace("{json}", "/tmp/out/result.json"))


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Exit codes of pytest's collection, and the tests of each step: its node id and the name of its file."""
    # Options and places of all steps of a kind together, without -k; -n needs workers, which collect nothing here.
    kinds: dict[bool, tuple[list[str], dict[str, tuple[list[str], str]]]] = {True: ([], {}), False: ([], {})}
    for step in STEPS:
        words = words_of(step)
        if "pytest" not in words:
            continue
        words = words[words.index("pytest") + 1 :]
        options = {flag: words[words.index(flag) + 1] for flag in ("-k", "-n", "--keep") if flag in words}
        words = [word for word in words if word not in (*options, *options.values())]
        places = [word for word in words if word.startswith(("tests/", "bench/"))]
        together, wanted = kinds["--benchmark-only" in words]
        wanted[step.name] = (places, options.get("-k", ""))
        together += [word for word in words if word not in together]
    out = tmp_path_factory.mktemp("collected") / "found"
    done = subprocess.run([sys.executable, "-c", COLLECT, str(out)], input=json.dumps(list(kinds.values())), cwd=ROOT,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_every_test_of_the_list_is_there(collected: dict[str, Any]) -> None:
    found = collected["found"]
    assert collected["codes"] == [0, 0]
    assert not [name for name, tests in found.items() if not tests], "a step without a test"
    watched = {file for _, file in found["sanitizer-memcheck"]}
    assert {f"test_{op}_gpu" for op in ("expert_linear", "latents", "decode_attention")} <= watched
    assert len(found["sanitizer-memcheck"]) <= 20  # each takes tens of times as long under the sanitizer
    assert len(found["update-26"]) == 3
    run = {file for name in ("tests-kernels", "tests-rest") for _, file in found[name]}
    files = (ROOT / "tests").rglob("test_*.py")
    assert run == {path.stem for path in files if re.search(r"mark\.gpu$", path.read_text(encoding="utf-8"), re.M)}


def test_every_other_command_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    from bench import tune_expert_linear
    from mow.cli.parse import parse

    for step in STEPS:
        for command in re.findall(r"python (?:-m )?(\S+)([^;&]*)", step.command):
            module, words = command[0], shlex.split(command[1].replace("{json}", "x"))
            if module == "mow.train" and "--resume" not in words:
                assert parse(words).preset == words[0]
            elif module == "bench.tune_expert_linear":
                tune_expert_linear.main([*words, "--dry-run", "--class", "sm_90"])
                capsys.readouterr()  # thousands of lines
            elif module == "bench.one_update":
                one_update.make_config(one_update.read_arguments(words))
            else:
                assert module in ("setup.py", "pytest", "bench.ceilings", "mow.train"), step.name


def test_the_first_call_fits_its_time_and_the_log_lists_the_steps() -> None:
    names = [step.name for step in STEPS]
    assert len(set(names)) == len(names)
    first = gpu_day.FIRST_CALL
    assert sum(step.seconds for step in first) <= CALL_SECONDS - 5
    assert not [need for step in first for need in step.needs if need in ("module:gymnasium", "module:ale_py")]
    log = (ROOT / "bench" / "results" / "LOG.md").read_text(encoding="utf-8").split("## Entries")[0]
    assert [name for name in re.findall(r"`([a-z0-9-]+)`", log) if name in names] == names


def test_a_benchmark_that_is_kept_is_not_timed_again(tmp_path: Path) -> None:
    path, marks = tmp_path / "kept.jsonl", dict[str, list[Any]]()
    timed = SimpleNamespace(group="g", name="test_a[3]", param="3", extra_info={"median_us": 7.0})
    wrong = SimpleNamespace(group="g", name="test_b", param=None, extra_info={})
    items: Any = [SimpleNamespace(nodeid=name, add_marker=marks.setdefault(name, []).append) for name in ("a", "b")]
    conftest._leave_out(items, path)
    conftest._keep(path, "a", timed)
    conftest._keep(path, "b", wrong)
    conftest._keep(None, "b", timed)
    (line,) = path.read_text().splitlines()
    assert json.loads(line) == {"nodeid": "a", **vars(timed)}
    assert marks == {"a": [], "b": []}
    conftest._leave_out(items, path)
    assert [mark.name for mark in marks["a"]] == ["skip"]
    assert marks["b"] == []


# Targets and findings ------------------------------------------------------------------------------------------------

NUMBERS = {"median_us": 1e6, "floor_share": 0.4, "floor_us": 4e5, "copy_share": 0.4, "matmul_share": 0.2, "noise": 1.0,
           "gb_per_s": 1.0, "tflop_per_s": 2.0, "backend": "triton", "tflop": 2.0, "cores": 4, "turn_steps": 200,
           "ceilings": {"tflop_per_s": 10.0, "gb_per_s": 4.0}}  # fmt: skip
RECORD = {"status": "done", "started": 1.7e9, "seconds": 1.0, "look": "numbers", "machine": MACHINE, "tail": "the end"}


def lines_of(collected: dict[str, Any]) -> list[dict[str, Any]]:
    """As if every benchmark of the list had been timed, peers taking three times as long."""
    names = [key for *_, targets in OPS for key in targets if not key.endswith("_share")]
    names += ["plain ops", "K updates of one task", "compiled"]
    peers = {name: {"median_us": 3e6, "speedup": 3.0} for name in names}
    return [
        {"nodeid": nodeid, "group": file.removeprefix("bench_"), "name": nodeid.partition("::")[2],
         "param": nodeid.partition("[")[2].removesuffix("]"), "extra_info": NUMBERS | {"peers": peers}}
        for tests in collected["found"].values() for nodeid, file in tests if file.startswith("bench_")
    ]  # fmt: skip


def test_every_target_can_be_measured(collected: dict[str, Any]) -> None:
    records: dict[str, Any] = {name: RECORD | {"result": {"peak_gb": 2.0, "estimated_gb": 4.0}}
                               for name in ("profile", "profile-light")}  # fmt: skip
    records["quickstart"] = RECORD | {"result": {"mean_normalised": 0.5, "wall_seconds": 30.0}}
    found = {finding.what: finding.value for finding in findings(records, lines_of(collected))}
    assert not [what for what, value in found.items() if value is None]
    assert found["atari26, both updates"] == 2.0
    assert found["atari26, both updates, of the matmul rate"] == 0.2  # 4 TFLOP in 2 s, of 10 per second
    assert found["against plain ops"] == 3.0
    assert found["50 tasks over 26"] == 1.0
    assert found["peak memory over its estimate"] == 0.5
    assert found["Meta-World, rendered steps per second and core"] == 50.0
    assert all(finding.value is None for finding in findings({}, []))


def test_targets_name_peers_as_they_are_raced() -> None:
    raced = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "bench").glob("bench_*.py")))
    peers = {key for *_, targets in OPS for key in targets if not key.endswith("_share")}
    assert not [peer for peer in peers if f'"{peer}"' not in raced]


def test_the_worst_shape_counts_and_tuning_replaces(tmp_path: Path) -> None:
    def line(shape: str, speedup: float) -> str:
        info = {"median_us": 1.0, "peers": {"bmm": {"speedup": speedup}}}
        named = {"nodeid": shape, "group": "g", "name": f"test_a[{shape}]", "param": shape}
        return json.dumps({**named, "extra_info": info})

    def least() -> float | None:
        run = gpu_report.run_of(tmp_path, {"ops": RECORD})
        return gpu_report.worst(gpu_report.matching(run["benchmarks"], "g test_a", r"R10\b"), "bmm")

    (tmp_path / "ops.jsonl").write_text("\n".join([line("R10", 3.0), line("R10 x", 2.0), line("R100", 1.0)]))
    assert least() == 2.0
    (tmp_path / "ops-tuned.jsonl").write_text(line("R10 x", 4.0))
    assert least() == 3.0


def test_the_page_and_its_copy(collected: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line for line in lines_of(collected) if line["group"] != "decode_attention"]
    (tmp_path / "ops.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    gpu_report.write_report(tmp_path, {"ops-latents": RECORD, "bad": RECORD | {"status": "failed"}})
    text = (tmp_path / "day.md").read_text()
    assert text.startswith("# GPU day: Planted 1, 2023-11-14\n")
    assert "| expert_linear matmul_alone, 1,024 rows, against bmm | at least 0.85 x | 3 x | met |" in text
    assert "(imagination|training), 26,624 states, of the copy | at least 70% | 40% | **MISS** |" in text
    assert "| decode_attention step, 1,024 rollouts, against torch.cat | at least 2.5 x | not measured |  |" in text
    assert "| atari26, both updates | at most 0.19 s | 2 s | **MISS** |" in text
    assert "## bad: failed\n\n```\nthe end\n```" in text
    gpu_report.save(tmp_path, tmp_path)
    assert (tmp_path / "planted-1-2023-11-14.md").read_text() == text
    run = json.loads((tmp_path / "planted-1-2023-11-14.json").read_text())
    assert run["commit_info"] == {"id": "abc1234", "dirty": True}
    assert gpu_day.main(["--out", str(tmp_path / "nowhere"), "--save"]) == 2
    assert "no day.json" in capsys.readouterr().err


def test_met_on_the_border() -> None:
    def verdict(value: float, sense: Any) -> str:
        return Finding("", value, sense, 2.0, "x").row().split("|")[4].strip()

    assert [verdict(value, ">=") for value in (1.99, 2.0)] == ["**MISS**", "met"]
    assert [verdict(value, "<=") for value in (2.0, 2.01)] == ["met", "**MISS**"]
