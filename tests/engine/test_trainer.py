"""The whole loop on the counting environment: what is emitted is what is stored is what the model is fed."""

import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mow.config import ReplayConfig
from mow.engine.collector import Collector
from mow.engine.trainer import Trainer
from mow.envs.dummy import read_counter
from mow.envs.vector import SerialVectorEnv
from mow.methods.mow import METHOD
from mow.methods.mow.clustering import from_labels
from mow.methods.mow.learner import Learner
from mow.methods.mow.phases import IMAGINATION_STREAM, WORLD_MODEL_STREAM
from mow.methods.mow.world_model import WorldModel
from mow.nn.policy import ActionMask
from mow.replay import ReplayBuffer
from mow.replay.packed import why_not_packed
from mow.runs.checkpoint import load_checkpoint
from mow.runs.logger import Logger
from tests.small import MODEL, run_config

_wired = []  # runs whose thread is still to be ended


class Recorder:
    """A vector environment that remembers everything that passed: per task name, in order of time."""

    def __init__(self, envs):
        self.envs = envs
        self.emitted = {spec.name: [] for spec in envs.specs}

    @property
    def specs(self):
        return self.envs.specs

    @property
    def layout(self):
        return self.envs.layout

    def reset(self):
        frame, is_first = self.envs.reset()
        self.now = (frame, is_first)
        return frame, is_first

    def send(self, action):
        self.envs.send(action)
        self.action = action

    def receive(self):
        action, step = self.action, self.envs.receive()
        for k, spec in enumerate(self.specs):
            frame, is_first = self.now[0][k], self.now[1][k]
            ended = bool(step.terminated[k] | step.life_lost[k])
            entry = (frame, bool(is_first), action[k].copy(), float(step.reward[k]), ended, bool(step.truncated[k]))
            self.emitted[spec.name].append(entry)
        self.now = (step.frame, step.is_first)
        return step

    def reorder(self, order):
        self.envs.reorder(order)
        self.now = tuple(x[list(order)] for x in self.now)

    def state_dict(self):
        return self.envs.state_dict()

    def close(self):
        self.envs.close()


def wire(config, folder: Path):
    envs = Recorder(SerialVectorEnv(config.tasks, seed=config.seed, options={}))
    replay = ReplayBuffer(
        len(config.tasks),
        config.total_steps,
        (64, 64, 3),
        envs.layout.size,
        seed=config.seed,
        draw=config.replay.draw,
        store=config.replay.store,
        free_bytes=0 if config.replay.disk else None,  # then all packed frames go there
        disk=Path(config.replay.disk) if config.replay.disk else None,
    )
    layout = envs.layout
    mask = ActionMask(torch.from_numpy(layout.discrete_mask), torch.from_numpy(layout.continuous_mask))
    torch.manual_seed(config.seed)
    config = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, random_action=0.2))
    learner = Learner(config, mask, torch.device("cpu"))
    collector = Collector(envs, replay, seed=config.seed)
    folder.mkdir(exist_ok=True)
    said = []
    run = Trainer(config, METHOD, collector, learner, Logger(folder, 1), said.append)
    _wired.append(run)
    return run, envs, said


