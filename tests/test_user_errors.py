"""Every mistake that a user can make on a command line: one line that names the remedy, exit code 2, nothing written.

What goes wrong later (disks, signals, numbers, memory) is in tests/faults.
"""

import dataclasses
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mow import train
from mow.evaluate import __main__ as evaluate
from mow.evaluate import ablate, film
from mow.inference import export
from mow.kernels import dispatch
from mow.report import __main__ as report
from mow.runs.checkpoint import save_checkpoint
from mow.runs.restore import environments
from tests.small import run_config

COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train.main, "evaluate": evaluate.main, "ablate": ablate.main, "film": film.main, "report": report.main,
    "export": export.main,
}  # fmt: skip

# (what is typed, what is answered). Words in capitals are places, see `place`.
TYPED = [
    ("train qickstart", "unknown preset 'qickstart': did you mean quickstart"),
    ("train --preset atari4", "the preset is the first word, without a flag, and a run keeps its"),
    ("train --totl-steps 3", "unknown field --totl-steps: did you mean --total-steps"),
    ("train quickstart 5", "Unrecognized"),
    ("train --total-steps many", "--total-steps"),
    ("train --tasks atari:Pnog", "did you mean atari:Pong"),
    ("train --tasks nowhere:Pong", "nowhere"),
    ("train --tasks gym:.x:Y-v0", "its package .x fails when it is imported"),
    ("train --tasks gym::Y-v0", "unknown task 'gym::Y-v0'"),
    ("train --seed 9223372036854775808", "seed must be at most 9223372036854775807, got 9223372036854775808"),
    ("train --seed 4294967296", "seed must be 0 to 4294967295, got 4294967296"),
    (f"train --total-steps {2**31}", "total_steps must be at most 2147483647, got 2147483648"),
    ("train --model.width 2147483640", "some weights of this run would have over 2**63 bytes: take smaller sizes, as"),
    ("train --model.width 1048576", "change a smaller preset (quickstart), --model.width"),
    ("train --optim.agent-lr inf", "agent_lr must be finite, got inf"),
    ("train --optim.agent-eps 1e-200", "agent_eps must be 0 or 1e-37 to 3e+38, got 1e-200"),
    ("train --folder a\0b", "control characters, or bytes that are no UTF-8, in 'a\\x00b': leave them out"),
    ("train --resume a\0b", "control characters, or bytes that are no UTF-8, in 'a\\x00b': leave them out"),
    (f"train --device cpu --folder {'x' * 300}", "(File name too long): give another --folder"),
    ("train --device tpu9", "unknown device 'tpu9': use auto, cpu, cuda or cuda:N"),
    ("train --device mps", "device 'mps' is not supported: use auto, cpu, cuda or cuda:N"),
    ("train --device cuda:77", "use --device cpu"),
    ("train --folder FULL", "FULL is not empty: give another --folder, so that no run is overwritten"),
    ("train --folder FILE", "FILE is not empty: give another --folder"),
    ("train --folder FILE/x --device cpu", "cannot make FILE/x (Not a directory): name another place with --folder"),
    ("train --resume", "--resume needs a run folder: python -m mow.train --resume runs/NAME"),
    ("train --resume NOWHERE", "NOWHERE is no run folder: name one that mow.train wrote"),
    ("train --resume NOWHERE/step_1.pt", "is no run folder: name one that mow.train wrote, or a file in its"),
    ("train --resume BARE", "BARE has no checkpoints/step_*.pt: it stopped before the first; start it again"),
    ("train --resume FULL", "has no checkpoints/step_*.pt"),
    ("train --resume RUN quickstart", "a run goes on with its own preset, got 'quickstart'"),
    ("train quickstart --resume RUN", "a run goes on with its own preset, got 'quickstart' beside --resume: leave it"),
    ("train --resume RUN --seed 1", "a run that goes on cannot change seed: 0 -> 1: start a new one, or change only"),
    ("train --resume RUN --folder x", "a run that goes on cannot change folder: "),
    ("train --resume RUN --device cpu", "RUN/checkpoints/step_00000004.pt is damaged or cut short"),
    ("train --resume CUT --device cpu", "CUT/checkpoints/step_00000004.pt is damaged or cut short"),
    ("train --resume NOJSON", "NOJSON/config.json is not JSON"),
    ("train --resume OTHER --device cpu", "was written with another config (batch.length: 5 -> 6): put config.json"),
    ("train --resume LOCKED --device cpu", "another process trains in LOCKED: wait for it, or give another --folder"),
    ("evaluate", "the following arguments are required: RUN; --help lists the arguments"),
    ("evaluate NOWHERE", "NOWHERE is no run: name a run folder, as mow train printed it"),
    ("evaluate FILE", "FILE is no run: name a run folder, as mow train printed it, or one of its checkpoints/"),
    ("evaluate FULL", "FULL/config.json cannot be read (No such file or directory): name a folder that mow.train"),
    ("evaluate BARE", "BARE has no checkpoints/step_*.pt: let the run write one"),
    ("evaluate BARE --checkpoint best", "BARE has no checkpoints/best.pt: every task must end an episode"),
    ("evaluate RUN --checkpoint last", "invalid choice: 'last'"),
    ("evaluate RUN RUN", "RUN is named twice: a run counts once"),
    ("evaluate RUN TASKS", "TASKS has other tasks (dummy:count-2) than RUN"),
    ("evaluate RUN PROTOCOL", "PROTOCOL has another protocol or action set than RUN: evaluate them one by one"),
    ("evaluate RUN --seed 0", "--seed 0 is that of RUN, whose episodes were trained on: take another --seed"),
    ("evaluate RUN --seed -1", "--seed must be 0 or more, got -1"),
    ("evaluate RUN --episodes 0", "--episodes must be 1 or more, got 0"),
    ("evaluate RUN --seed 9223372036854775808", "--seed must be 0 to 4294967295, got 9223372036854775808"),
    ("evaluate RUN --out a\0b", "control characters, or bytes that are no UTF-8, in 'a\\x00b'"),
    ("evaluate a\udcffb", "control characters, or bytes that are no UTF-8, in 'a\\udcffb'"),
    ("film RUN --windows 1000000", "--windows must be 1 to 10000, got 1000000"),
    ("film RUN --seed 9223372036854775808", "--seed must be 0 to 4294967295, got 9223372036854775808"),
    ("report RUN --windows 1000000", "--windows must be 0 to 10000, got 1000000"),
    ("evaluate RUN --video 30", "--video must be 0 to --episodes 20, got 30"),
    ("evaluate RUN --wat", "unrecognized arguments: --wat; --help lists the arguments"),
    ("evaluate RUN --device mps", "device 'mps' is not supported"),
    ("evaluate RUN --device cpu", "RUN/checkpoints/step_00000004.pt is damaged"),
    ("evaluate RUN --out FILE/x --device cpu", "cannot make FILE/x (Not a directory): name another place with --out"),
    ("film NOWHERE", "no folder NOWHERE: name a run folder, as mow train printed it"),
    ("film RUN --steps 0", "--steps must be 1 or more, got 0"),
    ("film RUN --context 0", "--context must be 1 or more, got 0"),
    ("film RUN --windows 0", "--windows must be 1 or more, got 0"),
    ("film RUN --seed -1", "--seed must be 0 or more, got -1"),
    ("film RUN --seed 0 --steps 4", "--seed 0 is that of the run, whose episodes were trained on: take another"),
    ("film RUN --steps 99", "--context 2 and --steps 99 exceed the model's 16 positions: take at most 16 together"),
    ("film RUN --out picture.jpg", "--out picture.jpg must be a .png in an existing folder"),
    ("film RUN --policy expert", "invalid choice: 'expert'"),
    ("film RUN --steps 4 --device cpu", "RUN/checkpoints/step_00000004.pt is damaged"),
    ("report NOWHERE", "no folder NOWHERE: name a run folder, as mow train printed it"),
    ("report RUN --windows -1", "--windows must be 0 or more, got -1"),
    ("report RUN --out page.txt", "--out page.txt must be a .html in an existing folder"),
    ("report FULL", "FULL"),
    ("export NOWHERE", "NOWHERE is no run: name a run folder, as mow train printed it"),
    ("export RUN --out FULL", "FULL is not empty: give another --out, so that nothing is overwritten"),
    ("export RUN", "RUN/checkpoints/step_00000004.pt is damaged"),
    ("ablate --preset qickstart", "unknown preset 'qickstart': did you mean quickstart"),
    ("ablate --methods no_expert", "unknown method 'no_expert': did you mean no_experts"),
    ("ablate --seeds 0", "--seeds must be 1 or more, got 0"),
    ("ablate --jobs 0", "--jobs must be 1 or more, got 0"),
    ("ablate --seeds 1000000000", "--seeds must be 1 to 1000, got 1000000000"),
    ("ablate -- --seed 3", "--seed and --folder of the runs are set by the grid: use --seeds and --folder before the"),
    ("ablate --preset atari26", "atari26 plays no episodes for a score: add -- --evaluation-episodes 30"),
    ("ablate --folder NOWHERE --table-only", "NOWHERE holds no grid of runs (no parent.json): give the --folder of"),
    ("ablate --folder FILE/x", "cannot make FILE/x (Not a directory): name another place with --folder"),
    ("ablate --folder FULL", "FULL holds something else than a grid of runs: give another --folder"),
    ("ablate --tasks tiny:cat", "did you mean tiny:catch"),
]

