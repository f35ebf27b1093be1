"""python -m bench.gpu_day: everything that waits for a GPU, in one command that can be stopped and goes on.

    python -m bench.gpu_day --list                                the steps, their commands and what to look for
    python -m bench.gpu_day --rehearse --out /tmp/rehearsal       each step's small sister on this CPU
    python -m bench.gpu_day --out day                             the real thing
    python -m bench.gpu_day --out day --only profile egl          these steps; with --again also where they are done

The steps run in order (bench/gpu_steps.py), each in a process of its own and for at most its limit; a step that is
done is not run again. Of each, DIR/steps/NAME.json says command, exit code, seconds, machine, versions, the end of the
output and the numbers; DIR/logs/NAME.log holds all it said. DIR/day.md puts the numbers beside what was wanted
(`python -m bench.gpu_report DIR` writes it again), DIR/bench.json is what `python -m bench.render` takes.

A machine that is lent for minutes. --seconds N ends the call in order before N seconds have passed: what runs is told
to save, what is left is for the next call of the same line. SIGTERM and Ctrl-C end it in order, too. Killed, the call
loses the step that ran: of benchmarks the one that was being timed, of a training run what came after its last
checkpoint. --back DIR holds at most eight files, which is all that needs to be carried home; on a machine that has
forgotten everything, --from DIR with what was carried home goes on, but training runs start anew: the checkpoint and
the replay of atari4 are hundreds of megabytes and stay. Calls that go well together:

    python -m bench.gpu_day --out day --wheels wheels --seconds 560 --back "$BACK"       again and again, or
    ... --only install doctor tests-expert tests-latents tests-rollout tests-rest ceilings
    ... --only ops-latents ops-rollout ops-frames tune-forward ops-expert-tuned update-26 profile
    ... --only quickstart profile-light
    ... --only atari4 atari4-scores atari4-report

A copy of the checkout without its .git is told which commit it is by MOW_COMMIT="$(git describe --always --dirty)".

A machine without a network needs its missing packages as wheels, made for its Python where there is a network:

    python -m bench.wheels fetch wheels --python 3.12 --robots

Step `install` then runs `pip install --no-index --find-links wheels -e .`: what is installed stays as it is where it is
new enough, torch and triton among it, since they are not in the folder. Keep one version of each wheel there.

Exit code: 0 all steps of the call ended well or wait for the next, 1 one failed or outlasted its limit, 2 a mistake.
"""

import argparse
import difflib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.gpu_carry import pack, unpack
from bench.gpu_report import write_report
from bench.gpu_runner import ROOT, Day, Record, read_record, run_step
from bench.gpu_steps import STEPS, Step

