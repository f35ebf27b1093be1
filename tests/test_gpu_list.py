"""The list of a GPU day is right before there is a GPU: every test that it names is there, every option is understood,
every number that was wanted can be found, a miss is told.
"""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import conftest, gpu_report, one_update, targets, wheels
from bench.gpu_runner import Day, command_of
from bench.gpu_steps import STEPS, Step
from bench.targets import TARGETS, Target
from tests.test_gpu_day import MACHINE

ROOT = Path(__file__).resolve().parents[1]

# The real list -------------------------------------------------------------------------------------------------------

# The modules believe that there is a GPU, so that they offer what they offer there; tests and benchmarks are collected
# once, and each -k picks of them.
COLLECT = """
import json, sys
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
            self.found[name] = [item.nodeid for item in left]

groups = json.loads(sys.stdin.read())

class Gpu:
    kind, name = "cuda", "Planted 1"

bench.clock.CudaDevice = Gpu
torch.cuda.is_available = lambda: True
codes, found = [], {}
for words, wanted in groups:
    picked = Picked(wanted)
    codes.append(int(pytest.main([*words, "--collect-only", "-p", "no:cacheprovider"], plugins=[picked])))
    found |= picked.found
open(sys.argv[1], "w").write(json.dumps({"codes": codes, "found": found}))
"""


def pytest_words(one: Step, out: Path) -> list[str] | None:
    """What pytest gets in the end; None where the step is no pytest."""
    command = command_of(one, Day(out, MACHINE, rehearsal=False), goes_on=False)
    if "pytest" in command:
        return command[command.index("pytest") + 1 :]
    return ["bench", "--benchmark-only", *command[3:]] if command[1:3] == ["-m", "bench"] else None


