"""Recipes: functions that return a PwmConfig."""

from collections.abc import Callable

from mow.config import EnvConfig
from mow.methods.pwm.config import BatchConfig, ModelConfig, PolicyConfig, PwmConfig, ScheduleConfig

VEC = ("vec:lq", "vec:button", "vec:reach", "vec:pendulum")
MT6 = (
    "metaworld:reach-v3", "metaworld:drawer-close-v3", "metaworld:button-press-topdown-v3", "metaworld:window-open-v3",
    "dmc:cartpole-balance", "dmc:reacher-easy",
)  # fmt: skip


def pwm_vec() -> PwmConfig:
    """Four small bodies: collect episodes, train one world model on them, extract four policies. Minutes of a CPU."""
    return PwmConfig(
        preset="pwm_vec", tasks=VEC, total_steps=0, collect_episodes=200, evaluation_episodes=20, evaluation_copies=10,
        insight_every=500, checkpoint_every=100,  # a run that is killed loses less than a minute
        model=ModelConfig(width=64, latent_size=64),
        batch=BatchConfig(num_sequences=32, horizon=8),
        policy=PolicyConfig(starts=128, horizon=8, passes=2, width=64),
        schedule=ScheduleConfig(pretrain_updates=3_000, policy_updates=800),
    )  # fmt: skip


def pwm() -> PwmConfig:
    """One task, online: real steps, updates of the world model, and policies trained in it, in turn.

    Source: PWM's single-task loop, with our closed-loop acting and its 8 model updates per 16 steps.
    """
    return PwmConfig(
        preset="pwm", tasks=("dmc:walker-walk",), total_steps=100_000, evaluation_episodes=10, insight_every=1_000,
        model=ModelConfig(size="5M"),
        batch=BatchConfig(num_sequences=256),
    )  # fmt: skip


def pwm_mt6() -> PwmConfig:
    """Six tasks of three bodies, from episodes that it collects or that `mow collect` stored (`--data FOLDER`)."""
    return PwmConfig(
        preset="pwm_mt6", tasks=MT6, total_steps=0, collect_episodes=300, evaluation_episodes=20, evaluation_copies=5,
        insight_every=1_000,
        env=EnvConfig(obs="state", metaworld_repeat=2),
        model=ModelConfig(observations="standard"),
        batch=BatchConfig(num_sequences=21, horizon=8),
        policy=PolicyConfig(starts=128, horizon=8, passes=2, width=128),
        schedule=ScheduleConfig(pretrain_updates=6_000, policy_updates=1_000),
    )  # fmt: skip


PRESETS: dict[str, Callable[[], PwmConfig]] = {one.__name__: one for one in (pwm_vec, pwm, pwm_mt6)}


def summary(config: PwmConfig) -> str:
    """Sizes and updates, for the line that opens a run."""
    widths = config.model.widths(len(config.tasks))
    return (f"world model of width {widths.width}, Z {widths.latent}, horizon {config.batch.horizon}; "
            f"{config.policy_updates:,} updates of the policies")  # fmt: skip
