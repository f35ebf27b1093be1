"""A model of tasks whose dynamics conflict uses its routes: others in their place raise the KL of the next latent."""

import argparse

import numpy as np
import torch

from bench.routing import KIND_OF_TASK, NUM_EXPERTS, foretold, make_model, windows
from mow.methods.mow.optim import muon_matrices
from mow.nn.muon import Muon
from mow.nn.routes import FixedRoutes

UPDATES = 600


def test_other_routes_raise_the_kl_of_conflicting_tasks() -> None:
    model, data = make_model("oracle", 0, argparse.Namespace(width=32, prior="dense")), np.random.default_rng(0)
    matrices = muon_matrices(model, "all")
    moved = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in moved]
    optimisers = [torch.optim.Adam(rest, lr=1e-3), Muon(matrices, lr=2e-3)]
    for update in range(UPDATES):
        for optimiser, lr in zip(optimisers, (1e-3, 2e-3), strict=True):
            optimiser.param_groups[0]["lr"] = lr * (1.0 - 0.9 * update / UPDATES)
            optimiser.zero_grad()
        foretold(model, windows(4, data), model.route(temperature=1.0))[0].sum().backward()
        for optimiser in optimisers:
            optimiser.step()
    held_out = windows(16, np.random.default_rng(10_000))
    with torch.no_grad():
        right = foretold(model, held_out, model.route(temperature=1.0))[0]  # [K]
        others = (KIND_OF_TASK + 1) % NUM_EXPERTS  # every task at the expert of another kind
        model.expert_routes = FixedRoutes(torch.from_numpy(others).unsqueeze(1), NUM_EXPERTS)
        wrong = foretold(model, held_out, model.route(temperature=1.0))[0]
    assert (wrong.mean() / right.mean()).item() > 1.5, (right.tolist(), wrong.tolist())
