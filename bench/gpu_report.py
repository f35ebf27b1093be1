"""python -m bench.gpu_report DIR: what a GPU day found, beside what was wanted, in Markdown.

    python -m bench.gpu_report day                                  print it; DIR/day.md and DIR/bench.json hold it
    python -m bench.gpu_report day --save                           and put both into bench/results/<gpu>-<date>.*
    python -m bench.render bench/results/<gpu>-<date>.json --write  the table of the ops in README.md

A number that does not exist is "not measured", a target that is not reached a MISS. A rehearsal is called one on every
page and is never saved among the results.
"""

import argparse
import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import render
from bench.gpu_steps import STEPS
from bench.targets import TARGETS, Records, Target

RESULTS = Path(__file__).resolve().parent / "results"
_STATUS = {
    "done": "done",
    "failed": "FAILED",
    "cut": "stopped, not finished",
    "running": "stopped, not finished",
    "over": "stopped at its limit",
    "missing": "left out",
}
# After tuning the ops' numbers replace those from before, which stand in the page of their own.
_BEFORE = "ops-expert"


def read_records(out: Path) -> dict[str, dict[str, Any]]:
    """By step. Raises: ValueError if there is no day in `out`."""
    records = {}
    for path in sorted((out / "steps").glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            records[record["name"]] = record
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no record of a step ({error}): delete it and run the step again") from error
    if not records:
        raise ValueError(f"{out} holds no steps: run python -m bench.gpu_day --out {out}")
    return records


def page(records: Records) -> str:
    """All of it."""
    newest = max(records.values(), key=lambda record: float(record["started"]))
    machine, rehearsal = newest["machine"], newest["rehearsal"]
    title = f"# GPU day: {machine['device']}, {_date(records)}"
    parts = [f"# Rehearsal on a CPU, {_date(records)}: nothing follows for a GPU" if rehearsal else title]
    facts = [f"{name} {machine[name]}" for name in ("torch", "triton", "cuda", "driver", "python", "commit")
             if machine.get(name)]  # fmt: skip
    parts += ["", f"{', '.join(facts)}. By `python -m bench.gpu_day`.", "", *steps_table(records)]
    parts += ["", "## Wanted and found", "", *targets_table(records)]
    parts += ceilings_section(records.get("ceilings", {}).get("result"))
    for name in ("profile", "profile-light"):
        parts += profile_section(name, records.get(name, {}).get("result"))
    data = benchmarks(records)
    if data["benchmarks"]:
        parts += ["", "## Ops and updates", "", render.render(data, "bench.json").rstrip()]
    parts += learning(records)
    return "\n".join(parts) + "\n"


def _date(records: Records) -> str:
    last = max(float(record["started"]) for record in records.values())
    return datetime.datetime.fromtimestamp(last, datetime.UTC).date().isoformat()


def steps_table(records: Records) -> list[str]:
    """Those of the list, then what else there is a record of."""
    rows = ["| step | what came of it | seconds, all attempts | what to look for |", "| --- | --- | --- | --- |"]
    looks = {step.name: step.look for step in STEPS}
    looks |= {name: str(record.get("look", "")) for name, record in records.items() if name not in looks}
    for name, look in looks.items():
        record = records.get(name)
        if record is None:
            rows.append(f"| {name} | not begun | | {look} |")
            continue
        status = _STATUS[record["status"]]
        if record["status"] == "missing":
            status += f": {record['reason']}"
        elif record["status"] == "failed":
            status += f", exit code {record['exit_code']}"
        rows.append(f"| {name} | {status} | {record.get('total_s', 0.0):.0f} | {look} |")
    return rows


def targets_table(records: Records) -> list[str]:
    """What a rehearsal finds was not wanted of a CPU, and counts as not measured."""
    rows = ["| what | wanted | found | | why so much |", "| --- | --- | --- | --- | --- |"]
    real = {name: record for name, record in records.items() if not record["rehearsal"]}
    for target in TARGETS:
        value = target.measure(real)
        found = "not measured" if value is None else _shown(value, target)
        verdict = "" if value is None else "met" if target.met(value) else "**MISS**"
        sign = "at least" if target.sense == ">=" else "at most"
        rows.append(
            f"| {target.what} | {sign} {_shown(target.wanted, target)} | {found} | {verdict} | {target.source} |"
        )
    return rows


def _shown(value: float, target: Target) -> str:
    if target.unit == "%":
        return f"{value:.0%}"
    digits = f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"
    return digits + (target.unit if target.unit in ("x", "/s", "") else f" {target.unit}")


def ceilings_section(result: Any) -> list[str]:
    """Both ceilings, each measured twice; empty where they were not."""
    if not isinstance(result, dict) or "again" not in result:
        return []
    rows = [
        f"| {name} | {first:,.4g} | {second:,.4g} | {result['again'][kind]:.3f} |"
        for name, kind, (first, second) in (
            ("matmul, TFLOP/s", "matmul", result["tflop_per_s"]),
            ("copy, GB/s read and written", "copy", result["gb_per_s"]),
        )
    ]
    return ["", "## Ceilings", "", "| | once | again | again over once |", "| --- | --- | --- | --- |", *rows]


def profile_section(name: str, result: Any) -> list[str]:
    """Seconds, memory and the largest rows of one update of each kind; empty where it was not made."""
    if not isinstance(result, dict) or "updates" not in result:
        return []
    peak = "not measured" if result["peak_gb"] is None else f"{result['peak_gb']:.2f} GB"
    head = f"{result['preset']}, {result['tasks']} tasks, batches {result['batching'] or 'of the preset'}"
    head += f", updates in parts: {result['task_groups']}. "
    head += f"Peak of memory {peak}, estimated {result['estimated_gb']:.2f} GB."
    lines = ["", f"## Where an update goes: {name}", "", head]
    for kind, update in result["updates"].items():
        busy = "" if update["busy_share"] is None else f", the GPU busy for {update['busy_share']:.0%} of it"
        lines += ["", f"**{kind}**: {update['seconds']:.4g} s{busy}; {update['calls']:,} calls.", "",
                  "| op | ms | share | calls |", "| --- | --- | --- | --- |"]  # fmt: skip
        lines += [
            f"| `{row['name']}` | {row['ms']:.2f} | {row['share']:.0%} | {row['calls']} |" for row in update["rows"]
        ]
    return lines


def learning(records: Records) -> list[str]:
    """Scores of the runs that were scored; a run that was stopped says how far it came."""
    parts = []
    for name in ("quickstart", "storm", "atari4", "atari4-scores"):
        record = records.get(name)
        if record is None or record["status"] == "missing":
            continue
        parts += ["", f"### {name}: {_STATUS[record['status']]}, {record.get('total_s', 0.0):.0f} s", "", "```"]
        parts += [*record.get("tail", "").rstrip().splitlines()[-14:], "```"]
    return ["", "## Learning", *parts] if parts else []


def benchmarks(records: Records) -> dict[str, Any]:
    """Every benchmark of the day in the form that bench.render takes."""
    newest = max(records.values(), key=lambda record: float(record["started"]))
    tuned = isinstance(records.get("ops-expert-tuned", {}).get("result"), list)
    found = [
        line
        for name, record in records.items()
        if isinstance(record.get("result"), list) and not (tuned and name == _BEFORE)
        for line in record["result"]
    ]
    commit = str(newest["machine"].get("commit", "unknown"))
    return {
        "machine_info": {"mow": newest["machine"]},
        "commit_info": {"id": commit.removesuffix("-dirty"), "dirty": commit.endswith("-dirty")},
        "datetime": _date(records),
        "benchmarks": [line for line in found if "median_us" in line["extra_info"]],
    }


def write_report(out: Path) -> str:
    """DIR/day.md and DIR/bench.json. Returns: the page."""
    records = read_records(out)
    text = page(records)
    (out / "day.md").write_text(text, encoding="utf-8")
    (out / "bench.json").write_text(json.dumps(benchmarks(records), indent=1) + "\n", encoding="utf-8")
    return text


def save(out: Path, results: Path = RESULTS) -> list[Path]:
    """Copy both among the results. Raises: ValueError if it was a rehearsal."""
    from bench.machine import stem

    records = read_records(out)
    if any(record["rehearsal"] for record in records.values()):
        raise ValueError(f"{out} is a rehearsal: only what a GPU did goes to {results}")
    device = next(iter(records.values()))["machine"]["device"]
    target = results / stem(device, _date(records))
    places = []
    for source, suffix in (("day.md", ".md"), ("bench.json", ".json")):
        place = target.with_name(target.name + suffix)
        place.write_text((out / source).read_text(encoding="utf-8"), encoding="utf-8")
        places.append(place)
    return places


def main(arguments: Sequence[str] | None = None, results: Path = RESULTS) -> int:
    """0, or 2 after one line that says what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_report", description="What a GPU day found.")
    parser.add_argument("out", type=Path, metavar="DIR", help="the --out of python -m bench.gpu_day")
    parser.add_argument("--save", action="store_true", help="put it among bench/results")
    asked = parser.parse_args(arguments)
    try:
        print(write_report(asked.out), end="")
        if asked.save:
            for path in save(asked.out, results):
                print(f"written: {path}")
    except ValueError as error:
        print(f"bench.gpu_report: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
