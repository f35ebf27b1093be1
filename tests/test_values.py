"""Every field of a config with values of all kinds: the run can start, or one line says why not."""

import contextlib
import dataclasses
import io
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mow import train
from mow.engine import assemble
from mow.methods.mow.config import MowConfig
from tests.test_train import DUMMY

INTS = (-(10**30), -1, 0, 1, 2, 3, 7, 1000, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 10**30)
FLOATS = (-1.0, 0.0, 1e-320, 1e-37, 1e-4, 0.5, 0.999, 1.0, 1.5, 3e38, 1e308, float("inf"), float("-inf"), float("nan"))
WORDS = ("", " ", "a\nb", "a\0b", "\udcff", "\x1b[1m", "ä b'c", "x" * 5000, "cuda:99", "cuda:-1", "cpu", "cpu:5",
         "dummy:slide", "tiny5", "gym:", "gym::", "gym:.x:Y-v0", "gym:a/b", "gym:a\0b", ":", "atari:Pong/..",
         "gym:tests.small:Y-v0", "gym:CartPole-v1")  # fmt: skip
# Too slow to try in turn: a compiler starts, or a thousand processes.
SLOW = {("optim.compile", True), ("env.num_workers", 7), ("env.num_workers", 1000)}


def fields(kind: type = MowConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, annotated type) of all leaves."""
    for name, hint in get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from fields(typing.cast(type, hint), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", hint


FIELDS = dict(fields())


def values(hint: Any) -> st.SearchStrategy:
    if get_origin(hint) is tuple:
        return st.lists(values(get_args(hint)[0]), max_size=5).map(tuple)
    if get_origin(hint) is Literal:
        return st.sampled_from((*get_args(hint), "nonsense", ""))
    return st.sampled_from({bool: (True, False), int: INTS, float: FLOATS, str: WORDS}[hint])


def words(path: str, value: object) -> list[str]:
    group, _, name = path.replace("_", "-").rpartition(".")
    flag = f"--{group}.{name}" if group else f"--{name}"
    if isinstance(value, bool):
        return [flag if value else f"--{group}.no-{name}".replace("--.", "--")]
    if isinstance(value, tuple):
        return [flag, *map(str, value)]
    return [f"{flag}={value}"]


class Reached(BaseException):
    """The next thing would be to make the run folder."""


def outcome(arguments: list[str]) -> tuple[int, str]:
    """Exit code and what was said on stderr."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = train.main(arguments)
        except SystemExit as ended:
            code = int(str(ended.code))
    return code, said.getvalue()


def check(path: str, value: object, folder: Path) -> bool:
    """Whether a run with this value gets as far as its folder."""
    given = [] if path == "folder" else ["--folder", str(folder / "run")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)

        def reached(*_: object) -> Path:
            raise Reached

        patch.setattr(assemble, "folder_to_write", reached)
        try:
            code, said = outcome(["quickstart", *DUMMY, *given, *words(path, value)])
        except Reached:
            return True
    assert (code, said.count("\n")) == (2, 1), f"{path} {value!r}: {code}, {said}"
    assert not (folder / "run").exists()
    return False


@pytest.mark.parametrize("path", FIELDS)
def test_a_value_is_refused_in_one_line_or_the_run_can_start(path: str, tmp_path: Path) -> None:
    most = 40 if str in (FIELDS[path], *get_args(FIELDS[path])) else 6

    @settings(derandomize=True, max_examples=most, deadline=None, suppress_health_check=list(HealthCheck))
    @given(values(FIELDS[path]))
    def every_value(value: object) -> None:
        if path != "preset" and (path, value) not in SLOW:
            check(path, value, tmp_path)

    every_value()


# Ends of the ranges that checks leave, several in a run, each of which was tried alone.
EXTREME = (
    {"imagination.temperature": 1e-3, "model.routing.temperature_start": 1e3, "model.perception.unimix": 1.0,
     "actor_critic.discount": 1.0, "actor_critic.lam": 0.0, "actor_critic.return_decay": 0.0, "loss.free_bits": 0.0},
    {"imagination.temperature": 1e3, "model.dropout": 0.999, "model.stale_share": 1.0, "actor_critic.discount": 0.0,
     "actor_critic.clip": 1e30, "actor_critic.slow_decay": 0.0, "schedule.random_action": 1.0, "model.num_bins": 3},
    {"optim.agent_clip": 1e-30, "optim.world_model_clip": 1e30, "optim.final_lr": 0.0, "loss.reconstruction": 0.0,
     "loss.balance": 0.0, "model.embedding_size": 1, "imagination.context": 1, "imagination.horizon": 1,
     "schedule.acting_context": 1, "optim.task_groups": 7, "log_every": 2**31 - 1, "seed": 2**32 - 1},
    {"schedule.warmup_updates": 0, "schedule.prefill_steps": 0, "schedule.agent_every": 2**31 - 1,
     "clustering.num_modules": 7, "replay.prefetch": 0, "keep_checkpoints": 2**31 - 1, "checkpoint_every": 1},
)  # fmt: skip


@pytest.mark.parametrize("changes", EXTREME, ids=range(len(EXTREME)))
def test_the_ends_of_the_ranges_train(changes: dict[str, object], tmp_path: Path) -> None:
    assert changes.keys() <= FIELDS.keys()
    more = [word for path, value in changes.items() for word in words(path, value)]
    scored = ["--evaluation-episodes", "1", "--evaluation-copies", "1", "--folder", str(tmp_path / "run")]
    assert outcome(["quickstart", *DUMMY, *scored, *more]) == (0, "")
    assert (tmp_path / "run" / "scores.json").exists()
