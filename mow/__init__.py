"""Mixture-of-World Models: one agent that learns many visual tasks. Importing this loads nothing heavy."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import PathLike

    from mow.inference.agent import LoadedAgent

__version__ = "0.1.0"


def load(
    run: "str | PathLike[str]", *, checkpoint: str = "newest", device: str = "auto", seed: int = 0
) -> "LoadedAgent":
    """The agent of a trained run, ready to act, and with it the world model that it was trained in.

        import mow

        agent = mow.load("runs/quickstart-20270101-120000-seed0")
        for env in (agent.real("tiny:catch"), agent.imagine("tiny:catch")):  # the task, and the imagined task
            frame, _ = env.reset(seed=1)
            agent.reset()
            total, over = 0.0, False
            while not over:
                frame, reward, ended, cut, _ = env.step(agent.act(frame, "tiny:catch"))
                total, over = total + reward, ended or cut
            print(f"{env}: {total:.1f}")

    Args:
        run: folder that mow.train wrote; or one of its checkpoints, or a folder that mow.inference.export wrote.
        checkpoint: of a run folder: newest, or best, the one with the best recent returns in training.
        device: auto, cpu, cuda or cuda:N.
        seed: of all draws of the agent.
    Raises: ValueError in one line with the remedy if there is no run, if its checkpoint cannot be read, or if a
        simulator of its tasks is not installed.
    """
    from mow.inference.agent import load_run

    return load_run(run, checkpoint=checkpoint, device=device, seed=seed)
