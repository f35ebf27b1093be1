"""Protocol of an episode in each suite, in words: for the listing, for papers, and the switches that change it."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Protocol:
    """One suite. What is in brackets changes what stands before it: a flag of `python -m mow.train`, or an option for
    `mow.envs.make`."""

    actions: str
    action_repeat: str
    starts: str  # no-ops, seeds
    sticky: str
    life_loss: str
    horizon: str  # a limit truncates, whatever the suite
    reward: str
    success: str
    source: str
    needs: tuple[str, ...]  # modules


PROTOCOLS: dict[str, Protocol] = {
    "atari": Protocol(
        actions="18 discrete, those without use in a game masked (`--env.action-set full`: all)",
        action_repeat="4 frames, maximum of the last 2",
        starts="1 to 30 no-ops, another seed per episode (`--env.protocol storm`: no no-ops, always the same seed)",
        sticky="none (`--env.protocol storm`: 0.25 per frame)",
        life_loss="marks a termination in replay, the episode goes on",
        horizon="27,000 steps = 108,000 frames (option time_limit)",
        reward="as the game's score, not clipped",
        success="-",
        source="SimPLe (Kaiser et al. 2020); storm: STORM (Zhang et al. 2023), released code",
        needs=("gymnasium", "ale_py", "cv2"),
    ),
    "dmc": Protocol(
        actions="continuous, [-1, 1] each",
        action_repeat="2 (`--env.dmc-repeat`)",
        starts="another seed per episode",
        sticky="none",
        life_loss="-",
        horizon="1,000 steps of the simulator = 500 steps (option time_limit)",
        reward="0 to 1 per step of the simulator, summed over the repeat",
        success="-",
        source="Tunyasuvunakool et al. 2020; repeat and cameras of DreamerV3 (Hafner et al. 2023)",
        needs=("dm_control", "mujoco"),
    ),
    "dummy": Protocol(
        actions="3 to 5 discrete, some masked; slide: 2 continuous",
        action_repeat="1",
        starts="another seed per episode",
        sticky="none",
        life_loss="even variants, at step 4; marks a termination in replay",
        horizon="7 to 13 steps, drawn; odd variants end by it",
        reward="1 for the right action, else 0",
        success="slide: the action was right",
        source="for tests of this package",
        needs=("numpy",),
    ),
    "gym": Protocol(
        actions="Discrete, or a bounded Box scaled from [-1, 1]",
        action_repeat="1",
        starts="another seed per episode",
        sticky="as registered (ALE/...-v5: 0.25)",
        life_loss="-",
        horizon="as registered (CartPole-v1: 500 steps)",
        reward="as registered",
        success="info['success'] or info['is_success'] where there is one",
        source="the registration; the picture is what render draws, MuJoCo's from the camera that follows the body",
        needs=("gymnasium", "cv2"),
    ),
    "metaworld": Protocol(
        actions="4 continuous: hand x, y, z and fingers",
        action_repeat="1 (`--env.metaworld-repeat`)",
        starts="goal and objects placed anew, another seed per episode",
        sticky="none",
        life_loss="-",
        horizon="500 steps of the simulator (option time_limit)",
        reward="Meta-World's version 2, 0 to 10 per step of the simulator, summed over the repeat",
        success="at any step",
        source="Yu et al. 2020; camera and rule of success of TD-MPC2 (Hansen et al. 2024); the arm is drawn with a "
        "third of its faces (`--env.render full`: all)",
        needs=("metaworld", "mujoco"),
    ),
    "tiny": Protocol(
        actions="2 to 5 discrete; slide: 1 continuous",
        action_repeat="1",
        starts="another seed per episode",
        sticky="none",
        life_loss="-",
        horizon="7 (catch) to 100 (pole) steps",
        reward="of the order of 1 per event, see `python -m mow.envs.tiny`",
        success="goal: it is reached",
        source="of this package",
        needs=("numpy",),
    ),
}


def table(suites: tuple[str, ...]) -> str:
    """The protocols of some suites in Markdown, one column each."""
    lines = [f"| | {' | '.join(f'`{suite}`' for suite in suites)} |", f"| --- {'| --- ' * len(suites)}|"]
    for field in fields(Protocol):
        if field.name != "needs":
            cells = (getattr(PROTOCOLS[suite], field.name) for suite in suites)
            lines.append(f"| {field.name.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines)
