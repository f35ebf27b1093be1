"""Report of `python -m bench.gpu_day`: findings beside targets. Without a measurement a finding is "not measured"."""

import datetime
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench import render
from bench.machine import file_stem
from mow.methods.mow.presets import atari26

RESULTS = Path(__file__).resolve().parent / "results"
TABLES = Path(__file__).resolve().parents[1] / "kernels" / "tuned"
TARGET_SECONDS = 0.19  # of both updates of atari26
Records = dict[str, dict[str, Any]]  # step -> record
Lines = list[dict[str, Any]]  # timed benchmarks: nodeid, name, group, param, extra_info

# Benchmark, pattern of its shapes, their name, and targets: speedup over a peer, or a share of the floor or copy.
_LATENTS = {"distributions": 8.0, "lean, compiled": 1.2, "copy_share": 0.7}
OPS: tuple[tuple[str, str, str, dict[str, float]], ...] = (
    ("expert_linear test_forward", r"\bR1024\b", "1,024 rows", {"bmm": 1.2, "grouped_mm": 1.3, "floor_share": 0.6}),
    ("expert_linear test_forward", r"\bR(20|39|64)\b", "few rows", {"bmm": 2.0, "loop": 3.0, "floor_share": 0.35}),
    ("expert_linear test_matmul_alone", r"\bR1024\b", "1,024 rows", {"bmm": 0.85}),
    ("expert_linear test_gradient_of_input", r"\bR1024\b", "1,024 rows", {"bmm": 1.1}),
    ("expert_linear test_gradient_of_weight", r"\bR1024\b", "1,024 rows", {"bmm": 1.2}),
    ("sample_onehot test_(imagination|training)", "N26624", "26,624 states", _LATENTS),
    ("categorical_kl test_training", "N26624", "26,624 states", _LATENTS),
    ("two_hot test_loss", "452608", "452,608 rows", {"dense target": 10.0}),
    ("decode_attention test_step", "B1024", "1,024 rollouts", {"torch.cat": 2.5, "slices": 1.3}),
    ("replay test_windows_on_the_gpu", "", "26 games", {"copy_share": 0.7}),
)


@dataclass(frozen=True)
class Finding:
    """A measured number, or None, and its target."""

    what: str
    value: float | None
    sense: Literal[">=", "<="]
    target: float
    unit: str  # "x", "%" of a share, "s", "h", "/s" or ""

    def row(self) -> str:
        at_least, value = self.sense == ">=", self.value
        met = value is not None and (value >= self.target if at_least else value <= self.target)
        cells = self.what, f"at {'least' if at_least else 'most'} {self._text(self.target)}", self._text(value)
        return f"| {' | '.join(cells)} | {'met' if met else '' if value is None else '**MISS**'} |"

    def _text(self, value: float | None) -> str:
        if value is None:
            return "not measured"
        return f"{value:.0%}" if self.unit == "%" else f"{value:.3g} {self.unit}".rstrip()


def matching(lines: Lines, test: str, shape: str) -> list[dict[str, Any]]:
    """extra_info of the benchmarks whose "group name" and shape match."""
    named = ((f"{line['group']} {line['name'].split('[')[0]}", str(line["param"]), line) for line in lines)
    return [line["extra_info"] for name, param, line in named if re.fullmatch(test, name) and re.search(shape, param)]


def worst(infos: list[dict[str, Any]], key: str) -> float | None:
    """Least share `key`, or speedup over the peer of that name, of several shapes."""
    numbers = [info.get(key, info["peers"].get(key, {}).get("speedup")) for info in infos]
    return min((number for number in numbers if number is not None), default=None)


def ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def findings(records: Records, lines: Lines) -> list[Finding]:
    """All targets with what was measured."""
    found = []
    for test, shape, label, targets in OPS:
        for key, target in targets.items():
            share = key.endswith("_share")
            what = f"{test.replace('test_', '')}, {label}, {'of the ' + key[:-6] if share else 'against ' + key}"
            found.append(Finding(what, worst(matching(lines, test, shape), key), ">=", target, "%" if share else "x"))

    def seconds(tasks: int, peer: str = "", name: str = "(world_model|agent)") -> float | None:
        infos = matching(lines, f"train_step test_{name}", rf"\bK{tasks}\b")
        times = [info["peers"].get(peer, {}) if peer else info for info in infos]
        micros = [float(time["median_us"]) for time in times if "median_us" in time]
        return 1e-6 * sum(micros) if len(micros) == 1 + name.count("|") else None

    both, world_model, agent = (seconds(26, "", name) for name in ("(world_model|agent)", "world_model", "agent"))
    infos = matching(lines, "train_step test_(world_model|agent)", r"\bK26\b")
    rate = both and sum(info["tflop"] for info in infos) / both / infos[0]["ceilings"]["tflop_per_s"]
    config = atari26()
    whole = [config.world_model_updates * (world_model or 0.0), config.agent_updates * (agent or 0.0)]
    results = {name: record["result"] for name, record in records.items() if record.get("result")}
    memory = {name: ratio(one["peak_gb"], one["estimated_gb"]) for name, one in results.items() if "peak_gb" in one}
    robots = [1e6 * x["turn_steps"] / x["median_us"] / x["cores"] for x in matching(lines, "envs test_robots", "mt10")]
    compiled, score = seconds(26, "compiled", "world_model"), results.get("quickstart", {})
    return [
        *found,
        Finding("atari26, both updates, of the matmul rate", rate, ">=", 0.35, "%"),
        Finding("atari26, both updates", both, "<=", TARGET_SECONDS, "s"),
        Finding("atari26, updates of a whole run", both and sum(whole) / 3600, "<=", 6.0, "h"),
        Finding("against 26 updates of one task", ratio(seconds(26, "K updates of one task"), both), ">=", 4.0, "x"),
        Finding("against plain ops", ratio(seconds(26, "plain ops"), both), ">=", 2.0, "x"),
        Finding("world model against torch.compile", ratio(compiled, world_model), ">=", 1.3, "x"),
        Finding("50 tasks over 26", ratio(seconds(50), both), "<=", 1.1 * 50 / 26, "x"),
        Finding("peak memory over its estimate", memory.get("profile"), "<=", 1.15, "x"),
        Finding("the same, light batches in four parts", memory.get("profile-light"), "<=", 1.15, "x"),
        Finding("quickstart, mean normalised score", score.get("mean_normalised"), ">=", 0.9, ""),
        Finding("quickstart", score.get("wall_seconds"), "<=", 600.0, "s"),
        Finding("Meta-World, rendered steps per second and core", min(robots, default=None), ">=", 130.0, "/s"),
    ]  # fmt: skip


