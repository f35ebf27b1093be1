"""Overrides reach the config; every mistake is one line that names the remedy, at once and without a trace."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from mow.cli.parse import flags, parse
from mow.errors import UsageError, nearest
from mow.methods.mow.presets import PRESETS


def mistake(*arguments: str) -> str:
    """The one line that the arguments are answered with."""
    with pytest.raises(UsageError) as caught:
        parse(arguments)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    assert message.isascii(), "no frame is left of tyro's box"
    return message


def test_nothing_said_is_quickstart() -> None:
    assert parse([]) == PRESETS["quickstart"]()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_alone_is_the_preset(name: str) -> None:
    assert parse([name]) == PRESETS[name]()


def test_overrides_reach_the_config() -> None:
    config = parse(
        ["atari4", "--total-steps", "600", "--seed=3", "--loss.free-bits", "0.5", "--model.perception.norm", "group"]
    )
    assert (config.total_steps, config.seed, config.loss.free_bits) == (600, 3, 0.5)
    assert config.model.perception.norm == "group"
    assert config.preset == "atari4"
    assert config.tasks == PRESETS["atari4"]().tasks, "what was not named stays as it was"
    assert config.model.width == 256


def test_switches() -> None:
    config = parse(["quickstart", "--storm-compat", "--model.no-task-head", "--actor-critic.no-survival-weight"])
    assert config.storm_compat
    assert not config.model.task_head
    assert not config.actor_critic.survival_weight
    assert parse(["storm", "--model.task-head"]).model.task_head


def test_tuples() -> None:
    config = parse(["--tasks", "atari:Pong", "dummy:count", "--model.perception.channels", "4", "8", "8", "16"])
    assert config.tasks == ("atari:Pong", "dummy:count")
    assert parse(["--tasks", "mt10", "dmc:walker-walk"]).tasks == (*PRESETS["mt10"]().tasks, "dmc:walker-walk")
    assert config.model.perception.channels == (4, 8, 8, 16)
    assert parse(["atari4", "--model.condition", "heads", "actor"]).model.condition == ("heads", "actor")


def test_underscores_are_as_good_as_dashes() -> None:
    assert parse(["--total_steps", "900", "--model.perception.unimix", "0"]).total_steps == 900


def test_unknown_preset() -> None:
    assert mistake("atari5") == "unknown preset 'atari5': did you mean atari4, atari26?"
    # A word that is near to none gets the first three.
    assert mistake("zzz") == f"unknown preset 'zzz': did you mean {', '.join(list(PRESETS)[:3])}?"


def test_unknown_task() -> None:
    message = mistake("atari4", "--tasks", "atari:Pongg")
    assert "unknown task 'atari:Pongg'" in message
    assert "atari:Pong," in message


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--totl-steps", "total-steps"),
        ("--model.widht", "model.width"),
        ("--width", "model.width"),
        ("--loss.freebits=2", "loss.free-bits"),
    ],
)
def test_unknown_field(typed: str, meant: str) -> None:
    message = mistake(typed, "5")
    assert message.startswith(f"unknown field {typed.split('=')[0]}: did you mean ")
    assert meant in message


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--seed", "-1"], ["seed must be 0 or more, got -1"]),
        (["--model.perception.unimix", "2"], ["unimix must lie in [0, 1], got 2.0"]),
        (["--total-steps", "5"], ["total_steps must exceed the prefill of 9 steps", "got 5"]),
        (["--model.width", "100", "--model.num-heads", "3"], ["width must be a multiple of num_heads, got 100 and 3"]),
        (["--tasks", "atari:Pong", "atari:Pong"], ["tasks must differ, got atari:Pong more than once"]),
        (["--seed", "x"], ["--seed", "int", "'x'"]),
        (["--total-steps", "1.5"], ["--total-steps", "int", "'1.5'"]),
        (["--loss.task", "much"], ["--loss.task", "float", "much"]),
        (["--env.protocol", "200k"], ["'200k'", "--env.protocol", "100k", "storm"]),
        (["--model.condition", "hed"], ["'hed'", "--model.condition", "heads"]),
        (["--model.perception.channels", "1"], ["channels must be two to four numbers, got (1,)"]),
        (["--seed"], ["--seed", "Expected 1"]),
        (["--storm-compat", "yes"], ["yes"]),
        (["atari4", "quickstart"], ["quickstart"]),
        (["--preset", "atari4"], ["the preset is the first word"]),
        (["-x"], ["-x", "write --field VALUE"]),
    ],
)
def test_values_that_do_not_fit(arguments: list[str], parts: list[str]) -> None:
    message = mistake(*arguments)
    for part in parts:
        assert part in message


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_the_presets(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse([flag])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: python -m mow.train [PRESET]")
    assert f"presets of mow: {', '.join(PRESETS)}" in said


def test_help_after_a_preset_lists_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["atari4", "--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    for name in ("--total-steps", "--model.width", "--model.perception.norm", "--storm-compat"):
        assert name in said


def test_flags_are_as_typed() -> None:
    names = flags(PRESETS["quickstart"]())
    assert {"--tasks", "--total-steps", "--model.perception.unimix", "--actor-critic.lam"} <= set(names)
    assert {"--storm-compat", "--no-storm-compat", "--model.no-task-head"} <= set(names)
    assert "--no-seed" not in names, "only switches have an opposite"
    assert "--model" not in names, "a group is not a field"
    assert len(names) == len(set(names))


def test_nearest_gives_three_at_most() -> None:
    assert nearest("widht", ["width", "height", "weight", "eight", "light"]).count(",") == 2
    assert nearest("qqq", ["a", "b", "c", "d"]) == "did you mean a, b, c?"


def test_a_typing_mistake_is_answered_at_once(tmp_path: Path) -> None:
    code = (
        "import runpy, sys\n"
        "sys.argv = ['mow.train', 'atari5']\n"
        "try:\n"
        "    runpy.run_module('mow.train', run_name='__main__')\n"
        "finally:\n"
        "    assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    root = Path(__file__).resolve().parents[2]
    commands = [[sys.executable, "-m", "mow.train", "atari5"]] * 3 + [[sys.executable, "-c", code]]
    took = []
    for command in commands:
        started = time.monotonic()
        done = subprocess.run(
            command, cwd=tmp_path, env={"PYTHONPATH": str(root)}, capture_output=True, text=True, check=False
        )
        took.append(time.monotonic() - started)
        assert done.returncode == 2, done.stderr
        assert done.stderr == "mow.train: unknown preset 'atari5': did you mean atari4, atari26?\n"
        assert done.stdout == ""
    assert min(took[:3]) < 2.0  # seconds; the best of three, since other programs may have the processor
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--total-steps", "600"], ["--total-steps=600"], ["--total_steps", "600"]])
def test_a_shorter_run_has_every_phase_and_says_so(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    config = parse(words)
    assert (config.total_steps, config.prefill_steps, config.warmup_updates) == (600, 90, 9)
    assert "schedule.prefill_steps 90, schedule.warmup_updates 9" in capsys.readouterr().out
    given = parse([*words, "--schedule.prefill-steps", "200"])
    assert (given.prefill_steps, given.warmup_updates) == (200, 9), "what is given is taken"
    capsys.readouterr()
    longer = parse(["--total-steps", "20000"])
    assert (longer.prefill_steps, longer.warmup_updates) == (1_140, 120)
    assert capsys.readouterr().out == ""
