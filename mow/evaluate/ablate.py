"""Baselines and ablations of a preset: mow ablate [--help]

Trains a grid of methods and seeds, one process per run, then writes table.md, table.json and scores.png. The same
command continues a grid that was stopped. Every run is `python -m mow.train PARENT` with the overrides that turn the
parent preset into the method (see mow.evaluate.ablation_grid), so that any of them can be repeated by hand.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mow.cli.parse import Parser, check_range, parse
from mow.errors import UsageError, nearest
from mow.evaluate.ablation_grid import check_same, plan, run_all, unfinished
from mow.evaluate.ablation_table import draw_scores, read_results, rows_of, write_table
from mow.evaluate.tables import number
from mow.methods.mow.ablations import METHODS, meaning, variants
from mow.methods.mow.config import MowConfig, of_mow
from mow.methods.mow.presets import PRESETS
from mow.methods.registry import read_config
from mow.runs.disk import folder_to_write
from mow.runs.failures import exit_code
from mow.system.console import program, say
from mow.system.shell import typed_path
from mow.system.whole_file import write_json


@program("mow ablate")
def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 all runs are finished, 1 some failed, 2 a mistake of the user (one line), 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return exit_code("mow ablate", lambda: _ablate(words))


def _ablate(arguments: list[str]) -> int:
    options, extra = _read_arguments(arguments)
    root: Path = options.folder
    if options.table_only:
        return _tabulate(root)
    check_range(options, 1, 1000, "seeds", "jobs")
    parent = parent_config(options.preset, options.tasks, options.total_steps, extra)
    jobs = plan(parent, chosen_methods(parent, options.methods), options.seeds, root)
    _claim(root, parent)
    left = unfinished(jobs)
    say(f"{len(jobs)} runs in {root}, {len(jobs) - len(left)} finished already, {len(left)} to go")
    failed = run_all(left, at_once=options.jobs)
    if failed:
        say(f"{failed} of {len(left)} runs failed; the same command tries them again")
    return max(_tabulate(root), int(failed > 0))


def parent_config(preset: str, tasks: Sequence[str] | None, total_steps: int | None, extra: Sequence[str]) -> MowConfig:
    """The config that the methods change. Raises: UsageError if it is not valid or plays no episodes for scores."""
    if preset not in PRESETS:
        raise UsageError(f"unknown preset {preset!r}: {nearest(preset, PRESETS)}")
    words = [preset, *(["--tasks", *tasks] if tasks else [])]
    words += ["--total-steps", str(total_steps)] if total_steps is not None else []
    parent, base = of_mow(parse([*words, *extra])), PRESETS[preset]()
    if (parent.seed, parent.folder) != (base.seed, base.folder):
        raise UsageError("--seed and --folder of the runs are set by the grid: use --seeds and --folder before the --")
    if parent.evaluation_episodes == 0:
        raise UsageError(f"{preset} plays no episodes for a score: add -- --evaluation-episodes 30")
    return parent


def chosen_methods(parent: MowConfig, named: Sequence[str] | None) -> list[str]:
    """The named methods, or all that apply to the parent; the others are printed with the reason.

    Raises: UsageError for a named method that is unknown or does not apply.
    """
    for name in named or ():
        if name not in METHODS:
            raise UsageError(f"unknown method {name!r}: {nearest(name, METHODS)}")
    chosen = []
    for name in dict.fromkeys(named or METHODS):
        try:
            variants(parent, name)
        except ValueError as error:
            if named:
                raise UsageError(str(error)) from error
            say(f"left out: {error}")
            continue
        chosen.append(name)
    return chosen


def _read_arguments(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse the words before `--`. Returns: they, and the words after it, which override fields of the parent."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    parser = Parser(
        prog="mow ablate",
        usage="mow ablate [--methods NAME ...] [--seeds N] [...] [-- --field VALUE ...]",
        description="Train baselines and ablations of a preset and compare them; a stopped grid is continued.",
        epilog="Words after -- override fields of the preset, in every run: -- --evaluation-episodes 10",
        allow_abbrev=False,
    )
    parser.add_argument("--preset", default="quickstart", help="the parent (default: quickstart)")
    parser.add_argument("--tasks", nargs="+", help="tasks, or sets of them such as tiny5 (default: the preset's)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N - 1 (default: 3)")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help=f"some of {', '.join(METHODS)} (default: all)")
    parser.add_argument("--folder", type=typed_path, default="runs/ablate", help="default: runs/ablate")
    parser.add_argument("--total-steps", type=int, help="environment steps per task (default: those of the preset)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; they share the cores (default: 1)")
    parser.add_argument("--table-only", action="store_true", help="table and plot from what is in --folder, no runs")
    return parser.parse_args(arguments[:at]), arguments[at + 1 :]


def _claim(root: Path, parent: MowConfig) -> None:
    """Write the parent to parent.json. Raises: UsageError if the folder has another parent, or holds no grid."""
    path = root / "parent.json"
    if path.exists():
        check_same(path, parent)
        return
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UsageError(f"{root} holds something else than a grid of runs: give another --folder")
    folder_to_write(root, "--folder")
    write_json(path, asdict(parent))


def _tabulate(root: Path) -> int:
    """Write table and plot of all finished runs in the folder. Returns: the exit code, 1 if there is none."""
    if not (root / "parent.json").exists():
        raise UsageError(f"{root} holds no grid of runs (no parent.json): give the --folder of one")
    try:
        parent = read_config(root / "parent.json")
    except ValueError as error:
        raise UsageError(str(error)) from error
    results, left_out = read_results(root, parent.tasks)
    for line in left_out:
        say(line)
    if not results:
        say(f"no finished run in {root}: no table")
        return 1
    rows = rows_of(results)
    title = f"{parent.preset}: {len(parent.tasks)} tasks, {parent.total_steps:,} steps per task"
    write_table(root, rows, title=title, meanings={name: meaning(name) for name in METHODS})
    for row in rows:
        mean = number(row.scores["mean"].value) if row.scores else "-"
        say(f"{row.method:<24}{mean:>6}  seeds: {len(row.seeds)}")
    say(f"table: {root / 'table.md'} and table.json")
    if rows[0].scores:  # some task has returns to normalise with
        draw_scores(root / "scores.png", rows, title=title)
        say(f"plot: {root / 'scores.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
