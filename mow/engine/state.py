"""Content of a checkpoint: every part of a run that changes, so that it goes on as if it had never stopped.

`run` is a mow.engine.trainer.Trainer, which imports this file.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, astuple
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mow.engine.collector import RecentReturns
from mow.engine.recorded import RecordedEpisodes
from mow.engine.sharding import (
    adopt,
    load_replay,
    parts_of_replay,
    prune_replay,
    replay_name,
    replay_sources,
    save_own_replay,
    tasks_state,
)
from mow.nn.finite import check_weights
from mow.replay import Request
from mow.runs.checkpoint import keep_as_best, prune, save_checkpoint
from mow.runs.paths import best_path, checkpoint_path, checkpoints, step_of


def run_state(run: Any) -> dict[str, object]:
    """Tensors, numbers, texts and lists of them; the replay is saved beside it, by mow.replay.save.

    Where batches are drawn ahead of their update, what is pending is named and not copied: it is drawn again, as of the
    step that it was published at.

    Raises: FloatingPointError if the weights are not finite.
    """
    check_weights(run.learner.networks)
    collector, ranks = run.collector, run.ranks
    own_specs = json.dumps([asdict(spec) for spec in collector.envs.specs])
    return {
        "config": json.dumps(asdict(run.config)),
        "specs": [spec for text in ranks.texts(own_specs) for spec in json.loads(text)],
        "step": run.step,
        "phase": run.phase_index,
        "counts": run.counts,
        "counts_before": run.counts_before,
        "tasks": run.tasks,
        "last_loss": run.last_loss,
        "learner": run.learner.state_dict(),
        **tasks_state(collector, ranks),
        "memory": _all_rows(run.actor.state_dict(), ranks),
        "random_actions": json.dumps(collector.rng.bit_generator.state),
        "restarts": sum(map(int, ranks.texts(str(collector.restarts)))),
        "batches": [[*astuple(request), step] for request, step in run.prefetch.saved()],
        "means": _all_rows(run.means.state_dict(), ranks),
        "log": run.logger.state_dict(),
        "data": collector.replay.identity if isinstance(collector.replay, RecordedEpisodes) else "",
        "torch_rng": torch.random.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state(run.learner.device) if run.learner.device.type == "cuda" else None,
        **_of_ranks(run),
    }


def _all_rows(value: Any, ranks: Any) -> Any:
    """Tensors with the rows of own tasks, nested, as those of all tasks."""
    if isinstance(value, dict):
        return {name: _all_rows(each, ranks) for name, each in value.items()}
    if isinstance(value, list):
        return [_all_rows(each, ranks) for each in value]
    return ranks.rows(value) if isinstance(value, torch.Tensor) and value.dim() else value


def _own_rows(value: Any, own: slice) -> Any:
    """The way back."""
    if isinstance(value, dict):
        return {name: _own_rows(each, own) for name, each in value.items()}
    if isinstance(value, list):
        return [_own_rows(each, own) for each in value]
    return value[own] if isinstance(value, torch.Tensor) and value.dim() else value


def _of_ranks(run: Any) -> dict[str, object]:
    """Entries that one process does not need: the parts of the replay, the random numbers of dropout."""
    parts = parts_of_replay(run)
    found: dict[str, object] = {"replay": parts} if parts[0][0] else {}
    if run.ranks.size > 1:
        found["rank_rng"] = run.ranks.rows(torch.random.get_rng_state().unsqueeze(0))
        if run.learner.device.type == "cuda":
            state = torch.cuda.get_rng_state(run.learner.device)
            found["rank_cuda_rng"] = run.ranks.rows(state.unsqueeze(0))
    return found


def save_run(run: Any) -> Path:
    """Write replay and checkpoint, keep it if it is the best one, delete the oldest; returns its path.

    The replay is saved once the checkpoint is written and before it counts, and keeps the saves of the checkpoints
    that stay: none of them ever lacks the replay it goes with, however often a disk is full or the run is killed.
    """
    folder = run.logger.folder
    path = checkpoint_path(folder, run.clock)
    kept = checkpoints(folder)[-max(1, run.config.keep_checkpoints - 1) :]
    save = partial(save_own_replay, run, [step_of(path) for path in kept])
    if run.ranks.size > 1:
        _save_together(run, path, save)
        if run.ranks.rank > 0:
            return path
    else:
        if run.replay_name is None:
            save()  # what names it is a part of the state
        save_checkpoint(path, run_state(run), once_written=save)
    try:
        prune(folder, run.config.keep_checkpoints)
        prune_replay(run, run.config.keep_checkpoints)
        score = run.score
        if run.config.keep_best and score is not None and (run.best_score is None or score > run.best_score):
            keep_as_best(path, score)
            run.best_score = score
            run.say(f"best so far: mean recent score {score:.3f}, kept in {best_path(folder)}")
    except OSError as error:
        run.say(f"{path} is written, but older ones could not be deleted, or best.pt not replaced ({error}): free some "
                "space")
    return path


def _save_together(run: Any, path: Path, save: Callable[[], None]) -> None:
    """Every rank writes its replay, then rank 0 the checkpoint. Raises: OSError on all ranks if one fails."""

    def write() -> None:
        save_checkpoint(path, state)

    for call in (save, write):
        failure: OSError | None = None
        state = run_state(run) if call is write else {}
        try:
            if call is save or run.ranks.rank == 0:
                call()
        except OSError as error:
            failure = error
        if run.ranks.most(failure is not None):
            raise failure or OSError("another rank could not write its part")


def load_run_state(run: Any, state: dict[str, Any]) -> tuple[str, ...]:
    """Put a fresh run where the other one was.

    Its files are not touched: what they hold beyond `state` is left to its logger's load_state_dict.

    Returns: tasks whose simulator cannot go on, and which have begun a new episode.
    """
    device, ranks, folder = run.learner.device, run.ranks, run.logger.folder
    run.step, run.phase_index = int(state["step"]), int(state["phase"])
    for counts, saved in ((run.counts, state["counts"]), (run.counts_before, state["counts_before"])):
        counts.update({kind: int(saved[kind]) for kind in counts})
    run.last_loss = state["last_loss"]
    run.learner.load_state_dict(state["learner"])
    sources, own = replay_sources(folder, state), ranks.own
    name = replay_name(state, run.tasks[own])
    if not all(map(int, ranks.texts(str(int(name is not None))))):
        name = None
    if ranks.size > 1:
        renewed = adopt(run, state, sources, run.step, name)
        run.actor = run.learner.actor()
        collector = run.collector
    else:
        collector, run.replay_name = run.collector, name
        if not run.config.recorded:
            load_replay(collector.replay, [sources[task] for task in run.tasks], run.step, whole=name is not None)
        opened = collector.envs.load_state_dict(json.loads(state["envs"]))
        collector.layout = collector.envs.layout
        shown = (state[name].cpu().numpy() for name in ("frame", "is_first", "is_last"))
        collector.frame, collector.is_first, collector.is_last = shown
        for k, frame in opened.items():
            collector.frame[k], collector.is_first[k], collector.is_last[k] = frame, True, False
        collector.scores = {task: RecentReturns(state["scores"][task]) for task in collector.scores}
        renewed = [run.tasks[k] for k in opened]
    run.actor.load_state_dict(_own_rows(state["memory"], own))
    collector.rng.bit_generator.state = json.loads(state["random_actions"])
    collector.restarts = int(state["restarts"]) if ranks.rank == 0 else 0
    run.means.load_state_dict(_own_rows(state["means"], own), device)
    for *parts, step in state["batches"]:
        run.prefetch.publish(Request(*parts), as_of=step)
    _load_dropout(state, ranks, device, seed=run.config.seed + run.step)
    return tuple(renewed)


def _load_dropout(state: dict[str, Any], ranks: Any, device: torch.device, *, seed: int) -> None:
    """Random numbers of dropout; with another number of ranks new ones, which follow from `seed` and the rank."""
    states, cuda_states = state.get("rank_rng"), state.get("rank_cuda_rng")
    if len(() if states is None else states) != (ranks.size if ranks.size > 1 else 0):
        torch.manual_seed(seed * ranks.size + ranks.rank)
        return
    on_cpu, on_gpu = state["torch_rng"], state["cuda_rng"]
    if states is not None:
        on_cpu, on_gpu = states[ranks.rank], None if cuda_states is None else cuda_states[ranks.rank]
    torch.random.set_rng_state(on_cpu.cpu().clone())  # torch breaks on a row of a larger tensor
    if on_gpu is not None and device.type == "cuda":
        torch.cuda.set_rng_state(on_gpu.cpu().clone(), device)
