"""The grid: what is planned, resumed and refused; failures; and the arithmetic of the table."""

import contextlib
import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from mow.cli.parse import parse
from mow.errors import UsageError
from mow.evaluate import ablate
from mow.evaluate import ablation_grid as ablation_runs
from mow.evaluate.ablate import chosen_methods, main, parent_config
from mow.evaluate.ablation_grid import Job, overrides, plan, run_all, train_command, unfinished
from mow.evaluate.ablation_table import Result, read_results, rows_of, write_table
from mow.methods.mow.ablations import METHODS, meaning, variants
from mow.methods.mow.config import MowConfig
from mow.methods.mow.presets import PRESETS, atari4, quickstart
from mow.runs.folder import claimed

ROOT = Path(__file__).resolve().parents[2]
COST = {"env_steps_per_task": 100, "world_model_updates": 90, "wall_seconds": 8.0, "cpu_seconds": 16.0}

# A stand-in for mow.train: writes what it was given, after failing if asked to.
FAKE = """
import os, pathlib, sys
folder, config, scores, code = sys.argv[1:]
folder = pathlib.Path(folder)
folder.mkdir(parents=True)
(folder / "config.json").write_text(config)
print("threads", os.environ.get("OMP_NUM_THREADS"))
if int(code):
    print("mow.train: loss became nan")
    print()
    sys.exit(int(code))
if scores:
    (folder / "scores.json").write_text(scores)
"""


def scores_of(config: MowConfig, value: float = 0.5, **more: object) -> str:
    """What mow.train writes: every task with the same score, references 0 and 1."""
    task = {"random": 0.0, "agent": value, "expert": 1.0, "normalised": value}
    return json.dumps({"tasks": dict.fromkeys(config.tasks, task), "mean_normalised": value, **COST, **more})


def fake(job: Job, *, failing: str = "", silent: str = "") -> list[str]:
    code = "3" if job.name == failing else "0"
    scores = "" if job.name == silent else scores_of(job.config)
    config = json.dumps(dataclasses.asdict(job.config))
    return [sys.executable, "-S", "-c", FAKE, str(job.folder), config, scores, code]


def finish(job: Job, value: float = 0.5, **more: object) -> None:
    """The folder of a finished run."""
    job.folder.mkdir(parents=True)
    (job.folder / "config.json").write_text(json.dumps(dataclasses.asdict(job.config)))
    (job.folder / "scores.json").write_text(scores_of(job.config, value, **more))


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(ablation_runs, "say", lines.append)
    return lines


# Planning ------------------------------------------------------------------------------------------------------------


def test_a_plan_by_hand(tmp_path: Path) -> None:
    parent = dataclasses.replace(quickstart(), tasks=("tiny:catch", "tiny:goal"))
    jobs = plan(parent, ["mow", "storm", "no_task_head"], 2, tmp_path)
    assert [job.name for job in jobs] == [
        "mow seed 0", "storm seed 0 tiny:catch", "storm seed 0 tiny:goal", "no_task_head seed 0",
        "mow seed 1", "storm seed 1 tiny:catch", "storm seed 1 tiny:goal", "no_task_head seed 1",
    ]  # fmt: skip
    assert [str(job.folder.relative_to(tmp_path)) for job in jobs[:4]] == [
        "mow/seed-0", "storm/seed-0/tiny-catch", "storm/seed-0/tiny-goal", "no_task_head/seed-0",
    ]  # fmt: skip
    assert jobs[3].arguments == (
        "quickstart", "--tasks", "tiny:catch", "tiny:goal", "--folder", str(tmp_path / "no_task_head/seed-0"),
        "--no-report", "--model.no-task-head",
    )  # fmt: skip
    assert jobs[7].log == tmp_path / "no_task_head/seed-1.log"
    assert jobs[7].arguments[4:6] == ("--seed", "1")


