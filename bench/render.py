"""python -m bench.render FILE: the table of a run of `python -m bench`, in Markdown.

    python -m bench.render bench/results/nvidia-h200-2027-01-31.json            print it
    python -m bench.render bench/results/nvidia-h200-2027-01-31.json --write    put it into kernels/README.md

A run on a CPU is printed under the title "CPU numbers" and never written there.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

README = Path(__file__).resolve().parents[1] / "kernels" / "README.md"
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"


def load(path: Path) -> dict[str, Any]:
    """The JSON of a run. Raises: ValueError if it is none."""
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not any("median_us" in bench["extra_info"] for bench in data["benchmarks"]):
            raise ValueError("no benchmark in it was timed")
        data["machine_info"]["mow"]["kind"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is no run of python -m bench ({reason}): make one and give its file") from error
    return data


def is_cpu(data: dict[str, Any]) -> bool:
    return bool(data["machine_info"]["mow"]["kind"] != "cuda")


def render(data: dict[str, Any], file: str) -> str:
    """Machine, date and commit of a run, then one row per benchmark."""
    machine, commit = data["machine_info"]["mow"], data.get("commit_info", {})
    timed = [bench for bench in data["benchmarks"] if "median_us" in bench["extra_info"]]
    ceilings = timed[0]["extra_info"]["ceilings"]
    place = f"{machine['device']}, torch {machine['torch']}, triton {machine['triton']}"
    title = f"**CPU numbers** ({machine['threads']} threads, small shapes, plain PyTorch; nothing follows for a GPU)"
    if not is_cpu(data):
        title, place = "**GPU numbers**", f"{place}, CUDA {machine['cuda']}, driver {machine['driver']}"
    version = str(commit.get("id", "unknown"))[:7] + (" with changes" if commit.get("dirty") else "")
    return "\n".join([
        f"{title}: {place}, commit {version}, {str(data.get('datetime', 'no date'))[:10]}.",
        f"`python -m bench`, then `python -m bench.render {file}`. Medians of device time; floor and shares against a "
        f"matmul of {ceilings['tflop_per_s']:.3g} TFLOP/s and a copy of {ceilings['gb_per_s']:.4g} GB/s measured in "
        "the same run. Noise is what an op gained on itself.",
        "",
        "| op | shape | µs | floor µs | of floor | rate | against | noise |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_row(bench) for bench in sorted(timed, key=lambda bench: (bench["group"], bench["name"]))),
    ]) + "\n"  # fmt: skip


def _row(bench: dict[str, Any]) -> str:
    info = bench["extra_info"]
    what = bench["name"].removeprefix("test_").split("[")[0].replace("_", " ")
    by_matmul = info["matmul_share"] > info["copy_share"]
    rate = f"{info['tflop_per_s']:.3g} TFLOP/s" if by_matmul else f"{info['gb_per_s']:.3g} GB/s"
    peers = sorted(info["peers"].items(), key=lambda peer: peer[1]["speedup"])  # the strongest first
    against = ", ".join(f"{name} {peer['speedup']:.2f}x" for name, peer in peers)
    op = f"`{bench['group']}` {what} ({info['backend']})"
    times = f"{info['median_us']:.1f} | {info['floor_us']:.1f} | {info['floor_share']:.0%}"
    return f"| {op} | {bench['param']} | {times} | {rate} | {against} | {info['noise']:.2f}x |"


def write(data: dict[str, Any], file: str, readme: Path) -> None:
    """Replace the text between the markers.

    Raises: ValueError if the numbers are a CPU's, or the file has not exactly one pair of markers.
    """
    if is_cpu(data):
        raise ValueError(f"{file} holds CPU numbers and the page shows GPU numbers: run python -m bench on a GPU")
    parts = re.split(f"{BEGIN}|{END}", text := readme.read_text(encoding="utf-8"))
    if len(parts) != 3 or not text[len(parts[0]) :].startswith(BEGIN) or not text.endswith(END + parts[2]):
        raise ValueError(
            f"{readme} needs one line {BEGIN} and, after it, one line {END}: put them where the table goes"
        )
    readme.write_text(f"{parts[0]}{BEGIN}\n{render(data, file)}{END}{parts[2]}", encoding="utf-8")


def main(arguments: list[str], readme: Path = README) -> int:
    """Exit code: 0, or 2 after one line with the mistake."""
    parser = argparse.ArgumentParser(prog="python -m bench.render", description="The table of a benchmark run.")
    parser.add_argument("file", type=Path, help="JSON that python -m bench wrote")
    parser.add_argument("--write", action="store_true", help="put it into kernels/README.md instead of printing it")
    options = parser.parse_args(arguments)
    try:
        data = load(options.file)
        name = options.file.resolve()
        shown = str(name.relative_to(readme.parent) if name.is_relative_to(readme.parent) else options.file)
        if options.write:
            write(data, shown, readme)
        else:
            print(render(data, shown), end="")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