# (flags of mow.train, what is answered): every check of the config.
FIELDS = [
    ("--tasks dummy:slide dummy:slide", "tasks must differ, got dummy:slide more than once"),
    ("--total-steps 0", "total_steps must be above 0, got 0"),
    ("--total-steps 3", "total_steps must exceed the prefill of"),
    *((f"--{name} 0", f"{name.replace('-', '_')} must be above 0, got 0")
      for name in ("log-every", "checkpoint-every", "keep-checkpoints")),
    *((f"--{name} -1", f"{name.replace('-', '_')} must be 0 or more, got -1")
      for name in ("evaluation-episodes", "insight-every", "seed")),
    ("--env.num-workers -2", "num_workers must be -1 (auto), 0 or more, got -2"),
    ("--env.protocol 200k", "100k"),
    ("--env.action-set half", "minimal"),
    ("--batch.num-sequences 0", "num_sequences must be above 0, got 0"),
    ("--batch.length 1", "length must be at least 2, got 1"),
    *((f"--loss.{name} -1", f"{name.replace('-', '_')} must be 0 or more, got -1")
      for name in ("reconstruction", "reward", "termination", "task", "dynamics", "representation", "balance",
                   "free-bits")),
    ("--loss.reconstruct-every 0", "reconstruct_every must be above 0, got 0"),
    ("--loss.reconstruct-every 999", "loss.reconstruct_every must be at most batch.length, got 999"),
    ("--loss.weighting fair", "harmony"),
    ("--clustering.num-modules 0", "num_modules must be above 0, got 0"),
    ("--clustering.restarts 0", "restarts must be above 0, got 0"),
    ("--clustering.num-batches 1", "num_batches must be 2 or more (halves are compared), got 1"),
    ("--clustering.method luck", "gradient"),
    ("--replay.prefetch -1", "prefetch must be 0 or more, got -1"),
    ("--replay.store raw --replay.disk x", "replay.disk takes packed frames: use replay.store packed"),
    *((f"--imagination.{name} 0", f"{name.replace('-', '_')} must be above 0, got 0")
      for name in ("num-sequences", "context", "horizon", "temperature")),
    *((f"--actor-critic.{name} 0", f"{name.replace('-', '_')} must be above 0, got 0")
      for name in ("hidden", "num-layers", "rollout-epochs", "rollout-parts", "clip", "memory-gain")),
    *((f"--actor-critic.{name} 1.5", f"{name.replace('-', '_')} must lie in [0, 1], got 1.5")
      for name in ("discount", "lam", "slow-decay", "return-decay", "final-entropy")),
    ("--actor-critic.return-decay 1", "return_decay must be below 1, got 1.0"),
    ("--actor-critic.entropy -1", "entropy must be 0 or more, got -1"),
    ("--actor-critic.rollout-parts 99999", "actor_critic.rollout_parts must be at most imagination.num_sequences"),
    *((f"--optim.{name} 0", f"{name.replace('-', '_')} must be above 0, got 0")
      for name in ("world-model-lr", "world-model-eps", "world-model-clip", "agent-lr", "agent-eps", "agent-clip",
                   "matrix-lr", "weighting-lr")),
    ("--optim.final-lr 2", "final_lr must lie in [0, 1], got 2.0"),
    ("--optim.precision fp8", "bf16"),
    ("--schedule.prefill-steps -2", "prefill_steps must be 0 or more, got -2"),
    ("--schedule.prefill-steps 8000", "lower schedule.prefill_steps, or raise total_steps"),
    ("--schedule.random-action 2", "random_action must lie in [0, 1], got 2.0"),
    ("--actor-critic.entropy-updates -1", "entropy_updates must be 0 or more, got -1"),
    ("--schedule.warmup-updates -1", "warmup_updates must be 0 or more, got -1"),
    *((f"--schedule.{name} 0", f"{name.replace('-', '_')} must be above 0, got 0")
      for name in ("world-model-every", "agent-every", "acting-context")),
    ("--model.max-positions 2", "model.max_positions must cover the longest window of"),
    ("--model.width 10 --model.num-heads 4", "width must be a multiple of num_heads, got 10 and 4"),
    ("--model.dropout 1", "dropout must lie in [0, 1), got 1.0"),
    ("--model.num-bins 4", "num_bins must be odd and >= 3, got 4"),
    ("--model.stale-share 2", "stale_share must lie in [0, 1], got 2.0"),
    ("--model.embedding-size 0", "routing.method learned needs embedding_size above 0"),
    ("--model.shared.kind none", "shared.kind none needs experts.experts_per_task 1"),
    ("--model.experts.experts-per-task 99", "experts_per_task must be at most num_experts, got 99 of"),
    ("--model.perception.channels 3", "channels must be two to four numbers, got (3,)"),
    ("--model.perception.channels 3 0", "channels must all be above 0, got (3, 0)"),
    ("--model.perception.groups 5", "groups must be a multiple of"),
    ("--model.perception.classes 999", "classes must be at most 256, got 999"),
    ("--model.perception.unimix 2", "unimix must lie in [0, 1], got 2.0"),
    ("--model.perception.latent dense", "prior local needs perception.latent spatial"),
    ("--model.routing.hidden 0", "hidden must be above 0, got 0"),
    ("--model.routing.anneal-updates -2", "anneal_updates must be 0 or more, got -2"),
    ("--model.routing.noise -1", "noise must be 0 or more, got -1"),
]  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of broken and half-made runs, by their names in the table."""
    root = tmp_path_factory.mktemp("places")
    small = run_config()
    configs = dict.fromkeys(("RUN", "CUT", "BARE", "LOCKED", "NOJSON", "OTHER"), small) | {
        "TASKS": run_config(tasks=("dummy:count-2",)),
        "PROTOCOL": run_config(env=dataclasses.replace(small.env, protocol="storm")),
    }  # fmt: skip
    with environments(small, seed=0, workers=0) as envs:
        specs = [dataclasses.asdict(spec) for spec in envs.specs]
    for name, config in configs.items():
        (root / name / "checkpoints").mkdir(parents=True)
        (root / name / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
        if name == "BARE":
            continue
        path = root / name / "checkpoints" / "step_00000004.pt"
        before = dataclasses.replace(small, batch=dataclasses.replace(small.batch, length=5))
        kept = before if name == "OTHER" else config
        save_checkpoint(path, {"step": 4, "specs": specs, "config": json.dumps(dataclasses.asdict(kept))})
        content = bytearray(path.read_bytes())
        if name in ("RUN", "TASKS", "PROTOCOL"):
            content[50] ^= 1
        path.write_bytes(content[:-5] if name == "CUT" else content)
    (root / "NOJSON" / "config.json").write_text("{")
    (root / "FULL").mkdir()
    (root / "FULL" / "something").write_text("")
    (root / "FILE").write_text("")
    with open(root / "LOCKED" / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield root


def answered(command: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command ends with."""
    try:
        code = COMMANDS[command](words)
    except SystemExit as ended:
        code = int(str(ended.code))
    said = capsys.readouterr().err
    assert code == 2, said
    assert said.startswith((f"mow.{command}: ", f"mow {command}: ")), said
    assert said.count("\n") == 1, said
    return said


