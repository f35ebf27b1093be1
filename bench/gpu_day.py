"""python -m bench.gpu_day --out DIR: run the measurements that wait for a GPU, in order, within a time budget.

    python -m bench.gpu_day --list                       the steps: name, budget, what to look for, command
    python -m bench.gpu_day --out DIR                    the first call: 9 minutes, for a machine lent for 15
    python -m bench.gpu_day --out DIR                    the same line again runs the steps that are left
    python -m bench.gpu_day --out DIR --only profile     these steps, also where they are done
    python -m bench.gpu_day --out DIR --save             run none; write the report to bench/results/<gpu>-<date>.*
    python -m bench.gpu_day --out DIR --rehearse         what of the first call a CPU can do, with small updates

Each step is a process of its own, stopped when its budget ends. DIR holds at most seven files: day.json (status,
seconds, numbers and end of the output per step), day.md (targets beside findings), log.txt, ops.jsonl, ops-tuned.jsonl
(benchmarks one by one), tuned.json (for kernels/tuned/) and, during a step, result.json. With these files in DIR a call
on another machine continues; training runs continue where runs/gpu-day/ is kept. The first call needs nvcc, torch,
triton, pybind11, ninja and pytest with its plugins benchmark and xdist, but neither gymnasium nor ale-py. MOW_COMMIT
names the commit where there is no .git. Exit code: 0, 1 where a step failed, 2 for a wrong argument.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.gpu_report import decisive, read_records, save, write_report
from bench.machine import describe_here

ROOT = Path(__file__).resolve().parents[1]
CALL_SECONDS = 540.0  # of a loan of 900 seconds; the rest is the start, the transfers and one repeat
GRACE_SECONDS = 15.0  # between SIGTERM and SIGKILL
DUE = (None, "running", "stopped", "interrupted", "missing")  # statuses that a call runs again without --only


@dataclass(frozen=True)
class Step:
    """One measurement: a command for bash with a time budget."""

    name: str
    seconds: float
    command: str  # {out}: folder of results; {json}: file for a result
    look: str  # what the numbers should show
    needs: tuple[str, ...] = ()  # module:NAME or program:NAME, beside a GPU
    resumes: bool = False  # continues what a stopped call left: a start is worth a minute
    rehearsal: str = ""  # in place of the command where there is no GPU
    on_gpu: bool = True
    env: Mapping[str, str] = field(default_factory=dict)


# Warnings of another version of Python or of a library must not stop a measurement.
_PYTEST = "python -m pytest -W default"
_GPU = f"{_PYTEST} -m gpu -rfE"
_SIMULATORS = ("module:gymnasium", "module:ale_py", "module:tyro")
_KERNELS = ("expert_linear", "latents", "decode_attention", "add_layer_norm", "batch_norm_relu")
KERNEL_TESTS = " ".join(f"tests/kernels/test_{op}_gpu.py" for op in _KERNELS)
_OTHER = "replay/test_sampler replay/test_gpu_store replay/test_buffer replay/test_prefetch engine/test_no_waiting"
_GRAPHS = "methods/mow/test_cuda_graph methods/mow/test_update_graph"
OTHER_TESTS = " ".join(f"tests/{name}.py" for name in f"{_OTHER} {_GRAPHS} test_bench".split())
# One case of each kernel, forward, backward and decoding, at sizes that leave tiles half empty.
_SMALL_CASES = (
    "test_values_and_gradients and odd and not odd_long and float32 or test_one_expert_with_all_tasks or "
    "test_strided_inputs_and_gradients or test_lambda_return_matches_float64 and shape1 or test_strided_tokens or "
    "test_gather_cuda_equals_the_reference"
)


def ops(name: str, seconds: float, files: str, look: str, words: str = "", keep: str = "ops", **more: Any) -> Step:
    """Benchmarks bench/bench_<file>.py; each becomes a line of {out}/<keep>.jsonl and is not timed again."""
    paths = " ".join(f"bench/bench_{file}.py" for file in files.split())
    command = f"{_PYTEST} {paths} --benchmark-only {words} --keep {{out}}/{keep}.jsonl"
    return Step(name, seconds, command, look, resumes=True, **more)


def update(name: str, seconds: float, words: str, look: str) -> Step:
    command = "python -m bench.one_update --preset {} --json {{json}} " + words
    small = command.format("quickstart --tasks 1").replace("--rounds 3", "--rounds 1")
    return Step(name, seconds, command.format("atari26 --tasks 26"), look, rehearsal=small)


def tune(op: str, seconds: float, rows: str) -> Step:
    command = f"python -m bench.tune_expert_linear --missing --jobs 12 --op {op} --rows {rows}"
    return Step(f"tune-{op}", seconds, command, f"the fastest tiling of {op}, for kernels/tuned/", resumes=True)


def sanitized(tool: str, look: str) -> Step:
    command = f"compute-sanitizer --tool {tool} --error-exitcode 9 --print-limit 20 {_GPU} {KERNEL_TESTS} "
    command += f'tests/replay/test_sampler.py -k "{_SMALL_CASES}"'
    # Without torch's memory pool every tensor has its own bounds, which the sanitizer checks.
    env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return Step(f"sanitizer-{tool}", 240, command, look, ("program:compute-sanitizer",), env=env)


def training(name: str, seconds: float, words: str, look: str) -> Step:
    folder = f"runs/gpu-day/{name}"
    command = f"if ls {folder}/checkpoints/step_*.pt; then python -m mow.train --resume {folder}; else "
    command += f"python -m mow.train {words} --device cuda --folder {folder}; fi && cp {folder}/scores.json {{json}}"
    return Step(name, seconds, command, look, _SIMULATORS, resumes=True)


STEPS: tuple[Step, ...] = (
    # The first call: what decides most first. Workers compile the kernels side by side.
    Step("tests-kernels", 125, f"{_GPU} -n 12 {KERNEL_TESTS}", "Triton kernels against float64, in graphs, compiled"),
    Step("ceilings", 25, "python -m bench.ceilings --json {json}", "copy and matmul, twice: the difference is noise",
         rehearsal="python -m bench.ceilings --json {json}"),
    update("profile", 75, "--rounds 3", "seconds and all ops of an update of atari26; peak memory beside the estimate"),
    update("profile-graph", 75, "--rounds 3 --graph", "the same, each update replayed from one CUDA graph"),
    ops("ops-latents", 45, "sample_onehot categorical_kl two_hot", "8x eager, 1.2x compiled, 70 % of the copy",
        '-k "N26624 or 452608"'),
    ops("ops-rollout", 30, "decode_attention", "decode attention 2.5x torch.cat, 1.3x slices", "-k B1024"),
    ops("ops-expert", 55, "expert_linear", "1.2x bmm, 1.3x grouped_mm; shares of the floor, before tuning",
        '-k "R1024 or R39"'),
    Step("build", 40, "python setup.py build_ext --inplace", "the extension compiles with its CUDA part",
         ("module:pybind11", "program:nvcc"), env={"MOW_BUILD": "cuda"}),
    Step("tests-rest", 60, f"{_GPU} {OTHER_TESTS}", "the CUDA replay gather; updates in graphs, or without waiting"),
    # Later calls.
    sanitized("memcheck", "no access out of bounds in one small case of each kernel"),
    sanitized("racecheck", "no race in shared memory in the same cases"),
    ops("ops-replay", 90, "replay", "the gather on the GPU reaches 70 % of the copy", "-k gpu"),
    ops("ops-other", 90, "decode_attention lambda_return", "the other sizes, and what torch.compile does as well"),
    tune("forward", 400, "64 0 32 128 512"),
    tune("dx", 200, "0 512"),
    tune("dw", 200, "0 512"),
    ops("ops-expert-tuned", 90, "expert_linear", "the same as ops-expert, after tuning", keep="ops-tuned"),
    ops("update-26", 300, "train_step", "35 % of the matmul rate, 4x, 2x and 1.3x", "-k K26"),
    update("profile-light", 75, "--batching light --task-groups 4", "the same for a card of 24 GB"),
    ops("update-curve", 400, "train_step", "cost of K = 1 to 50 tasks", '-k "not K26"'),
    training("quickstart", 400, "quickstart", "the scores of the CPU, in how many seconds"),
    training("storm", 240, "storm --total-steps 400 --evaluation-episodes 0", "the single-task baseline runs in bf16"),
    ops("egl", 240, "envs", "rendered steps per second of Meta-World by EGL", '-k "robots and mt10"',
        needs=("module:metaworld", "module:mujoco"), env={"MUJOCO_GL": "egl"}),
    training("atari4", 7200, "atari4 --checkpoint-every 500 --keep-checkpoints 1", "curves of four games"),
)  # fmt: skip
FIRST_CALL = STEPS[: [step.name for step in STEPS].index("tests-rest") + 1]


def missing(step: Step, machine: Mapping[str, Any]) -> list[str]:
    """Needs of the step that this machine does not meet."""
    look: dict[str, Callable[[str], object]] = {"program": shutil.which, "module": find_spec}
    lacking = [need for need in step.needs if look[need.partition(":")[0]](need.partition(":")[2]) is None]
    return lacking if machine["kind"] == "cuda" or not step.on_gpu else ["GPU", *lacking]


def run_step(step: Step, out: Path, machine: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Run one step for at most its budget and at most `seconds`. Returns: its record."""
    record = {"look": step.look, "started": time.time(), "machine": dict(machine), "seconds": 0.0}
    if lacking := missing(step, machine):
        return record | {"status": "missing", "tail": f"no {', no '.join(lacking)}\n"}
    result = out / "result.json"
    command = step.command.replace("{out}", str(out)).replace("{json}", str(result))
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"} | dict(step.env)
    with (out / "log.txt").open("a", encoding="utf-8") as log:
        print(f"$ {command}", file=log, flush=True)
        begin, clock = log.tell(), time.monotonic()
        # A process group of its own, so that its children end with it.
        words = ["bash", "-c", f"trap : TERM; {command}"]
        process = subprocess.Popen(words, stdout=log, stderr=log, cwd=ROOT, env=environment, process_group=0)
        status = ""
        try:
            process.wait(max(0.0, min(step.seconds, seconds - GRACE_SECONDS)))
        except (subprocess.TimeoutExpired, KeyboardInterrupt) as stop:
            status = "interrupted" if isinstance(stop, KeyboardInterrupt) else "stopped" if step.resumes else "over"
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                process.wait(GRACE_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        record |= {"status": status or ("failed" if code else "done"), "exit_code": code, "command": command,
                   "seconds": round(time.monotonic() - clock, 1)}  # fmt: skip
    if result.exists():
        record["result"] = json.loads(result.read_text(encoding="utf-8"))
        result.unlink()
    return record | {"tail": (out / "log.txt").read_bytes()[begin:].decode("utf-8", "replace")[-4_000:]}


def run_day(steps: Sequence[Step], out: Path, machine: Mapping[str, Any], seconds: float) -> list[str]:
    """Run the steps in order as far as there is time. Returns: statuses. Raises: ValueError for a bad day.json."""
    deadline, records, statuses = time.monotonic() + seconds, read_records(out), []
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for step in steps:
            left = deadline - time.monotonic()
            if left < (min(60.0, step.seconds) if step.resumes else step.seconds):
                print(f"{step.name}: not started, {max(left, 0.0):.0f} s are left", flush=True)
                continue
            print(f"{step.name} ...", flush=True)
            write_report(out, records | {step.name: {"status": "running", "look": step.look, "seconds": 0.0}})
            record = records[step.name] = run_step(step, out, machine, left)
            write_report(out, records)
            statuses.append(record["status"])
            print(f"{step.name}: {record['status']}, {record['seconds']:.0f} s", flush=True)
            print(record["tail"][-1_000:] if record["status"] in ("failed", "missing") else "", end="", flush=True)
            print(*decisive(records), sep="\n", flush=True)
            if record["status"] == "interrupted":
                break
    finally:
        signal.signal(signal.SIGTERM, before)
    return statuses


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code, see above."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_day", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-day/results"), help="results (%(default)s)")
    parser.add_argument("--seconds", type=float, default=CALL_SECONDS, help="time budget of the call (%(default)s)")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[step.name for step in STEPS])
    for flag, what in (("--list", "print the steps"), ("--save", "write the report")):
        parser.add_argument(flag, action="store_true", help=f"{what} and run none")
    parser.add_argument("--rehearse", action="store_true", help="run the first call without a GPU")
    asked = parser.parse_args(arguments)
    try:
        if asked.list:
            print("\n".join(f"{one.name} ({one.seconds:.0f} s): {one.look}\n    {one.command}" for one in STEPS))
            return 0
        if asked.save:
            save(asked.out)
            return 0
        asked.out.mkdir(parents=True, exist_ok=True)
        records = read_records(asked.out)
        due = [step.name for step in STEPS if records.get(step.name, {}).get("status") in DUE]
        chosen = [step for step in STEPS if step.name in (asked.only or due)]
        if asked.rehearse:
            chosen = [replace(step, command=step.rehearsal, seconds=90, on_gpu=False) for step in FIRST_CALL
                      if step.rehearsal]  # tests/test_gpu_day.py collects those of pytest
        statuses = run_day(chosen, asked.out.resolve(), describe_here(), asked.seconds)
    except (ValueError, KeyboardInterrupt) as error:
        print(f"bench.gpu_day: {error or 'interrupted'}", file=sys.stderr)
        return 2
    return int("failed" in statuses or "over" in statuses)


if __name__ == "__main__":
    sys.exit(main())
