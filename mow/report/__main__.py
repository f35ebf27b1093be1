"""One HTML page about a run: mow report RUN [--beside RUN2 ...] [--out FILE]

Writes RUN/report.html, which needs no network: scores, learning curves, losses, time and config; for mow film strips of
real and imagined frames, experts and clusters; for a run from recorded episodes the data, and its scores beside those
of other runs. Missing records are named on the page. torch and matplotlib are imported after the command line is
parsed.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mow.cli.parse import Parser, check_range
from mow.errors import UsageError
from mow.methods.mow.config import MowConfig
from mow.report.data import Report, read_run
from mow.report.page import page
from mow.runs.failures import exit_code, keep_failure
from mow.system.console import program, say
from mow.system.shell import command, typed_path
from mow.system.whole_file import write_whole


@program("mow report")
def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 the page is written, 2 a mistake of the user (one line), 1 an error, 130 interrupted."""

    def run() -> None:
        options = read_arguments(sys.argv[1:] if arguments is None else arguments)
        given = {"checkpoint": options.checkpoint, "device": options.device, "num_windows": options.windows,
                 "beside": options.beside}  # fmt: skip
        say(f"report: {write_report(options.run_folder, options.out, **given)}")

    return exit_code("mow report", run)


def report_of_a_finished_run(folder: Path, device: str) -> str:
    """Write report.html. Returns: its path, or the reason why there is none, in a line: the run is whole without."""
    try:
        return f"look: {write_report(folder, device=device)}"
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the run has ended well
        if not isinstance(error, UsageError | KeyboardInterrupt):
            keep_failure(error, folder)
        why = " ".join(str(error).split()) or type(error).__name__
        return f"no report ({why}): {command('mow', 'report', folder)} makes it later"


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. Raises: UsageError in one line; SystemExit(0) after printing help."""
    about = "One HTML page about a run, made from its folder."
    parser = Parser(prog="mow report", description=about, allow_abbrev=False)
    parser.add_argument("run_folder", type=typed_path, metavar="RUN", help="folder that mow train wrote")
    about = "runs whose scores are compared with those of RUN; seeds of one config are averaged"
    parser.add_argument("--beside", type=typed_path, nargs="+", default=[], metavar="RUN2", help=about)
    parser.add_argument("--out", type=typed_path, help="page to write; default: RUN/report.html")
    parser.add_argument("--checkpoint", type=typed_path, help="of mow; default: the newest in RUN/checkpoints")
    about = "of play per task, for the films of mow; 0: none (%(default)s)"
    parser.add_argument("--windows", type=int, default=8, help=about)
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N; default: auto")
    found = parser.parse_args(arguments)
    check_range(found, 0, 10_000, "windows")
    if found.out is not None and (found.out.suffix != ".html" or not found.out.parent.is_dir()):
        raise UsageError(f"--out {found.out} must be a .html in an existing folder")
    return found


def write_report(
    folder: Path,
    out: Path | None = None,
    *,
    checkpoint: Path | None = None,
    device: str | None = None,
    num_windows: int = 8,
    beside: Sequence[Path] = (),
) -> Path:
    """Write the page of a run to `out` or folder/report.html, and print what it leaves out.

    Args:
        checkpoint: of mow; None: the newest one.
        device: of the films; None: auto, for the machine may not be that of the run.
        num_windows: of held-out play per task, for the films; 0: no films.
        beside: folders of runs whose scores are compared with this one's.
    Returns: the path of the page.
    Raises: UsageError in one line if a folder is no run, one beside has no scores of these tasks, or the page cannot
        be written.
    """
    from mow.report.model import read_model

    if missing := [path for path in (folder, *beside) if not os.path.isdir(path)]:
        raise UsageError(f"no folder {missing[0]}: name a run folder, as mow train printed it")
    try:
        run, *others = map(read_run, (folder, *beside))
    except ValueError as error:
        raise UsageError(str(error)) from error
    for other in others:
        if other.scores is None or not set(other.scores.tasks) & set(run.config.tasks):
            raise UsageError(f"--beside {other.folder} has no scores of {', '.join(run.config.tasks)}: leave it out, "
                             "or train it with --evaluation-episodes")
        if other.config.env.options != run.config.env.options:
            raise UsageError(f"--beside {other.folder} has another protocol or action set than {folder}: leave it out")
    model, no_model = None, ""
    if checkpoint is not None and not isinstance(run.config, MowConfig):
        raise UsageError(f"--checkpoint {checkpoint}: a page on {run.config.method} needs none, leave it out")
    try:
        if isinstance(run.config, MowConfig):
            model = read_model(
                folder, run.config, checkpoint=checkpoint, device=device or "auto", num_windows=num_windows
            )
    except UsageError as error:
        # Without its model the page is still of use, but not in place of a checkpoint or device that was named.
        if checkpoint is not None or device is not None:
            raise
        no_model = f"Nothing of the model: {error}."
    for remark in filter(None, (*run.remarks, no_model, model.no_films if model else "")):
        say(remark)
    path = out or folder / "report.html"
    try:
        write_whole(path, page(Report(run, model, no_model, tuple(others))))
    except OSError as error:
        raise UsageError(f"cannot write {error.filename} ({error.strerror}): name another place with --out") from error
    return path


if __name__ == "__main__":
    sys.exit(main())
