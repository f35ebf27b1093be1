"""Milliseconds of PWM's two updates, and of K policies at once against one by one.  python -m bench.pwm --json FILE

--public FOLDER times the released code beside ours, in turn: a checkout of github.com/imgeorgiev/PWM. What its updates
do not need (gym, hydra, omegaconf, tensordict, torchrl, wandb) is stood in for. Sizes as its 5M model:
24 observed numbers, 6 actions, 16 steps, 3 critics, 8 passes of 4 minibatches. Both read the same random windows; its
reward loss is a squared error of the logits, ours a cross-entropy.
"""

import argparse
import contextlib
import importlib
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import torch

from mow.batch import TransitionBatch
from mow.envs.base import ActionLayout, TaskSpec
from mow.methods.base import ObservationSpec, TaskSet
from mow.methods.pwm.config import BatchConfig, ModelConfig, PolicyConfig, PwmConfig
from mow.methods.pwm.learner import Learner
from mow.system.whole_file import write_whole

OBSERVED, ACTIONS, HORIZON = 24, 6, 16
Call = Callable[[], object]


def learner(num_tasks: int, starts: int, windows: int) -> Learner:
    """Ours, of the 5M size. Args: starts: per task, of rollouts. windows: per task, of the world model."""
    names = tuple(f"task:{k}" for k in range(num_tasks))
    specs = tuple(TaskSpec(name, False, ACTIONS, (True,) * ACTIONS, 1, "random", OBSERVED) for name in names)
    config = PwmConfig(
        preset="bench", tasks=names, total_steps=0, collect_episodes=1, model=ModelConfig(size="5M", embedding_size=96),
        batch=BatchConfig(windows, HORIZON), policy=PolicyConfig(starts=starts, horizon=HORIZON),
    )  # fmt: skip
    tasks = TaskSet(specs, ActionLayout.from_tasks(specs), ObservationSpec((OBSERVED,), "float32"))
    return Learner(config, tasks, torch.device("cpu"))


def random_windows(num_tasks: int, number: int, length: int) -> TransitionBatch:
    """Windows in the middle of episodes."""
    shape = (num_tasks, number, length)
    no = torch.zeros(shape, dtype=torch.bool)
    frame, action = torch.randn(*shape, OBSERVED), torch.rand(*shape, ACTIONS) * 2.0 - 1.0
    return TransitionBatch(frame, action, torch.rand(shape), no, no, no, no)


