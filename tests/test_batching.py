"""--batching: three sets of batches, on top of a preset and below what other flags say."""

import pytest

from mow.cli.parse import override, parse
from mow.errors import UsageError
from mow.estimate.flops import agent_update, world_model_update
from mow.methods.mow.presets import BATCHINGS, PRESETS, atari26, with_batching


def sizes(config):
    batch, dream = config.batch, config.imagination
    return (batch.num_sequences, batch.length, dream.num_sequences, dream.context, dream.horizon,
            config.schedule.world_model_every, config.schedule.agent_every)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("storm", (16, 64, 1024, 8, 16, 1, 1)),
        ("light", (16, 64, 256, 8, 16, 1, 2)),
        ("cheap", (8, 32, 256, 8, 16, 1, 2)),
    ],
)
def test_the_three(name, want):
    assert sizes(parse(["atari26", "--batching", name])) == want
    assert sizes(parse([f"--batching={name}"])) == want  # quickstart, from batches of its own
    assert with_batching(atari26(), name).model == atari26().model


def test_storm_is_what_the_papers_presets_have():
    assert parse(["atari26", "--batching", "storm"]) == atari26()
    assert parse(["storm", "--batching", "storm"]) == PRESETS["storm"]()


def test_each_is_cheaper_per_step():
    costs = []
    for name in BATCHINGS:
        config = with_batching(atari26(), name)
        learning, dreaming = world_model_update(config, 18), agent_update(config, 18, 18)
        costs.append(sum(learning.values()) + sum(dreaming.values()) / config.schedule.agent_every)
    storm, light, cheap = costs
    assert light < 0.4 * storm
    assert cheap < 0.6 * light


def test_other_flags_win():
    config = parse(["atari26", "--imagination.horizon", "9", "--batching", "cheap", "--batch.num-sequences", "3"])
    assert sizes(config) == (3, 32, 256, 8, 9, 1, 2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["atari26", "--batching", "stomr"], "one of storm, light, cheap, got 'stomr'"),
        (["atari26", "--batching"], "got ''"),
        (["--batching", "light", "--batching", "cheap"], "--batching cannot be given here"),
        (["--batching", "storm", "--model.max-positions", "32"], "max_positions must cover the longest window of 64"),
    ],
)
def test_mistakes(arguments, says):
    with pytest.raises(UsageError, match=says.replace("(", "\\(")):
        parse(arguments)
    with pytest.raises(ValueError, match="unknown batching"):
        with_batching(atari26(), "heavy")


def test_a_run_that_goes_on_keeps_its_batches():
    with pytest.raises(UsageError, match="--batching cannot be given here"):
        override(atari26(), ["--batching", "light"])
