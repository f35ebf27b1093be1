"""A model of tasks whose dynamics conflict uses its routes: others in their place raise the KL of the next latent."""

import argparse

import numpy as np
import torch

from bench.routing import KIND_OF_TASK, NUM_EXPERTS, descend, make_model, next_latent_errors, optimisers_of, windows
from mow.nn.routes import FixedRoutes

UPDATES = 600


def test_other_routes_raise_the_kl_of_conflicting_tasks() -> None:
    model, data = make_model("oracle", 0, argparse.Namespace(width=32, prior="dense")), np.random.default_rng(0)
    optimisers = optimisers_of(model)
    for update in range(UPDATES):
        lr = 1.0 - 0.9 * update / UPDATES
        descend(model, optimisers, model.route(temperature=1.0), windows(4, data), lr)
    held_out = windows(16, np.random.default_rng(10_000))
    with torch.no_grad():
        right = next_latent_errors(model, held_out, model.route(temperature=1.0))[0]  # [K]
        others = (KIND_OF_TASK + 1) % NUM_EXPERTS  # every task at the expert of another kind
        model.expert_routes = FixedRoutes(torch.from_numpy(others).unsqueeze(1), NUM_EXPERTS)
        wrong = next_latent_errors(model, held_out, model.route(temperature=1.0))[0]
    assert (wrong.mean() / right.mean()).item() > 1.5, (right.tolist(), wrong.tolist())
