"""Compiled updates: whole graphs, traced once, the numbers of plain PyTorch; and an error where that cannot be."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest
import torch

from mow.methods.mow.compile import UpdateSteps, update_steps, whole_graph
from mow.methods.mow.config import LossConfig, MowConfig, OptimConfig
from mow.methods.mow.config_agent import ActorCriticConfig, ImaginationConfig
from mow.methods.mow.config_model import WorldModelConfig
from mow.methods.mow.learner import Learner
from tests.small import LOCAL, MODEL, action_mask, run_config, transitions

# torch looks at the gradient of the router's shares when it traces them: they have none, and it warns of that.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")

CPU = torch.device("cpu")
# What changes from update to update, where the config lets it: temperatures, noise, step sizes, eta, decoded steps.
MOVING = {
    "optim": OptimConfig(final_lr=0.1),
    "loss": LossConfig(reconstruct_every=2),
    "actor_critic": ActorCriticConfig(hidden=8, final_entropy=0.1, rollout_parts=2),
}
SMALLEST = dataclasses.replace(
    MODEL,
    perception=dataclasses.replace(MODEL.perception, channels=(2, 3), norm="group"),
    experts=dataclasses.replace(MODEL.experts, num_layers=1),
)


@pytest.fixture(autouse=True)
def nothing_compiled_yet() -> Iterator[None]:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.reset()


def graphs() -> int:
    """How many have been traced."""
    found: Counter[str] = torch._dynamo.utils.counters["stats"]
    return found["unique_graphs"]


def learner(config: MowConfig, backend: str | None) -> Learner:
    torch.manual_seed(0)
    made = Learner(config, action_mask(len(config.tasks)), CPU)
    if backend is not None:
        made.steps = update_steps(compiled=True, backend=backend)
    made.regroup(made.group([transitions(seed=1), transitions(seed=2)]))
    return made


def config_of(model: WorldModelConfig, horizon: int = 3, **changes: object) -> MowConfig:
    imagination = ImaginationConfig(num_sequences=2, context=3, horizon=horizon, start="posterior", ends="expected")
    return run_config(**{"total_steps": 400, "model": model, "imagination": imagination, **MOVING, **changes})


def furthest(one: Learner, others: Sequence[Learner], updates: range) -> list[float]:
    """For each of the others: the largest difference of a metric in these updates, as a share of its size or of 1."""
    worst = [0.0] * len(others)
    for seed in updates:
        batch, context = transitions(seed=seed), transitions(length=3, seed=1000 + seed)
        want = {**one.update_world_model(batch), **one.update_agent(context)}
        for index, other in enumerate(others):
            got = {**other.update_world_model(batch), **other.update_agent(context)}
            assert want.keys() == got.keys()
            for name, metric in want.items():
                scale = max(1.0, float(metric.abs().max()))
                worst[index] = max(worst[index], float((metric - got[name]).abs().max()) / scale)
    return worst


def test_updates_are_whole_graphs_traced_once() -> None:
    """Traced and run op by op, an update is bitwise the same; what changes from update to update traces no new graph.

    Each function is traced once: `ahead` for all positions, the losses of the world model for one set of decoded steps
    (test_two_hundred_updates has two sets).
    """
    config = config_of(SMALLEST, horizon=4, loss=LossConfig())
    plain, traced = learner(config, None), learner(config, "eager")
    assert furthest(plain, [traced], range(1)) == [0.0]
    assert graphs() == 6
    assert furthest(plain, [traced], range(1, 4)) == [0.0]
    assert graphs() == 6
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "changes"),
    [(MODEL, {}), (dataclasses.replace(LOCAL, stale_share=0.1), {"optim": OptimConfig(matrices="muon")})],
    ids=["dense", "local, muon"],
)
def test_through_autograd_traced_once(model: WorldModelConfig, changes: dict[str, object]) -> None:
    """aot_eager: forward and backward as inductor gets them, without its code."""
    config = config_of(model, **changes)
    plain, traced = learner(config, None), learner(config, "aot_eager")
    assert max(furthest(plain, [traced], range(2))) < 1e-4
    traced_once = graphs()
    assert max(furthest(plain, [traced], range(2, 6))) < 1e-4
    assert graphs() == traced_once


def nudged(learner: Learner) -> Learner:
    """Its weights moved by at most one rounding of float32."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in (*learner.world_model.parameters(), *learner.agent.parameters()):
            weight.mul_(1.0 + 2.0**-23 * (2.0 * torch.rand(weight.shape, generator=generator) - 1.0))
    return learner


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_two_hundred_updates(backend: str) -> None:
    """Compiled, 200 updates in float32 end no further from plain ones than plain ones from a start rounded differently.

    That is the tolerance, because it is what float32 can promise: every update rounds, and training makes it grow.
    """
    config = config_of(SMALLEST, total_steps=4000)
    plain, compiled, other = learner(config, None), learner(config, backend), nudged(learner(config, None))
    by_compiling, by_rounding = furthest(plain, [compiled, other], range(200))
    assert by_compiling <= max(10 * by_rounding, 1e-5)  # seven digits, of which a hundred roundings may take two
    assert graphs() == 2 + 5


def test_the_switch_of_the_config() -> None:
    plain = Learner(run_config(), action_mask(), CPU).steps
    assert plain == UpdateSteps()
    made = Learner(run_config(optim=OptimConfig(compile=True)), action_mask(), CPU).steps
    for compiled, function in zip((*made, *made.rollout), (*plain, *plain.rollout), strict=True):
        assert compiled != function


@pytest.mark.parametrize("other", [{"task_groups": 2}, {"checkpoint_activations": "transformers"}])
def test_what_cannot_be_compiled_is_said(other: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"optim.compile keeps all activations.*leave it out"):
        OptimConfig(compile=True, **other)


def test_a_function_that_breaks_is_an_error() -> None:
    breaks = whole_graph(lambda x: x if x.sum() > 0 else -x, "eager")
    with pytest.raises(torch._dynamo.exc.TorchDynamoException):
        breaks(torch.ones(3))


def test_a_function_that_is_compiled_again_and_again_is_an_error() -> None:
    grows = whole_graph(lambda x, number: x + number, "eager")
    limit = torch._dynamo.config.recompile_limit
    for number in range(limit):
        grows(torch.ones(3), number)
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        grows(torch.ones(3), limit)
