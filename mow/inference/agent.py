"""A trained agent outside of training: it acts on frames, and its world model is an environment. See mow.load."""

from os import PathLike
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mow.engine.device import pick_device
from mow.envs.base import FRAME_SHAPE
from mow.envs.tiny_gymnasium import GymnasiumEnv
from mow.errors import nearest
from mow.inference.imagined_env import ImaginedEnv, ImaginedTasks
from mow.kernels import PhiloxState
from mow.methods.mow.acting import ActingMemory
from mow.methods.mow.config import of_mow
from mow.runs.restore import SavedRun, environments, find_run, restore


class LoadedAgent:
    """One agent for all tasks of its run; tasks can be played in turn, each has an acting memory of its own.

    Every step is computed for all tasks of the run at once, as in training, and costs as much.
    """

    def __init__(self, run: SavedRun, device: torch.device, seed: int) -> None:
        of_mow(run.config)
        with environments(run.config, seed=0, workers=0) as envs:  # only to read the specs of the tasks
            learner, self.step = restore(run.checkpoint, run.config, envs, device)
            specs, layout = envs.specs, envs.layout
        self.config, self.tasks = run.config, run.config.tasks
        self._agent, self._run = learner.agent.eval(), run
        self._imagined = ImaginedTasks(learner.world_model.eval(), learner.routing(), specs, layout, run)
        self._rng = PhiloxState.from_seed(seed, device)
        self._memories: dict[str, tuple[ActingMemory, int]] = {}  # task -> memory, episodes side by side

    @torch.no_grad()
    def act(self, obs: NDArray[np.uint8], task: str) -> int | NDArray[np.int64] | NDArray[np.float32]:
        """An action drawn from the policy, which keeps the episode in memory until `reset`.

        Args:
            obs: [64, 64, 3] uint8, the newest frame; or [B, 64, 64, 3], of B episodes of the task side by side.
            task: one of `tasks`.
        Returns: an action for the environments of `real` and `imagine`: of a discrete task its number among the legal
            ones, int or int64 [B]; of a continuous one float32 [n] or [B, n] in [-1, 1].
        Raises: ValueError if the task is none of the run's, if obs has another shape or type, or another number of
            episodes than before.
        """
        k = self._index(task)
        frames = np.asarray(obs)
        if frames.dtype != np.uint8 or frames.shape[-3:] != FRAME_SHAPE or frames.ndim not in (3, 4):
            raise ValueError(
                f"obs must be uint8 [64, 64, 3] or [B, 64, 64, 3], got {frames.dtype} {list(frames.shape)}: "
                "take it from the environments of `real` or `imagine`"
            )
        batch = frames.reshape(-1, *FRAME_SHAPE)
        started = task in self._memories
        fresh = ActingMemory(of_mow(self.config).schedule.acting_context)
        memory, width = self._memories.setdefault(task, (fresh, len(batch)))
        if len(batch) != width:
            raise ValueError(f"{task}: {width} episodes are being played, got {len(batch)} frames: call reset first")
        imagined, device = self._imagined, self._rng.seed_offset.device
        num_tasks = len(self.tasks)
        # The rows of the other tasks are computed too and mean nothing.
        seen = torch.from_numpy(batch.copy()).to(device).expand(num_tasks, *batch.shape)
        is_first = torch.full((num_tasks, width), not started, device=device)
        action = memory.act(imagined.model, self._agent, imagined.routing, seen, is_first, self._rng)  # [K, B, A]
        memory.record(action)
        native = [imagined.to_native(k, vector) for vector in action[k].cpu().numpy()]
        return np.array(native) if frames.ndim == 4 else native[0]

    def reset(self, task: str | None = None) -> None:
        """The next frame opens an episode: of one task, or of all. Raises: ValueError if the task is unknown."""
        if task is None:
            self._memories.clear()
        else:
            self._index(task)
            self._memories.pop(task, None)

    def real(self, task: str) -> GymnasiumEnv:
        """The task itself, as the run played it. Raises: ValueError if it is none of the run's."""
        self._index(task)
        return GymnasiumEnv(task, self._run.config.env.options)

    def imagine(self, task: str, *, max_steps: int = 100) -> ImaginedEnv:
        """The task as the world model imagines it, from a real first frame on.

        Args: max_steps: after which an imagined episode is truncated; time limits are not imagined.
        Raises: ValueError if the task is none of the run's or max_steps is below 1.
        """
        return ImaginedEnv(self._imagined, self._index(task), max_steps)

    def _index(self, task: str) -> int:
        names = [spec.name for spec in self._imagined.specs]  # sorted by cluster
        if task not in names:
            raise ValueError(f"{task!r} is no task of this run: {nearest(task, names)}")
        return names.index(task)


def load_run(run: str | PathLike[str], *, checkpoint: str, device: str, seed: int) -> LoadedAgent:
    """See mow.load."""
    return LoadedAgent(find_run(Path(run).expanduser(), checkpoint), pick_device(device), seed)
