"""The README.md beside exported weights: what they are, how they were made, what they score, how to use them."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mow.config import RUNTIME_FIELDS
from mow.methods.mow.ablations import flat
from mow.methods.mow.config import MowConfig
from mow.methods.mow.presets import PRESETS
from mow.system.whole_file import read_object

# Fields without effect on the weights.
_ASIDE = RUNTIME_FIELDS | {"preset", "folder", "insight_every"}

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
    config: MowConfig,
    made: str,
    modules: Mapping[str, int],
    experts: Mapping[str, Sequence[int]],
    scores: Mapping[str, Score],
    versions_file: Path,
) -> Iterator[str]:
    """The lines of the card: metadata of the Hugging Face Hub in YAML, then Markdown.

    Args:
        made: a sentence about size, training and origin of the weights.
        modules, experts: by task.
        scores: of this checkpoint; empty: it is not scored.
        versions_file: versions.json of the run, which need not exist.
    Raises: ValueError if that file cannot be read.
    """
    versions, task = _json(versions_file), config.tasks[0]
    suites = dict.fromkeys(name.partition(":")[0] for name in config.tasks)
    tags = ("reinforcement-learning", "world-model", "multi-task", *suites)  # no value needs quotes in YAML
    yield "---\nlicense: mit\nlibrary_name: mow\npipeline_tag: reinforcement-learning\ntags:"
    yield from (f"- {tag}" for tag in tags)
    yield f"---\n\n# {config.preset}: one agent for {len(config.tasks)} tasks\n"
    yield f"Mixture-of-World-Models, preset `{config.preset}`, seed {config.seed}: {made}"
    yield "The weights are in `model.safetensors`, all settings in `config.json`.\n"
    yield f"""```python
import mow

agent = mow.load("FOLDER_OF_THIS_FILE")
env = agent.real("{task}")  # or agent.imagine("{task}"): the task as the world model imagines it
frame, _ = env.reset(seed=1)
action = agent.act(frame, "{task}")
```

## Tasks, clusters, scores

Tasks of one cluster share encoder, decoder, predictors and critic; experts are shared across clusters.

| task | cluster | experts | return | normalised | episodes |
| --- | ---: | ---: | ---: | ---: | ---: |"""
    for name in config.tasks:
        value, normalised, episodes = scores.get(name, (None, None, 0))
        cells = (name, modules[name], " ".join(map(str, experts[name])), _number(value), _number(normalised), episodes)
        yield f"| {' | '.join(map(str, cells))} |"
    if scores:
        yield "\nNormalised: 0 is random play, 1 the reference (an expert or a human). One run, one seed: no intervals."
    else:
        yield "\nNot scored yet: `mow evaluate` on the folder of these weights does."
    base = flat(PRESETS[config.preset]()) if config.preset in PRESETS else {}
    changed = [f"`{k}` {v}" for k, v in flat(config).items() if k not in _ASIDE and base.get(k) != v]
    yield f"\n## Training\n\nSettings that differ from the preset `{config.preset}`: {', '.join(changed) or 'none'}.\n"
    named = ("mow", "git_commit", "python", "torch", "gpu")
    yield from (f"- {name}: {versions[name]}" for name in named if versions.get(name))
    if protocols := sorted(set(versions.get("protocol", {}).values())):
        yield f"- protocol of the tasks: {'; '.join(protocols)}"
    yield "\n## Limits\n"
    yield (
        "The agent plays these tasks alone, at 64 x 64 pixels and under this protocol. The world model is trained on "
        "short rollouts; longer imagined ones drift away from the task."
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
