"""The phases of a run: random prefill, warm-up of the world model, then acting with both updates.

    prefill:  P random steps per task (counted)
    warm-up:  updates of the world model with one module for all tasks; then the tasks are grouped, one module each
    joint:    each step acts in every task; every n steps one world-model update, every m one update in imagination;
              in as many parts as the agent has restarts, and one

Source: MoW sections 3 and 4; the order and the ratio follow STORM's loop.
"""

from functools import partial
from itertools import pairwise

from mow.methods.base import Phase, Update
from mow.methods.mow.config import MowConfig

# Streams of the replay's random draws.
WORLD_MODEL_STREAM, IMAGINATION_STREAM, CLUSTERING_STREAM, BACKGROUND_STREAM = 0, 1, 2, 3


def phases(config: MowConfig) -> tuple[Phase, ...]:
    """The phases of the module's docstring, with their updates."""
    batch, imagination, schedule = config.batch, config.imagination, config.schedule
    world_model = partial(Update, "world_model", batch.num_sequences, batch.length, WORLD_MODEL_STREAM)
    agent = partial(Update, "agent", imagination.num_sequences, imagination.context, IMAGINATION_STREAM)
    prefill = Phase("prefill", config.prefill_steps, "random",
                    note=f"prefill: {config.prefill_steps:,} random steps per task")  # fmt: skip
    warm_up = Phase("warm-up", updates=(world_model(count=config.warmup_updates),),
                    note=f"warm-up: {config.warmup_updates:,} world-model updates, one module for "
                         f"{len(config.tasks)} tasks")  # fmt: skip
    updates = world_model(every=schedule.world_model_every), agent(every=schedule.agent_every)
    joint = [
        Phase(f"joint {part + 1}" if part else "joint", end - begin, "agent", schedule.random_action, updates,
              note=f"{'a new agent' if part else 'joint training'}: to {end:,} steps per task")
        for part, (begin, end) in enumerate(pairwise(_bounds(config)))
    ]  # fmt: skip
    return (prefill, warm_up, *joint)


def _bounds(config: MowConfig) -> list[int]:
    """Steps per task at which joint training begins, the agent begins anew, and the run ends."""
    first, parts = config.prefill_steps, config.schedule.agent_restarts + 1
    return [first + (config.total_steps - first) * part // parts for part in range(parts + 1)]
