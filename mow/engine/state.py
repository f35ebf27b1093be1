"""Content of a checkpoint: every part of a run that changes, so that it goes on as if it had never stopped.

`run` is a mow.engine.trainer.Trainer, which imports this file.
"""

import json
from dataclasses import asdict, astuple
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mow.engine.collector import RecentReturns
from mow.engine.recorded import RecordedEpisodes
from mow.nn.finite import check_weights
from mow.replay import Request
from mow.replay import save as save_replay
from mow.runs.checkpoint import keep_as_best, prune, save_checkpoint
from mow.runs.paths import best_path, checkpoint_path, checkpoints, step_of


def run_state(run: Any) -> dict[str, object]:
    """Tensors, numbers, texts and lists of them; the replay is saved beside it, by mow.replay.save.

    Where batches are drawn ahead of their update, what is pending is named and not copied: it is drawn again, as of the
    step that it was published at.

    Raises: FloatingPointError if the weights are not finite.
    """
    check_weights(run.learner.networks)
    collector = run.collector
    return {
        "config": json.dumps(asdict(run.config)),
        "specs": [asdict(spec) for spec in collector.envs.specs],
        "step": run.step,
        "phase": run.phase_index,
        "counts": run.counts,
        "counts_before": run.counts_before,
        "tasks": run.tasks,
        "last_loss": run.last_loss,
        "learner": run.learner.state_dict(),
        "envs": json.dumps(collector.envs.state_dict()),
        "frame": torch.from_numpy(collector.frame),
        "is_first": torch.from_numpy(collector.is_first),
        "is_last": torch.from_numpy(collector.is_last),
        "memory": run.actor.state_dict(),
        "random_actions": json.dumps(collector.rng.bit_generator.state),
        "scores": {task: [*returns] for task, returns in collector.scores.items()},
        "restarts": collector.restarts,
        "batches": [[*astuple(request), step] for request, step in run.prefetch.saved()],
        "means": run.means.state_dict(),
        "log": run.logger.state_dict(),
        "data": collector.replay.identity if isinstance(collector.replay, RecordedEpisodes) else "",
        "torch_rng": torch.random.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state(run.learner.device) if run.learner.device.type == "cuda" else None,
    }


def save_run(run: Any) -> Path:
    """Write replay and checkpoint, keep it if it is the best one, delete the oldest; returns its path.

    The replay is saved once the checkpoint is written and before it counts, and keeps the saves of the checkpoints
    that stay: none of them ever lacks the replay it goes with, however often a disk is full or the run is killed.
    """
    folder = run.logger.folder
    path, replay = checkpoint_path(folder, run.clock), run.collector.replay
    kept = checkpoints(folder)[-max(1, run.config.keep_checkpoints - 1) :]
    save = partial(save_replay, replay, folder / "replay", keep_steps=[step_of(path) for path in kept])
    save_checkpoint(path, run_state(run), once_written=(lambda: None) if run.config.recorded else save)
    try:
        prune(folder, run.config.keep_checkpoints)
        score = run.score
        if run.config.keep_best and score is not None and (run.best_score is None or score > run.best_score):
            keep_as_best(path, score)
            run.best_score = score
            run.say(f"best so far: mean recent score {score:.3f}, kept in {best_path(folder)}")
    except OSError as error:
        run.say(f"{path} is written, but older ones could not be deleted, or best.pt not replaced ({error}): free some "
                "space")
    return path


def load_run_state(run: Any, state: dict[str, Any]) -> tuple[str, ...]:
    """Put a fresh run where the other one was; its replay must hold what it held, in the other one's order of tasks.

    Its files are not touched: what they hold beyond `state` is left to its logger's load_state_dict.

    Returns: tasks whose simulator cannot go on, and which have begun a new episode.
    """
    collector, device = run.collector, run.learner.device
    run.step, run.phase_index = int(state["step"]), int(state["phase"])
    for counts, saved in ((run.counts, state["counts"]), (run.counts_before, state["counts_before"])):
        counts.update({kind: int(saved[kind]) for kind in counts})
    run.last_loss = state["last_loss"]
    run.learner.load_state_dict(state["learner"])
    renewed = collector.envs.load_state_dict(json.loads(state["envs"]))
    shown = (state[name].cpu().numpy() for name in ("frame", "is_first", "is_last"))
    collector.frame, collector.is_first, collector.is_last = shown
    for k, frame in renewed.items():
        collector.frame[k], collector.is_first[k], collector.is_last[k] = frame, True, False
    run.actor.load_state_dict(state["memory"])
    collector.rng.bit_generator.state = json.loads(state["random_actions"])
    collector.restarts = int(state["restarts"])
    collector.scores = {task: RecentReturns(state["scores"][task]) for task in collector.scores}
    run.means.load_state_dict(state["means"], device)
    for *parts, step in state["batches"]:
        run.prefetch.publish(Request(*parts), as_of=step)
    torch.random.set_rng_state(state["torch_rng"].cpu())
    if state["cuda_rng"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda_rng"].cpu(), device)
    return tuple(run.tasks[k] for k in renewed)
