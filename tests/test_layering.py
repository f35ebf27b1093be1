"""Imports point down only; no room without a subject; no file that nobody can read at a sitting."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What each room may import from mow, besides itself: a room is a folder of mow/, or a file beside them.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "batch": set(),
    "system": set(),
    "config": set(),
    "kernels": set(),
    "losses": {"kernels"},
    "envs": {"system"},
    "replay": {"_C", "batch", "system"},
    "offline": {"_C", "batch", "envs", "errors", "replay", "system"},
    "nn": {"envs", "kernels"},
    "methods": {"batch", "config", "envs", "errors", "kernels", "losses", "nn", "system"},
    "runs": {"__version__", "config", "envs", "errors", "methods", "nn", "replay", "system"},
    "estimate": {"batch", "config", "kernels", "methods", "nn", "replay", "runs", "system"},
    "engine": {"batch", "config", "envs", "errors", "estimate", "kernels", "methods", "nn", "offline", "replay", "runs",
               "system"},
    "cli": {"__version__", "_C", "config", "engine", "envs", "errors", "estimate", "methods", "replay", "runs",
            "system"},
    "inference": {"cli", "config", "engine", "envs", "errors", "kernels", "methods", "runs", "system"},
    "evaluate": {"batch", "cli", "config", "engine", "envs", "errors", "kernels", "methods", "runs", "system"},
    "report": {"cli", "config", "engine", "envs", "errors", "evaluate", "kernels", "methods", "offline",
               "runs", "system"},
    "collect": {"cli", "config", "envs", "errors", "offline", "runs", "system"},
    "distill": {"cli", "engine", "extract", "methods", "runs", "system", "train"},
    "extract": {"cli", "engine", "errors", "methods", "offline", "runs", "system", "train"},
    "train": {"cli", "config", "engine", "envs", "errors", "estimate", "report", "runs", "system"},
    "__init__": {"inference"},
    "__main__": {"cli"},
}  # fmt: skip

# Files that answer before torch could be loaded (over a second): all of these rooms, and these files of others.
WITHOUT_TORCH = ("errors", "config", "envs", "system", "cli", "train", "__main__")
FILES_WITHOUT_TORCH = {
    "mow/engine/device.py", "mow/estimate/flops.py", "mow/evaluate/__main__.py",
    "mow/evaluate/aggregates.py", "mow/evaluate/tables.py", "mow/evaluate/video.py",
    "mow/inference/export.py", "mow/inference/model_card.py", "mow/methods/mow/ablations.py",
    "mow/methods/mow/presets.py", "mow/collect.py", "mow/offline/behaviours.py", "mow/offline/collect.py",
    "mow/offline/files.py", "mow/offline/minari_data.py", "mow/report/__main__.py", "mow/report/charts.py",
    "mow/report/data.py",
    "mow/report/html.py", "mow/report/method_mow.py", "mow/report/method_pwm.py", "mow/report/page.py",
    "mow/report/recorded.py", "mow/report/sections.py",
    "mow/runs/disk.py", "mow/runs/failures.py", "mow/runs/folder.py", "mow/runs/paths.py",
    "mow/runs/provenance.py", "mow/runs/restore.py",
}  # fmt: skip

FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "misc", "tools"}
FOLDERS = ("mow", "kernels", "csrc", "bench", "tests")
SUFFIXES = {".py", ".pyi", ".cpp", ".h", ".cu", ".cuh"}
MAX_LINES = 400


def sources(root: Path) -> Iterator[tuple[Path, str]]:
    """(file, dotted name) of all Python files of mow, kernels/ under its name in mow."""
    for folder, package in (("mow", "mow"), ("kernels", "mow.kernels")):
        for path in sorted((root / folder).rglob("*.py")):
            inside = path.relative_to(root / folder)
            # The link mow/kernels leads to kernels/, which has its own turn.
            if folder == "mow" and inside.parts[0] == "kernels":
                continue
            yield path, ".".join((package, *inside.with_suffix("").parts))


def room_of(module: str) -> str:
    """mow.methods.mow.router -> models; mow itself -> __init__."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imported_modules(tree: ast.AST, module: str) -> Iterator[str]:
    """Every module named by an import anywhere in the file, relative ones resolved against `module`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            found = ".".join([*base, *([node.module] if node.module else [])])
            # `from mow import envs` names a room, `from mow.envs import make` names it already.
            yield from (f"{found}.{alias.name}" for alias in node.names) if found == "mow" else (found,)


def illegal_imports(root: Path) -> list[str]:
    """One line per room that imports what it may not."""
    found = []
    for path, module in sources(root):
        room = room_of(module)
        if room not in MAY_IMPORT:
            found.append(f"{path.relative_to(root)}: {room} is no room: give it a row in MAY_IMPORT")
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {name for name in imported_modules(tree, module) if name.split(".")[0] in ("mow", "kernels")}
        rooms = {"the link's target" if name.startswith("kernels") else room_of(name) for name in names}
        illegal = rooms - MAY_IMPORT[room] - {room}
        if illegal:
            found.append(
                f"{path.relative_to(root)}: {room} may not import {', '.join(sorted(illegal))}: "
                "move the code down a room or pass the value in"
            )
    return found


def imported_on_loading(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Import statements that run when the file is loaded: not those in functions or under TYPE_CHECKING."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from imported_on_loading(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for name in ("body", "orelse", "finalbody"):
                yield from imported_on_loading(getattr(node, name, []))
            for handler in getattr(node, "handlers", []):
                yield from imported_on_loading(handler.body)


def early_torch(root: Path) -> list[str]:
    found = []
    for path, module in sources(root):
        if room_of(module) in WITHOUT_TORCH or str(path.relative_to(root)) in FILES_WITHOUT_TORCH:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in imported_on_loading(tree.body):
                names = {name.split(".")[0] for name in imported_modules(node, module)}
                if "torch" in names:
                    found.append(f"{path.relative_to(root)}:{node.lineno} loads torch: import it where it is used")
    return found


def bad_names(root: Path) -> list[str]:
    files = (path for folder in FOLDERS for path in sorted((root / folder).rglob("*")))
    return [
        f"{path.relative_to(root)}: name it after what it knows"
        for path in files
        if path.stem.removeprefix("test_") in FORBIDDEN_NAMES and (path.is_dir() or path.suffix in SUFFIXES)
    ]


def long_files(root: Path) -> list[str]:
    found = []
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if folder != "tests" and path.suffix in SUFFIXES:
                lines = len(path.read_text(encoding="utf-8").splitlines())
                if lines > MAX_LINES:
                    found.append(f"{path.relative_to(root)}: {lines} lines, at most {MAX_LINES}: split it by idea")
    return found


@pytest.mark.parametrize("rule", [illegal_imports, early_torch, bad_names, long_files])
def test_the_house_is_in_order(rule: Callable[[Path], list[str]]) -> None:
    assert rule(ROOT) == []


def test_the_rules_see_the_house() -> None:
    rooms = {room_of(module) for _, module in sources(ROOT)}
    assert rooms == set(MAY_IMPORT), "a row without a room, or a room without a row"
    assert all((ROOT / name).is_file() for name in FILES_WITHOUT_TORCH)


def circles(imports: dict[str, set[str]]) -> list[str]:
    """Names that lead back to themselves."""

    def reached(name: str) -> set[str]:
        found: set[str] = set()
        ahead = [name]
        while ahead:
            for other in imports.get(ahead.pop(), set()) - found:
                found.add(other)
                ahead.append(other)
        return found

    return sorted(name for name in imports if name in reached(name))


def test_no_two_rooms_import_each_other() -> None:
    assert circles(MAY_IMPORT) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c"]


def test_no_two_files_import_each_other() -> None:
    files = {module.removesuffix(".__init__"): path for path, module in sources(ROOT)}
    imports: dict[str, set[str]] = {}
    for module, path in files.items():
        found = imports.setdefault(module, set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {f"{node.module}.{a.name}" for a in node.names} & set(files) or {node.module} & set(files)
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names} & set(files)
    assert circles(imports) == []


def plant(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "text", "illegal"),
    [
        ("mow/nn/a.py", "from mow.runs.paths import step_of", "runs"),
        ("mow/nn/a.py", "import mow.losses.returns", "losses"),
        ("mow/nn/a.py", "import torch, mow.engine.trainer as trainer", "engine"),
        ("mow/losses/a.py", "def f():\n    from mow import replay", "replay"),
        ("mow/losses/a.py", "from ..methods import mow", "methods"),
        ("mow/losses/deep/a.py", "from ...methods.mow.router import Routing", "methods"),
        ("mow/losses/a.py", "from .. import clustering", "clustering"),
        ("mow/losses/__init__.py", "from ..methods import mow", "methods"),
        ("kernels/a.py", "from mow.batch import Posterior", "batch"),
        ("kernels/a.py", "try:\n    pass\nexcept ImportError:\n    from ..config import MowConfig", "config"),
        ("mow/envs/a.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from mow.batch import X", "batch"),
        ("mow/envs/a.py", "from mow import _C", "_C"),
        ("mow/methods/mow/presets.py", "from mow import config, runs", "runs"),
        ("mow/engine/a.py", "from mow.train import main", "train"),
        ("mow/nn/policy.py", "from kernels import uniform", "the link's target"),
        ("mow/__init__.py", "from mow import config", "config"),
    ],
)
def test_a_planted_import_is_caught(tmp_path: Path, name: str, text: str, illegal: str) -> None:
    plant(tmp_path, name, text)
    (line,) = illegal_imports(tmp_path)
    assert line.startswith(f"{name}: ")
    assert f"may not import {illegal}:" in line


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mow/nn/a.py", "from .modular import Stem\nfrom . import policy\nfrom ..kernels import uniform"),
        ("mow/methods/mow/__init__.py", "from .router import Routing\nfrom mow.methods.mow.heads import Heads"),
        ("kernels/a.py", "import torch\nfrom mow.kernels.philox import uniform\nfrom .dispatch import choose"),
        ("mow/replay/sampler.py", "def f():\n    from mow import _C"),
        ("mow/train.py", "from mow.config import MowConfig\nfrom mow.engine.trainer import Run"),
    ],
)
def test_a_legal_import_passes(tmp_path: Path, name: str, text: str) -> None:
    plant(tmp_path, name, text)
    assert illegal_imports(tmp_path) == []


def test_an_unknown_room_is_caught(tmp_path: Path) -> None:
    plant(tmp_path, "mow/cellar.py", "")
    assert illegal_imports(tmp_path) == ["mow/cellar.py: cellar is no room: give it a row in MAY_IMPORT"]


@pytest.mark.parametrize(
    "text", ["import torch", "from torch import nn", "try:\n    import torch.nn\nexcept ImportError:\n    pass"]
)
@pytest.mark.parametrize(
    "name", ["mow/config/run.py", "mow/envs/vector.py", "mow/methods/mow/presets.py", "mow/cli/parse.py"]
)
def test_early_torch_is_caught(tmp_path: Path, name: str, text: str) -> None:
    plant(tmp_path, name, text)
    (line,) = early_torch(tmp_path)
    assert line.startswith(name)


def test_torch_where_it_is_used_passes(tmp_path: Path) -> None:
    plant(tmp_path, "mow/config/run.py", "def f():\n    import torch")
    plant(tmp_path, "mow/cli/parse.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch")
    plant(tmp_path, "mow/batch.py", "import torch")
    assert early_torch(tmp_path) == []


@pytest.mark.parametrize(
    "name",
    [
        "mow/utils.py",
        "mow/nn/common.py",
        "kernels/helpers.py",
        "csrc/misc.h",
        "bench/tools/a.py",
        "tests/test_utils.py",
    ],
)
def test_a_name_without_a_subject_is_caught(tmp_path: Path, name: str) -> None:
    plant(tmp_path, name, "")
    plant(tmp_path, "mow/methods/mow/router.py", "")
    assert len(bad_names(tmp_path)) == 1


@pytest.mark.parametrize("name", ["mow/nn/a.py", "kernels/a.py", "csrc/a.cu", "bench/a.py"])
def test_a_long_file_is_caught(tmp_path: Path, name: str) -> None:
    plant(tmp_path, name, "\n" * MAX_LINES)
    plant(tmp_path, "tests/test_a.py", "\n" * 1000)
    assert long_files(tmp_path) == []
    plant(tmp_path, name, "\n" * (MAX_LINES + 1))
    assert long_files(tmp_path) == [f"{name}: 401 lines, at most 400: split it by idea"]