_AHEAD = ("cut", "missing", "over")  # what the next call runs
_MARKS = {"done": "ok", "failed": "FAILED", "cut": "stopped, goes on", "over": "OVER ITS LIMIT", "missing": "left out"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code, see above."""
    begun = time.monotonic()
    asked = read_arguments(arguments)
    if asked.list:
        print(listing(STEPS))
        return 0
    try:
        chosen = choose(STEPS, asked.only)
        if asked.restore:
            unpack(asked.restore, asked.out, STEPS)
        day = Day(asked.out.resolve(), describe_machine(), asked.rehearse, asked.wheels and asked.wheels.resolve())
        left = asked.seconds - (time.monotonic() - begun)
        records = run_day(chosen, day, left, again=asked.again, keep=lambda: _keep(day.out, asked.back))
        if asked.back and (day.out / "steps").is_dir():
            print("\n".join(_keep(day.out, asked.back)))
    except ValueError as error:
        print(f"bench.gpu_day: {error}", file=sys.stderr)
        return 2
    return int(any(record["status"] in ("failed", "over") for record in records))


def _keep(out: Path, back: Path | None) -> list[str]:
    """After each step, so that a call that is killed has told what came before. Returns: what is to be carried home."""
    write_report(out)
    return pack(out, back) if back else []


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_day", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-day"), help="folder of results (%(default)s)")
    parser.add_argument("--seconds", type=float, default=86_400.0, help="end the call before so many have passed")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these steps, in the order of the list")
    parser.add_argument("--again", action="store_true", help="also steps that are done or failed")
    parser.add_argument("--list", action="store_true", help="say what would be run, and run nothing")
    parser.add_argument("--rehearse", action="store_true", help="small sizes on a CPU")
    parser.add_argument("--wheels", type=Path, help="folder of wheels for step install")
    parser.add_argument("--back", type=Path, metavar="DIR", help="put what is to be carried home there")
    parser.add_argument("--from", type=Path, dest="restore", metavar="DIR", help="go on from an earlier --back")
    return parser.parse_args(arguments)


def choose(steps: Sequence[Step], names: Sequence[str] | None) -> list[Step]:
    """Raises: ValueError naming what comes nearest to a name that is none."""
    known = [step.name for step in steps]
    for name in names or ():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3) or known
            raise ValueError(f"no step {name!r}: did you mean {', '.join(near)}?")
    return [step for step in steps if not names or step.name in names]


def listing(steps: Sequence[Step]) -> str:
    lines = []
    for number, step in enumerate(steps, 1):
        needs = f", needs {', '.join(step.needs)}" if step.needs else ""
        lines += [f"{number:2}. {step.name}: {step.look} (at most {step.limit_s:.0f} s{needs})"]
        lines += [f"    {' '.join(_quoted(word) for word in step.command)}"]
    return "\n".join(lines)


def _quoted(word: str) -> str:
    return f'"{word}"' if " " in word else word


def describe_machine() -> dict[str, Any]:
    """By a process that ends, so that this one holds no memory of a GPU. Raises: ValueError if torch does not load."""
    command = [sys.executable, "-m", "bench.machine"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode != 0:
        raise ValueError(f"this machine cannot be described: {' '.join(done.stderr.strip().splitlines()[-1:])}")
    described: dict[str, Any] = json.loads(done.stdout)
    return described


def due(steps: Sequence[Step], day: Day, *, again: bool) -> Iterator[Step]:
    """What to run, in order, each looked at when its turn comes, since the one before may have made its numbers old.

    What outlasted its limit and cannot go on comes last, so that it cannot starve others.
    """
    last = []
    for step in steps:
        record = read_record(day, step.name)
        if again or record is None or record["status"] in _AHEAD or _is_old(step, record, day):
            if record is not None and record["status"] == "over" and not step.again:
                last.append(step)
            else:
                yield step
    yield from last


def _is_old(step: Step, record: Record, day: Day) -> bool:
    before = read_record(day, step.after) if step.after else None
    return before is not None and before["started"] > record["started"]


def run_day(
    steps: Sequence[Step],
    day: Day,
    seconds: float,
    *,
    again: bool = False,
    keep: Callable[[], object] = lambda: None,
) -> list[Record]:
    """Run what there is time for.

    Args:
        again: also steps that are done.
        keep: called after each step.
    Returns: the records of this call.
    """
    deadline = time.monotonic() + seconds
    told: list[int] = []
    kept = {
        number: signal.signal(number, lambda got, _: told.append(got)) for number in (signal.SIGTERM, signal.SIGINT)
    }
    day = replace(day, stopped=lambda: bool(told))
    records = []
    try:
        for step in due(steps, day, again=again):
            left = deadline - time.monotonic() - step.leaves_s
            if told:
                break
            if _is_waiting(step, steps, day):
                print(f"{step.name}: waits for {step.after}", flush=True)
            elif left < step.least_s + day.grace_s:
                print(f"{step.name}: not begun, {max(0.0, left):.0f} s are left", flush=True)
            else:
                print(f"{step.name} ...", flush=True)
                record = run_step(step, day, left)
                records.append(record)
                print(say(record), flush=True)
                keep()
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    return records


def _is_waiting(step: Step, steps: Sequence[Step], day: Day) -> bool:
    return bool(step.after) and read_record(day, step.after) is None and any(one.name == step.after for one in steps)


def say(record: Record) -> str:
    """What came of a step, in a line; of one that failed the end of what it said, too."""
    line = f"{record['name']}: {_MARKS[record['status']]}"
    if record["status"] == "missing":
        return f"{line}: {record['reason']}"
    line += f", {record['seconds']:.0f} s, exit code {record['exit_code']}"
    if record["status"] == "failed":
        line += "\n" + "\n".join(f"    {text}" for text in record["tail"].splitlines()[-12:])
    return line


if __name__ == "__main__":
    sys.exit(main())