def without_expression(words: list[str]) -> tuple[list[str], str]:
    if "-k" not in words:
        return words, ""
    at = words.index("-k")
    return [*words[:at], *words[at + 2 :]], words[at + 1]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Exit codes, and by step what pytest finds."""
    out = tmp_path_factory.mktemp("collected")
    # Options and places are those of all steps of a kind, which pytest must understand together.
    groups: dict[bool, tuple[list[str], dict[str, tuple[list[str], str]]]] = {True: ([], {}), False: ([], {})}
    for one in STEPS:
        words = pytest_words(one, out)
        if words is not None:
            words, expression = without_expression(words)
            of_kind, wanted = groups[words[0] == "bench"]
            wanted[one.name] = ([word for word in words if word.startswith(("tests/", "bench"))], expression)
            of_kind += [word for word in words if word not in of_kind or not word.startswith(("tests/", "bench"))]
    command = [sys.executable, "-c", COLLECT, str(out / "told")]
    done = subprocess.run(
        command, input=json.dumps(list(groups.values())), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((out / "told").read_text())
    return found


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


def test_every_test_of_the_list_is_there(told: dict[str, Any]) -> None:
    found = told["found"]
    assert told["codes"] == [0, 0]
    assert not [name for name, ids in found.items() if not ids], "finds no test"
    watched = " ".join(found["sanitizer-memcheck"])
    for file in ("expert_linear", "latents", "decode_attention", "gather_frames"):
        assert f"test_{file}_gpu" in watched, f"no kernel of {file} is watched"
    assert len(found["sanitizer-memcheck"]) <= 20  # each takes tens of times as long when it is watched
    assert len(found["update-26"]) == 3
    every = [one for name in ("tests-expert", "tests-latents", "tests-rollout", "tests-rest") for one in found[name]]
    files = (ROOT / "tests").rglob("test_*.py")
    marked = {path.name for path in files if re.search(r"mark\.gpu$", path.read_text(encoding="utf-8"), re.M)}
    assert {Path(one.split("::")[0]).name for one in every} == marked


def test_every_other_command_is_understood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bench import tune_expert_linear
    from mow.cli import parse as command_line
    from mow.evaluate import __main__ as evaluate
    from mow.report import __main__ as report

    (tmp_path / "runs" / "atari4").mkdir(parents=True)
    here = Day(tmp_path, MACHINE, rehearsal=False, wheels=tmp_path)
    rest = {one.name: one for one in STEPS if pytest_words(one, tmp_path) is None}
    for one in rest.values():
        for rehearsal in (False, True):
            interpreter, flag, module, *words = command_of(one, replace(here, rehearsal=rehearsal), goes_on=False)
            assert (interpreter, flag) == (sys.executable, "-m")
            if module == "mow.train":
                config = command_line.parse([word for word in words if word != "--dry-run"])
                assert config.preset == words[0]
            elif module == "bench.tune_expert_linear":
                tune_expert_linear.main([*words, "--dry-run"])
                capsys.readouterr()  # thousands of lines
            elif module == "bench.one_update":
                one_update.make_config(one_update.read_arguments(words))
            elif module in ("mow.evaluate", "mow.report"):
                {"mow.evaluate": evaluate, "mow.report": report}[module].read_arguments(words)
            else:
                assert module in ("bench.wheels", "bench.ceilings", "mow.cli.doctor"), one.name
        if one.again:
            words = command_of(one, here, goes_on=True)[3:]
            assert words == ["--resume", str(tmp_path / "runs" / one.name)]


def test_the_list_is_in_order() -> None:
    names = [one.name for one in STEPS]
    assert len(set(names)) == len(names)
    for i, one in enumerate(STEPS):
        assert one.after in ("", *names[:i])
        assert one.look
        assert 0 < one.least_s <= one.limit_s
    log = (ROOT / "bench" / "results" / "LOG.md").read_text(encoding="utf-8").split("## Entries")[0]
    told = [name for name in re.findall(r"`([a-z0-9-]+)`", log) if name in names]
    assert told == names, "the waiting list of bench/results/LOG.md names the steps in their order"


def test_wheels_are_asked_for_without_torch(tmp_path: Path) -> None:
    download = wheels.fetching(tmp_path, "3.12", ["linux_x86_64"], robots=True)
    assert {"--no-deps", "gymnasium", "metaworld", "pybind11"} <= set(download)
    assert not {"torch", "triton", "numpy"} & set(download)
    assert "metaworld" not in wheels.fetching(tmp_path, "3.12", [], robots=False)
    (tmp_path / "metaworld-3.1.1-py3-none-any.whl").touch()
    assert wheels.installing(tmp_path, dry_run=False)[-1] == ".[metaworld]"


# Wanted and found ----------------------------------------------------------------------------------------------------


def named_peers() -> set[str]:
    """All that bench/targets.py compares with."""
    return set(re.findall(r'against\("([^"]+)"', (ROOT / "bench" / "targets.py").read_text(encoding="utf-8")))


def records_of(told: dict[str, Any], **info: Any) -> dict[str, dict[str, Any]]:
    """As if every benchmark had been timed with these numbers, and every other step had written some."""
    records: dict[str, dict[str, Any]] = {}
    for name, ids in told["found"].items():
        if name.startswith(("ops-", "update-", "egl")):
            result = []
            for nodeid in ids:
                file, _, test = nodeid.partition("::")
                group, param = Path(file).stem.removeprefix("bench_"), test.partition("[")[2].removesuffix("]")
                result.append({"group": group, "name": test, "param": param, "extra_info": info})
            records[name] = {"name": name, "status": "done", "rehearsal": False, "started": 1.7e9, "total_s": 1.0,
                             "machine": MACHINE, "result": result}  # fmt: skip
    return records


@pytest.fixture
def numbers() -> dict[str, Any]:
    peers = {name: {"median_us": 3e6, "speedup": 3.0} for name in named_peers()}
    return {"median_us": 1e6, "floor_share": 0.4, "floor_us": 4e5, "copy_share": 0.4, "matmul_share": 0.2, "noise": 1.0,
            "gb_per_s": 1.0, "tflop_per_s": 2.0, "backend": "triton", "tflop": 2.0, "cores": 4, "turn_steps": 200,
            "ceilings": {"tflop_per_s": 10.0, "gb_per_s": 4.0}, "peers": peers}  # fmt: skip


def test_every_number_that_is_wanted_can_be_found(
    told: dict[str, Any], numbers: dict[str, Any]
) -> None:
    records = records_of(told, **numbers)
    profile = {"peak_gb": 2.0, "estimated_gb": 4.0}
    records |= {name: {"result": profile} for name in ("profile", "profile-light")}
    records["quickstart"] = {"result": {"mean_normalised": 0.5, "wall_seconds": 30.0}}
    found = {target.what: target.measure(records) for target in TARGETS}
    assert not [what for what, value in found.items() if value is None]
    assert found["atari26, both updates"] == 2.0
    assert found["atari26, both updates, share of the matmul rate"] == 0.2  # 4 TFLOP in 2 s, of 10 per second
    assert found["against plain ops"] == 3.0
    assert found["50 tasks against 26"] == 1.0
    assert found["peak of memory against the estimate"] == 0.5
    assert found["Meta-World, rendered steps per second and core"] == 50.0
    assert all(target.measure({}) is None for target in TARGETS)
    assert all(name in {one.name for one in STEPS} for target in TARGETS for name in target.steps)


def test_peers_are_named_as_they_race() -> None:
    raced = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "bench").glob("bench_*.py")))
    assert len(named_peers()) == 11
    assert not [peer for peer in named_peers() if f'"{peer}"' not in raced]


def test_the_worst_of_several_shapes_counts() -> None:
    def line(shape: str, speedup: float) -> dict[str, Any]:
        peers = {"bmm": {"speedup": speedup}}
        return {"group": "g", "name": f"test_a[{shape}]", "param": shape, "extra_info": {"peers": peers}}

    measure = targets.race(("tuned", "before"), "g test_a", r"R10\b", targets.against("bmm"))
    before = {"result": [line("R10", 3.0), line("R10 x", 2.0), line("R100", 1.0)]}
    assert measure({"before": before}) == 2.0
    assert measure({"before": before, "tuned": {"result": [line("R10", 4.0)]}}) == 4.0
    assert measure({"before": {"result": {"unreadable": "x"}}}) is None


def test_a_miss_is_shown_and_what_is_not_there_is_not_measured(
    told: dict[str, Any], numbers: dict[str, Any], tmp_path: Path
) -> None:
    records = records_of(told, **numbers)
    del records["ops-rollout"]
    rehearsed = {name: {**record, "rehearsal": True} for name, record in records.items()}
    assert "MISS" not in "".join(gpu_report.targets_table(rehearsed))
    rows = {row.split(" | ")[0].removeprefix("| "): row for row in gpu_report.targets_table(records)}
    assert "| at least 0.85x | 3.00x | met |" in rows["the matmul alone against bmm"]
    assert "| at least 70% | 40% | **MISS** |" in rows["sample_onehot, share of the copy"]
    assert "| at least 2.50x | not measured |  |" in rows["decode_attention against torch.cat"]
    assert "| at most 0.19 s | 2.00 s | **MISS** |" in rows["atari26, both updates"]
    (tmp_path / "steps").mkdir()
    for name, record in records.items():
        (tmp_path / "steps" / f"{name}.json").write_text(json.dumps(record))
    text = gpu_report.write_report(tmp_path)
    assert text.startswith("# GPU day: Planted 1, 2023-11-14\n")
    assert "| ops-rollout | not begun |" in text
    assert json.loads((tmp_path / "bench.json").read_text())["commit_info"] == {"id": "abc1234", "dirty": True}
    places = gpu_report.save(tmp_path, tmp_path)
    assert [path.name for path in places] == ["planted-1-2023-11-14.md", "planted-1-2023-11-14.json"]
    records["egl"]["rehearsal"] = True
    (tmp_path / "steps" / "egl.json").write_text(json.dumps(records["egl"]))
    assert gpu_report.main([str(tmp_path), "--save"], tmp_path) == 2
    assert gpu_report.main([str(tmp_path / "nowhere")]) == 2


def test_met_is_met_on_the_border() -> None:
    least = Target("", ">=", 2.0, "x", "", (), lambda _: None)
    assert [least.met(value) for value in (1.99, 2.0)] == [False, True]
    assert [replace(least, sense="<=").met(value) for value in (2.0, 2.01)] == [True, False]


def test_the_ceilings_are_told_twice() -> None:
    result = {"tflop_per_s": [700.0, 770.0], "gb_per_s": [4000.0, 3900.0], "again": {"matmul": 1.1, "copy": 0.975}}
    rows = gpu_report.ceilings_section(result)
    assert rows[-2:] == [
        "| matmul, TFLOP/s | 700 | 770 | 1.100 |",
        "| copy, GB/s read and written | 4,000 | 3,900 | 0.975 |",
    ]
    assert gpu_report.ceilings_section(None) == []


def test_where_an_update_goes(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"name": "aten::mm", "ms": 1.5, "share": 0.25, "calls": 4}]
    update = {"seconds": 0.5, "busy_share": 0.8, "calls": 9, "rows": rows}
    found = {"preset": "atari26", "tasks": 26, "batching": None, "task_groups": 1, "peak_gb": None,
             "estimated_gb": 3.0, "updates": {"agent": update}}  # fmt: skip
    text = "\n".join(gpu_report.profile_section("profile", found))
    assert "Peak of memory not measured, estimated 3.00 GB." in text
    assert "0.5 s, the GPU busy for 80% of it; 9 calls" in text
    assert "| `aten::mm` | 1.50 | 25% | 4 |" in text
    assert gpu_report.profile_section("profile", None) == []
    with pytest.raises(SystemExit):
        one_update.read_arguments(["--tasks", "0"])
    assert "--tasks must be 1 or more, got 0" in capsys.readouterr().err
