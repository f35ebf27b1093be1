"""The phases of a run.

    offline:  a look at the stored episodes; updates of the world model on them; then it is frozen, and policies are
              extracted from it
    online:   random steps, first updates of the world model; then each step acts, with updates of both in between

Source: PWM. Differs: its single-task loop acts on imagined latents for 16 steps, ours reads every observation.
"""

from functools import partial

from mow.methods.base import Phase, Update
from mow.methods.pwm.config import PwmConfig

# Streams of the replay's random draws.
WORLD_MODEL_STREAM, POLICY_STREAM, MEASURE_STREAM = 0, 1, 2


def phases(config: PwmConfig) -> tuple[Phase, ...]:
    """The phases of the module's docstring, with their updates."""
    schedule, tasks = config.schedule, len(config.tasks)
    world_model = partial(Update, "world_model", config.batch.num_sequences, config.length, WORLD_MODEL_STREAM)
    policy = partial(Update, "policy", config.policy.starts, 1, POLICY_STREAM)
    number = schedule.pretrain_updates if config.offline else schedule.first_updates
    note = f"pretrain: {number:,} updates of one world model of {tasks} tasks"
    pretrain = Phase("pretrain", updates=(world_model(count=number),), note=note)
    if config.offline:
        of = "one policy" if config.policy.form == "shared" else f"{tasks} policies"
        note = f"extract: {config.policy_updates:,} updates of {of} on the frozen world model"
        extract = Phase("extract", updates=(policy(count=config.policy_updates),), note=note)
        measured = config.model.observations == "standard" and number > 0  # not in a run that extracts from another
        return (Phase("measure"), pretrain, extract) if measured else (pretrain, extract)
    return (
        Phase("prefill", config.prefill_steps, "random",
              note=f"prefill: {config.prefill_steps:,} random steps per task"),
        pretrain,
        Phase("joint", config.total_steps - config.prefill_steps, "agent",
              updates=(world_model(every=schedule.world_model_every), policy(every=schedule.policy_every)),
              note=f"joint training: to {config.total_steps:,} steps per task"),
    )  # fmt: skip