def decisive(records: Records) -> list[str]:
    """The lines that decide the next step: failing kernels, then how far an update is from its target, and why."""
    results, lines = {name: one["result"] for name, one in records.items() if one.get("result")}, []
    if (kernels := records.get("tests-kernels", {})).get("tail"):
        lines.append(f"kernels: {kernels['status']}; {kernels['tail'].strip().splitlines()[-1]}")
    for name in ("profile", "profile-graph"):
        updates = results.get(name, {}).get("updates", {})
        for kind, one in updates.items():
            busy = "" if one["busy_share"] is None else f", device busy {one['busy_share']:.0%}"
            largest = one["rows"][0]
            lines.append(f"{name}, {kind}: {one['seconds'] * 1e3:.0f} ms{busy}; most of it {largest['name'][:50]} "
                         f"({largest['share']:.0%}, {largest['calls']} calls)")  # fmt: skip
        if {"world model", "agent"} <= updates.keys():
            both = updates["world model"]["seconds"] + updates["agent"]["seconds"]
            lines.append(f"{name}: both updates {both:.3f} s, {both / TARGET_SECONDS:.1f} times the target")
    return lines


def read_records(out: Path) -> Records:
    """Records by step; empty where there are none. Raises: ValueError where day.json is damaged."""
    path = out / "day.json"
    try:
        records = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return {name: dict(record, status=record["status"]) for name, record in records.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): delete it, or give another folder") from error


def run_of(out: Path, records: Records) -> dict[str, Any]:
    """The day as a run for bench.render; of a benchmark timed before and after tuning, the second."""
    newest = max(records.values(), key=lambda record: float(record.get("started", 0.0)))
    machine = newest.get("machine", {})
    commit = str(machine.get("commit", "unknown"))
    texts = [path.read_text(encoding="utf-8") for path in sorted(out.glob("ops*.jsonl"), reverse=True)]  # tuned last
    lines = [json.loads(line) for text in texts for line in text.splitlines()]
    return {
        "machine_info": {"mow": machine},
        "commit_info": {"id": commit.removesuffix("-dirty"), "dirty": commit.endswith("-dirty")},
        "datetime": datetime.datetime.fromtimestamp(newest.get("started", 0.0), datetime.UTC).date().isoformat(),
        "benchmarks": list({line["nodeid"]: line for line in lines}.values()),
    }


def page(out: Path, records: Records) -> str:
    """day.md: machine, steps, targets, ops, and the end of the output of steps that have a result or failed."""
    run = run_of(out, records)
    machine, lines = run["machine_info"]["mow"], run["benchmarks"]
    facts = [f"{name} {machine[name]}" for name in ("torch", "triton", "cuda", "driver", "commit") if machine.get(name)]
    parts = [f"# GPU day: {machine.get('device')}, {run['datetime']}", "", ", ".join(facts), ""]
    parts += [f"- {line}" for line in decisive(records)] + [""]
    parts += ["| step | status | seconds | what to look for |", "| --- | --- | --- | --- |"]
    parts += [f"| {name} | {one['status']} | {one['seconds']:.0f} | {one['look']} |" for name, one in records.items()]
    parts += ["", "## Targets and findings", "", "| what | target | finding | |", "| --- | --- | --- | --- |"]
    parts += [finding.row() for finding in findings(records, lines)]
    if lines:
        parts += ["", "## Ops and updates", "", render.render(run, "FILE").rstrip()]
    for name, one in records.items():
        if one.get("result") or one["status"] in ("failed", "missing"):
            parts += ["", f"## {name}: {one['status']}", "", "```", *one["tail"].splitlines()[-40:], "```"]
    return "\n".join(parts) + "\n"


def write_report(out: Path, records: Records) -> None:
    """Write day.json, day.md and, where a table of tilings was timed, tuned.json."""
    new = out / "day.new"
    new.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    new.replace(out / "day.json")
    tables = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(TABLES.glob("*.json"))}
    if timed := {name: table for name, table in tables.items() if table.get("timed")}:
        (out / "tuned.json").write_text(json.dumps(timed, indent=1) + "\n", encoding="utf-8")
    (out / "day.md").write_text(page(out, records), encoding="utf-8")


def save(out: Path, results: Path = RESULTS) -> None:
    """Write the page and the benchmarks to bench/results/<gpu>-<date>. Raises: ValueError where no step was run."""
    if not (records := read_records(out)):
        raise ValueError(f"{out} has no day.json: run python -m bench.gpu_day --out {out}")
    run = run_of(out, records)
    place = results / file_stem(str(run["machine_info"]["mow"].get("device")), run["datetime"])
    for suffix, content in ((".md", page(out, records)), (".json", json.dumps(run, indent=1) + "\n")):
        place.with_name(place.name + suffix).write_text(content, encoding="utf-8")
        print(f"wrote {place}{suffix}")
