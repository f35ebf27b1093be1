"""A config comes back as it was written; every mistake in the file is one line with file, field and remedy."""

import dataclasses
import json
import subprocess
import sys

import pytest

from mow.methods.mow.config import MowConfig
from mow.methods.mow.presets import PRESETS
from mow.methods.registry import read_config


def written(tmp_path, *, at=(), value=None, drop=()):
    """config.json of the quickstart preset, the field with the path `at` changed, the one with the path `drop` gone."""
    content = dataclasses.asdict(PRESETS["quickstart"]())
    for path in (at, drop):
        place = content
        for name in path[:-1]:
            place = place[name]
        if path is at and at:
            place[at[-1]] = value
        elif path:
            del place[path[-1]]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def mistake(path):
    with pytest.raises(ValueError, match=str(path)) as caught:
        read_config(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(str(path))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_comes_back(name, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(dataclasses.asdict(PRESETS[name]())), encoding="utf-8")
    assert read_config(path) == PRESETS[name]()


def test_a_file_by_hand(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(
        '{"tasks": ["tiny:catch"], "total_steps": 9000, "preset": "mine", "loss": {"free_bits": 2},'
        ' "model": {"perception": {"channels": [1, 2, 3, 4]}}}',
        encoding="utf-8",
    )
    config = read_config(path)
    assert config.tasks == ("tiny:catch",)
    assert config.model.perception.channels == (1, 2, 3, 4)
    assert type(config.loss.free_bits) is float
    assert config.loss.free_bits == 2.0
    default = MowConfig(tasks=("tiny:catch",), total_steps=9000, preset="mine")
    assert config.model.routing == default.model.routing, "what the file lacks has its default"
    assert config.seed == 0


@pytest.mark.parametrize(
    ("at", "value", "says"),
    [
        (("depth",), 3, ": unknown field depth: delete it, or use the mow that wrote it"),
        (("model", "experts", "colour"), "red", ": unknown field model.experts.colour: delete it"),
        (("model", "width"), "wide", ": model.width must be of type int, got 'wide'"),
        (("model", "width"), True, ": model.width must be of type int, got True"),
        (("seed",), 1.0, ": seed must be of type int, got 1.0"),
        (("loss", "free_bits"), None, ": loss.free_bits must be of type float, got None"),
        (("model", "task_head"), 1, ": model.task_head must be of type bool, got 1"),
        (("imagination", "start"), "middle", ": imagination.start must be one of prior, posterior, got 'middle'"),
        (("imagination", "start"), ["prior"], ": imagination.start must be one of prior, posterior, got ['prior']"),
        (("tasks",), "tiny:catch", ": tasks must be a list, got 'tiny:catch'"),
        (("tasks",), ["tiny:catch", 3], ": tasks[1] must be of type str, got 3"),
        (("model", "perception", "channels"), [1], ": model.perception: channels must be two to four"),
        (("model", "condition"), ["ears"], ": model.condition[0] must be one of encoder, decoder,"),
        (("model", "experts"), 12, ": model.experts must be an object with named fields, got 12"),
        (("model", "width"), -8, ": model: width must be above 0, got -8"),
        (("model", "experts", "num_experts"), 0, ": model.experts: num_experts must be above 0, got 0"),
        (("total_steps",), 0, ": total_steps must be above 0, got 0"),
    ],
)
def test_a_value_that_does_not_fit(at, value, says, tmp_path):
    assert mistake(written(tmp_path, at=at, value=value)).startswith(says)


def test_a_missing_field_without_default(tmp_path):
    assert mistake(written(tmp_path, drop=("tasks",))) == ": field tasks is missing and has no default: write it"


def test_a_missing_field_with_default(tmp_path):
    assert read_config(written(tmp_path, drop=("env",))) == PRESETS["quickstart"]()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[1, 2]", ": the file must be an object with named fields, got [1, 2]"),
        (b"{", " is not JSON ("),
        (b"\xff\xfe", " is not JSON ("),
    ],
)
def test_a_file_that_is_no_config(content, says, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    assert mistake(path).startswith(says)


def test_no_file(tmp_path):
    assert mistake(tmp_path / "config.json").startswith(" cannot be read (No such file or directory): name a folder")


def test_torch_is_not_loaded():
    check = "import sys, mow.config.file; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)
