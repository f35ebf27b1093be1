"""Weights of pwm given away in fewer bytes: bounds of each matrix, and what is rebuilt from the file."""

import json
from pathlib import Path

import pytest
import torch

from mow import train
from mow.cli.command import main
from mow.methods.pwm.config import ModelConfig
from mow.methods.pwm.learner import Learner
from mow.methods.pwm.model import WorldModel
from mow.runs.paths import checkpoints
from mow.runs.precision import Precision, compact, dequantise, expand, is_matrix, quantise
from mow.runs.restore import environments, find_run, restore
from mow.runs.weights import read_weights
from tests.methods.pwm.test_runs import SMALL

HALF = 0.5 * (1 + 1e-4)  # of a step; a weight of 127 steps is rounded to 2^-17 of one by float32 itself
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "run"
    words = [*SMALL, "--collect-episodes", "1", "--folder", str(folder)]
    assert train.main(["pwm_vec", *words, "--checkpoint-every", "99", "--insight-every", "0"]) == 0
    return folder


def loaded(folder: Path) -> Learner:
    run = find_run(folder)
    with environments(run.config, seed=0, workers=0) as envs:
        learner: object = restore(run.checkpoint, run.config, envs, CPU)[0]
    assert isinstance(learner, Learner)
    return learner


def test_a_scale_covers_thirty_two_inputs() -> None:
    weight = torch.full((1, 40), 0.5)
    weight[0, 32:] = 127.0
    level, scale = quantise(weight)
    torch.testing.assert_close(scale, torch.tensor([[0.5 / 127, 1.0]]))
    torch.testing.assert_close(dequantise(level, scale)[0, 30:34], torch.tensor([0.498031, 0.498031, 126.5, 126.5]))


def test_levels_by_hand() -> None:
    weight = torch.tensor([[1.27, -1.27, 0.004, 0.0, 0.018], [0.0, 0.0, 0.0, 0.0, 0.0]])
    level, scale = quantise(weight)
    torch.testing.assert_close(scale, torch.tensor([[0.01], [0.0]]))
    assert level.tolist() == [[126, -127, 0, -128, 1], [-128] * 5]
    expected = torch.tensor([[1.265, -1.265, 0.005, 0.0, 0.015], [0.0] * 5])
    torch.testing.assert_close(dequantise(level, scale), expected)


