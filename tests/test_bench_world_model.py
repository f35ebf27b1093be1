"""The bench of the world model alone: its measures by hand, and a few updates of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.recording import record, unbroken
from bench.world_model import main, make_config, read_arguments
from bench.world_model_measures import _sign, mean_code
from mow.kernels import two_hot_decode


def test_a_few_updates_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "found.json"
    asked = ["--tasks", "tiny:catch", "tiny:pole", "--rows", "preset", "transition", "--updates", "2", "--steps", "200"]
    main([*asked, "--json", str(path)])
    found = json.loads(path.read_text(encoding="utf-8"))
    assert [record["row"] for record in found["records"]] == ["preset", "transition"]
    for measured in found["records"]:
        assert measured["ms"] > 0
        assert all(value > 0.0 for value in measured["reconstruction/energy"])
        assert all(value is None or 0.0 <= value <= 1.0 for value in measured["sign, real"])
        assert np.isfinite(measured["KL"]).all()
    transition = found["records"][1]  # whose reward does not read the next latent, real or imagined
    assert transition["reward CE/base rate, real"] == transition["reward CE/base rate, imagined"]
    assert "preset, seed 0, tiny:catch: rec" in capsys.readouterr().out


def test_both_replays_are_play_of_their_own_and_the_same_again() -> None:
    config = make_config(read_arguments(["--tasks", "tiny:catch", "--steps", "100"]), "preset", 0)
    one, other = (record(config, steps=64, held_out=64) for _ in range(2))
    assert torch.equal(one.windows(4, 8, 0).frame, other.windows(4, 8, 0).frame)
    assert not torch.equal(one.windows(4, 8, 0).frame, one.windows(4, 8, 0, held_out=False).frame)


def test_windows_in_one_episode_by_hand() -> None:
    config = make_config(read_arguments(["--tasks", "tiny:catch", "--steps", "100"]), "preset", 0)
    batch = record(config, steps=64, held_out=64).windows(16, 8, 0)
    inside = [not any(row[1:5]) for row in batch.is_first[0].tolist()]
    assert unbroken(batch, 5)[0].tolist() == inside
    assert any(inside)
    assert not all(inside)


def test_signs_by_hand() -> None:
    expected = np.array([0.5, -0.1, 0.2, 0.0], np.float32)
    assert _sign(expected, np.array([1.0, -1.0, -1.0, 0.0], np.float32)) == pytest.approx(0.75)
    assert np.isnan(_sign(expected, np.array([1.0, 1.0, 0.0, 0.0], np.float32)))


@pytest.mark.parametrize("reward", [0.0, 1.0, -3.5, 100.0])
def test_the_mean_code_of_one_number_decodes_to_it(reward: float) -> None:
    code = mean_code(torch.full((7,), reward), 255)
    assert code.sum().item() == pytest.approx(1.0, abs=1e-5)
    decoded = two_hot_decode(code.clamp_min(1e-30).log(), form="symexp_of_mean").item()
    assert decoded == pytest.approx(reward, rel=1e-4, abs=1e-5)  # linear in symlog between two bins
