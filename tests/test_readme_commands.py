"""Every command of README.md and of the pages of the rooms runs, on the smallest model and task that it can have.

A command that is added there needs a row here: what makes it small, or why it cannot run in a test.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mow import train
from mow.cli.command import COMMANDS, main
from tests.test_train import DUMMY

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "kernels/README.md", *sorted((ROOT / "mow").rglob("README.md"))]
RUN = "runs/quickstart-20270101-120000-seed0"

TASKS, MODEL = tuple(DUMMY[:3]), tuple(DUMMY[3:])  # which tasks, and all that makes a run small
GRID = ("--tasks", "dummy:count-0", "dummy:slide", "--folder", "grid", "--", *MODEL, "--evaluation-episodes", "1")

# What is added to a command (later flags win), or what it becomes. Words of the command that it replaces are left out.
SMALL: dict[str, tuple[str, ...]] = {
    "python -m mow.train": ("quickstart", *TASKS, *MODEL),
    "python -m mow.train atari4 --total-steps 600": ("atari4", *MODEL),
    "python -m mow.train storm --tasks atari:Breakout --seed 1": ("storm", "--tasks", "atari:Breakout", *MODEL),
    "python -m mow.train quickstart --clustering.method single": (
        "quickstart", *TASKS, *MODEL, "--clustering.method", "single",
    ),
    "python -m mow.train quickstart --tasks atari:Krull atari:RoadRunner": (
        # An evaluation takes minutes.
        "quickstart", "--tasks", "atari:Krull", "atari:RoadRunner", *MODEL, "--evaluation-episodes", "0",
    ),
    "python -m mow.train ablation_no_experts": ("ablation_no_experts", *TASKS, *MODEL),
    f"python -m mow.train --resume {RUN}": ("--resume", RUN),
    f"python -m mow.train --resume {RUN}/checkpoints/step_00004000.pt": (
        "--resume", f"{RUN}/checkpoints/step_00000011.pt",
    ),
    "python -m mow.train mixed --tasks mt10 dmc:walker-walk tiny5": ("mixed", "--tasks", "tiny5", *MODEL),
    "python -m mow.train atari26 --dry-run": ("quickstart", *TASKS, *MODEL, "--dry-run"),
    "mow envs": (),
    "mow envs --preview atari26 out.png": ("--preview", "dummy:count", "out.png"),
    "mow envs --protocol": ("--protocol",),
    "python -m mow.envs.tiny": (),
    "python -m mow.envs.vec": (),
    f"mow film {RUN}": (RUN, "--windows", "1"),
    "mow ablate --methods mow storm_multitask_wide no_experts --seeds 3": (
        "--methods", "mow", "storm_multitask_wide", "no_experts", "--seeds", "1", *GRID,
    ),
    "mow ablate --methods mow storm_multitask storm --seeds 3": (
        "--methods", "mow", "storm_multitask", "storm", "--seeds", "1", *GRID,
    ),
    "mow ablate": ("--methods", "mow", "--seeds", "1", *GRID),
    "mow ablate --table-only": ("--table-only", "--folder", "grid"),
    "mow evaluate runs/a/seed-0 runs/a/seed-1 --episodes 20 --video 2": (
        RUN, "--episodes", "1", "--video", "1",
    ),
    "mow export RUN": (RUN,),
    "mow doctor": (),
    "mow collect vec:lq vec:reach --out data --episodes 300 --policy mixed": (
        "vec:lq", "vec:reach", "--out", "data", "--episodes", "2", "--policy", "mixed",
    ),
    "mow report runs/NAME": (RUN, "--windows", "0"),
}  # fmt: skip

EXEMPT = {
    "pip install": "changes the machine",
    "python -m pytest": "is what runs this",
    "python -m bench": "needs a GPU, or minutes of a quiet machine: tests/test_bench.py has its parts",
    "python -m mow.train PRESET": "is a pattern, of which others are instances",
    "mow --help": "tests/cli/test_command.py has it",
    "python -m mow COMMAND": "is a pattern",
    "mow COMMAND": "is a pattern",
    "mow collect TASK": "is a pattern",
    "mow report RUN --beside": "tests/report/test_recorded.py has it",
    "mow train pwm": "tests/methods/pwm/test_runs.py has it, small",
    "mow export RUN --precision": "tests/methods/pwm/test_export.py has it",
    "mow extract": "tests/methods/pwm/test_runs.py has it",
    "mow distill": "tests/methods/pwm/test_runs.py has it",
}

QUICK = ("python -m mow.train", f"python -m mow.train --resume {RUN}", "mow report runs/NAME")


def commands(text: str) -> list[str]:
    """Of the fenced blocks, line by line, and of the text between backquotes that is a command."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            found += [part.strip() for part in line.partition(" #")[0].split("&&")]
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    found += [" ".join(words.split()) for words in re.findall(r"`((?:python -m|mow)\s[^`]+)`", prose)]
    return [command for command in dict.fromkeys(found) if command]


def without_a_row(text: str) -> list[str]:
    known = {re.sub(r"runs/\S+", "RUN", one) for one in SMALL} | {" ".join(one.split()[:2]) for one in SMALL}
    known |= {f"{one} RUN" for one in known}
    return [
        one
        for one in commands(text)
        if one not in {*SMALL, *known, "mow train"} and not one.startswith(tuple(EXEMPT))
    ]


def test_every_command_has_a_row() -> None:
    assert without_a_row("\n\n".join(page.read_text(encoding="utf-8") for page in PAGES)) == []


def test_a_command_without_a_row_is_found() -> None:
    fenced = "```bash\npip install x && python -m mow.new  # new\nmow doctor\n```\n"
    text = f"{fenced}and `mow\nnewer RUN`"
    assert without_a_row(text) == ["python -m mow.new", "mow newer RUN"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run: a small finished run lies there."""
    root = tmp_path_factory.mktemp("readme")
    kept = ["--checkpoint-every", "3", "--keep-checkpoints", "9"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert train.main(["quickstart", *DUMMY, *kept, "--folder", RUN]) == 0
    assert (root / RUN / "checkpoints" / "step_00000011.pt").exists()  # a row above names it
    return root


@pytest.mark.parametrize(
    "command", [one if one in QUICK else pytest.param(one, marks=pytest.mark.slow) for one in SMALL]
)
def test_a_command_runs(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    name = command.split()[1] if command.startswith("mow ") else command.split()[2].removeprefix("mow.")
    words = list(SMALL[command])
    if name == "export":
        words += ["--out", f"export-{len(list(folder.glob('export-*')))}"]
    if name == "train" and "--resume" not in words:
        words += ["--folder", f"runs/new-{len(list(folder.glob('runs/new-*')))}"]
    if name in COMMANDS:
        assert main([name, *words]) == 0
        return
    done = subprocess.run([sys.executable, "-m", f"mow.{name}", *words], capture_output=True, text=True, check=False,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 0, done.stderr
