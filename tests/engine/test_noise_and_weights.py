"""Noise pixels in one of two equal tasks: how far do they change who moves the parameters that both share?"""

import dataclasses
import functools

import torch

from mow.batch import TransitionBatch
from mow.kernels import PhiloxState
from mow.methods.mow.config import LossConfig, OptimConfig
from mow.methods.mow.learner import Learner
from mow.methods.mow.presets import quickstart
from mow.methods.mow.world_model_loss import world_model_losses
from mow.nn.policy import ActionMask
from tests.small import MODEL, run_config

GROUP_NORM = dataclasses.replace(MODEL, perception=dataclasses.replace(MODEL.perception, norm="group"))


def moving_bars(seed: int, *, noise: bool, num_sequences: int = 1, length: int = 6) -> TransitionBatch:
    """Two tasks with the same windows; with noise every pixel of the second is off by up to 60 of 255."""
    rng = torch.Generator().manual_seed(seed)
    shape = (2, num_sequences, length)
    frame = torch.full((*shape, 64, 64, 3), 100, dtype=torch.int16)
    start = torch.randint(0, 8, (num_sequences,), generator=rng)
    for sequence in range(num_sequences):
        for t in range(length):
            left = 8 * int((start[sequence] + t) % 8)
            frame[:, sequence, t, :, left : left + 8] = 180
    if noise:
        frame[1] += torch.randint(-60, 61, frame[1].shape, generator=rng, dtype=torch.int16)
    action = torch.zeros(*shape, 4)
    action[..., 0] = 1.0
    never = torch.zeros(shape, dtype=torch.bool)
    first = never.clone()
    first[:, :, 0] = True
    reward = ((start[:, None] + torch.arange(length)) % 8 == 0).float().expand(shape).contiguous()
    return TransitionBatch(frame.to(torch.uint8), action, reward, never, never, first, never)


@functools.cache
def ratio(weighting: str, *, noise: bool) -> float:
    """Length of the second task's gradient on the shared Transformer over that of the first, after some updates."""
    loss = LossConfig(weighting=weighting, free_bits=0.0)  # type: ignore[arg-type]
    config = run_config(
        tasks=("planted:0", "planted:1"), total_steps=400, loss=loss, optim=OptimConfig(world_model_lr=3e-3),
        # Without noise on the routes, which would give equal tasks other experts.
        model=dataclasses.replace(GROUP_NORM, routing=dataclasses.replace(GROUP_NORM.routing, noise=0.0)),
    )  # fmt: skip
    torch.manual_seed(0)
    mask = ActionMask(torch.ones(2, 4, dtype=torch.bool), torch.zeros(2, 0, dtype=torch.bool))
    learner = Learner(config, mask, torch.device("cpu"))
    with torch.no_grad():  # equal tasks, down to their names
        learner.world_model.task_embedding[1] = learner.world_model.task_embedding[0]
    for update in range(30):
        learner.update_world_model(moving_bars(update, noise=noise))
    batch = moving_bars(1000, noise=noise, num_sequences=4)
    learner.task_weights.adapt(learner.weighted_terms(batch))
    rng = PhiloxState.from_seed(1, "cpu")
    losses = world_model_losses(learner.world_model, batch, learner.routing(), rng, config.loss)
    terms = losses.weighted(config.loss)
    shared = [p for name, p in learner.world_model.named_parameters() if name.startswith("shared.")]
    lengths = []
    for task in range(2):
        own = torch.where(torch.arange(2).unsqueeze(1) == task, terms, terms.detach())
        gradients = torch.autograd.grad(learner.task_weights(own), shared, retain_graph=True)
        lengths.append(torch.cat([g.flatten() for g in gradients]).norm())
    return float(lengths[1] / lengths[0])


def change(weighting: str) -> float:
    return abs(ratio(weighting, noise=True) / ratio(weighting, noise=False) - 1.0)


def test_noise_changes_little_under_the_small_presets_weighting() -> None:
    assert change(quickstart().loss.weighting) < 0.2


def test_noise_changes_much_under_the_literal_form() -> None:
    assert change("harmony") > 0.3