@pytest.mark.parametrize("shape", [(40, 1376), (3, 40, 64)])
@pytest.mark.parametrize("tail", [1.0, 5.0])
def test_every_weight_is_within_half_a_step_and_small_ones_do_not_vanish(shape: tuple[int, ...], tail: float) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) ** 3 * 0.02 * tail
    level, scale = quantise(weight)
    back = dequantise(level, scale)
    channel = weight.abs().amax(dim=-1, keepdim=True) / 127
    torch.testing.assert_close(scale.amax(dim=-1, keepdim=True), channel)
    assert ((weight - back).abs() <= HALF * channel).all()
    assert (back == 0).float().mean() <= (weight.half() == 0).float().mean() + 0.01
    whole = (weight / channel).round()
    assert (whole == 0).float().mean() > 0.01, "with levels at whole steps they do"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_file_gives_the_world_model_and_the_policies_back(
    run_folder: Path, tmp_path: Path, precision: str
) -> None:
    out = tmp_path / precision
    assert main(["export", str(run_folder), "--out", str(out), "--precision", precision]) == 0
    before, after = loaded(run_folder), loaded(out)
    tensors, content = read_weights(out / "model.safetensors")
    assert content["precision"] == precision
    kinds = {tensor.dtype for tensor in tensors.values()}
    wide = {"fp32": {torch.float32}, "fp16": {torch.float16}, "int8": {torch.int8, torch.float16, torch.float32}}
    assert kinds == wide[precision]
    for part in ("world model", "actors"):
        held = after.networks[part].state_dict()
        for name, weight in before.networks[part].state_dict().items():
            back, apart = held[name], (weight - held[name]).abs()
            if precision == "fp32":
                assert torch.equal(weight, back)
            elif precision == "int8" and is_matrix(name, weight):
                assert (apart <= weight.abs().amax(dim=-1, keepdim=True) / 127 * HALF).all(), name
                assert tensors[f"{part}.{name}"].dtype == torch.int8
            else:
                assert torch.equal(weight.half().float(), back), name
            assert (back == 0).float().mean() <= (weight.half() == 0).float().mean() + 0.01, name
    state = torch.randn(2, 256, 4, generator=torch.Generator().manual_seed(0))
    calm, first = [learner.actor(explore=False) for learner in (before, after)], torch.ones(2, 256, dtype=torch.bool)
    torch.testing.assert_close(calm[0].act(state, first).action, calm[1].act(state, first).action, atol=0.05, rtol=0)
    card = (out / "README.md").read_text()
    assert f"M parameters, {precision}. Exported from `{checkpoints(run_folder)[-1].name}`." in card
    assert [line.split()[1] for line in card.splitlines() if line.startswith("| vec")] == ["vec:lq", "vec:reach"]
    assert main(["evaluate", str(out), "--episodes", "1", "--device", "cpu"]) == 0
    scores = json.loads((out / "evaluation.json").read_text())
    assert {*scores["tasks"]} == {"vec:lq", "vec:reach"}


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_rewards_stay_within_a_hundredth(precision: Precision) -> None:
    """Of a world model whose rewards spread over units; heavy tails as training gives them."""
    torch.manual_seed(0)
    model = WorldModel(ModelConfig(width=64, latent_size=64), num_tasks=2, observation_size=4, action_size=2)
    for parameter in (p for p in model.parameters() if p.dim() == 2):
        parameter.data = torch.randn(parameter.shape) * torch.randn(parameter.shape).abs() / parameter.shape[1] ** 0.5
    model.reward[-1].weight.data[:, 32:] *= torch.linspace(0.2, 1.0, 101)[:, None]
    model.reward[-1].bias.data = -0.5 * (model.bins - 1).square()
    state, action = torch.randn(2, 256, 4), torch.rand(2, 256, 2) * 2 - 1
    before = model.predict_reward(model.encode(state), action).detach()
    model.load_state_dict(expand(compact(model.state_dict(), precision)))
    after = model.predict_reward(model.encode(state), action).detach()
    assert before.std() > 0.1
    assert (after - before).norm() <= 0.01 * before.norm()


def test_policies_are_extracted_from_an_exported_model(run_folder: Path, tmp_path: Path) -> None:
    out, new = tmp_path / "out", tmp_path / "new"
    assert main(["export", str(run_folder), "--out", str(out), "--precision", "int8"]) == 0
    assert main(["extract", str(out), "--data", str(run_folder / "data"), "--folder", str(new)]) == 0
    model, held = loaded(new).world_model.state_dict(), loaded(out).world_model.state_dict()
    assert all(torch.equal(model[name], held[name]) for name in model)
    path = out / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    words = ["extract", str(out), "--data", str(run_folder / "data"), "--folder", str(tmp_path / "no")]
    assert main(words) == 2


def test_precision_of_other_weights() -> None:
    counts, stack = torch.arange(3), torch.ones(2, 1, 4)
    tensors = {"norm.weight": torch.ones(4), "stack.weight": stack, "table": torch.ones(2, 4), "n": counts}
    small = compact(tensors, "int8")
    assert {name: tensor.dtype for name, tensor in small.items()} == {
        "norm.weight": torch.float16, "stack.weight": torch.float16, "table": torch.float16, "n": torch.int64
    }  # fmt: skip
    assert expand(small)["n"].equal(counts)
    with pytest.raises(ValueError, match="table holds numbers beyond the range of float16: take --precision fp32"):
        compact({"table": torch.full((2, 4), 1e6)}, "fp16")
