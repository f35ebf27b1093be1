"""The phases of a run: random prefill, warm-up of the world model, then acting with both updates.

    prefill:  P random steps per task (counted)
    warm-up:  updates of the world model with one module for all tasks; then the tasks are grouped, one module each
    joint:    each step acts in every task; every n steps one world-model update, every m one update in imagination

Source: MoW sections 3 and 4; the order and the ratio follow STORM's loop.
"""

from functools import partial

from mow.methods.base import Phase, Update
from mow.methods.mow.config import MowConfig

# Streams of the replay's random draws.
WORLD_MODEL_STREAM, IMAGINATION_STREAM, CLUSTERING_STREAM, BACKGROUND_STREAM = 0, 1, 2, 3


def phases(config: MowConfig) -> tuple[Phase, ...]:
    """The phases of the module's docstring, with their updates."""
    batch, imagination, schedule = config.batch, config.imagination, config.schedule
    world_model = partial(Update, "world_model", batch.num_sequences, batch.length, WORLD_MODEL_STREAM)
    agent = partial(Update, "agent", imagination.num_sequences, imagination.context, IMAGINATION_STREAM)
    return (
        Phase("prefill", config.prefill_steps, "random",
              note=f"prefill: {config.prefill_steps:,} random steps per task"),
        Phase("warm-up", updates=(world_model(count=config.warmup_updates),),
              note=f"warm-up: {config.warmup_updates:,} world-model updates, one module for {len(config.tasks)} tasks"),
        Phase("joint", config.total_steps - config.prefill_steps, "agent", schedule.random_action,
              (world_model(every=schedule.world_model_every), agent(every=schedule.agent_every)),
              note=f"joint training: to {config.total_steps:,} steps per task"),
    )  # fmt: skip
