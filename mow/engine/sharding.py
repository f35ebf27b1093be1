"""The tasks of a rank: what is made for them, and how they and all that is known of them come to another rank.

What a checkpoint holds of the tasks, it holds of all, in one order: so they may be divided anew whenever they are read.
`run` is a mow.engine.trainer.Trainer, which imports this file.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mow.engine.collector import Collector, RecentReturns
from mow.replay import ReplayBuffer, load, load_tasks
from mow.replay import save as save_replay

MakeTasks = Callable[[Sequence[str], slice], Collector]  # names of all tasks in an order, and which of them to make
_MOVING = "moving"  # in the run folder, while tasks change ranks


def tasks_state(collector: Collector, ranks: Any) -> dict[str, object]:
    """State of all tasks of the run, in their present order: environments, newest observations, recent returns."""
    scores = {task: [*returns] for task, returns in collector.scores.items()}
    own = {**collector.envs.state_dict(), "scores": scores}
    found = [json.loads(text) for text in ranks.texts(json.dumps(own))]
    slots = [slot for each in found for slot in each["slots"]]
    tasks = {slot: task for each in found for slot, task in each["tasks"].items()}
    shown = {name: ranks.rows(torch.from_numpy(getattr(collector, name))) for name in ("frame", "is_first", "is_last")}
    return {
        "envs": json.dumps({"slots": slots, "tasks": tasks}),
        **shown,
        "scores": {task: returns for each in found for task, returns in each["scores"].items()},
    }


def adopt(
    run: Any, state: Mapping[str, Any], sources: Mapping[str, tuple[Path, int]], num_steps: int, name: str | None = None
) -> list[str]:
    """Give this rank its tasks as the learner has divided them.

    Args: state: as `tasks_state` makes it, in the learner's order. sources: task -> folder of a saved replay, and its
        number in there. num_steps: of that replay. name: of the part of it that holds exactly these tasks.
    Returns: tasks whose simulators begin a new episode.
    """
    before, names, own = run.collector, run.tasks, run.ranks.own
    before.envs.close()
    run.ranks.names = names
    made = run.make_tasks(names, own)
    kept = json.loads(state["envs"])["tasks"]
    places = [run.config.tasks.index(name) for name in names[own]]
    renewed = made.envs.load_state_dict({"slots": places, "tasks": {str(place): kept[str(place)] for place in places}})
    for shown in ("frame", "is_first", "is_last"):
        setattr(made, shown, state[shown][own].cpu().numpy().copy())
    for k, frame in renewed.items():
        made.frame[k], made.is_first[k], made.is_last[k] = frame, True, False
    made.rng, made.restarts = before.rng, before.restarts
    made.scores = {task: RecentReturns(state["scores"][task]) for task in made.scores}
    load_replay(made.replay, [sources[task] for task in names[own]], num_steps, whole=name is not None)
    run.collector, run.replay_name = made, name
    run.prefetch.read_from(made.replay)
    return [names[own][k] for k in renewed]


def move(run: Any, order: Sequence[int]) -> None:
    """Sort the tasks, task k becoming the old task order[k], and give every rank those that are its own now.

    Their replay goes through the run folder, which all ranks share.
    """
    collector, ranks, folder = run.collector, run.ranks, run.logger.folder / _MOVING
    state = tasks_state(collector, ranks)
    state |= {name: rows[list(order)] for name, rows in state.items() if isinstance(rows, torch.Tensor)}
    part = folder / f"rank-{ranks.rank}"
    if part.exists():  # of a run that was killed here
        shutil.rmtree(part)
    save_replay(collector.replay, part)
    own = json.dumps({"folder": str(part), "tasks": [spec.name for spec in collector.envs.specs]})
    found = [json.loads(text) for text in ranks.texts(own)]
    sources = {task: (Path(each["folder"]), k) for each in found for k, task in enumerate(each["tasks"])}
    for task in adopt(run, state, sources, collector.replay.num_steps):
        run.say(f"{task}: its simulator cannot be moved to another rank, a new episode begins")
    ranks.texts("")  # all have read
    if ranks.rank == 0:
        shutil.rmtree(folder)


def load_replay(buffer: ReplayBuffer, sources: Sequence[tuple[Path, int]], num_steps: int, *, whole: bool) -> None:
    """Fill an empty buffer. Args: whole: one folder holds these tasks alone, and the next save adds to it."""
    if whole:
        load(sources[0][0], buffer, num_steps=num_steps)
    else:
        load_tasks(sources, buffer, num_steps=num_steps)


def replay_sources(folder: Path, state: Mapping[str, Any]) -> dict[str, tuple[Path, int]]:
    """Task -> the folder of saved replay that a checkpoint goes with, and its number in there."""
    parts = state.get("replay", [["", state["tasks"]]])
    return {task: (folder / "replay" / name, k) for name, tasks in parts for k, task in enumerate(tasks)}


def replay_name(state: Mapping[str, Any], tasks: Sequence[str]) -> str | None:
    """Name of the part of saved replay that holds exactly these tasks, in this order."""
    parts = state.get("replay", [["", state["tasks"]]])
    return next((name for name, held in parts if [*held] == [*tasks]), None)


def save_own_replay(run: Any, keep_steps: Sequence[int]) -> None:
    """Save the replay of this rank; a new buffer gets a folder of its own, as older saves may still be needed."""
    folder, ranks = run.logger.folder / "replay", run.ranks
    if run.config.recorded:
        return
    if run.replay_name is None:
        lives = [int(path.name.split("-")[0]) for path in folder.glob("*-rank-*")]
        life = ranks.texts(str(1 + max(lives, default=0)))[0]
        run.replay_name, run.saves = f"{int(life):03d}-rank-{ranks.rank}", 0
    save_replay(run.collector.replay, folder / run.replay_name, keep_steps=keep_steps)


def parts_of_replay(run: Any) -> list[list[Any]]:
    """[name, tasks] of what all ranks save."""
    tasks = [spec.name for spec in run.collector.envs.specs]
    return [json.loads(text) for text in run.ranks.texts(json.dumps([run.replay_name, tasks]))]


def prune_replay(run: Any, keep: int) -> None:
    """Once all checkpoints that are kept go with the present parts: delete those of before."""
    run.saves += 1
    folder = run.logger.folder / "replay"
    if run.config.recorded or run.saves < keep:
        return
    life = run.replay_name.split("-")[0]
    for path in folder.iterdir():
        if path.is_dir() and path.name.split("-")[0] != life:
            shutil.rmtree(path)
        elif path.is_file() and life:
            path.unlink()