def public(folder: Path, num_tasks: int) -> Any:
    """The released learner, with the sizes of its pwm_5M.yaml."""

    def made(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return instantiate(value) if "_target_" in value else {name: made(each) for name, each in value.items()}

    def instantiate(config: dict[str, Any], **more: Any) -> Any:
        fields = {name: made(value) for name, value in {**config, **more}.items() if name != "_target_"}
        module, _, name = config["_target_"].rpartition(".")
        return getattr(importlib.import_module(module), name)(**fields)

    for name in ("gym", "omegaconf", "tensordict", "tensordict.tensordict", "torchrl", "torchrl.data", "wandb",
                 "torchrl.data.replay_buffers", "torchrl.data.replay_buffers.samplers"):  # fmt: skip
        sys.modules[name] = MagicMock()
    hydra = ModuleType("hydra.utils")
    hydra.instantiate = instantiate  # type: ignore[attr-defined]
    sys.modules |= {"hydra": MagicMock(utils=hydra), "hydra.utils": hydra}
    sys.path.insert(0, str(folder / "src"))
    released: Any = importlib.import_module("pwm.algorithms.pwm")
    normed = {"last_layer": "normedlinear",
              "last_layer_kwargs": {"act": {"_target_": "pwm.models.mlp.SimNorm", "simnorm_dim": 8}}}  # fmt: skip
    plain = {"last_layer": "linear", "last_layer_kwargs": {}}
    model = {
        "_target_": "pwm.models.world_model.WorldModel", "units": [512, 512], "encoder_units": [256], "num_bins": 101,
        "vmin": -10.0, "vmax": 10.0, "task_dim": 96, "multitask": True, "action_dims": [ACTIONS] * num_tasks,
        "tasks": [*range(num_tasks)], "encoder": normed, "dynamics": normed, "reward": plain,
    }  # fmt: skip
    actor = {"_target_": "pwm.models.actor.ActorStochasticMLP", "units": [400, 200, 100],
             "activation_class": torch.nn.Mish, "init_gain": 1.0, "init_logstd": -1.0,
             "min_logstd": -1.427}  # fmt: skip
    critic = {"_target_": "pwm.models.critic.CriticMLP", "units": [400, 200], "activation_class": torch.nn.Mish}
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as logs:
        return released.PWM(
            env=None, actor_config=actor, critic_config=critic, world_model_config=model, horizon=HORIZON,
            max_epochs=10_000, logdir=logs, latent_dim=512, obs_dim=OBSERVED, act_dim=ACTIONS, actor_grad_norm=1.0,
            critic_grad_norm=100.0, num_critics=3, actor_lr=5e-4, critic_lr=5e-4, model_lr=3e-4, ret_rms=True,
            critic_iterations=8, critic_batches=4, lam=0.95, device="cpu", detach=True,
        )  # fmt: skip


def public_pretraining(released: Any, batch: TransitionBatch) -> Call:
    """One update of its world model on our windows, all tasks in one batch."""
    num_tasks, number = batch.reward.shape[:2]
    frame, action, reward = (x.flatten(0, 1).transpose(0, 1) for x in (batch.frame, batch.action, batch.reward))
    task = torch.arange(num_tasks).repeat_interleave(number)

    def update() -> None:
        released.wm_optimizer.zero_grad()
        loss, *_ = released.compute_wm_loss(frame, action[:-1], reward[:-1].unsqueeze(-1), task)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(released.wm.parameters(), released.wm_grad_norm)
        released.wm_optimizer.step()

    return update


def medians(calls: dict[str, Call], rounds: int) -> dict[str, float]:
    """Milliseconds of each, in turn, round after round; the first round is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: round(1e3 * statistics.median(times[1:]), 1) for name, times in seconds.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.pwm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--public", type=Path, help="checkout of the released code, timed beside ours")
    parser.add_argument("--tasks", type=int, default=8, help="K of the policies at once (%(default)s)")
    parser.add_argument("--starts", type=int, nargs="+", default=[32, 512], help="per task (32 512)")
    parser.add_argument("--windows", type=int, default=256, help="of a pre-training update, all tasks (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    released = public(options.public, options.tasks) if options.public else None
    found: dict[str, dict[str, float]] = {}

    batch = random_windows(options.tasks, options.windows // options.tasks, HORIZON + 1)
    ours = learner(options.tasks, 1, options.windows // options.tasks)
    calls: dict[str, Call] = {"ours": partial(ours.update_world_model, batch)}
    if released:
        calls["public"] = public_pretraining(released, batch)
    found[f"pre-training, {options.windows} windows"] = medians(calls, options.rounds)
    for starts in options.starts:
        begin = random_windows(options.tasks, starts, 1)
        first = begin.map(lambda x: x[:1])
        calls = {
            "ours": partial(learner(1, starts, 1).update_policy, first),
            f"ours, {options.tasks} at once": partial(learner(options.tasks, starts, 1).update_policy, begin),
        }
        if released:
            frame, task = first.frame[0].transpose(0, 1), torch.zeros(starts, dtype=torch.long)
            calls["public"] = partial(released.update, frame, None, None, task)
        found[f"extraction, {starts} starts"] = medians(calls, options.rounds)
    for name, times in found.items():
        print(f"{name}: " + ", ".join(f"{each} {ms:,.1f} ms" for each, ms in times.items()))
    if options.json:
        write_whole(options.json, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