def everything(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(("typed", "answer"), TYPED, ids=[typed for typed, _ in TYPED])
def test_what_is_typed_wrong_is_answered(
    typed: str, answer: str, places: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(places)
    before = everything(places)
    command, *words = typed.split()
    assert answer in answered(command, words, capsys)
    assert everything(places).keys() - before.keys() <= {places / "RUN" / "lock"}


@pytest.mark.parametrize(("flags", "answer"), FIELDS, ids=[flags for flags, _ in FIELDS])
def test_a_field_out_of_range_is_answered(
    flags: str, answer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "run", lambda *_: pytest.fail("it would have run"))
    assert answer in answered("train", ["quickstart", *flags.split()], capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["train --device cpu", "evaluate RUN --device cpu"])
def test_a_backend_that_this_device_lacks_is_answered(
    command: str, places: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(places)
    monkeypatch.setattr(dispatch, "_DEFAULT", "nonsense")
    name, *words = command.split()
    assert "MOW_BACKEND is 'nonsense', which is not to be had on cpu: set it to 'auto' or" in answered(
        name, words, capsys
    )
    assert not (places / "runs").exists()


def test_an_empty_variable_is_as_none() -> None:
    code = "from mow.kernels import choose; print(choose('op', 'auto', ('triton', 'reference')))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "MOW_BACKEND": ""}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "triton\n"
