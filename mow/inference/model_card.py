"""The README.md beside exported weights: what they are, how they were made, what they score, how to use them."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mow.config import RUNTIME_FIELDS, RunConfig
from mow.methods.mow.ablations import flat
from mow.methods.registry import get_method
from mow.system.whole_file import read_object

# Fields without effect on the weights.
_ASIDE = RUNTIME_FIELDS | {"preset", "folder", "insight_every"}

class Texts(NamedTuple):
    """What a card holds of one method."""

    name: str
    usage: str  # Markdown, with {task}
    table: str  # heading of the table of tasks, and what precedes it
    limits: str


OF_MOW = Texts(
    "Mixture-of-World-Models",
    """```python
import mow

agent = mow.load("FOLDER_OF_THIS_FILE")
env = agent.real("{task}")  # or agent.imagine("{task}"): the task as the world model imagines it
frame, _ = env.reset(seed=1)
action = agent.act(frame, "{task}")
```""",
    """Tasks, clusters, scores

Tasks of one cluster share encoder, decoder, predictors and critic; experts are shared across clusters.
""",
    "The agent plays these tasks alone, at 64 x 64 pixels and under this protocol. The world model is trained on "
    "short rollouts; longer imagined ones drift away from the task.",
)
OF_STATES = Texts(
    "Policies on state vectors",
    """```bash
mow evaluate FOLDER_OF_THIS_FILE
```""",
    "Tasks and scores\n",
    "The policies play these tasks alone, from state vectors in the order of this protocol. A world model among the "
    "weights is trained on short rollouts; longer imagined ones drift away from the task.",
)

Score = tuple[float | None, float | None, int]  # mean return, normalised (0 random play, 1 the reference), episodes


def read_scores(folder: Path, checkpoint: Path, newest: Path) -> dict[str, Score]:
    """Scores of a checkpoint by task: from evaluation.json if that is of this one alone, else from scores.json, which
    the run writes for its newest; empty where neither is of this checkpoint."""
    evaluation = _json(folder / "evaluation.json")
    runs = evaluation.get("runs", [])
    if len(runs) == 1 and _place(Path(runs[0]["checkpoint"])) == _place(checkpoint):
        tasks = evaluation["tasks"].items()
        return {task: (one["value"], one["normalised"], one["episodes"]) for task, one in tasks}
    if _place(checkpoint) != _place(newest):
        return {}
    tasks = _json(folder / "scores.json").get("tasks", {}).items()
    return {task: (one["agent"], one["normalised"], len(one["returns"])) for task, one in tasks}


def _place(checkpoint: Path) -> tuple[bool, str]:
    """Identity of a checkpoint within its run: a superseded one may have the name of a newer one."""
    return checkpoint.parent.name == "superseded", checkpoint.name


def _json(path: Path) -> dict[str, Any]:
    return read_object(path) if os.path.lexists(path) else {}


def write_card(
    config: RunConfig,
    made: str,
    columns: Mapping[str, Mapping[str, object]],
    scores: Mapping[str, Score],
    versions_file: Path,
    texts: Texts,
) -> Iterator[str]:
    """The lines of the card: metadata of the Hugging Face Hub in YAML, then Markdown.

    Args:
        made: a sentence about size, training and origin of the weights.
        columns: of the table of tasks, name -> task -> entry.
        scores: of this checkpoint; empty: it is not scored.
        versions_file: versions.json of the run, which need not exist.
        texts: of the method.
    Raises: ValueError if that file cannot be read.
    """
    versions, presets = _json(versions_file), get_method(config.method).presets
    suites = dict.fromkeys(name.partition(":")[0] for name in config.tasks)
    tags = ("reinforcement-learning", "world-model", "multi-task", *suites)  # no value needs quotes in YAML
    yield "---\nlicense: mit\nlibrary_name: mow\npipeline_tag: reinforcement-learning\ntags:"
    yield from (f"- {tag}" for tag in tags)
    yield f"---\n\n# {config.preset}: one agent for {len(config.tasks)} tasks\n"
    yield f"{texts.name}, preset `{config.preset}`, seed {config.seed}: {made}"
    yield "The weights are in `model.safetensors`, all settings in `config.json`.\n"
    yield texts.usage.format(task=config.tasks[0])
    yield f"\n## {texts.table}"
    yield f"| {' | '.join(('task', *columns, 'return', 'normalised', 'episodes'))} |"
    yield f"| --- |{' ---: |' * (len(columns) + 3)}"
    for name in config.tasks:
        value, normalised, episodes = scores.get(name, (None, None, 0))
        cells = (name, *(column[name] for column in columns.values()), _number(value), _number(normalised), episodes)
        yield f"| {' | '.join(map(str, cells))} |"
    if scores:
        yield "\nNormalised: 0 is random play, 1 the reference (an expert or a human). One run, one seed: no intervals."
    else:
        yield "\nNot scored yet: `mow evaluate` on the folder of these weights does."
    base = flat(presets[config.preset]()) if config.preset in presets else {}
    changed = [f"`{k}` {v}" for k, v in flat(config).items() if k not in _ASIDE and base.get(k) != v]
    yield f"\n## Training\n\nSettings that differ from the preset `{config.preset}`: {', '.join(changed) or 'none'}.\n"
    named = ("mow", "git_commit", "python", "torch", "gpu")
    yield from (f"- {name}: {versions[name]}" for name in named if versions.get(name))
    if protocols := sorted(set(versions.get("protocol", {}).values())):
        yield f"- protocol of the tasks: {'; '.join(protocols)}"
    yield f"\n## Limits\n\n{texts.limits}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