@pytest.fixture(autouse=True)
def _no_thread_stays():
    """A run is part of circles of references: without this its thread lives until they are collected."""
    yield
    while _wired:
        _wired.pop().prefetch.close()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run, with every batch and every acted-on frame written down."""
    folder = tmp_path_factory.mktemp("run")
    config = run_config()
    run, envs, said = wire(config, folder)
    batches, acted = [], []
    sample, actor = run.collector.replay.sample, run.learner.actor

    def record_sample(*args, **kwargs):
        batch = sample(*args, **kwargs)
        batches.append((list(run.tasks), {n: t.clone() for n, t in batch.tensors().items()}))
        return batch

    def recorded_actor():
        made = actor()
        act = made.act

        def record_act(frame, is_first):
            acted.append((run.step, list(run.tasks), frame.clone(), is_first.clone()))
            return act(frame, is_first)

        made.act = record_act
        return made

    run.collector.replay.sample = record_sample
    run.learner.actor = recorded_actor  # the trainer asks for one anew where tasks change places
    group = run.learner.group

    def first_and_last_together(batches):
        assert group(batches).num_modules == 2
        return from_labels(np.array([0, 1, 0]), np.eye(3))  # so that the tasks must change places

    run.learner.group = first_and_last_together
    encoded = []
    encode = WorldModel.encode
    WorldModel.encode = lambda self, frame: encoded.append(frame.clone()) or encode(self, frame)
    try:
        run.train()
    finally:
        WorldModel.encode = encode
    run.logger.close()
    return run, envs, said, batches, acted, encoded, folder


def test_every_step_is_taken(finished):
    run, envs, *_ = finished
    assert run.step == run.config.total_steps == 32
    assert all(len(entries) == 32 for entries in envs.emitted.values())
    updates = run.config.warmup_updates + (32 - run.config.prefill_steps)
    assert run.learner.updates == updates == run.config.world_model_updates
    assert run.counts["agent"] == 32 - run.config.prefill_steps


def test_every_window_is_what_the_environment_emitted(finished):
    _, envs, _, batches, *_ = finished
    assert len(batches) > 40
    for tasks, batch in batches:
        for k, task in enumerate(tasks):
            variants = {read_counter(frame.numpy())[0] for frame in batch["frame"][k].flatten(0, 1)}
            assert len(variants) == 1, "a window mixes tasks"
            keys = [(e[0].tobytes()) for e in envs.emitted[task]]
            for b in range(batch["frame"].shape[1]):
                start = keys.index(batch["frame"][k, b, 0].numpy().tobytes())
                for t in range(batch["frame"].shape[2]):
                    frame, is_first, action, reward, terminated, truncated = envs.emitted[task][start + t]
                    assert np.array_equal(batch["frame"][k, b, t].numpy(), frame)
                    assert bool(batch["is_first"][k, b, t]) == (is_first or t == 0)
                    assert np.array_equal(batch["action"][k, b, t].numpy(), action)
                    assert batch["reward"][k, b, t] == reward
                    assert bool(batch["terminated"][k, b, t]) == terminated
                    assert bool(batch["truncated"][k, b, t]) == truncated


def test_the_model_is_fed_nothing_else(finished):
    _, envs, _, _, _, encoded, _ = finished
    emitted = {entry[0].tobytes() for entries in envs.emitted.values() for entry in entries}
    emitted |= {frame.tobytes() for frame in envs.now[0]}
    for frame in encoded:
        for one in frame.flatten(0, 2):
            assert one.numpy().tobytes() in emitted


def test_the_agent_acts_on_the_newest_frame(finished):
    run, envs, _, _, acted, *_ = finished
    assert len(acted) == 32 - run.config.prefill_steps
    for step, tasks, frame, is_first in acted:
        for k, task in enumerate(tasks):
            assert np.array_equal(frame[k].numpy(), envs.emitted[task][step][0])
            assert bool(is_first[k]) == envs.emitted[task][step][1]


def test_tasks_are_sorted_by_module_everywhere(finished):
    run, envs, *_ = finished
    modules = run.learner.world_model.module_of_task
    assert list(modules) == sorted(modules)
    assert [spec.name for spec in envs.specs] == run.tasks
    assert run.tasks == ["dummy:count-0", "dummy:slide", "dummy:count-1"]


def test_the_last_losses_follow_their_tasks(finished):
    run, *_, folder = finished
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    *_, last = (record for record in records if "loss/world_model/dummy:slide" in record)
    assert run.last_loss == [last[f"loss/world_model/{task}"] for task in run.tasks]


def test_the_board_holds_every_loss_per_task(finished):
    run, *_, folder = finished
    board = EventAccumulator(str(folder))
    board.Reload()
    tags = set(board.Tags()["scalars"])
    for task in run.config.tasks:
        for name in ("reconstruction", "reward", "termination", "task", "dynamics", "representation", "world_model"):
            assert f"loss/{name}/{task}" in tags
        for name in ("policy", "value", "entropy"):
            assert f"agent/{name}/{task}" in tags
        assert f"episode_return/{task}" in tags
    assert "loss/balance" in tags
    assert "clustering/similarity" in board.Tags()["images"]


def test_lines_and_checkpoints(finished):
    run, _, said, *_, folder = finished
    assert any("updates/s" in line and "ETA" in line and "frames" in line and "loss" in line for line in said)
    assert any(line.startswith("modules: 0: ") for line in said)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert any("loss/world_model/dummy:slide" in record for record in records)
    assert any("episode_return" in record for record in records)
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names[-1] == "step_00000032.pt"
    assert not any(name.endswith(".partial") for name in names)
    content = load_checkpoint(folder / "checkpoints" / names[-1], torch.device("cpu"))
    assert content["step"] == 32
    assert content["tasks"] == run.tasks


def test_the_same_seed_gives_the_same_run(tmp_path):
    losses = []
    for name in ("a", "b"):
        run, *_ = wire(run_config(total_steps=16), tmp_path / name)
        run.train()
        run.logger.close()
        losses.append((run.last_loss, {n: t.clone() for n, t in run.learner.agent.state_dict().items()}))
    assert losses[0][0] == losses[1][0]
    for name, tensor in losses[0][1].items():
        assert torch.equal(tensor, losses[1][1][name]), name


def test_neither_store_nor_prefetch_changes_what_is_learnt(tmp_path):
    learnt = {}
    folder = str(tmp_path / "disk")
    for store, depth, disk in (("raw", 0, ""), ("raw", 2, ""), ("packed", 1, ""), ("packed", 4, folder)):
        if store == "packed" and why_not_packed():
            continue
        replay = ReplayConfig(store=store, disk=disk, prefetch=depth)
        run, *_ = wire(run_config(total_steps=24, replay=replay), tmp_path / f"{store}{depth}")
        run.train()
        run.logger.close()
        assert (run.collector.replay.store.disk_bytes > 0) == bool(disk)
        learnt[store, depth] = {**run.learner.world_model.state_dict(), **run.learner.agent.state_dict()}
    first, *others = learnt.values()
    assert others
    for other in others:
        for name, tensor in first.items():
            assert torch.equal(tensor, other[name]), name


def test_a_batch_is_drawn_when_the_one_before_it_trains(tmp_path):
    run, *_ = wire(run_config(), tmp_path / "run")
    drawn, sample = [], run.collector.replay.sample

    def record(num_sequences, length, *, counter, stream, **how):
        drawn.append((stream, counter, run.collector.replay.num_steps))
        return sample(num_sequences, length, counter=counter, stream=stream, **how)

    run.collector.replay.sample = record
    run.run_phase()
    run.run_phase()
    run.logger.close()
    prefill, updates = run.config.prefill_steps, run.config.warmup_updates
    trained = [one for one in drawn if one[0] == WORLD_MODEL_STREAM]
    assert trained == [(WORLD_MODEL_STREAM, update, prefill) for update in range(updates + 1)]


def test_the_world_model_trains_while_the_environments_step(tmp_path, monkeypatch):
    """All but the first update of the joint phase, whose batch nobody has drawn yet: regrouping has discarded it."""
    run, envs, _ = wire(run_config(), tmp_path / "run")
    events = []

    def told(owner, name, what):
        method = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **how: (events.append(what), method(*args, **how))[1])

    run.run_phase()
    run.run_phase()
    told(envs, "send", "send")
    told(envs, "receive", "receive")
    told(Learner, "update_world_model", "update")
    run.run_phase()
    run.logger.close()
    steps = run.config.total_steps - run.config.prefill_steps
    assert events == ["send", "receive", "update"] + ["send", "update", "receive"] * (steps - 1)


def test_what_trains_is_whole_in_order_and_given_back(tmp_path, monkeypatch):
    """Through the regrouping, with gathers so slow that a step would overtake them if it did not wait."""
    run, *_ = wire(run_config(), tmp_path / "run")
    drawn, trained, returned, overtaken = [], [], [], []
    sample, give_back = run.collector.replay.sample, run.prefetch.give_back

    def slow(num_sequences, length, *, counter, stream, **how):
        drawn.append((stream, counter))
        steps = run.collector.replay.num_steps
        time.sleep(0.05)
        overtaken.append(run.collector.replay.num_steps - steps)
        return sample(num_sequences, length, counter=counter, stream=stream, **how)

    def record(update):
        def recorded(self, batch, *rest, **named):
            trained.append(([*run.tasks], batch.frame[:, 0, 0].clone()))
            return update(self, batch, *rest, **named)

        return recorded

    for name in ("update_world_model", "update_agent"):
        monkeypatch.setattr(Learner, name, record(getattr(Learner, name)))
    run.collector.replay.sample = slow
    run.prefetch.give_back = lambda batch: returned.append(batch) or give_back(batch)
    run.learner.group = lambda batches: from_labels(np.array([0, 1, 0]), np.eye(3))
    run.train()
    run.logger.close()
    assert len({tuple(tasks) for tasks, _ in trained}) == 2, "the tasks did not change places"
    variant = {}
    for tasks, frames in trained:
        for task, frame in zip(tasks, frames, strict=True):
            assert variant.setdefault(task, read_counter(frame.numpy())[0]) == read_counter(frame.numpy())[0]
    assert len(returned) == len(trained) == run.learner.updates + run.counts["agent"]
    assert not any(overtaken)
    counters = [counter for stream, counter in drawn if stream == IMAGINATION_STREAM]
    assert counters == [*range(run.counts["agent"] + 1)]


def test_insight_comes_when_asked_and_changes_nothing(tmp_path):
    runs = {}
    for every in (0, 4):
        run, *_ = wire(run_config(total_steps=16, insight_every=every), tmp_path / str(every))
        run.train()
        run.logger.close()
        records = [json.loads(line) for line in (tmp_path / str(every) / "metrics.jsonl").read_text().splitlines()]
        seen = [name for record in records for name in record if name.startswith("insight/")]
        runs[every] = (run.last_loss, seen)
    assert runs[0][0] == runs[4][0]
    assert not runs[0][1]
    assert any(name.startswith("insight/effective_rank/dummy:") for name in runs[4][1])


def test_weights_that_are_broken_stop_the_run_with_a_diagnosis(tmp_path):
    run, _, said = wire(run_config(), tmp_path / "nan")
    run.run_phase()
    run.run_phase()
    with torch.no_grad():
        run.learner.world_model.decoder.output.bias.fill_(float("nan"))
    updates = run.learner.updates
    with pytest.raises(FloatingPointError, match=r"5 updates in a row were left out, the last batch is in .*diagnosis"):
        run.run_phase()
    run.logger.close()
    what = f"world model: reconstruction of {run.tasks[0]} is nan"
    assert [line for line in said if "left out" in line] == [
        f"update {updates + n} left out: {what} ({n} in a row)" for n in range(1, 6)
    ]
    diagnosis = load_checkpoint(tmp_path / "nan" / "diagnosis.pt", torch.device("cpu"))
    assert diagnosis["tasks"] == run.tasks
    assert diagnosis["batch"]["frame"].dtype == torch.uint8
    assert diagnosis["error"] == what


def test_tasks_are_not_grouped_by_broken_numbers(tmp_path):
    run, *_ = wire(run_config(), tmp_path / "nan")
    with torch.no_grad():
        run.learner.world_model.decoder.output.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="gradients that tasks are grouped by are not finite: start again"):
        run.train()
    run.logger.close()


@pytest.mark.parametrize("learning", ["world_model", "agent"])
def test_a_single_bad_update_is_left_out_and_the_run_goes_on(tmp_path, learning):
    """Of the agent's gradient too: the weights stay as they were, and finite to the end."""
    run, _, said = wire(run_config(), tmp_path / "run")
    name = "world_model_losses" if learning == "world_model" else "actor_critic_losses"
    losses, calls = getattr(run.learner.steps, name), []

    def broken_once(*args, **options):
        calls.append(1)
        made = losses(*args, **options)
        if len(calls) != 2:
            return made
        if learning == "agent":
            return made._replace(total=made.total * float("inf"))
        return made._replace(terms={**made.terms, "reward": made.terms["reward"] * float("nan")})

    run.learner.steps = run.learner.steps._replace(**{name: broken_once})
    run.train()
    run.logger.close()
    left_out = [line for line in said if "left out" in line]
    assert len(left_out) == 1
    assert ("world model: reward of dummy:" if learning == "world_model" else "agent: the gradient of") in left_out[0]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum("skipped" in row for row in rows) == 1
    for module in (run.learner.world_model, run.learner.agent):
        assert all(bool(parameter.isfinite().all()) for parameter in module.parameters())


def test_the_background_is_what_the_random_steps_share(tmp_path):
    config = run_config(
        model=dataclasses.replace(MODEL, perception=dataclasses.replace(MODEL.perception, background="median"))
    )
    run, envs, _ = wire(config, tmp_path / "run")
    run.run_phase()
    run.run_phase()
    run.logger.close()
    for k, task in enumerate(run.tasks):
        seen = np.stack([entry[0] for entry in envs.emitted[task]])
        background = run.learner.world_model.background[k].numpy()
        # A median of frames drawn again and again: every value of it is one that was there.
        assert (background == seen).any(axis=0).all()
        assert background.any()
