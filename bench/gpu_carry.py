"""What a GPU day carries home, in at most eight files of at most 16 MB, and how it goes on from them elsewhere.

day.json                 every record: commands, exit codes, machine, numbers, the end of each output
day.md, bench.json       the numbers beside what was wanted; the benchmarks as bench.render takes them
tuned.json               kernels/tuned/<class>.json of each class that was timed there: to be committed
atari4-metrics.jsonl.gz  the curves of the long run
atari4.html, quickstart.html   their reports; curves, films, clusters
logs.tar.gz              all that was said
"""

import gzip
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.gpu_runner import ROOT
from bench.gpu_steps import Step

MAX_BYTES = 16_000_000
_TABLES = ROOT / "kernels" / "tuned"
_PAGES = {"atari4.html": "runs/atari4/report.html", "quickstart.html": "runs/quickstart/report.html"}


def pack(out: Path, back: Path, tables: Path = _TABLES) -> list[str]:
    """Fill `back` with what there is. Returns: a line per file, also for those that are too large and left out."""
    back.mkdir(parents=True, exist_ok=True)
    contents: dict[str, bytes] = {"day.json": _json([_read(path) for path in sorted((out / "steps").glob("*.json"))])}
    for name in ("day.md", "bench.json"):
        if (out / name).is_file():
            contents[name] = (out / name).read_bytes()
    timed = {path.name: table for path in sorted(tables.glob("*.json")) if (table := _read(path)).get("timed")}
    if timed:
        contents["tuned.json"] = _json(timed)
    curves = out / "runs" / "atari4" / "metrics.jsonl"
    if curves.is_file():
        contents["atari4-metrics.jsonl.gz"] = gzip.compress(curves.read_bytes())
    for name, place in _PAGES.items():
        if (out / place).is_file():
            contents[name] = (out / place).read_bytes()
    if (out / "logs").is_dir():
        contents["logs.tar.gz"] = _archive(out / "logs")
    said = []
    for name, content in contents.items():
        if len(content) > MAX_BYTES:
            (back / name).unlink(missing_ok=True)
            said.append(f"left out: {name} has {len(content):,} bytes, more than {MAX_BYTES:,}")
        else:
            (back / name).write_bytes(content)
            said.append(f"to carry home: {back / name}, {len(content):,} bytes")
    return said


def unpack(back: Path, out: Path, steps: Sequence[Step], tables: Path = _TABLES) -> None:
    """Put records, kept benchmarks and tuned tables where a call looks for them; training runs are not among them.

    Raises: ValueError if `back` holds no day, or `out` holds one already.
    """
    path = back / "day.json"
    if not path.is_file():
        raise ValueError(f"no {path}: give --from the folder that an earlier call filled with --back")
    if (out / "steps").exists():
        raise ValueError(f"{out} holds a day already: leave --from out to go on with it, or give another --out")
    kept = {step.name: step for step in steps}
    (out / "steps").mkdir(parents=True)
    for record in _read(path):
        step = kept.get(record["name"])
        (out / "steps" / f"{record['name']}.json").write_bytes(_json(record))
        if step is not None and step.kind == "lines" and isinstance(record.get("result"), list):
            lines = (json.dumps(line) + "\n" for line in record["result"])
            (out / step.result).write_text("".join(lines), encoding="utf-8")
    if (back / "tuned.json").is_file():
        for name, table in _read(back / "tuned.json").items():
            if (tables / name).name == name and (tables / name).is_file():
                write = {key: value for key, value in table.items() if key != "rows"}
                _write_table(tables / name, write, table["rows"])


def _write_table(path: Path, evidence: dict[str, object], rows: Sequence[dict[str, object]]) -> None:
    from bench.tune_expert_linear import write_table

    write_table(path, evidence, rows)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def _archive(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(folder, arcname="logs")
    return buffer.getvalue()
