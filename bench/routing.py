"""Effect of routes, and agreement of learned ones with the right ones.  python -m bench.routing --json FILE

The sequence model and the prior of a world model alone, on planted tasks. A walker and a ball move on a grid of 8 x 8
cells that wraps around; the latent is the grid itself, one class of four per cell, in place of what a VAE would find.
All tasks have the same pictures. They differ in what an action does to the walker (as named, or mirrored) and where
the ball falls (down, or sideways): four kinds of dynamics, two tasks each. There are four experts, one per task; routes
are right where the two tasks of a kind, and no others, share an expert.

Arms: `oracle`, the right routes; `hash`, dealt out in turn, which never pairs a kind; `random`, a balanced draw, which
may; `learned`, the router with its balance loss and its schedule; `one`, one expert for all tasks. Held out: KL of the
next latent, in nats (the latent is known, so it is its negative log-likelihood), and share of cells that are
predicted wrong. ari: agreement of the routes with the kinds.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mow.kernels import PhiloxState
from mow.losses import balance_loss
from mow.methods.mow.clustering import adjusted_rand_index
from mow.methods.mow.config_model import ExpertsConfig, PerceptionConfig, RoutingConfig, SharedConfig, WorldModelConfig
from mow.methods.mow.optim import muon_matrices
from mow.methods.mow.records import HeadInput
from mow.methods.mow.router import Routing
from mow.methods.mow.world_model import WorldModel
from mow.nn.muon import Muon
from mow.nn.routes import FixedRoutes

GRID, NUM_ACTIONS, LENGTH = 8, 4, 8
KIND_OF_TASK = np.repeat(np.arange(4), 2)  # hash sends tasks 0 and 4, 1 and 5, ... to one expert
NUM_TASKS, NUM_EXPERTS = len(KIND_OF_TASK), 4
MOVES = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])  # up, down, left, right: (row, column)
FALLS = np.array([[1, 0], [0, 1]])
ARMS = ("oracle", "hash", "random", "learned", "one")
Windows = tuple[Tensor, Tensor]


def windows(num_sequences: int, rng: np.random.Generator) -> Windows:
    """Random play: codes [K, B, L, cells] int64 (0 empty, 1 ball, 2 walker, 3 both), actions [K, B, L, A] one-hot."""
    shape = (NUM_TASKS, num_sequences)
    mirrored, sideways = (KIND_OF_TASK % 2)[:, None, None], (KIND_OF_TASK // 2)[:, None]
    walker, ball = rng.integers(GRID, size=(2, *shape, 2))
    action = rng.integers(NUM_ACTIONS, size=(*shape, LENGTH))
    codes = np.zeros((*shape, LENGTH, GRID, GRID), np.int64)
    tasks, rows = np.ogrid[: shape[0], : shape[1]]
    for t in range(LENGTH):
        codes[tasks, rows, t, ball[..., 0], ball[..., 1]] += 1
        codes[tasks, rows, t, walker[..., 0], walker[..., 1]] += 2
        walker = (walker + np.where(mirrored, -1, 1) * MOVES[action[:, :, t]]) % GRID
        ball = (ball + FALLS[sideways]) % GRID
    return torch.from_numpy(codes).flatten(3), F.one_hot(torch.from_numpy(action), NUM_ACTIONS).float()


def make_model(arm: str, seed: int, options: argparse.Namespace) -> WorldModel:
    torch.manual_seed(seed)
    model = WorldModel(
        WorldModelConfig(
            width=options.width,
            num_heads=2,
            feedforward=2 * options.width,
            dropout=0.0,
            embedding_size=16,
            prior=options.prior,
            prior_width=options.width,
            task_head=False,
            perception=PerceptionConfig(channels=(2, 2), groups=GRID**2, classes=4, norm="group", latent="spatial"),
            routing=RoutingConfig(method="learned" if arm == "learned" else "hash", hidden=64),
            experts=ExpertsConfig(1 if arm == "one" else NUM_EXPERTS, experts_per_task=1, num_layers=1),
            shared=SharedConfig(kind="none"),
        ),
        action_size=NUM_ACTIONS,
        module_of_task=[0] * NUM_TASKS,
        num_modules=1,
    )
    if arm in ("oracle", "random"):
        right = KIND_OF_TASK if arm == "oracle" else np.random.default_rng(seed).permutation(KIND_OF_TASK)
        model.expert_routes = FixedRoutes(torch.from_numpy(right).unsqueeze(1), NUM_EXPERTS)
    return model


def next_latent_errors(model: WorldModel, seen: Windows, routing: Routing) -> tuple[Tensor, Tensor]:
    """KL of the next latent [K], nats, and share of wrong cells [K]."""
    codes, action = seen
    latent = F.one_hot(codes, 4).float().flatten(3)
    first = torch.zeros(codes.shape[:3], dtype=torch.bool)
    first[:, :, 0] = True
    hidden = model.sequence_model(latent, action, model.window(first), routing)
    logits, _ = model.heads.predict_next_latent(HeadInput(latent, action, hidden), model.plan, model.embedding("heads"))
    ahead, truth = logits[:, :, :-1], codes[:, :, 1:]
    kl = F.cross_entropy(ahead.flatten(0, 3), truth.flatten(), reduction="none").view(truth.shape).sum(dim=3)
    return kl.mean(dim=(1, 2)), (ahead.argmax(dim=-1) != truth).float().mean(dim=(1, 2, 3))


def schedule(model: WorldModel, updates: int, rng: PhiloxState) -> Callable[[int], Routing]:
    """Update -> routing, annealed over the first fifth and then frozen, as by mow.methods.mow.learner."""
    how = model.config.routing
    frozen: list[Tensor] = []

    def routing(update: int) -> Routing:
        progress = min(1.0, 5 * update / updates)
        temperature = (1.0 - progress) * how.temperature_start + progress * how.temperature_end
        if progress >= 1.0 and not frozen:
            frozen.append(model.route(temperature=temperature).plan.routes.detach())
        noise = 0.0 if frozen else how.noise * (temperature - how.temperature_end)
        return model.route(temperature=temperature, noise=noise, rng=rng, frozen=frozen[0] if frozen else None)

    return routing


def optimisers_of(model: WorldModel) -> list[torch.optim.Optimizer]:
    """Adam, and Muon for all matrices."""
    matrices = muon_matrices(model, "all")
    moved = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in moved]
    return [torch.optim.Adam(rest, lr=1e-3), Muon(matrices, lr=2e-3)]


def descend(
    model: WorldModel, optimisers: list[torch.optim.Optimizer], routing: Routing, seen: Windows, lr: float
) -> None:
    """One update of the model, with step sizes of `lr` times the first ones."""
    for optimiser, first in zip(optimisers, (1e-3, 2e-3), strict=True):
        optimiser.param_groups[0]["lr"] = first * lr
        optimiser.zero_grad()
    load = routing.load()
    loss = next_latent_errors(model, seen, routing)[0].sum()
    (loss if load is None else loss + 0.1 * balance_loss(load)).backward()
    for optimiser in optimisers:
        optimiser.step()


def run(arm: str, seed: int, options: argparse.Namespace) -> dict[str, object]:
    """Train and measure one arm."""
    model, data, began = make_model(arm, seed, options), np.random.default_rng(seed), time.process_time()
    routing_at = schedule(model, options.updates, PhiloxState.from_seed(seed, "cpu"))
    optimisers, curve = optimisers_of(model), []
    for update in range(options.updates):
        lr = 1.0 - 0.9 * update / options.updates
        descend(model, optimisers, routing_at(update), windows(4, data), lr)
        if (update + 1) % (options.updates // 5) == 0:
            with torch.no_grad():
                held_out = windows(32, np.random.default_rng(10_000))
                kl, wrong = next_latent_errors(model, held_out, routing_at(update + 1))
            curve.append(round(float(kl.mean()), 3))
    routes = routing_at(options.updates).plan.routes[:, 0]
    return {
        "arm": arm, "seed": seed, "prior": options.prior, "kl": curve, "wrong": round(float(wrong.mean()), 5),
        "ari": round(adjusted_rand_index(routes.numpy(), KIND_OF_TASK), 3), "routes": routes.tolist(),
        "cpu_s": round(time.process_time() - began, 1),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.routing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--seeds", type=int, default=2, help="how many (%(default)s)")
    parser.add_argument("--updates", type=int, default=1200, help="(%(default)s)")
    parser.add_argument("--width", type=int, default=32, help="of sequence model and prior (%(default)s)")
    parser.add_argument("--prior", choices=("dense", "local"), default="dense")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.seeds < 1 or options.updates < 5 or options.width < 2 or options.width % 2:
        parser.error("seeds must be 1 or more, updates 5 or more, width even and 2 or more")
    rows = []
    for seed in range(options.seeds):
        for arm in options.arms:
            rows.append(run(arm, seed, options))
            print(json.dumps(rows[-1]), flush=True)
    if options.json:
        options.json.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
