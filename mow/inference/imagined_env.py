"""A task as a world model imagines it, as a gymnasium environment: rewards, ends and frames are all predicted.

    z_0 ~ q(z | o_0), o_0 real;  then for each action:  h = F(last tokens), z ~ p(h), r, c = heads(h, z), o = decode(z)
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mow.envs.base import FRAME_SHAPE, ActionLayout, Frame, TaskSpec
from mow.envs.guarded import GuardedEnv
from mow.kernels import PhiloxState, two_hot_decode
from mow.methods.mow.config import of_mow
from mow.methods.mow.records import HeadInput
from mow.methods.mow.router import Routing
from mow.methods.mow.world_model import WorldModel
from mow.runs.restore import SavedRun


@dataclass(frozen=True)
class ImaginedTasks:
    """A world model in evaluation mode and the specs of its tasks, in the order of the model."""

    model: WorldModel
    routing: Routing
    specs: tuple[TaskSpec, ...]
    layout: ActionLayout
    run: SavedRun

    def to_native(self, k: int, vector: NDArray[np.float32]) -> Any:
        """An encoded action [A] of task k as gymnasium has it: its number among the legal ones, or float32 [n]."""
        native = self.layout.decode(k, vector)
        if not self.specs[k].discrete:
            return native
        return int(np.flatnonzero(self.specs[k].legal).searchsorted(native))

    def to_vector(self, k: int, action: Any) -> NDArray[np.float32]:
        """The other way: [A]."""
        vector = np.zeros(self.layout.size, np.float32)
        if self.specs[k].discrete:
            vector[np.flatnonzero(self.specs[k].legal)[int(action)]] = 1.0
        else:
            vector[self.layout.num_discrete + np.flatnonzero(self.layout.continuous_mask[k])] = action
        return vector


class ImaginedEnv(gymnasium.Env[Frame, Any]):
    """One task of a world model. An episode opens with a real frame; all later ones are imagined.

    A reset with a seed repeats the episode. As in acting, the last tokens of the run's acting context are read. The
    info of a step has "termination_prob", the probability that the episode ended with it; it ends above one half.

    Args:
        k: the task, in the model's order.
        max_steps: after which an episode is truncated.
    Raises: ValueError if max_steps is below 1.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 12}  # noqa: RUF012 - as gymnasium has it
    render_mode = "rgb_array"

    def __init__(self, tasks: ImaginedTasks, k: int, max_steps: int) -> None:
        if max_steps < 1:
            raise ValueError(f"max_steps must be 1 or more, got {max_steps}")
        self._tasks, self._k, self._max_steps = tasks, k, max_steps
        task = tasks.specs[k]
        self.observation_space = gymnasium.spaces.Box(0, 255, FRAME_SHAPE, np.uint8)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (task.num_actions,), np.float32)
        if task.discrete:
            self.action_space = gymnasium.spaces.Discrete(sum(task.legal))
        self._real: GuardedEnv | None = None  # made for the first real frame
        context = of_mow(tasks.run.config).schedule.acting_context
        self._tokens: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=context)
        self._num_steps, self._running = 0, False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        """Open an episode: [64, 64, 3], a real first frame of the task, or options["frame"].

        Raises: ValueError if there are other options, or the frame is not uint8 [64, 64, 3].
        """
        super().reset(seed=seed)
        unknown = sorted(set(options or {}) - {"frame"})
        if unknown:
            raise ValueError(f"unknown options {', '.join(unknown)}: there is only frame")
        device = self._tasks.model.plan.routes.device
        # Two draws in any case, so that a given frame changes nothing else.
        first, second = (int(x) for x in self.np_random.integers(2**31, size=2))
        given = (options or {}).get("frame")
        if given is None and seed is not None:
            self.close()  # a task may depend on its earlier episodes, and a seed must repeat the first frame
        frame = np.asarray(self._first_frame(first) if given is None else given)
        if frame.dtype != np.uint8 or frame.shape != FRAME_SHAPE:
            raise ValueError(f"the frame must be uint8 [64, 64, 3], got {frame.dtype} {list(frame.shape)}: scale it")
        self._rng = PhiloxState.from_seed(second, device)
        self._tokens.clear()
        self._num_steps, self._running = 0, True
        self._frame = frame.copy()
        model = self._tasks.model
        with torch.no_grad():
            seen = torch.from_numpy(self._frame).to(device).expand(model.num_tasks, 1, 1, *FRAME_SHAPE)
            self._latent = model.sample(model.encode(seen), self._rng)  # [K, 1, 1, Z]
            self._before = torch.zeros_like(self._latent)
        return self._frame.copy(), {}

    @torch.no_grad()
    def step(self, action: Any) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        """One imagined step. Raises: ValueError for an action outside action_space; RuntimeError without an episode."""
        if not self._running:
            raise RuntimeError("no episode is running: call reset first")
        if not self.action_space.contains(action):
            raise ValueError(f"got action {action}, expected one of {self.action_space}: take it from action_space")
        model, k = self._tasks.model, self._k
        vector = torch.from_numpy(self._tasks.to_vector(k, action)).to(self._latent.device)
        taken = vector.expand(model.num_tasks, 1, 1, -1)  # [K, 1, 1, A]; the rows of the other tasks mean nothing
        is_first = torch.full((model.num_tasks, 1, 1), self._num_steps == 0, device=vector.device)
        self._tokens.append((self._latent, taken, is_first))
        latents, actions, firsts = (torch.cat(parts, dim=2) for parts in zip(*self._tokens, strict=True))
        hidden = model.sequence_model(latents, actions, model.window(firsts), self._tasks.routing)[:, :, -1:]
        logits, events = model.predict_next_latent(HeadInput(self._latent, taken, hidden, self._before))
        temperature = of_mow(self._tasks.run.config).imagination.temperature
        self._before, self._latent = self._latent, model.sample(logits / temperature, self._rng)
        reward_logits, termination_logits = model.predict_reward_and_end(hidden.float(), events, self._latent)
        decoded = model.decode(self._latent)[k, 0, 0]  # [64, 64, 3]
        self._frame = (255.0 * decoded.float().clamp(0.0, 1.0)).round().to(torch.uint8).cpu().numpy()
        self._num_steps += 1
        prob = float(termination_logits[k, 0, 0].float().sigmoid())
        terminated = prob > 0.5
        truncated = self._num_steps >= self._max_steps and not terminated
        self._running = not (terminated or truncated)
        reward = float(two_hot_decode(reward_logits, form=model.config.two_hot_form)[k, 0, 0])
        return self._frame.copy(), reward, terminated, truncated, {"termination_prob": prob}

    def render(self) -> Frame:  # type: ignore[override]
        """The newest frame [64, 64, 3]. Raises: RuntimeError before the first reset."""
        if not hasattr(self, "_frame"):
            raise RuntimeError("there is no frame yet: call reset first")
        return self._frame.copy()

    def close(self) -> None:
        """Free the task that the first frames come from."""
        if self._real is not None:
            self._real.close()
            self._real = None

    def __str__(self) -> str:
        return f"<ImaginedEnv {self._tasks.specs[self._k].name}>"

    def _first_frame(self, seed: int) -> Frame:
        if self._real is None:
            name, options = self._tasks.specs[self._k].name, self._tasks.run.config.env.options
            self._real = GuardedEnv(name, seed=seed, options=options)
        frame, _ = self._real.reset(seed=seed)
        return frame