def test_runs_of_tasks_with_slashes_in_their_names_are_found_again(tmp_path: Path, said: list[str]) -> None:
    tasks = ("gym:ns/Dot-v0", "gym:ns:Dot-v0", "tiny:goal")
    jobs = plan(dataclasses.replace(quickstart(), tasks=tasks), ["storm"], 1, tmp_path)
    assert {job.folder.parent for job in jobs} == {tmp_path / "storm" / "seed-0"}
    for job in jobs:
        finish(job)
    assert unfinished(jobs) == []
    results, left_out = read_results(tmp_path, tasks)
    assert left_out == []
    assert list(results[0].normalised) == list(tasks)


def test_overrides_by_hand() -> None:
    base = quickstart()
    changed = dataclasses.replace(
        base, storm_compat=True, total_steps=5_000, model=dataclasses.replace(base.model, condition=())
    )
    assert overrides(base, changed) == ["--total-steps", "5000", "--storm-compat", "--model.condition"]
    assert overrides(base, base) == []


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("recipe", [quickstart, atari4])
def test_a_run_is_told_exactly_its_method(recipe, method: str, tmp_path: Path) -> None:
    """The child reads its config from words; it must come out as it went in."""
    parent = dataclasses.replace(recipe(), total_steps=7_000, evaluation_episodes=3)
    for job, config in zip(plan(parent, [method], 1, tmp_path), variants(parent, method), strict=True):
        wanted = dataclasses.replace(config, folder=str(job.folder), preset=parent.preset, report=False)
        assert parse(job.arguments) == wanted


def test_the_parent_takes_overrides() -> None:
    parent = parent_config("quickstart", ["tiny:pole"], 900, ["--loss.task", "0.5"])
    assert (parent.tasks, parent.total_steps, parent.loss.task) == (("tiny:pole",), 900, 0.5)
    assert parent_config("quickstart", None, None, []) == quickstart()


def test_what_makes_no_sense_is_left_out_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    base = quickstart()
    parent = dataclasses.replace(base, model=dataclasses.replace(base.model, task_head=False))
    assert chosen_methods(parent, None) == [name for name in METHODS if name != "no_task_head"]
    assert "left out: no_task_head changes nothing" in capsys.readouterr().out
    with pytest.raises(UsageError, match="no_task_head changes nothing"):
        chosen_methods(parent, ["no_task_head"])
    assert chosen_methods(base, ["mow", "storm", "mow"]) == ["mow", "storm"]


