"""The README.md beside exported weights: what they are, how they were made, what they score, how to use them."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mow.config import RUNTIME_FIELDS, RunConfig
from mow.methods.mow.ablations import flat
from mow.methods.mow.presets import PRESETS
from mow.system.whole_file import read_object

# Fields without effect on what a run learnt.
_ASIDE = RUNTIME_FIELDS | {"preset", "folder", "insight_every"}


@dataclass(frozen=True)
class Score:
    """Scores of one task."""

    value: float | None  # mean return, units of the task
    normalised: float | None  # 0 random play, 1 the reference
    episodes: int


@dataclass(frozen=True)
class Card:
    """Content of the card."""

    config: RunConfig
    checkpoint: str
    step: int  # environment steps per task
    updates: int  # of the world model
    num_parameters: int
    modules: Mapping[str, int]  # task -> its cluster
    experts: Mapping[str, Sequence[int]]  # task -> its experts
    scores: Mapping[str, Score]  # empty: this checkpoint is not scored
    versions: Mapping[str, Any]  # versions.json of the run, empty where there is none


def read_scores(folder: Path, checkpoint: Path, newest: Path) -> dict[str, Score]:
    """Scores of a checkpoint: from evaluation.json if that is of this one alone, else from scores.json, which the run
    writes for its newest."""
    evaluation = _json(folder / "evaluation.json")
    runs = evaluation.get("runs", [])
    if len(runs) == 1 and _place(Path(runs[0]["checkpoint"])) == _place(checkpoint):
        tasks = evaluation["tasks"].items()
        return {task: Score(one["value"], one["normalised"], one["episodes"]) for task, one in tasks}
    if _place(checkpoint) != _place(newest):
        return {}
    tasks = _json(folder / "scores.json").get("tasks", {}).items()
    return {task: Score(one["agent"], one["normalised"], len(one["returns"])) for task, one in tasks}


def _place(checkpoint: Path) -> tuple[bool, str]:
    """Identity of a checkpoint within its run: a superseded one may have the name of a newer one."""
    return checkpoint.parent.name == "superseded", checkpoint.name


def read_versions(folder: Path) -> dict[str, Any]:
    """versions.json; empty where there is none."""
    return _json(folder / "versions.json")


def _json(path: Path) -> dict[str, Any]:
    return read_object(path) if os.path.lexists(path) else {}


def write_card(card: Card) -> Iterator[str]:
    """The lines of the card: metadata of the Hugging Face Hub in YAML, then Markdown."""
    config = card.config
    yield from _metadata(config.tasks)
    yield f"# {config.preset}: one agent for {len(config.tasks)} tasks\n"
    yield (
        f"Mixture-of-World-Models, preset `{config.preset}`, seed {config.seed}: {card.step:,} environment steps per "
        f"task, {card.updates:,} world-model updates, {card.num_parameters / 1e6:.2f} M learned parameters of world "
        f"model and agent. Exported from `{card.checkpoint}`; the weights lie in `model.safetensors`, all settings in "
        "`config.json`.\n"
    )
    yield from _use(config.tasks[0])
    yield "## Tasks, clusters, scores\n"
    yield "Tasks of one cluster share encoder, decoder, predictors and critic; experts are shared across clusters.\n"
    yield "| task | cluster | experts | return | normalised | episodes |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for task in config.tasks:
        score = card.scores.get(task, Score(None, None, 0))
        experts = " ".join(map(str, card.experts[task]))
        numbers = f"{_number(score.value)} | {_number(score.normalised)} | {score.episodes}"
        yield f"| {task} | {card.modules[task]} | {experts} | {numbers} |"
    if card.scores:
        yield "\nNormalised: 0 is random play, 1 the reference (an expert or a human). One run, one seed: no intervals."
    else:
        yield "\nNot scored yet: `mow evaluate` on the folder of these weights does."
    yield "\n## How it was made\n"
    changed = [f"`{name}` {value}" for name, value in _changes(config)]
    yield f"Settings that differ from the preset `{config.preset}`: {', '.join(changed) or 'none'}.\n"
    for name in ("mow", "git_commit", "python", "torch", "gpu"):
        if card.versions.get(name):
            yield f"- {name}: {card.versions[name]}"
    protocols = sorted(set(card.versions.get("protocol", {}).values()))
    if protocols:
        yield f"- protocol of the tasks: {'; '.join(protocols)}"
    yield "\n## Limits\n"
    yield (
        "The agent plays these tasks alone, at 64 x 64 pixels and under this protocol. What it imagines is "
        "trained on short rollouts and drifts away from the task as they grow longer."
    )


def _metadata(tasks: Sequence[str]) -> Iterator[str]:
    """Metadata for the Hub. Suites are tags; no value needs quotes in YAML."""
    suites = dict.fromkeys(task.partition(":")[0] for task in tasks)
    yield "---"
    yield "license: mit"
    yield "library_name: mow"
    yield "pipeline_tag: reinforcement-learning"
    yield "tags:"
    yield from (f"- {tag}" for tag in ("reinforcement-learning", "world-model", "multi-task", *suites))
    yield "---\n"


def _use(task: str) -> Iterator[str]:
    yield "```python"
    yield "import mow"
    yield ""
    yield 'agent = mow.load("FOLDER_OF_THIS_FILE")'
    yield f'env = agent.real("{task}")  # or agent.imagine("{task}"): the task as the world model imagines it'
    yield "frame, _ = env.reset(seed=1)"
    yield f'action = agent.act(frame, "{task}")'
    yield "```\n"


def _changes(config: RunConfig) -> list[tuple[str, object]]:
    base = flat(PRESETS[config.preset]()) if config.preset in PRESETS else {}
    return [(name, value) for name, value in flat(config).items() if name not in _ASIDE and base.get(name) != value]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