def test_every_method_has_a_meaning() -> None:
    for name in METHODS:
        assert meaning(name)
        assert "\n" not in meaning(name)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--methods", "no_expert"], "unknown method 'no_expert': did you mean no_experts"),
        (["--preset", "quickstar"], "unknown preset 'quickstar': did you mean quickstart"),
        (["--tasks", "tiny:gaol"], "tiny:goal"),
        (["--seeds", "0"], "--seeds must be 1 or more, got 0"),
        (["--seeds", "two"], "argument --seeds: invalid int value: 'two'"),
        (["--jobs", "-1"], "--jobs must be 1 or more, got -1"),
        (["--total-steps", "5"], "total_steps must exceed the prefill"),
        (["--method", "mow"], "unrecognized arguments: --method mow"),
        (["--", "--model.widht", "5"], "did you mean --model.width"),
        (["--", "--seed", "5"], "set by the grid"),
        (["--", "--evaluation-episodes", "0"], "add -- --evaluation-episodes 30"),
        (["--preset", "storm", "--methods", "storm_multitask_wide", "--", "--evaluation-episodes", "1"], "WIDENING"),
        (["--table-only", "--folder", "nothing"], "nothing holds no grid of runs"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(arguments, says, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("mow ablate: ")
    assert error.count("\n") == 1
    assert says in error
    assert list(tmp_path.iterdir()) == []


def test_help_and_mistakes_need_no_torch() -> None:
    code = (
        "import sys, mow.evaluate.ablate as a; assert a.main(['--seeds', '0']) == 2; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True).returncode == 0


# Resuming ------------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_not_run_again(tmp_path: Path, said: list[str]) -> None:
    jobs = plan(quickstart(), ["mow", "no_harmony"], 2, tmp_path)
    finish(jobs[1])
    assert [job.name for job in unfinished(jobs)] == ["mow seed 0", "mow seed 1", "no_harmony seed 1"]
    assert said == []


def test_an_incomplete_run_starts_afresh(tmp_path: Path, said: list[str]) -> None:
    jobs = plan(quickstart(), ["mow"], 1, tmp_path)
    (jobs[0].folder / "checkpoints").mkdir(parents=True)
    (jobs[0].folder / "config.json").write_text("{}")
    assert unfinished(jobs) == jobs
    assert not jobs[0].folder.exists()
    assert said == [f"mow seed 0 was not finished: {jobs[0].folder} is removed, it starts afresh"]


def test_a_run_that_another_process_is_at_is_not_removed(tmp_path: Path, said: list[str]) -> None:
    (job,) = plan(quickstart(), ["mow"], 1, tmp_path)
    job.folder.mkdir(parents=True)
    (job.folder / "config.json").write_text("{}")
    with claimed(job.folder), pytest.raises(UsageError, match="another process trains in"):
        unfinished([job])
    assert (job.folder / "config.json").exists()


def test_a_stopped_run_goes_on(tmp_path: Path, said: list[str]) -> None:
    (job,) = jobs = plan(quickstart(), ["mow"], 1, tmp_path)
    assert train_command(job)[3:] == [*job.arguments]
    (job.folder / "checkpoints").mkdir(parents=True)
    (job.folder / "checkpoints" / "step_00000010.pt").touch()
    (job.folder / "config.json").write_text(json.dumps(dataclasses.asdict(job.config)))
    assert unfinished(jobs) == jobs
    assert said == []
    assert train_command(job)[3:] == ["--resume", str(job.folder)]
    other = dataclasses.replace(job, config=dataclasses.replace(job.config, total_steps=5_000))
    with pytest.raises(UsageError, match="was made with total_steps 7600, now it is 5000: give another --folder"):
        unfinished([other])


def test_what_is_no_run_is_never_removed(tmp_path: Path, said: list[str]) -> None:
    jobs = plan(quickstart(), ["mow"], 1, tmp_path)
    jobs[0].folder.mkdir(parents=True)
    (jobs[0].folder / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="holds something else than a run"):
        unfinished(jobs)
    assert (jobs[0].folder / "thesis.tex").read_text() == "years of work"


def test_a_run_of_another_config_is_refused(tmp_path: Path, said: list[str]) -> None:
    (job,) = plan(quickstart(), ["mow"], 1, tmp_path)
    finish(job)
    quicker = dataclasses.replace(quickstart(), log_every=7)  # nothing is learnt from it
    assert unfinished(plan(quicker, ["mow"], 1, tmp_path)) == []
    shorter = dataclasses.replace(quickstart(), total_steps=6000)
    total = quickstart().total_steps
    with pytest.raises(UsageError, match=f"was made with total_steps {total}, now it is 6000: give another --folder"):
        unfinished(plan(shorter, ["mow"], 1, tmp_path))


# Running -------------------------------------------------------------------------------------------------------------


def test_a_failed_run_does_not_stop_the_others(tmp_path: Path, said: list[str]) -> None:
    jobs = plan(quickstart(), ["mow", "no_harmony", "no_experts"], 1, tmp_path)
    command = functools.partial(fake, failing="no_harmony seed 0", silent="no_experts seed 0")
    assert run_all(jobs, at_once=1, command=command) == 2
    assert [line.split(": ")[0] for line in said] == [
        "[1/3] mow seed 0", "[1/3] mow seed 0", "[2/3] no_harmony seed 0", "[2/3] no_harmony seed 0",
        "[3/3] no_experts seed 0", "[3/3] no_experts seed 0",
    ]  # fmt: skip
    assert said[0].endswith(f"started, log: {jobs[0].log}")
    assert said[1].startswith("[1/3] mow seed 0: 0:00:0")
    assert said[1].endswith(", score 0.50")
    assert f"FAILED with exit code 3, {jobs[1].log}: mow.train: loss became nan" in said[3]
    assert "FAILED with exit code 0" in said[5], "without scores it has failed, whatever it says"


def test_several_at_a_time_share_the_cores(tmp_path: Path, said: list[str], monkeypatch) -> None:
    monkeypatch.setattr(ablation_runs, "available_cores", lambda: 7)
    jobs = plan(quickstart(), ["mow"], 4, tmp_path)
    assert run_all(jobs, at_once=3, command=fake) == 0
    assert [line.split(": ")[0] for line in said[:3]] == [f"[{n}/4] mow seed {n - 1}" for n in (1, 2, 3)]
    assert {job.log.read_text() for job in jobs} == {"threads 2\n"}  # 7 // 3


def test_alone_a_run_keeps_its_threads(tmp_path: Path, said: list[str], monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    jobs = plan(quickstart(), ["mow"], 1, tmp_path)
    run_all(jobs, at_once=1, command=fake)
    assert jobs[0].log.read_text() == "threads 5\n"


def signal_when(ready, monkeypatch, number: int = signal.SIGINT) -> list[subprocess.Popen]:
    """Raise a signal twice in the loop of run_all, when `ready()`. Returns: the processes that it starts."""
    started: list[subprocess.Popen] = []

    class Noted(subprocess.Popen):
        def __init__(self, *words, **options):
            super().__init__(*words, **options)
            started.append(self)

    raised = []

    def sleep(seconds):
        if not raised and ready():
            raised.append(number)
            signal.raise_signal(number)
            signal.raise_signal(number)
        time.sleep(seconds)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    monkeypatch.setattr(ablation_runs, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    return started


@contextlib.contextmanager
def handled(number, handler):
    """Another process that runs these tests may ignore the signal, or be ended by it."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_children(number, tmp_path: Path, said: list[str], monkeypatch) -> None:
    missed: list[int] = []
    jobs = plan(quickstart(), ["mow"], 3, tmp_path)
    started = signal_when(lambda: True, monkeypatch, number)
    with handled(number, lambda found, _: missed.append(found)):
        with pytest.raises(KeyboardInterrupt):
            run_all(jobs, at_once=2, command=lambda _: ["sleep", "600"])
        assert missed == []
        signal.raise_signal(number)
    assert missed == [number], "the handler of before is in place again"
    assert [process.returncode for process in started] == [-15, -15]  # SIGTERM; the third was never started
    assert not jobs[2].log.exists()
    assert said[-1] == "interrupted: waiting for 2 runs to save; the same command goes on from there"


def test_a_ctrl_c_in_a_terminal_does_not_reach_the_children_twice(tmp_path: Path, said: list[str]) -> None:
    """Ctrl-C goes to every process of the terminal's group, a second one ends a run with nothing saved."""
    jobs = plan(quickstart(), ["mow"], 1, tmp_path)
    group = [sys.executable, "-c", "import os; print(os.getpgid(0))"]
    run_all(jobs, at_once=1, command=lambda _: group)
    assert int(jobs[0].log.read_text()) != os.getpgid(0)


# Ends when it has saved, which takes a second.
SAVES = "trap 'sleep 1; echo saved; exit 0' TERM; echo begun; while true; do sleep 0.05; done"


def test_a_child_that_takes_long_to_save_is_waited_for(tmp_path: Path, said: list[str], monkeypatch) -> None:
    jobs = plan(quickstart(), ["mow"], 1, tmp_path)
    started = signal_when(lambda: jobs[0].log.read_text() == "begun\n", monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run_all(jobs, at_once=1, command=lambda _: ["bash", "-c", SAVES])
    assert [process.returncode for process in started] == [0]
    assert jobs[0].log.read_text() == "begun\nsaved\n"


# The whole command with a fake runner --------------------------------------------------------------------------------


def seeds_in_table(folder: Path) -> dict[str, list[int]]:
    return {row["method"]: row["seeds"] for row in json.loads((folder / "table.json").read_text())["methods"]}


def test_a_grid_goes_on_where_it_failed(tmp_path, capsys, monkeypatch) -> None:
    arguments = ["--methods", "mow", "storm", "no_harmony", "--seeds", "2", "--tasks", "tiny:goal", "tiny:pole"]
    arguments += ["--folder", str(tmp_path / "grid")]
    failing = functools.partial(run_all, command=functools.partial(fake, failing="storm seed 1 tiny:pole"))
    monkeypatch.setattr(ablate, "run_all", failing)
    assert main(arguments) == 1
    out = capsys.readouterr().out
    assert "8 runs in" in out
    assert "0 finished already, 8 to go" in out
    assert "1 of 8 runs failed; the same command tries them again" in out
    assert "storm seed-1 is left out: no score of tiny:pole" in out
    assert seeds_in_table(tmp_path / "grid") == {"mow": [0, 1], "storm": [0], "no_harmony": [0, 1]}

    monkeypatch.setattr(ablate, "run_all", functools.partial(run_all, command=fake))
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "7 finished already, 1 to go" in out
    assert "storm seed 1 tiny:pole was not finished" in out
    assert (tmp_path / "grid" / "scores.png").read_bytes().startswith(b"\x89PNG")
    assert seeds_in_table(tmp_path / "grid")["storm"] == [0, 1]

    (tmp_path / "grid" / "table.md").unlink()
    assert main(["--table-only", "--folder", str(tmp_path / "grid")]) == 0
    assert "| storm | 0.50 | 0.50 to 0.50 |" in (tmp_path / "grid" / "table.md").read_text()
    assert main([*arguments, "--total-steps", "900"]) == 2
    assert "give another --folder" in capsys.readouterr().err


def test_interrupted_is_130(tmp_path, monkeypatch) -> None:
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(ablate, "run_all", interrupted)
    assert main(["--folder", str(tmp_path / "grid")]) == 130


def test_a_grid_without_a_finished_run_has_no_table(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(ablate, "run_all", lambda jobs, **_: len(jobs))
    assert main(["--folder", str(tmp_path / "grid"), "--methods", "mow"]) == 1
    assert "no finished run" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "grid").iterdir()] == ["parent.json"]


def test_a_folder_of_something_else_is_refused(tmp_path, capsys) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert main(["--folder", str(tmp_path)]) == 2
    assert "holds something else than a grid of runs" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


# The table -----------------------------------------------------------------------------------------------------------


def costs(parameters: int | None, updates: int, wall: float, cpu: float) -> dict[str, float | None]:
    found = {"parameters": parameters, "env_steps_per_task": 100, "world_model_updates": updates}
    return {**found, "wall_seconds": wall, "cpu_seconds": cpu}


def test_costs_of_single_task_runs_are_summed(tmp_path: Path) -> None:
    parent = dataclasses.replace(quickstart(), tasks=("tiny:catch", "tiny:goal"))
    mow, catch, goal = plan(parent, ["mow", "storm"], 1, tmp_path)
    finish(mow, 0.25, parameters=50)
    finish(catch, 0.1, parameters=20)
    assert [r.method for r in read_results(tmp_path, parent.tasks)[0]] == ["mow"]
    assert read_results(tmp_path, parent.tasks)[1] == ["storm seed-0 is left out: no score of tiny:goal"]
    finish(goal, 0.3, parameters=30)
    results, left_out = read_results(tmp_path, parent.tasks)
    assert left_out == []
    assert results == [
        Result("mow", 0, {"tiny:catch": 0.25, "tiny:goal": 0.25}, costs(50, 90, 8.0, 16.0)),
        Result("storm", 0, {"tiny:catch": 0.1, "tiny:goal": 0.3}, costs(50, 180, 16.0, 32.0)),
    ]


def test_a_run_that_does_not_say_its_parameters(tmp_path: Path) -> None:
    (job,) = plan(quickstart(), ["mow"], 1, tmp_path)
    finish(job)
    assert read_results(tmp_path, job.config.tasks)[0][0].costs["parameters"] is None


def result(method: str, seed: int, *scores: float | None, parameters: int | None = 7, updates: int = 90) -> Result:
    normalised = {f"task{k}": score for k, score in enumerate(scores)}
    return Result(method, seed, normalised, costs(parameters, updates, 8.0, 16.0))


def test_rows_by_hand() -> None:
    rows = rows_of(
        [
            result("weak", 0, 0.1, 0.3, updates=80),
            result("weak", 2, 0.1, 0.1, updates=100),
            result("strong", 0, 0.6, 1.0, parameters=None),
        ]
    )
    strong, weak = rows
    assert (strong.method, weak.method) == ("strong", "weak")
    assert strong.scores["mean"].value == pytest.approx(0.8)  # rounding of double precision, here and below
    assert (strong.scores["mean"].interval, strong.costs["parameters"]) == (None, None)
    assert weak.scores["mean"].value == pytest.approx(0.15)
    assert weak.seeds == (0, 2)
    assert weak.seed_means == pytest.approx((0.2, 0.1))
    assert weak.tasks == pytest.approx({"task0": 0.1, "task1": 0.2})
    assert weak.scores["mean"].interval == pytest.approx((0.1, 0.2)), "task0 never varies, task1 is 0.1 or 0.3"
    assert weak.costs == costs(7, 90, 8.0, 16.0)


def test_tasks_without_references_are_no_scores() -> None:
    half, none = rows_of([result("half", 0, None, 0.5), result("none", 0, None, None)])
    assert (half.scores["mean"].value, half.tasks) == (0.5, {"task0": None, "task1": 0.5})
    assert (none.scores, none.seed_means) == ({}, ()), "last, since nothing is known"


def test_an_unfinished_evaluation_is_left_out(tmp_path: Path) -> None:
    (job,) = plan(quickstart(), ["mow"], 1, tmp_path)
    finish(job)
    scores = json.loads((job.folder / "scores.json").read_text())
    scores["tasks"]["tiny:goal"] |= {"agent": None, "normalised": None}
    (job.folder / "scores.json").write_text(json.dumps(scores))
    results, left_out = read_results(tmp_path, job.config.tasks)
    assert results == []
    assert left_out == ["mow seed-0 is left out: no score of tiny:goal"]


def test_the_table_as_it_reads(tmp_path: Path) -> None:
    results = [result("a", 0, 0.5, None, parameters=1_234_567), result("b", 0, 0.0, None), result("b", 1, 1.0, None)]
    rows = rows_of(results)
    write_table(tmp_path, rows, title="Five tasks", meanings={"a": "first"})
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[0] == "# Five tasks"
    assert "| a | 0.50 | - | 0.50 | - | 1: 0.50 | 1,234,567 | 100 | 90 | 8 | 16 |" in lines
    assert "| b | 0.50 | 0.00 to 1.00 | 0.50 | 0.00 to 1.00 | 2: 0.00 1.00 | 7 | 100 | 90 | 8 | 16 |" in lines
    assert "| a | 0.50 | - |" in lines
    assert "- `a`: first" in lines
    cells = {line.count("|") for line in lines if line.startswith("|")}
    assert cells == {12, 4}, "every row as wide as its header"
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["methods"][1]["scores"]["mean"] == {"value": 0.5, "interval": [0.0, 1.0]}
    assert list(table["methods"][0]) == ["method", "seeds", "scores", "seed_means", "tasks", "costs", "meaning"]


# For real ------------------------------------------------------------------------------------------------------------


def test_two_runs_from_end_to_end(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    arguments = ["--methods", "storm", "--seeds", "1", "--jobs", "2", "--tasks", "tiny:catch", "tiny:slide"]
    arguments += ["--total-steps", "14", "--folder", str(tmp_path / "grid"), "--", "--evaluation-episodes", "1"]
    arguments += ["--batch.length", "4", "--schedule.acting-context", "3"]
    arguments += ["--batch.num-sequences", "1", "--imagination.num-sequences", "2"]
    arguments += ["--model.width", "16", "--device", "cpu", "--env.num-workers", "0"]
    arguments += ["--actor-critic.rollout-parts", "2"]
    assert main(arguments) == 0
    assert "2 runs in" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "grid" / "table.json").read_text())["methods"]
    assert (row["method"], row["seeds"], row["costs"]["env_steps_per_task"]) == ("storm", [0], 14)
    assert set(row["tasks"]) == {"tiny:catch", "tiny:slide"}
    assert main(arguments) == 0
    assert "2 finished already, 0 to go" in capsys.readouterr().out
    assert PRESETS["quickstart"]().total_steps > 14, "the preset itself is as it was"
